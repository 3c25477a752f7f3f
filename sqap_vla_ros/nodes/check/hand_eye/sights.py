"""Images of the tool with what TF and camera_info say about them, and the choice of those worth keeping."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.robot.camera import CameraModel

MOST = 60  # sights that are kept; an image is a megabyte
APART_M = 0.03  # between the tool's places in two of them
STILL_M_PER_S = 0.05  # a faster tool is blurred, and its place depends on the clocks
PAUSE_NS = NS_PER_S  # images further apart say nothing about speed
THUMBNAIL = (32, 24)
CHANGED = 30.0  # largest difference of two thumbnails, of 255: something as large as one of its pixels moved

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sight:
    """One image [H, W, 3] in RGB, its camera, and the poses [4, 4] that TF has at its stamp."""

    stamp_ns: int
    image: NDArray[np.uint8]
    camera: CameraModel
    base_from_tool: Array
    optical_from_base: Array


@dataclass
class Survey:
    """The sights that were kept, and what became of the other images.

    where: topic or file that they come from. optical_frame: "" where no image could be used. images: looked at.
    problems: reason -> images that could not be used. mounts: static frame -> its parent and [4, 4] parent_from_frame.
    """

    where: str
    base_frame: str
    tool_frame: str
    optical_frame: str = ""
    sights: list[Sight] = field(default_factory=list)
    images: int = 0
    problems: dict[str, int] = field(default_factory=dict)
    mounts: dict[str, tuple[str, Array]] = field(default_factory=dict)

    def refuse(self, problem: str) -> None:
        """Count an image that cannot be used."""
        self.images += 1
        self.problems[problem] = self.problems.get(problem, 0) + 1


class Chooser:
    """Chooses the images of a stream that are worth keeping: the tool stands still, and is somewhere else than before.

    A wrong frame in TF never moves, so while it stands an image that looks different counts as another place.
    """

    def __init__(self) -> None:
        self._before: tuple[int, Array] | None = None
        self._places: list[Array] = []
        self._thumbnail: NDArray[np.float32] | None = None
        self._newest: NDArray[np.float32] | None = None

    def wants(self, sight: Sight) -> bool:
        """Return whether a sight is worth keeping; call it for every image, in order."""
        place = sight.base_from_tool[:3, 3]
        before, self._before = self._before, (sight.stamp_ns, place)
        paused = before is None or not 0 < sight.stamp_ns - before[0] < PAUSE_NS
        small = cv2.resize(sight.image, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
        blurred, self._newest = self._newest, small
        if len(self._places) >= MOST:
            return False
        if before is not None and not paused:
            seconds = (sight.stamp_ns - before[0]) / NS_PER_S
            if np.linalg.norm(place - before[1]) / seconds > STILL_M_PER_S:
                return False
        if all(np.linalg.norm(place - other) >= APART_M for other in self._places):
            return True
        stands = bool(np.linalg.norm(place - self._places[-1]) < APART_M)
        settled = paused or blurred is None or np.abs(small - blurred).max() < 0.5 * CHANGED
        changed = self._thumbnail is not None and np.abs(small - self._thumbnail).max() > CHANGED
        return bool(stands and settled and changed)

    def keep(self, sight: Sight) -> None:
        """Remember that this sight is kept."""
        self._places.append(sight.base_from_tool[:3, 3])
        self._thumbnail = self._newest


class Wanted:
    """Chooses the images with given stamps, as those that were clicked in."""

    TOLERANCE_NS = 1_000_000  # a stamp that was a floating-point number in between lost its last digits

    def __init__(self, stamps_ns: Sequence[int]) -> None:
        self._stamps = np.array(stamps_ns, dtype=np.int64)

    def wants(self, sight: Sight) -> bool:
        """See `Chooser`."""
        return len(self._stamps) > 0 and int(np.abs(self._stamps - sight.stamp_ns).min()) <= self.TOLERANCE_NS

    def keep(self, sight: Sight) -> None:
        """See `Chooser`."""


Seen = Mapping[int, Array]  # stamp in nanoseconds -> pixel
Find = Callable[[NDArray[np.uint8]], Array | None]


@dataclass
class Surveyor:
    """Takes images as they come, and keeps those that the chooser wants.

    find: gives the pixel of the tool in an image, for images without one to be left out; None keeps all. found: those
    pixels by stamp. unseen: wanted images in which nothing was found, the newest `KEPT_UNSEEN` of them.
    """

    KEPT_UNSEEN = 3

    survey: Survey
    chooser: Chooser | Wanted
    find: Find | None = None
    found: dict[int, Array] = field(default_factory=dict)
    unseen: list[NDArray[np.uint8]] = field(default_factory=list)
    searched: int = 0

    def take(self, sight: Sight) -> bool:
        """Look at one image; return whether it was kept."""
        sights = self.survey.sights
        if sights and not _same(sights[0].camera, sight.camera):
            self.survey.refuse("camera_info changed: the pairs are of the camera as it was first")
            return False
        self.survey.images += 1
        if not self.chooser.wants(sight):
            return False
        if self.find is not None:
            self.searched += 1
            pixel = self.find(sight.image)
            if pixel is None:
                self.unseen = [*self.unseen[1 - self.KEPT_UNSEEN :], sight.image]
                return False
            self.found[sight.stamp_ns] = pixel
        self.chooser.keep(sight)
        self.survey.sights.append(sight)
        return True


def _same(a: CameraModel, b: CameraModel) -> bool:
    return a is b or (
        (a.width, a.height) == (b.width, b.height)
        and np.array_equal(a.matrix, b.matrix)
        and np.array_equal(a.distortion, b.distortion)
    )


def board_finder(middle: Find) -> Find:
    """Return the search for a board in an image in RGB."""
    return lambda image: middle(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)))
