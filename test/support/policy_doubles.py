"""Policies with known answers and known faults, loaded by the worker instead of a model.

Nothing here imports torch, so a worker with a double is ready in a fraction of a second.
"""

import os
import time
from dataclasses import replace

import numpy as np

from sqap_vla_ros.contracts import ActionChunk, Observation, PolicyInfo, Reason, TokenSelection

HORIZON = 16
DT_S = 0.1
STEP_M = 0.002
DEFECT, STALL = "defect", "stall"  # as the method of a token selection
GRID = (16, 16)


class Double:
    """Moves the tool along x by STEP_M a step, gripper open; keeps the tokens around the gripper."""

    def __init__(self, latency_s: float = 0.0) -> None:
        self.latency_s = latency_s
        self.calls = 0

    @property
    def info(self) -> PolicyInfo:
        return PolicyInfo("double", "0" * 64, "fp32", 0, HORIZON, DT_S, 224, GRID, "double", "sqap")

    def predict(self, observation: Observation, *, seed: int = 0) -> ActionChunk:
        begin = time.perf_counter()
        self.calls += 1
        deltas = np.zeros((HORIZON, 7))
        deltas[:, 0] = STEP_M
        deltas[:, 6] = 1.0
        if (goes_on := observation.commitment) is not None:
            deltas[: goes_on.executed] = goes_on.actions[: goes_on.executed]
        normalized = np.zeros((HORIZON, 7))
        normalized[0, 0] = observation.image.sum(dtype=np.int64)
        patch = None
        if observation.gripper_pixel is not None:
            u, v = observation.gripper_pixel
            height, width = observation.image.shape[:2]
            patch = (int(v / height * GRID[0]), int(u / width * GRID[1]))
        selection = TokenSelection(
            np.arange(154, dtype=np.int32), np.full(154, Reason.SPATIAL, np.uint8), GRID, "sqap", 2, patch
        )
        time.sleep(self.latency_s)
        chunk = ActionChunk(observation.stamp_ns, self.act(deltas), DT_S, normalized, selection, {}, seed)
        chunk.timings_ms["total"] = (time.perf_counter() - begin) * 1e3  # type: ignore[index]
        return chunk

    def act(self, deltas: np.ndarray) -> np.ndarray:
        return deltas

    def reset(self) -> None:
        self.calls = 0


class Free(Double):
    """Continues nothing."""

    def predict(self, observation: Observation, *, seed: int = 0) -> ActionChunk:
        if observation.commitment is not None:
            raise ValueError("this policy continues no chunk")
        return super().predict(observation, seed=seed)


class NotFinite(Double):
    def act(self, deltas: np.ndarray) -> np.ndarray:
        deltas[3, 1] = np.nan
        return deltas


class Misshapen(Double):
    def act(self, deltas: np.ndarray) -> np.ndarray:
        return deltas[:, :6]


class Far(Double):
    """Leaves every sensible workspace within one chunk."""

    def act(self, deltas: np.ndarray) -> np.ndarray:
        deltas[:, 0] = 1.0
        return deltas


class Late(Double):
    """So late that the arm comes to rest before the next chunk: motion ends a second after the image, see QUICK."""

    def __init__(self) -> None:
        super().__init__(latency_s=0.7)


class Raises(Double):
    def predict(self, observation: Observation, *, seed: int = 0) -> ActionChunk:
        raise ArithmeticError("the double always fails")


class Defect(Double):
    """A prediction that is fine, over which the node stumbles when `node_defect.py` was installed in it."""

    def predict(self, observation: Observation, *, seed: int = 0) -> ActionChunk:
        chunk = super().predict(observation, seed=seed)
        return replace(chunk, selection=replace(chunk.selection, method=DEFECT))  # type: ignore[type-var]


class Stall(Double):
    """A prediction that is fine, with which the node's executor stands still, see `node_defect.py`."""

    def predict(self, observation: Observation, *, seed: int = 0) -> ActionChunk:
        chunk = super().predict(observation, seed=seed)
        return replace(chunk, selection=replace(chunk.selection, method=STALL))  # type: ignore[type-var]


class Nothing(Double):
    def predict(self, observation: Observation, *, seed: int = 0) -> ActionChunk:
        return None  # type: ignore[return-value]


class Crashes(Double):
    def predict(self, observation: Observation, *, seed: int = 0) -> ActionChunk:
        os._exit(17)


class ByInstruction(Double):
    """Behaves as its instruction says, so that one node process serves a whole module of tests."""

    def predict(self, observation: Observation, *, seed: int = 0) -> ActionChunk:
        behaviour = FACTORIES.get(observation.instruction)
        return (behaviour or Double)().predict(observation, seed=seed)


def straight() -> Double:
    return Double()


def slow() -> Double:
    """The warm-up is quick; what follows takes a minute."""
    return SlowAfterReset()


class SlowAfterReset(Double):
    def reset(self) -> None:
        self.latency_s = 60.0


def slow_to_load() -> Double:
    time.sleep(4.0)
    return ByInstruction()


def raises() -> Double:
    return Raises()


def crashes() -> Double:
    return Crashes()


def unloadable() -> Double:
    raise FileNotFoundError("no checkpoint here")


def says_its_caches() -> Double:
    names = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"
    raise FileNotFoundError(" ".join(os.environ.get(name, "none") for name in names))


def by_instruction() -> Double:
    return ByInstruction()


FACTORIES: dict[str, type[Double]] = {
    "not finite": NotFinite,
    "misshapen": Misshapen,
    "far": Far,
    "late": Late,
    "raise": Raises,
    "nothing": Nothing,
    "defect": Defect,
    "crash": Crashes,
    "stall": Stall,
}


class WithMemory(Double):
    """Says that its chunks depend on earlier observations."""

    @property
    def info(self) -> PolicyInfo:
        return replace(super().info, stateful=True)


class Turning(Double):
    """Late by several actions, and turns with every chunk, but for the actions that its observation commits it to.

    normalized[1] of its chunks begins with how many those are, and whether they are to be continued by 'guided'.
    """

    def __init__(self) -> None:
        super().__init__(latency_s=0.25)

    def predict(self, observation: Observation, *, seed: int = 0) -> ActionChunk:
        chunk = super().predict(observation, seed=seed)
        free, goes_on = 0, observation.commitment
        if goes_on is not None:
            free = chunk.normalized[1, 0] = goes_on.executed
            chunk.normalized[1, 1] = goes_on.continuation == "guided"
        angle = 2.4 * self.calls
        chunk.deltas[free:, :2] = 0.005 * np.cos(angle), 0.005 * np.sin(angle)
        return chunk


def turning() -> Turning:
    return Turning()


def with_memory() -> WithMemory:
    return WithMemory()


def micro_pruned():
    """The random policy of the package, on one thread."""
    import torch

    from sqap_vla_ros.policies import load_policy

    torch.set_num_threads(1)
    return load_policy("micro", "sqap_pruning")
