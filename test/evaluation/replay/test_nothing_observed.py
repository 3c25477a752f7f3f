"""A recording in which no image can be observed ends with one sentence and exit status 1, before other recipes run."""

import csv
import functools
from pathlib import Path

import bag_factory
import pytest
from bag_factory import write_bag

from sqap_vla_ros import cli
from sqap_vla_ros.evaluation.replay import tables
from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.serving import worker as serving_worker
from sqap_vla_ros.serving.worker import WorkerConfig


def depth(stamp_ns, number):
    message = image(stamp_ns, number)
    message.encoding, message.step = "16UC1", 2 * message.width
    return message


image = bag_factory.image


@pytest.fixture
def quick_policy(monkeypatch):
    """Which policy waits for the images has no part in what is said: one that needs no library is loaded at once."""
    quick = functools.partial(WorkerConfig, factory="replay_doubles:plain")
    monkeypatch.setattr(serving_worker, "WorkerConfig", quick)


@pytest.mark.parametrize(
    ("bag", "options", "expected"),
    [
        ({}, ["--base-frame", "base"], ("no transform base <- tool0", "name the frames with --base-frame")),
        ({}, ["--tool-frame", "gripper"], ("no transform base_link <- gripper", "--tool-frame")),
        (
            {"info_offset_ns": 5_000_000},
            [],
            ("nearest is +5.000 ms away: with --camera-info nearest:0.01 it",),
        ),
        ({"depth": True}, [], ("image encoding '16UC1' is not supported", "name a colour image with --image-topic")),
        ({"instruction": None}, ["--segments", "later.yaml"], ("no instruction at this time of the bag", "--segments")),
    ],
)
@pytest.mark.usefixtures("quick_policy")
def test_one_sentence_with_the_reason_and_the_remedy(tmp_path, monkeypatch, capsys, bag, options, expected):
    if bag.pop("depth", False):
        monkeypatch.setattr(bag_factory, "image", depth)
    (tmp_path / "later.yaml").write_text("- {from_s: 100, instruction: open the drawer}")
    monkeypatch.chdir(tmp_path)
    path = write_bag(tmp_path / "bag", frames=6, **bag)
    command = [
        "replay",
        str(path),
        "--recipes",
        "fp32,w4a4",
        "--threads",
        "1",
        "--out",
        str(tmp_path / "out"),
        *options,
    ]
    assert cli.main(command) == 1
    shown = capsys.readouterr()
    assert shown.out == ""  # no table of dashes, and nothing about an open loop
    (line,) = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert line.count(str(path)) == 1
    for text in (*expected, "none of its 6 images could be observed (6 of them: ", "frames.csv"):
        assert text in line
    assert not (tmp_path / "out" / "w4a4").exists()
    with (tmp_path / "out" / "frames.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["frame"]) for row in rows] == list(range(6))
    assert all(row["problem"] for row in rows)


def test_a_damaged_bag_shows_a_traceback_only_when_asked_for(tmp_path, capsys):
    path = write_bag(tmp_path / "bag")
    (store,) = path.glob("*.mcap")
    store.write_bytes(store.read_bytes()[:1000])
    command = ["replay", str(path), "--recipes", "fp32", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert cli.main([*command, "--traceback"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_the_nearest_camera_info_on_the_command_line(tmp_path, capsys):
    path = write_bag(tmp_path / "bag", info_offset_ns=5_000_000)
    command = ["replay", str(path), "--recipes", "fp32", "--threads", "1", "--no-video", "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--camera-info", "nearest:0.02"]) == 0
    assert "report: " in capsys.readouterr().out
    assert cli.main([*command, "--camera-info", "nearest:soon"]) == 2
    assert "--camera-info nearest: needs a number, got 'soon'" in capsys.readouterr().err
    assert cli.main([*command, "--camera-info", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_loaded_is_said_before_the_bag_is_read(tmp_path, capsys):
    command = ["replay", str(tmp_path / "no_bag"), "--out", str(tmp_path / "out")]
    save_checkpoint(micro_policy(), tmp_path / "mine.safetensors")
    assert cli.main([*command, "--checkpoint", str(tmp_path / "mine.safetensors"), "--unnorm-key", "zzz"]) == 2
    error = capsys.readouterr().err
    assert "zzz" in error
    assert "Error:" not in error
    assert "again" not in error


@pytest.mark.parametrize(
    ("observed", "said"), [(1, "bag: 5 of its 6 images could not be observed (4 of them: "), (6, "")]
)
def test_images_that_the_table_leaves_out_are_told_below_it(observed, said, monkeypatch, capsys):
    problems = {"no camera_info": 4, "no instruction": 1} if observed < 6 else {}
    reasons = {"no camera_info": "no camera_info has this image's stamp", "no instruction": "none at this time"}
    inputs = {"used": 6, "observed": observed, "problems": problems, "reasons": reasons}
    monkeypatch.setattr(tables, "MEASURES", ())
    tables.print_table(Path("some/bag"), [{"recipe": "fp32", "inputs": inputs}])
    lines = [line for line in capsys.readouterr().out.splitlines() if "observed" in line]
    assert len(lines) == bool(said)
    assert all(line.startswith(said) and line.endswith("every image has a line in frames.csv") for line in lines)
