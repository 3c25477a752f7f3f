"""Start a policy worker and wait for what it says."""

import contextlib
import os
import time
from collections.abc import Callable

import numpy as np

from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.serving.events import Event, LoadProgress, Ready
from sqap_vla_ros.serving.worker import PolicyWorker, WorkerConfig

__all__ = ["Ready", "children", "gone", "observation", "start", "wait_for", "wait_until"]
TIMEOUT_S = 30.0


def start(factory: str, **config) -> PolicyWorker:
    """A worker with the policy of "module:function", loading."""
    worker = PolicyWorker(WorkerConfig(**{"checkpoint": "double", "factory": factory, **config}), notify=lambda: None)
    worker.start()
    return worker


def wait_for(worker: PolicyWorker, *kinds: type) -> Event:
    """The first event of these kinds; only progress may come before it."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        for event in worker.events():
            if isinstance(event, kinds):
                return event
            assert isinstance(event, LoadProgress), f"unexpected {event}"
        time.sleep(0.01)
    raise AssertionError(f"no {kinds} within {TIMEOUT_S} s")


def observation(seed: int = 0, height: int = 48, width: int = 64, instruction: str = "pick the cube") -> Observation:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Observation(image, 123_456_789, instruction, (3.5, 4.5), np.eye(4))


def gone(pid: int) -> bool:
    """No process of that number runs (a zombie does not run)."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def children() -> set[int]:
    """Process ids of this process's children, zombies included."""
    pids = set()
    for task in os.listdir("/proc/self/task"):
        with (
            contextlib.suppress(FileNotFoundError),
            open(f"/proc/self/task/{task}/children") as file,
        ):  # the thread ended
            pids |= {int(pid) for pid in file.read().split()}
    return pids


def wait_until(condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> bool:
    """Whether the condition becomes true in time; it is not asked again after it did."""
    deadline = time.monotonic() + timeout_s
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return met
