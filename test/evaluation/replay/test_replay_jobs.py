from pathlib import Path

import pytest

from sqap_vla_ros.evaluation.replay import jobs
from sqap_vla_ros.evaluation.replay.jobs import compression_of, make_jobs, run_jobs
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
