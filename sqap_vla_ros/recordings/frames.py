"""The frames of a recording, whatever kind it is, and what is counted while it is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.robot.camera import CameraModel


@dataclass(frozen=True)
class ReplayFrame:
    """One image of a recording. observation is None where `problem` says why there is none.

    index: of the image within its topic or dataset. age_s: how long after its stamp it was recorded. note: why the
    gripper is not in view (empty when it is). camera, optical_from_base: the geometry, None where unknown.
    new_episode: an episode begins, stamps went back, or the instruction changed: the policy forgets what it kept.
    commanded: [4, 4] all recorded actions of the episode before this image, composed from the identity; opening: the
    gripper of the action recorded with the image, 0 closed to 1 open. Both None where no actions were recorded.
    """

    index: int
    stamp_ns: int
    age_s: float
    observation: Observation | None
    problem: str = ""
    note: str = ""
    camera: CameraModel | None = None
    optical_from_base: NDArray[np.float64] | None = None
    new_episode: bool = False
    commanded: NDArray[np.float64] | None = None
    opening: float | None = None


@dataclass
class ReplayCounters:
    """Counts of images. used: after the stride; observed: handed out; stale: recorded too long after the stamp.

    problems: kind -> images that could not be observed; reasons: kind -> the first of them in full.
    """

    images: int = 0
    used: int = 0
    observed: int = 0
    stale: int = 0
    paired: int = 0
    restarts: int = 0
    problems: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def without_camera_info(self) -> int:
        """Used images whose camera_info is not in the recording: all of them where there is none."""
        return self.used - self.paired

    def count_problem(self, kind: str, text: str) -> None:
        """Count an image that could not be observed."""
        self.problems[kind] = self.problems.get(kind, 0) + 1
        self.reasons.setdefault(kind, text)


class Recording(Protocol):
    """An open recording, to be iterated over once and in order.

    path: what was named. total: images in it. identity: plain values that differ between recordings. sources: the
    origin of each input, for the report.
    """

    @property
    def path(self) -> Path: ...

    @property
    def total(self) -> int: ...

    @property
    def counters(self) -> ReplayCounters: ...

    @property
    def identity(self) -> list[object]: ...

    @property
    def sources(self) -> dict[str, str]: ...

    def __iter__(self) -> Iterator[ReplayFrame]: ...
