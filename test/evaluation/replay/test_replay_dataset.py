"""A LeRobot dataset through the same replay as a bag."""

import dataclasses
import functools
import json

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="LeRobot datasets need pyarrow")

from bag_factory import write_bag
from tiny_datasets.factory import LENGTHS, TASKS, write_dataset

from sqap_vla_ros import cli
from sqap_vla_ros.evaluation.replay.metrics import against_actions
from sqap_vla_ros.evaluation.replay.run import load_run
from sqap_vla_ros.serving import worker as serving_worker
from sqap_vla_ros.serving.worker import WorkerConfig


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replayed")
    dataset, out = write_dataset(folder / "tiny"), folder / "out"
    options = ["--recipes", "fp32", "--threads", "1", "--no-video", "--out", str(out)]
    assert cli.main(["replay", str(dataset), *options]) == 0
    return out


def test_the_report_says_what_was_read(replayed):
    report = json.loads((replayed / "report.json").read_text())
    assert report["sources"]["dataset"] == "LeRobot v3.0, 2 episodes, 5 Hz"
    assert report["sources"]["tool pose"] == "observation.state, as quat_xyzw"
    assert report["recipes"][0]["inputs"]["observed"] == sum(LENGTHS)
    assert report["recipes"][0]["recorded_motion"]["still_mm"][0] == pytest.approx(10.0, abs=1e-3)
    assert report["recipes"][0]["recorded_actions"]["still_mm"][0] == pytest.approx(10.0, abs=1e-3)


def test_chunks_of_the_recorded_actions_have_no_error(replayed):
    """What was recorded, predicted, gives zeros; a gripper that never closes is wrong from frame 3 on."""
    run = load_run(replayed / "fp32", "fp32")
    assert [record.instruction for record in run.records] == [TASKS[0]] * LENGTHS[0] + [TASKS[1]] * LENGTHS[1]
    perfect = []
    for record in run.records:
        at = record.index - (LENGTHS[0] if record.index >= LENGTHS[0] else 0)
        deltas = np.zeros((4, 7))
        deltas[:, 0] = 0.01
        deltas[:, 6] = [float(at + step < 3) for step in range(4)]
        perfect.append(dataclasses.replace(record, deltas=deltas, dt_s=0.2))
    found = against_actions(perfect)
    assert found["mean_mm"] == pytest.approx(0.0, abs=1e-3)
    assert found["gripper_disagreement"] == 0.0
    opened = [
        dataclasses.replace(r, deltas=np.concatenate([r.deltas[:, :6], np.ones((4, 1))], axis=1)) for r in perfect
    ]
    assert against_actions(opened)["gripper_disagreement"] > 0.5


def test_the_progress_bar_ends_where_the_frames_do(tmp_path, monkeypatch, capsys):
    """Each episode begins a stride anew: 6 and 5 frames by fours are 2 and 2, not 3."""
    monkeypatch.setattr(serving_worker, "WorkerConfig", functools.partial(WorkerConfig, factory="replay_doubles:plain"))
    options = ["--stride", "4", "--recipes", "fp32", "--threads", "1", "--no-video", "--out", str(tmp_path / "out")]
    assert cli.main(["replay", str(write_dataset(tmp_path / "set")), *options]) == 0
    assert "| 4/4 [" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "nowhere does not exist: give a rosbag2 folder, "),
        ("empty", "empty holds neither metadata.yaml nor .mcap or .db3 files: it is no rosbag2 bag; "),
        ("notes.txt", "notes.txt is not a bag: give a rosbag2 folder, "),
        ("https://example.org/set", "is an address (https), and nothing is downloaded: "),
    ],
)
def test_what_is_no_recording_is_told_that_datasets_are_read_too(name, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    assert cli.main(["replay", name, "--recipes", "fp32", "--out", "out"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said in line
    assert line.endswith("; the folder of a LeRobot dataset, which holds meta/info.json, is read too")


@pytest.mark.parametrize(
    ("recording", "options", "said"),
    [
        ("set/meta", [], "set/meta is a part of the LeRobot dataset "),
        ("set", ["--image-key", "none.such"], "none.such"),
        ("nowhere", [], "nowhere does not exist"),
    ],
)
def test_a_recording_that_cannot_be_replayed_is_status_1_and_stops_no_other(
    recording, options, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(serving_worker, "WorkerConfig", functools.partial(WorkerConfig, factory="replay_doubles:plain"))
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "set")
    other = write_bag(tmp_path / "other", frames=2)
    command = ["replay", recording, str(other), "--recipes", "fp32", "--threads", "1", "--no-video", "--out", "out"]
    assert cli.main([*command, *options]) == 1
    shown = capsys.readouterr()
    (line,) = [line for line in shown.err.splitlines() if "error: " in line]
    assert line.startswith("error: ")
    assert said in line
    assert "report: out/other/report.html" in shown.out
