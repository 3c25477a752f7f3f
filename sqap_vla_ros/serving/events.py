"""The messages between the parent and the policy's worker process, as values.

`PredictRequest` and `Offer` go to the worker; everything else comes from it, except `Lost`, which the parent's side
adds when the worker is gone. `wire.py` says how they travel, `validation.py` what the parent accepts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import ActionChunk, Commitment, Observation, PolicyInfo, printable


@dataclass(frozen=True)
class PredictRequest:
    """Predict from the image in the shared memory, [height, width, 3] uint8. Those of an offer lie one after the other.

    request: number that the answer repeats.
    reset: forget first what the policy keeps between observations.
    The rest is as in `Observation`; seed as in `Policy.predict`.
    """

    request: int
    reset: bool
    height: int
    width: int
    stamp_ns: int
    instruction: str
    gripper_pixel: tuple[float, float] | None
    base_from_tool: NDArray[np.float64] | None
    seed: int
    commitment: Commitment | None = None

    @classmethod
    def of(cls, request: int, observation: Observation, *, seed: int, reset: bool) -> PredictRequest:
        """Return the request for a prediction from an observation, whose image goes another way."""
        height, width = observation.image.shape[:2]
        pixel, pose = observation.gripper_pixel, observation.base_from_tool
        return cls(
            request,
            reset,
            height,
            width,
            observation.stamp_ns,
            observation.instruction,
            None if pixel is None else (float(pixel[0]), float(pixel[1])),
            None if pose is None else np.asarray(pose, dtype=np.float64),
            seed,
            observation.commitment,
        )

    def observation(self, image: NDArray[np.uint8]) -> Observation:
        """Return the observation that the request is about. Raises ValueError for an impossible one."""
        return Observation(
            image, self.stamp_ns, self.instruction, self.gripper_pixel, self.base_from_tool, self.commitment
        )


@dataclass(frozen=True)
class Offer:
    """The next `count` requests may be predicted together. The first must be, each other one with it or not now."""

    count: int


@dataclass(frozen=True)
class LoadProgress:
    """A line for the log while the policy is being loaded."""

    text: str


@dataclass(frozen=True)
class Ready:
    """The policy is loaded and warm. warm_latency_s: duration of the last warm-up prediction, seconds."""

    info: PolicyInfo
    warm_latency_s: float

    def in_words(self) -> str:
        """Return a line for the log."""
        info = self.info
        return (
            f"policy ready, {self.warm_latency_s * 1e3:.0f} ms a prediction: {printable(info.checkpoint)} under recipe "
            f"{printable(info.recipe)}, chunks of {info.horizon} actions, {info.dt_s:g} s apart"
        )


@dataclass(frozen=True)
class LoadFailed:
    """The policy cannot be loaded; the worker ends. The last event of a worker."""

    text: str


@dataclass(frozen=True)
class Result:
    """A validated chunk. policy_s: time inside the policy, seconds; that of the whole batch for one of its rows."""

    request: int
    chunk: ActionChunk
    policy_s: float


@dataclass(frozen=True)
class PredictFailed:
    """A request without a usable chunk: `Policy.predict` raised, or its answer is malformed; the text says which."""

    request: int
    text: str


@dataclass(frozen=True)
class Unanswered(PredictFailed):
    """A request that no policy judged, because a server was lost, stays silent or stops; the text says which."""


@dataclass(frozen=True)
class Declined:
    """A request of an offer that is not predicted with the first one. text: why none ever will be, "" if some may."""

    request: int
    text: str


@dataclass(frozen=True)
class Lost:
    """The worker process is gone, or was ended because it hung or broke the protocol. The last event of a worker."""

    text: str


Event = LoadProgress | Ready | LoadFailed | Result | PredictFailed | Unanswered | Declined | Lost
