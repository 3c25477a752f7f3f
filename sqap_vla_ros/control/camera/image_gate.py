"""Judges the image stream, without ROS: order, age, content, and whether it is still the same camera."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.camera.frozen import FrozenCamera
from sqap_vla_ros.control.camera.pictures import Picture, ToolView

REFOCUSED = 0.05  # share of the focal length that autofocus may change


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
    frozen_s, frozen_motion_m: the camera is frozen when its picture stayed the same for that long while the tool moved
        that far (see `FrozenCamera`). Motion is asked for because a still scene in simulation has no noise.
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
        self._frozen = FrozenCamera(self.config.frozen_s, self.config.frozen_motion_m)

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
        self._frozen.begin()

    def frozen(
        self,
        image: NDArray[np.uint8],
        stamp_ns: int,
        tool_position: NDArray[np.float64],
        view: ToolView | None = None,
    ) -> str | None:
        """Return the problem when the camera shows what was while the tool moves; else None.

        image: [H, W, 3]. tool_position: [3] metres at the same stamp. view: the geometry of the image; without it only
        pictures that are equal to the last bit count.
        """
        return self._frozen.problem(Picture(image, stamp_ns, tool_position, view))
