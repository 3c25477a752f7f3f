"""Many bags over a Ray cluster of this machine: the same results, and nothing lost with a lost worker."""

import dataclasses
from pathlib import Path

import pytest
from bag_factory import write_bag

from sqap_vla_ros.evaluation.replay.jobs import ReplayJob, run_jobs
from sqap_vla_ros.evaluation.replay.run import FRAMES, FrameRecord
from sqap_vla_ros.nodes.bags.spec import ReplaySpec
from sqap_vla_ros.serving.worker import WorkerConfig

pytest.importorskip("ray", reason="Ray is not installed: `make ray` runs these tests with Ray in a folder of its own")


def actions(folder):
    records = [FrameRecord.from_json(line) for line in (folder / "fp32" / FRAMES).read_text().splitlines()]
    return [(record.index, record.stamp_ns, record.deltas.tolist()) for record in records]


def test_same_results_as_locally(tmp_path, monkeypatch):
    """Paths are relative to the caller's folder; a broken bag stops nobody; results are in the order of the jobs."""
    monkeypatch.chdir(tmp_path)
    worker = WorkerConfig("micro", threads=1, warmup=1)
    write_bag(Path("one"), frames=4)
    write_bag(Path("two"), frames=3)
    jobs = [
        ReplayJob(Path(name), ReplaySpec(), ("fp32",), worker, Path("ray") / name, video=False)
        for name in ("one", "missing", "two")
    ]
    results = run_jobs(jobs, ray_address="local")
    assert [bool(result.error) for result in results] == [False, True, False]
    assert "does not exist" in results[1].error
    assert [result.job for result in results] == jobs
    run_jobs([dataclasses.replace(job, out=Path("local") / job.bag) for job in jobs])
    for name in ("one", "two"):
        assert actions(Path("ray") / name) == actions(Path("local") / name)


def test_a_lost_worker_has_its_bag_redone(tmp_path, monkeypatch):
    """The replaying process is killed at the third of six frames; another one takes the bag up there."""
    killed = tmp_path / "killed"
    monkeypatch.setenv("REPLAY_KILLED", str(killed))
    worker = WorkerConfig("", factory="replay_doubles:parricide", warmup=0)
    bag = write_bag(tmp_path / "bag", frames=6)
    (result,) = run_jobs(
        [ReplayJob(bag, ReplaySpec(), ("fp32",), worker, tmp_path / "out", video=False)], ray_address="local"
    )
    assert result.error == ""
    assert killed.exists()
    assert [index for index, _, _ in actions(tmp_path / "out")] == list(range(6))
    # The double counts what it is shown: the two frames on disk were not predicted again.
    assert [deltas[0][0] for _, _, deltas in actions(tmp_path / "out")] == [1.0, 2.0, 1.0, 2.0, 3.0, 4.0]
