"""Policies that predict several observations in one call, and say so in `timings_ms["rows"]` of each chunk."""

import os
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from policy_doubles import Double

from sqap_vla_ros.contracts import ActionChunk, Observation, PolicyInfo

UNTIL = "until "  # as the beginning of an instruction: predicted when the file that follows exists
FAILS = "fails"
TIMEOUT_S = 30.0


class Together(Double):
    """Instructions of equal length share a call. `rounding` is added to what is predicted in one with others."""

    rounding = 0.0

    def unbatchable(self) -> str:
        return ""

    def batch_key(self, observation: Observation) -> int:
        return len(observation.instruction)

    def predict(self, observation: Observation, *, seed: int = 0) -> ActionChunk:
        return self.predict_batch([observation], seeds=[seed])[0]

    def predict_batch(self, observations: Sequence[Observation], *, seeds: Sequence[int]) -> list[ActionChunk]:
        rows = len(observations)
        chunks = []
        for observation, seed in zip(observations, seeds, strict=True):
            wait_for_file(observation.instruction)
            if observation.instruction == FAILS:
                raise ValueError("this observation is bad")
            chunk = super().predict(observation, seed=seed)
            chunk.normalized[0, 1] = seed + (self.rounding if rows > 1 else 0.0)
            chunks.append(replace(chunk, timings_ms={**chunk.timings_ms, "rows": float(rows)}))
        return chunks


def wait_for_file(instruction: str) -> None:
    if instruction.startswith(UNTIL):
        deadline_s = time.monotonic() + TIMEOUT_S
        while not os.path.exists(instruction.removeprefix(UNTIL)) and time.monotonic() < deadline_s:
            time.sleep(0.005)


class Rounding(Together):
    rounding = 1e-6


class Remembering(Together):
    """Its chunks count the predictions since the last reset."""

    @property
    def info(self) -> PolicyInfo:
        return replace(super().info, stateful=True)

    def predict_batch(self, observations: Sequence[Observation], *, seeds: Sequence[int]) -> list[ActionChunk]:
        chunks = super().predict_batch(observations, seeds=seeds)
        for chunk in chunks:
            chunk.normalized[1] = np.full(7, self.calls)
        return chunks


def together() -> Together:
    return Together()


def rounding() -> Rounding:
    return Rounding()


def remembering() -> Remembering:
    return Remembering()
