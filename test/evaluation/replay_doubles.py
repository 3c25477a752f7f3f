"""Policies that misbehave on purpose, loaded by name in the worker process."""

import os

import numpy as np

from sqap_vla_ros.contracts import ActionChunk, Observation, PolicyInfo


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


class Dying(Double):
    def answer(self, chunk):
        if self.seen == 3:
            os._exit(1)
        return chunk


def counting():
    return Double(stateful=True)


def unreliable():
    return Unreliable()


def dying():
    return Dying()
