import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
from bag_factory import write_bag
from endings.interruptions import interrupted_within_a_lock

from sqap_vla_ros.evaluation.replay import jobs
from sqap_vla_ros.evaluation.replay import run as replay_run
from sqap_vla_ros.evaluation.replay.jobs import compression_of, make_jobs, run_jobs
from sqap_vla_ros.evaluation.replay.run import ReplayError, replay_recipe
from sqap_vla_ros.nodes.bags.spec import ReplaySpec
from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.recordings.frames import ReplayFrame
from sqap_vla_ros.serving.worker import WorkerConfig


@pytest.mark.parametrize(
    ("checkpoint", "recipe", "calibration"),
    [
        ("micro", "fp32", "nothing, it needs none"),
        ("micro", "w4a4", "8 made-up scenes, which represent no task"),
        ("tabletop", "w4a4", "48 simulated scenes, the scripted expert at work"),
        ("elsewhere", "w4a4", "scenes of its own geometry"),
    ],
)
def test_the_report_says_what_a_recipe_was_calibrated_on(checkpoint, recipe, calibration):
    assert compression_of(WorkerConfig(checkpoint, recipe))["calibration"] == calibration


@pytest.mark.parametrize("error", [RuntimeError("no kernel image"), MemoryError(), KeyError("length")])
def test_whatever_one_recording_raises_the_others_are_replayed(error, monkeypatch, tmp_path):
    def run_job(job, *, show):
        if job.bag.name == "first.bag":
            raise error
        return jobs.JobResult(job, [])

    monkeypatch.setattr(jobs, "run_job", run_job)
    bags = [Path("first.bag"), Path("second.bag")]
    failed, whole = run_jobs(
        make_jobs(bags, tmp_path, [None, None], ("fp32",), WorkerConfig("micro"), control_rate_hz=5.0)
    )
    assert failed.error.startswith(f"first.bag: {type(error).__name__}")
    assert "Traceback" in failed.trace
    assert not whole.error


def test_an_interruption_is_no_error_of_a_recording(monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, "run_job", lambda job, *, show: interrupted_within_a_lock())
    begun = make_jobs([Path("first.bag")], tmp_path, [None], ("fp32",), WorkerConfig("micro"), control_rate_hz=5.0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            run_jobs(begun)
    finally:
        signal.signal(signal.SIGINT, before)


class _Silent:
    """A policy that is loaded at once and predicts nothing. while_loading: called meanwhile."""

    while_loading = staticmethod(lambda: None)

    def __init__(self, config):
        self.info = micro_policy().info
        self.while_loading()

    def predict(self, frame):
        fields = (frame.index, frame.stamp_ns, frame.age_s, frame.new_episode, "not predicted", frame.note)
        return replay_run.FrameRecord(*fields, instruction="x")

    def peak_memory_mb(self):
        return 0.0

    def close(self):
        pass


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A job with a checkpoint's file and a recipe's file of its own."""
    monkeypatch.setattr(replay_run, "_Policy", _Silent)
    save_checkpoint(micro_policy(), tmp_path / "mine.safetensors")
    (tmp_path / "mine.yaml").write_text("description: nothing changed\n")
    bag, worker = write_bag(tmp_path / "bag", frames=2), WorkerConfig(str(tmp_path / "mine.safetensors"))
    recipes = (str(tmp_path / "mine.yaml"), "bf16")
    (job,) = make_jobs([bag], tmp_path / "out", [ReplaySpec()], recipes, worker, control_rate_hz=5.0)
    return job


def replay_first(job):
    worker = dataclasses.replace(job.worker, recipe=job.recipes[0])
    return replay_recipe(job.bag, job.spec, worker, job.out, show=False)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("changed", ["mine.safetensors", "mine.yaml", "bag"])
def test_another_file_of_the_same_name_is_another_replay(mine, tmp_path, changed, finished):
    """Otherwise the frames of old weights would be reported as those of the new ones, or the two be mixed."""
    replay_first(mine)
    run = mine.out / replay_run.RUN
    run.write_text(json.dumps(json.loads(run.read_text()) | {"complete": finished}))
    (tmp_path / "mine.yaml").write_text("description: only the description is another\n")
    assert len(replay_first(mine).records) == 2
    if changed == "mine.yaml":
        (tmp_path / changed).write_text("pruning: {selector: uniform_grid}\n")
    else:
        os.utime(next((tmp_path / changed).glob("*.mcap"), tmp_path / changed), ns=(1, 1))
    with pytest.raises(ReplayError, match="checkpoint, recipe or recording that was changed since"):
        replay_first(mine)


def test_a_finished_replay_that_lost_a_frame_is_none(mine):
    replay_first(mine)
    frames = mine.out / replay_run.FRAMES
    frames.write_text(frames.read_text().splitlines(keepends=True)[0])
    with pytest.raises(ReplayError, match=r"holds no finished replay of .*: delete it, and run the same command again"):
        replay_first(mine)


def test_a_checkpoint_that_is_replaced_while_it_is_loaded_is_refused(mine, tmp_path, monkeypatch):
    monkeypatch.setattr(_Silent, "while_loading", lambda _: os.utime(tmp_path / "mine.safetensors", ns=(1, 1)))
    with pytest.raises(ReplayError, match="was changed during the replay"):
        replay_first(mine)


def test_a_checkpoint_that_is_replaced_between_two_recipes_is_refused(mine, tmp_path, monkeypatch):
    def replay(*_, **__):
        os.utime(tmp_path / "mine.safetensors", ns=(1, 1))
        record = _Silent(None).predict(ReplayFrame(0, 0, 0.0, None))
        return replay_run.RecipeRun("mine", None, [dataclasses.replace(record, deltas=[])], 0.0, {})

    monkeypatch.setattr(jobs, "replay_recipe", replay)
    with pytest.raises(ReplayError, match="was changed during the replay"):
        jobs.run_job(mine)


@pytest.mark.parametrize("inside", [".", "results", "a/b"])
def test_results_are_not_written_into_the_recording(inside, tmp_path):
    with pytest.raises(ValueError, match=r"lies in the recording .*: name another folder"):
        make_jobs([tmp_path], tmp_path / inside, [None], ("fp32",), WorkerConfig("micro"), control_rate_hz=5.0)
