"""The frames of a recording, whatever kind it is, and what is counted while it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import Observation, printable
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

    def __post_init__(self) -> None:
        for name in ("problem", "note"):  # they quote the recording, which may hold anything
            object.__setattr__(self, name, printable(getattr(self, name)))


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
        self.reasons.setdefault(kind, printable(text))


# What helps, by a word of the reason: the first that occurs counts.
_REMEDIES = {
    "stamp zero": "record again with a driver that stamps its images",
    "extrapolation": "the frames are known, at other times: compare the clocks that stamp images and transforms, and "
    "record /tf for as long as the images",
    "no transform": "name the frames with --base-frame and --tool-frame, or give --static-transform, --pose-topic "
    "or --joint-topic with --urdf",
    "no instruction": "give --instruction or --segments",
    "depth image": "name a colour image with --image-topic",
    "encoding": "name a colour image with --image-topic",
}


def nothing_observed(used: int, problems: Mapping[str, int], reasons: Mapping[str, str]) -> str:
    """Say why no image of a recording could be observed, by the commonest reason, and what helps."""
    if not used:
        return "it has no images to observe"
    return f"none of its {used} images could be observed ({_commonest(problems, reasons)}"


def some_unobserved(used: int, problems: Mapping[str, int], reasons: Mapping[str, str]) -> str:
    """Say how many of a recording's images could not be observed, and mostly why; "" where all were."""
    lost = sum(problems.values())
    return f"{lost} of its {used} images could not be observed ({_commonest(problems, reasons)}" if lost else ""


def _commonest(problems: Mapping[str, int], reasons: Mapping[str, str]) -> str:
    kind, count = max(problems.items(), key=lambda item: item[1])
    problem = reasons.get(kind, kind)
    remedy = next((remedy for word, remedy in _REMEDIES.items() if word in f"{kind}: {problem}"), "")
    return f"{count} of them: {problem})" + (f"; {remedy}" if remedy else "")


class Recording(Protocol):
    """An open recording, to be iterated over once and in order.

    check: raises what iterating would raise of numbers, quickly: before a policy is loaded.

    path: what was named. files: all that is read from, and folders of such files: where one is changed, it is another
    recording. total: images in it; strided: those that iterating yields. identity: plain values that differ between
    recordings. sources: the origin of each input, for the report.
    """

    @property
    def path(self) -> Path: ...

    @property
    def files(self) -> Sequence[Path]: ...

    @property
    def total(self) -> int: ...

    @property
    def strided(self) -> int: ...

    @property
    def counters(self) -> ReplayCounters: ...

    @property
    def identity(self) -> list[object]: ...

    @property
    def sources(self) -> dict[str, str]: ...

    def check(self) -> None: ...

    def __iter__(self) -> Iterator[ReplayFrame]: ...
