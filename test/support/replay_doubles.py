"""Policies that misbehave on purpose, loaded by name in the worker process."""

import os
import signal
from pathlib import Path

import numpy as np

from sqap_vla_ros.contracts import ActionChunk, Observation, PolicyInfo
from sqap_vla_ros.evaluation.replay.jobs import JobResult


class Double:
    """Answers with `first`'s value of the n-th observation since the last reset in every channel's first action."""

    def __init__(self, *, stateful=False):
        self.info = PolicyInfo("double", "", "double", 0, 16, 0.2, 224, (16, 16), "none", "none", stateful)
        self.seen = 0

    def reset(self):
        self.seen = 0

    def predict(self, observation: Observation, *, seed: int = 0) -> ActionChunk:
        self.seen += 1
        deltas = np.zeros((16, 7))
        deltas[0, 0] = self.seen
        return self.answer(ActionChunk(observation.stamp_ns, deltas, 0.2, deltas, timings_ms={"total": 1.0}))

    def answer(self, chunk):
        return chunk


class Unreliable(Double):
    def answer(self, chunk):
        if self.seen % 3 == 2:
            chunk.deltas[:] = np.nan
        if self.seen % 3 == 0:
            raise RuntimeError("on purpose")
        return chunk


class Broken(Double):
    def answer(self, chunk):
        chunk.deltas[:] = np.nan
        return chunk


class Dying(Double):
    def answer(self, chunk):
        if self.seen == 3:
            os._exit(1)
        return chunk


class Parricide(Double):
    """Kills the process that replays at the third frame, once: the first time leaves the file $REPLAY_KILLED."""

    def answer(self, chunk):
        mark = Path(os.environ["REPLAY_KILLED"])
        if self.seen == 3 and not mark.exists():
            mark.write_text(str(os.getppid()))
            os.kill(os.getppid(), signal.SIGKILL)
        return chunk


def parricide():
    return Parricide()


def missing():
    raise FileNotFoundError("no checkpoint here")


def plain():
    return Double()


def counting():
    return Double(stateful=True)


def unreliable():
    return Unreliable()


def broken():
    return Broken()


def dying():
    return Dying()


def die_once(job, *, show=False):
    """Instead of replaying: the first time the whole process is killed, as the kernel does when memory runs out."""
    mark = job.out.with_suffix(".died")
    if not mark.exists():
        mark.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return JobResult(job, [{"frames": 1}])
