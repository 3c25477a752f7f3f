"""A study over a Ray cluster of this machine: the same episodes, and those of a lost worker redone."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from sqap_vla_ros.evaluation.closed_loop.run_study import run_units
from sqap_vla_ros.evaluation.closed_loop.study import Method, Store, Unit
from sqap_vla_ros.simulation.vocabulary import TaskFamily

pytest.importorskip("ray", reason="Ray is not installed: `make ray` runs these tests with Ray in a folder of its own")
MEASURED = ("inference_ms",)


def episodes(folder: Path) -> list[dict]:
    rows = [{k: v for k, v in row.items() if k not in MEASURED} for row in Store(folder).episodes("fp32")]
    return sorted(rows, key=lambda row: (row["family"], row["seed"]))


def ancestors(process: int) -> set[int]:
    found: set[int] = set()
    while process > 1:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        found.add(process)
    return found


def kill_a_worker(killed: list[int]) -> None:
    """Kill the first process below this one that runs a group of episodes."""
    until = time.monotonic() + 200
    while time.monotonic() < until:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                title = (folder / "cmdline").read_bytes()
                if title.startswith(b"ray::run_group") and os.getpid() in ancestors(int(folder.name)):
                    os.kill(int(folder.name), signal.SIGKILL)
                    killed.append(int(folder.name))
                    return
            except (OSError, IndexError, ValueError):  # it has ended in between
                continue
        time.sleep(0.05)


def test_the_same_episodes_and_those_of_a_lost_worker_again(tmp_path):
    method = Method("fp32", "fp32", "micro")
    units = [Unit(method, "visual_matching", 2, (TaskFamily.PICK,), deviations=1)]
    assert run_units(units, tmp_path / "here", reference=method, lockstep=1, show=False) == {}
    killed: list[int] = []
    threading.Thread(target=kill_a_worker, args=(killed,), daemon=True).start()
    problems = run_units(units, tmp_path / "ray", reference=method, lockstep=1, show=False, ray_address="local")
    assert problems == {}
    assert len(killed) == 1
    assert episodes(tmp_path / "ray") == episodes(tmp_path / "here")
    assert len(episodes(tmp_path / "ray")) == 2
    assert len(Store(tmp_path / "ray").deviations("fp32")) == 1
