"""Judges the image stream, without ROS: order, age, content, and whether it is still the same camera."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import NS_PER_S

SMALLEST_SIDE = 16  # pixels
BLACK = 8  # of 255: noise of a covered sensor
# Nothing can be seen where nearly the whole picture has one colour, in levels of 255. The dimmest recording at hand (a
# PR2 in a dark room, mean brightness 20) reaches 18, all others 98 and more, the simulator's 57 and more; noise of a
# covered sensor with a standard deviation of 10 reaches 3.
LEAST_CONTRAST = 4.0
CELLS = 64  # a side; the noise of the pixels in a cell averages out
ALIKE = 95  # percent of the cells: a caption that the driver writes, or a dead pixel, is no picture
REPEATED = 4  # pictures that a broken driver may repeat in turn
NOISE = 2  # levels by which two pictures may differ everywhere that are one picture with a level of noise each
SEEN_PX = 2.0  # a tool that is seen to move so far changes some pixel by more than that
REFOCUSED = 0.05  # share of the focal length that autofocus may change
NARROWEST_DEG, WIDEST_DEG = 1.0, 175.0


class Order(enum.Enum):
    """Relation of an image's stamp to those before."""

    NEW = "new"
    REPEATED = "repeated"
    OUT_OF_ORDER = "out of order"


@dataclass(frozen=True)
class ImageGateConfig:
    """Limits on the image stream.

    timeout_s: the stream is lost when nothing new came for this long (steady clock).
    max_age_s: an image older than this when it would be used is stale (ROS clock against its stamp).
    max_future_s: a stamp further ahead of the ROS clock than this means two clocks that are not synchronised.
    jump_back_s: a stamp that far before the newest one is a new beginning (a bag loops) and not a late image; one that
        far ahead of the ROS clock is not taken in, for all that follow would be older.
    frozen_s, frozen_motion_m: the camera is frozen when its pixels stayed the same for that long while the tool moved
        that far: the same to the last bit, or within NOISE where the tool's place in the image moved too. Motion is
        asked for because a still scene in simulation has no noise.
    """

    timeout_s: float = 1.0
    max_age_s: float = 0.5
    max_future_s: float = 0.1
    jump_back_s: float = 1.0
    frozen_s: float = 1.0
    frozen_motion_m: float = 0.02

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"image {name} must be positive, got {value}")


class ImageGate:
    """Remembers what is needed of the images before to judge the next one."""

    def __init__(self, config: ImageGateConfig) -> None:
        self.config = config
        self.received = 0
        self.dropped = 0
        self.reset()

    def reset(self) -> None:
        """Forget the stream (time jumped, camera exchanged); the counters stay."""
        self._arrived_s: float | None = None
        self._camera: tuple[str, int, int] | None = None
        self._focal: float | None = None
        self._restart()

    def _restart(self) -> None:
        """Forget the stamps and what was seen at them."""
        self._newest_ns: int | None = None
        self._equal, self._alike = _Repetition(np.array_equal), _Repetition(_alike)

    def stamp_problem(self, stamp_ns: int, now_ns: int) -> str | None:
        """Return why an image with this stamp must not be taken in at all, or None."""
        if stamp_ns == 0:
            return "images are stamped zero: the driver must set header.stamp"
        if stamp_ns - now_ns > self.config.jump_back_s * NS_PER_S:
            return self.age(stamp_ns, now_ns)
        return None

    def arrive(self, stamp_ns: int, now_s: float) -> Order:
        """Note an image; only a NEW one may be used."""
        self.received += 1
        if self._newest_ns is not None and self._newest_ns - stamp_ns >= self.config.jump_back_s * NS_PER_S:
            self._restart()
        if self._newest_ns is not None and stamp_ns <= self._newest_ns:
            self.dropped += 1
            return Order.REPEATED if stamp_ns == self._newest_ns else Order.OUT_OF_ORDER
        self._newest_ns = stamp_ns
        self._arrived_s = now_s
        return Order.NEW

    def silence(self, now_s: float, waiting_since_s: float) -> str | None:
        """Return the problem when no new image came for too long, or None. waiting_since_s: the begin of waiting."""
        since_s = self._arrived_s if self._arrived_s is not None else waiting_since_s
        if now_s - since_s < self.config.timeout_s:
            return None
        if self._arrived_s is None:
            return "no image was received yet"
        return f"no new image for {now_s - since_s:.1f} s (limit {self.config.timeout_s:g} s)"

    def age(self, stamp_ns: int, now_ns: int) -> str | None:
        """Return the problem with the age of an image about to be used, or None."""
        age_s = (now_ns - stamp_ns) / NS_PER_S
        if age_s > self.config.max_age_s:
            return (
                f"the image is stale: stamped {age_s:.2f} s ago (limit {self.config.max_age_s:g} s); is the camera's "
                "clock synchronised, or use_sim_time needed?"
            )
        if age_s < -self.config.max_future_s:
            return (
                f"the image is stamped {-age_s:.2f} s in the future (limit {self.config.max_future_s:g} s): "
                "synchronise the clocks of the camera's and this computer"
            )
        return None

    def changed(self, frame_id: str, image: NDArray[np.uint8], focal: float | None = None) -> str | None:
        """Return how the camera is another one than when the mission began, or None; see `begin`.

        focal: focal length in pixels; None where it is not known. Autofocus changes it a little.
        """
        now = (frame_id, image.shape[1], image.shape[0])
        if self._camera is None:
            self._camera = now
        if self._focal is None:
            self._focal = focal
        if now != self._camera:
            before, after = (f"{width}x{height} pixels in {name!r}" for name, width, height in (self._camera, now))
        elif focal is not None and self._focal is not None and abs(focal / self._focal - 1.0) > REFOCUSED:
            before, after = (f"a focal length of {length:.1f} pixels" for length in (self._focal, focal))
        else:
            return None
        return f"the camera changed during the mission, from {before} to {after}"

    def begin(self) -> None:
        """Take the next image's camera as that of the mission."""
        self._camera = self._focal = None

    def frozen(
        self,
        image: NDArray[np.uint8],
        stamp_ns: int,
        tool_position: NDArray[np.float64],
        tool_pixel: tuple[float, float] | None = None,
    ) -> str | None:
        """Return the problem when the camera repeats one picture, or a few, while the tool moves; else None.

        image: [H, W, 3]. tool_position: [3] metres at the same stamp. tool_pixel: its place in the image; None where it
        is not seen, and then only pictures that are equal to the last bit count: a still scene may look like its noise.
        """
        self._equal.add(image, stamp_ns, tool_position)
        if tool_pixel is None:
            self._alike = _Repetition(_alike)
        else:
            self._alike.add(image, stamp_ns, tool_position, tool_pixel)
        if self._equal.lasts(self.config):
            found, what = self._equal, "equal images"
        elif self._alike.lasts(self.config) and self._alike.moved_px >= SEEN_PX:
            found, what = self._alike, "equal images but for noise"
        else:
            return None
        return f"the camera is frozen: {found.same_s:.1f} s of {what} while the tool moved {found.moved_m * 1e3:.0f} mm"


