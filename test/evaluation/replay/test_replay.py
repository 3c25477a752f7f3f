"""`sqap-vla replay` from a recording to the report: determinism, resuming, many bags, and what goes wrong."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import replay_doubles
from bag_factory import START_NS, write_bag
from places import ROOT, TABLETOP_BAG

from sqap_vla_ros import cli
from sqap_vla_ros.commands.recordings.replay import jobs_of
from sqap_vla_ros.compression.load import load_policy
from sqap_vla_ros.evaluation.replay import jobs as replay_jobs
from sqap_vla_ros.evaluation.replay.jobs import ReplayJob, make_jobs, run_job, run_jobs
from sqap_vla_ros.evaluation.replay.run import FRAMES, RUN, ReplayError, load_run, replay_recipe
from sqap_vla_ros.nodes.bags.bag import Bag
from sqap_vla_ros.nodes.bags.observations import BagObservations
from sqap_vla_ros.nodes.bags.spec import ReplaySpec
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.kinematics import ArmKinematics
from sqap_vla_ros.serving.worker import WorkerConfig

WORKER = WorkerConfig("micro", "fp32", threads=1, warmup=1)
SPEC = ReplaySpec()


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    return write_bag(tmp_path_factory.mktemp("bags") / "demo", frames=6)


@pytest.fixture(scope="module")
def replayed(bag, tmp_path_factory):
    """The command as a user types it, once for all tests that read its results."""
    out = tmp_path_factory.mktemp("out") / "report"
    status = cli.main(["replay", str(bag), "--recipes", "fp32,sqap_pruning", "--threads", "1", "--out", str(out)])
    assert status == 0
    return out


def test_chunks_are_the_policys_own(bag, replayed):
    """The same observation given to the policy in this process gives the same chunk."""
    policy = load_policy("micro", "sqap_pruning")
    run = load_run(replayed / "sqap_pruning", "sqap_pruning")
    with Bag(bag) as recording:
        frames = list(BagObservations(recording, SPEC))
    assert len(run.records) == len(frames) == 6
    for record, frame in zip(run.records, frames, strict=True):
        chunk = policy.predict(frame.observation, seed=0)
        np.testing.assert_allclose(record.deltas, chunk.deltas, atol=2e-6)
        np.testing.assert_array_equal(record.selection.indices, chunk.selection.indices)
        assert record.selection.gripper_patch is not None
        assert record.kept["ring"] == 25


def test_report_is_complete(replayed):
    report = json.loads((replayed / "report.json").read_text())
    assert [recipe["recipe"] for recipe in report["recipes"]] == ["fp32", "sqap_pruning"]
    first, second = report["recipes"]
    assert first["kept"]["total"] == 256
    assert second["kept"]["total"] == 154
    assert first["action_difference"]["squared"] == 0.0
    assert second["action_difference"]["squared"] > 0.0
    assert second["ring"]["in_view"] == 1.0
    assert first["peak_memory_mb"] > 50
    assert (first["costs"]["bits_per_channel"], first["costs"]["bops_paper"]) == (32.0, 1.0)
    assert second["costs"]["bops_bit_product"] == pytest.approx(0.878, abs=0.001)
    assert first["recorded_motion"]["frames"] == 6
    assert [recipe["compression"]["calibration"] for recipe in report["recipes"]] == ["nothing, it needs none"] * 2
    page = (replayed / "report.html").read_text()
    assert "<h1>Replay of demo: fp32, sqap_pruning</h1>" in page
    assert "built-in one with random weights" in page
    assert page.count("data:image/png") == 5
    assert page.count("data:image/jpeg") == 4
    assert "http" not in page  # needs nothing else
    assert (replayed / "overlay.mp4").stat().st_size > 1000
    with (replayed / "recipes.csv").open() as file:
        assert [row["recipe"] for row in csv.DictReader(file)] == ["fp32", "sqap_pruning"]
    with (replayed / "frames.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert int(rows[0]["stamp_ns"]) == START_NS


def test_every_column_is_documented(replayed):
    pages = ROOT / "docs" / "replay.md"
    documented = set(re.findall(r"`(\w+)`", pages.read_text()))
    for name in ("recipes.csv", "frames.csv"):
        with (replayed / name).open() as file:
            assert set(next(csv.reader(file))) - {"recipe"} <= documented


def test_resumes_where_it_stopped(bag, replayed, tmp_path, monkeypatch):
    """Cut off in the middle of a line: what was whole is kept as it is, the rest is predicted again."""
    folder = tmp_path / "fp32"
    config = WorkerConfig("micro", "fp32", threads=1)
    monkeypatch.setattr("builtins.print", lambda *_: None)
    shutil.copytree(replayed / "fp32", folder)
    lines = (folder / FRAMES).read_text().splitlines()
    marked = [json.loads(line) for line in lines[:3]]
    marked[0]["policy_ms"] = 123456.0  # shows that it was not predicted again
    unfinished = json.loads((folder / RUN).read_text()) | {"complete": False}
    (folder / RUN).write_text(json.dumps(unfinished))
    text = "\n".join([*(json.dumps(entry) for entry in marked), lines[3][: len(lines[3]) // 2]])
    (folder / FRAMES).write_text(text)
    run = replay_recipe(bag, SPEC, config, folder, show=False)
    whole = load_run(replayed / "fp32", "fp32")
    assert [record.index for record in run.records] == list(range(6))
    assert run.records[0].policy_ms == 123456.0
    for ours, theirs in zip(run.records, whole.records, strict=True):
        np.testing.assert_array_equal(ours.deltas, theirs.deltas)


def test_a_policy_with_a_memory_resumes_at_the_episodes_start(tmp_path):
    path = write_bag(tmp_path / "bag", stamps_s=[10.0, 10.1, 0.0, 0.1, 0.2])
    config = WorkerConfig("", factory="replay_doubles:counting", warmup=0)
    whole = replay_recipe(path, SPEC, config, tmp_path / "whole", show=False)
    assert [record.deltas[0, 0] for record in whole.records] == [1.0, 2.0, 1.0, 2.0, 3.0]
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    lines = (tmp_path / "cut" / FRAMES).read_text().splitlines()
    unfinished = json.loads((tmp_path / "cut" / RUN).read_text()) | {"complete": False}
    (tmp_path / "cut" / RUN).write_text(json.dumps(unfinished))
    (tmp_path / "cut" / FRAMES).write_text("\n".join(lines[:4]) + "\n")
    cut = replay_recipe(path, SPEC, config, tmp_path / "cut", show=False)
    assert [record.deltas[0, 0] for record in cut.records] == [1.0, 2.0, 1.0, 2.0, 3.0]


def test_a_damaged_line_is_predicted_again_and_a_damaged_description_is_refused(tmp_path):
    path, folder = write_bag(tmp_path / "bag", stamps_s=[10.0, 10.1]), tmp_path / "r"
    config = WorkerConfig("", factory="replay_doubles:counting", warmup=0)
    whole = replay_recipe(path, SPEC, config, folder, show=False)
    summary, lines = json.loads((folder / RUN).read_text()), (folder / FRAMES).read_text().splitlines()
    for damaged in (lines[1].replace("policy_ms", "policy_xx"), "[]", "null", '{"index": 1, "deltas": [[1], 2]}'):
        (folder / RUN).write_text(json.dumps(summary | {"complete": False}))
        (folder / FRAMES).write_text(f"{lines[0]}\n{damaged}\n")
        again = replay_recipe(path, SPEC, config, folder, show=False)
        assert [record.index for record in again.records] == [record.index for record in whole.records]
    (folder / RUN).write_text("")
    with pytest.raises(ReplayError, match=f"{folder / RUN} is damaged: delete {folder}"):
        replay_recipe(path, SPEC, config, folder, show=False)
    with pytest.raises(ReplayError, match="holds no finished replay"):
        load_run(folder, "fp32")


def test_another_replay_is_not_overwritten(bag, replayed):
    with pytest.raises(ReplayError, match="another recording, or with other options"):
        replay_recipe(bag, ReplaySpec(stride=2), WORKER, replayed / "fp32", show=False)


def test_a_policy_that_does_not_load_leaves_nothing_in_the_way(bag, tmp_path, capfd):
    missing, there = (WorkerConfig("", factory=f"replay_doubles:{name}", warmup=0) for name in ("missing", "plain"))
    with pytest.raises(ReplayError, match=r"recipe \w+: no checkpoint here"):
        replay_recipe(bag, SPEC, missing, tmp_path / "r", show=False)
    assert "Traceback" not in capfd.readouterr().err
    assert len(replay_recipe(bag, SPEC, there, tmp_path / "r", show=False).records) == 6
    with pytest.raises(ReplayError, match="another recording, or with other options"):
        replay_recipe(bag, SPEC, missing, tmp_path / "r", show=False)


def test_non_finite_and_failing_predictions_are_counted_not_hidden(bag, tmp_path):
    config = WorkerConfig("", factory="replay_doubles:unreliable", warmup=0)
    run = replay_recipe(bag, SPEC, config, tmp_path / "r", show=False)
    malformed = "the prediction failed: malformed answer: action 0 of the chunk is not finite: component 0 is nan"
    failed = "the prediction failed: RuntimeError: on purpose"
    assert [record.problem for record in run.records] == ["", malformed, failed, "", malformed, failed]
    assert load_run(tmp_path / "r", "r").records[1].deltas is None


def test_a_lost_worker_loses_nothing_that_was_done(bag, tmp_path):
    config = WorkerConfig("", factory="replay_doubles:dying", warmup=0)
    with pytest.raises(ReplayError, match="run it again to go on"):
        replay_recipe(bag, SPEC, config, tmp_path / "r", show=False)
    assert len((tmp_path / "r" / FRAMES).read_text().splitlines()) == 2
    with pytest.raises(ReplayError, match="no finished replay"):
        load_run(tmp_path / "r", "r")


def job(bag, out, **changes):
    worker = WorkerConfig("micro", warmup=0, factory="replay_doubles:plain")
    return ReplayJob(bag, SPEC, ("fp32",), worker, out, video=False, **changes)


def test_a_recipe_from_a_file_is_replayed_into_the_folder_and_nowhere_else(bag, replayed, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("description: nothing changed\n")
    shutil.copytree(replayed / "fp32", tmp_path / "out" / "fp32")
    worker = WorkerConfig("micro", threads=1)
    (first,) = make_jobs(
        [bag], tmp_path / "out", [SPEC], ["fp32", str(recipe)], worker, control_rate_hz=5.0, video=False
    )
    assert [summary["frames"] for summary in run_job(first, show=False).summaries] == [6, 6]
    assert (tmp_path / "out" / "mine" / FRAMES).is_file()
    (tmp_path / "fp32.yaml").write_text("description: another\n")
    with pytest.raises(ValueError, match="several are called fp32"):
        make_jobs([bag], tmp_path, [SPEC], ["fp32", str(tmp_path / "fp32.yaml")], WORKER, control_rate_hz=5.0)


def test_a_policy_without_one_finite_action_is_no_replay(bag, tmp_path):
    worker = WorkerConfig("", factory="replay_doubles:broken", warmup=0)
    broken = ReplayJob(bag, SPEC, ("fp32",), worker, tmp_path / "out", video=False)
    with pytest.raises(
        ReplayError, match=r"recipe fp32: none of its images gave a prediction \(6 of them: .* not finite"
    ):
        run_job(broken, show=False)


def test_many_bags_one_of_them_broken(bag, tmp_path):
    other = write_bag(tmp_path / "other", frames=3)
    (tmp_path / "broken").mkdir()
    jobs = [job(bag, tmp_path / "a"), job(tmp_path / "broken", tmp_path / "b"), job(other, tmp_path / "c")]
    results = run_jobs(jobs, processes=2)
    assert [bool(result.error) for result in results] == [False, True, False]
    assert "no rosbag2 bag" in results[1].error
    assert [result.summaries[0]["frames"] for result in (results[0], results[2])] == [6, 3]


def test_a_lost_process_has_its_bag_redone(bag, tmp_path, monkeypatch):
    monkeypatch.setattr(replay_jobs, "_attempt", replay_doubles.die_once)
    results = run_jobs([job(bag, tmp_path / "a"), job(bag, tmp_path / "b")], processes=2)
    assert [result.error for result in results] == ["", ""]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipes", "fp23"], "no recipe named 'fp23'"),
        (["--urdf", "/dev/zero"], "larger than 16 MiB: not a URDF"),
        (["--urdf", str(TABLETOP_BAG / "tabletop.mcap")], "no text file"),
        (["--jobs", "0"], "--jobs: must be at least 1, got 0"),
        (["--stride", "0"], "--stride: must be at least 1, got 0"),
        (["--static-transform", "a", "b", *["1", "2", "three", "0", "0", "0", "1"]], "needs seven numbers"),
        (["--control-rate", "0"], "--control-rate: must be above 0, got 0"),
    ],
)
def test_bad_options_are_told_before_any_work(bag, tmp_path, capsys, arguments, message):
    assert cli.main(["replay", str(bag), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_segments_file(bag, tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("- {from: 0}")
    assert cli.main(["replay", str(bag), "--segments", str(tmp_path / "bad.yaml")]) == 2
    assert "must be a YAML list" in capsys.readouterr().err


def test_a_bag_that_cannot_be_read_is_an_exit_status(tmp_path, capsys):
    assert cli.main(["replay", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_a_missing_checkpoint_is_told_before_any_work(bag, tmp_path, capsys):
    assert cli.main(["replay", str(bag), "--checkpoint", "nothing", "--out", str(tmp_path / "out")]) in (1, 2)
    assert "checkpoint nothing does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_joint_states_and_urdf_from_the_command_line(tmp_path):
    urdf = share_path("config/robots/tabletop_arm.urdf")
    arm = ArmKinematics.from_urdf(urdf.read_text(), "base_link", "tool0")
    q = np.linspace(-0.4, 0.4, len(arm.joint_names))
    path = write_bag(tmp_path / "bag", tf=False, info=False, joints=dict(zip(arm.joint_names, q, strict=True)))
    options = ["--urdf", str(urdf), "--joint-topic", "/joint_states", "--recipes", "fp32"]
    (made,) = jobs_of(cli.build_parser().parse_args(["replay", str(path), *options]))
    with Bag(path) as recording:
        source = BagObservations(recording, made.spec)
        poses = [frame.observation.base_from_tool for frame in source]
    assert len(poses) == 5
    np.testing.assert_allclose(poses, [arm.forward(q)] * 5, atol=1e-9)
    assert source.sources["tool pose"].endswith("through the URDF")


def test_ctrl_c_keeps_what_was_done(tmp_path):
    """As a terminal sends it, to the whole process group: exit status 130, whole lines, nothing left running."""
    demo = TABLETOP_BAG
    command = ["replay", str(demo), "--recipes", "fp32", "--threads", "1", "--no-video", "--out", str(tmp_path)]
    run = "import sys; from sqap_vla_ros.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", run, *command],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        # a job in the background starts with interrupts ignored, and so would all that it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    frames = tmp_path / "fp32" / FRAMES
    deadline_s = time.monotonic() + 120.0
    while not (frames.exists() and frames.read_text().count("\n") >= 2):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline_s, "no frame was predicted"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from here" in errors
    assert "Traceback" not in errors
    lines = frames.read_text().splitlines()
    assert 2 <= len(lines) < 48
    assert [json.loads(line)["index"] for line in lines] == list(range(len(lines)))
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
