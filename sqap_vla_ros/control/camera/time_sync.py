"""Pairs every image with the camera_info of the very same stamp, whichever of the two comes first or more often."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqap_vla_ros.contracts import NS_PER_S


@dataclass
class SyncCounters:
    """Counts of messages and of their fates, for the diagnostics.

    images, camera_infos: received. paired: images that met the camera_info of their stamp.
    images_without_info: images given up because no camera_info of their stamp came before newer images needed the room
        or a newer pair was made.
    images_late: images refused because they are not newer than the newest pair, or the second of their stamp.
    restarts: times that stamps went back by more than `restart_s`, after which everything waiting was forgotten.
    Images still waiting are in none of the last four. A camera_info without an image is normal: drivers that trigger
    the camera slowly publish camera_info at its full rate.
    """

    images: int = 0
    camera_infos: int = 0
    paired: int = 0
    images_without_info: int = 0
    images_late: int = 0
    restarts: int = 0


class ImageInfoSync:
    """Exact-stamp pairing with bounded memory. Not thread-safe: call it from one callback group.

    on_pair: called with (image, camera_info) as soon as both are there; stamps ascend from call to call.
    patience_s: how long an image may wait for its camera_info before that is a problem.
    waiting_images: images kept while their camera_info is on its way (an image is a megabyte).
    waiting_infos: camera_infos kept while their image is on its way (2 s at 30 Hz).
    restart_s: stamps that far before the newest pair are a new beginning (a bag that loops), not late messages.
    """

    def __init__(
        self,
        on_pair: Callable[[Any, Any], None],
        *,
        patience_s: float = 0.5,
        waiting_images: int = 4,
        waiting_infos: int = 64,
        restart_s: float = 1.0,
    ) -> None:
        if not (waiting_images >= 1 and waiting_infos >= 1 and restart_s > 0.0 and patience_s > 0.0):
            raise ValueError(
                "waiting_images and waiting_infos must be at least 1, patience_s and restart_s positive, "
                f"got {waiting_images}, {waiting_infos}, {patience_s} and {restart_s}"
            )
        self.counters = SyncCounters()
        self._on_pair = on_pair
        self._patience_s = patience_s
        self._waiting_images = waiting_images
        self._waiting_infos = waiting_infos
        self._restart_ns = round(restart_s * NS_PER_S)
        self.reset()

    def reset(self) -> None:
        """Forget everything that waits, and the newest pair; the counters stay."""
        self._images: OrderedDict[int, tuple[Any, float]] = OrderedDict()  # stamp -> image, arrival (steady clock)
        self._infos: OrderedDict[int, Any] = OrderedDict()
        self._paired_ns: int | None = None
        self._newest_image_ns: int | None = None
        self._unpaired_since_s: float | None = None  # arrival of the first image since the newest pair
        self._image_s: float | None = None  # arrival of the newest image

    def add_image(self, image: Any) -> None:
        """Take an image: any message with a header."""
        self.counters.images += 1
        self._image_s = now_s = time.monotonic()
        stamp_ns = _stamp_ns(image)
        if self._is_late(stamp_ns) or stamp_ns in self._images:
            self.counters.images_late += 1
            return
        if stamp_ns in self._infos:
            self._pair(stamp_ns, image, self._infos[stamp_ns])
            return
        self._images[stamp_ns] = image, now_s
        self._newest_image_ns = stamp_ns
        if self._unpaired_since_s is None:
            self._unpaired_since_s = now_s
        while len(self._images) > self._waiting_images:
            self._give_up_oldest()

    def add_info(self, camera_info: Any) -> None:
        """Take a CameraInfo."""
        self.counters.camera_infos += 1
        stamp_ns = _stamp_ns(camera_info)
        if self._is_late(stamp_ns):
            return
        if stamp_ns in self._images:
            self._pair(stamp_ns, self._images[stamp_ns][0], camera_info)
            return
        self._infos[stamp_ns] = camera_info
        while len(self._infos) > self._waiting_infos:
            self._infos.popitem(last=False)

    def expire(self, now_s: float) -> None:
        """Give up images that waited longer than `patience_s`. now_s: steady clock (`time.monotonic`)."""
        while self._images and now_s - next(iter(self._images.values()))[1] > self._patience_s:
            self._give_up_oldest()

    def silent_s(self, now_s: float) -> float:
        """Return the time (s) since an image came, with or without its camera_info; 0 before the first."""
        return 0.0 if self._image_s is None else now_s - self._image_s

    def problem(self, now_s: float) -> str | None:
        """Return why images come but no pairs, for a person; None while they meet. now_s: steady clock."""
        if self._unpaired_since_s is None or now_s - self._unpaired_since_s <= self._patience_s:
            return None
        if not self.counters.camera_infos:
            return f"{self.counters.images} images but no camera_info were received"
        if not self._infos or self._newest_image_ns is None:
            return "camera_info stopped coming"
        newest_ns = self._newest_image_ns
        nearest_ns = min(self._infos, key=lambda stamp_ns: abs(stamp_ns - newest_ns))
        offset_ms = (nearest_ns - newest_ns) / 1e6
        return (
            f"no camera_info has the stamp of the newest image, the nearest is {offset_ms:+.3f} ms away: "
            "both must be published with the same stamp"
        )

    def _pair(self, stamp_ns: int, image: Any, camera_info: Any) -> None:
        self.counters.paired += 1
        self._paired_ns = stamp_ns
        self._unpaired_since_s = None
        self._images.pop(stamp_ns, None)
        for older_ns in [waiting_ns for waiting_ns in self._images if waiting_ns < stamp_ns]:
            del self._images[older_ns]
            self.counters.images_without_info += 1
        for older_ns in [waiting_ns for waiting_ns in self._infos if waiting_ns <= stamp_ns]:
            del self._infos[older_ns]
        self._on_pair(image, camera_info)

    def _give_up_oldest(self) -> None:
        self._images.popitem(last=False)
        self.counters.images_without_info += 1

    def _is_late(self, stamp_ns: int) -> bool:
        """Return whether a stamp is not newer than the newest pair; far before it, the stream began anew."""
        if self._paired_ns is None or stamp_ns > self._paired_ns:
            return False
        if self._paired_ns - stamp_ns > self._restart_ns:
            self.counters.restarts += 1
            self.reset()
            return False
        return True


def _stamp_ns(message: Any) -> int:
    stamp = message.header.stamp
    return int(stamp.sec) * NS_PER_S + int(stamp.nanosec)