class _Repetition:
    """A row of pictures that repeat those before: the time it takes, and the motion of the tool meanwhile.

    same_s: seconds by the stamps. moved_m: metres; moved_px: pixels that its place in the image moved.
    """

    def __init__(self, same: Callable[[NDArray[np.uint8], NDArray[np.uint8]], bool]) -> None:
        """same: whether two images [H, W, 3] count as one."""
        self._same = same
        self._frames: deque[NDArray[np.uint8]] = deque(maxlen=REPEATED)
        self._begin: tuple[int, NDArray[np.float64], NDArray[np.float64]] | None = None
        self.same_s = self.moved_m = self.moved_px = 0.0

    def add(
        self,
        image: NDArray[np.uint8],
        stamp_ns: int,
        tool_position: NDArray[np.float64],
        tool_pixel: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """Take the next picture."""
        pixel = np.asarray(tool_pixel)
        if self._begin is None or not any(self._same(frame, image) for frame in self._frames):
            self._frames.append(image)
            self._begin = stamp_ns, tool_position, pixel
            self.same_s = self.moved_m = self.moved_px = 0.0
            return
        begin_ns, position_then, pixel_then = self._begin
        self.same_s = (stamp_ns - begin_ns) / NS_PER_S
        self.moved_m = max(self.moved_m, float(np.linalg.norm(tool_position - position_then)))
        self.moved_px = max(self.moved_px, float(np.linalg.norm(pixel - pixel_then)))

    def lasts(self, config: ImageGateConfig) -> bool:
        """Return whether the same was seen for long enough while the tool moved."""
        return self.same_s >= config.frozen_s and self.moved_m >= config.frozen_motion_m


def _alike(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Return whether no pixel of two images [H, W, 3] differs by more than NOISE; some pixels mostly tell."""
    if one.shape != other.shape:
        return False
    few = np.abs(one[::16, ::16].astype(np.int16) - other[::16, ::16])
    return bool(few.max() <= NOISE) and bool(cv2.absdiff(one, other).max() <= NOISE)


def nothing_visible(image: NDArray[np.uint8]) -> str | None:
    """Return why nothing can be seen in an image [H, W, 3], with the remedy, or None where something can.

    One rule for a covered lens, an exposure at either end and a driver that fills its buffer: too small, black, or
    without contrast (`contrast`).
    """
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        return f"the image is {width}x{height} pixels: nothing can be seen in it"
    if int(image[::4, ::4].max()) <= BLACK:
        return "the image is black: is the lens covered, or the exposure zero?"
    if (found := contrast(image)) > LEAST_CONTRAST:
        return None
    colour = ", ".join(f"{level:.0f}" for level in np.median(image[::4, ::4], axis=(0, 1)))
    return (
        f"nothing can be seen in the image: it has one colour ({colour}), and {ALIKE} % of it differ by no more than "
        f"{found:.0f} of 255 (limit {LEAST_CONTRAST:g}): check the exposure, the lens cap and the driver"
    )


def contrast(image: NDArray[np.uint8]) -> float:
    """Return by how much (levels of 255) the colours in an image [H, W, 3] differ from the median colour.

    That of the channel that differs most, at the 95th percentile of 64 x 64 cells, each of which has its mean colour.
    """
    cells = cv2.resize(image, (CELLS, CELLS), interpolation=cv2.INTER_AREA).reshape(-1, 3).astype(np.int16)
    return float(np.percentile(np.abs(cells - np.median(cells, axis=0)).max(axis=1), ALIKE))


def lens_problem(width: int, height: int, fx: float, fy: float) -> str | None:
    """Return why this camera matrix (pixels) is implausible, or None; mostly it is normalised, or unset."""
    across, down = (float(np.degrees(2.0 * np.arctan2(side / 2.0, f))) for side, f in ((width, fx), (height, fy)))
    if all(NARROWEST_DEG <= view <= WIDEST_DEG for view in (across, down)):
        return None
    return (
        f"the camera matrix gives a field of view of {across:.1f} x {down:.1f} degrees (fx {fx:g}, fy {fy:g}, image "
        f"{width}x{height}): fx and fy must be in pixels"
    )
