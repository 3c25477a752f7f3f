"""Pairing of recorded images with their camera_info, in which every image gets an answer."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.camera.time_sync import ImageInfoSync
from sqap_vla_ros.nodes.messages import time_ns

NO_CAMERA_INFO = "no camera_info of its stamp"  # kind of an image that has none
LARGEST_NEAREST_S = 1.0
MAX_WAITING = 8  # images held back until their camera_info or their transforms are read
_MAX_INFOS = 64
Arrival = TypeVar("Arrival")


@dataclass(frozen=True)
class Pair(Generic[Arrival]):
    """An image and its camera_info; without one, `problem` says why and `kind` in few words. arrival: as given."""

    arrival: Arrival
    image: Any
    stamp_ns: int
    camera_info: Any
    problem: str = ""
    kind: str = ""


class ImagePairing(Generic[Arrival]):
    """Pairs images with the camera_info of the same stamp, as the live node does.

    nearest_s: where positive, the nearest camera_info up to so far away serves instead.
    fixed: one camera_info for all images, whatever their stamps.
    """

    def __init__(self, *, nearest_s: float = 0.0, fixed: Any = None) -> None:
        self.ready: deque[Pair[Arrival]] = deque()
        self._nearest_ns, self._fixed = round(nearest_s * NS_PER_S), fixed
        self._sync = ImageInfoSync(self._on_pair, patience_s=np.inf, waiting_images=MAX_WAITING)
        self._waiting: OrderedDict[int, tuple[Arrival, Any]] = OrderedDict()  # by stamp
        self._infos: OrderedDict[int, Any] = OrderedDict()  # by stamp, the newest `_MAX_INFOS`
        self._done_ns: int | None = None  # newest stamp that has its answer

    def add_image(self, arrival: Arrival, image: Any) -> None:
        """Take an image; its answer appears in `ready`, perhaps later."""
        stamp_ns = time_ns(image.header.stamp)
        if stamp_ns == 0:
            problem = (
                "its stamp is zero: the camera's driver leaves header.stamp empty, at which transforms are looked up"
            )
            self.ready.append(Pair(arrival, image, stamp_ns, None, problem, "stamp zero"))
            return
        if self._fixed is not None:
            self.ready.append(Pair(arrival, image, stamp_ns, self._fixed))
            return
        if stamp_ns in self._waiting or (self._done_ns is not None and stamp_ns <= self._done_ns):
            problem = "its stamp is not newer than that of an image before"
            self.ready.append(Pair(arrival, image, stamp_ns, None, problem, "stamp not newer"))
            return
        self._waiting[stamp_ns] = arrival, image
        if self._nearest_ns:
            self._match_nearest()
        else:
            self._sync.add_image(image)
        while len(self._waiting) > MAX_WAITING:
            self._give_up_oldest()

    def add_info(self, camera_info: Any) -> None:
        """Take a camera_info."""
        self._infos[time_ns(camera_info.header.stamp)] = camera_info
        while len(self._infos) > _MAX_INFOS:
            self._infos.popitem(last=False)
        if self._nearest_ns:
            self._match_nearest()
        else:
            self._sync.add_info(camera_info)

    def finish(self) -> None:
        """Answer what still waits: the recording, or this round of it, is over."""
        while self._waiting:
            self._give_up_oldest()

    def _on_pair(self, image: Any, camera_info: Any) -> None:
        self._answer(time_ns(image.header.stamp), camera_info)

    def _match_nearest(self) -> None:
        """Answer images that no later camera_info can be nearer to."""
        newest_ns = max(self._infos, default=None)
        while newest_ns is not None and self._waiting and next(iter(self._waiting)) <= newest_ns:
            self._give_up_oldest()

    def _answer(self, stamp_ns: int, camera_info: Any) -> None:
        while self._waiting and (oldest_ns := next(iter(self._waiting))) < stamp_ns:
            self._pop(oldest_ns, None, self._reason(oldest_ns))
        self._pop(stamp_ns, camera_info, "")

    def _give_up_oldest(self) -> None:
        stamp_ns = next(iter(self._waiting))
        nearest_ns = self._nearest(stamp_ns)
        if self._nearest_ns and nearest_ns is not None and abs(nearest_ns - stamp_ns) <= self._nearest_ns:
            self._pop(stamp_ns, self._infos[nearest_ns], "")
        else:
            self._pop(stamp_ns, None, self._reason(stamp_ns))

    def _pop(self, stamp_ns: int, camera_info: Any, problem: str) -> None:
        arrival, image = self._waiting.pop(stamp_ns)
        kind = NO_CAMERA_INFO if problem else ""
        self._done_ns = stamp_ns if self._done_ns is None else max(self._done_ns, stamp_ns)
        self.ready.append(Pair(arrival, image, stamp_ns, camera_info, problem, kind))

    def _nearest(self, stamp_ns: int) -> int | None:
        return min(self._infos, key=lambda other_ns: abs(other_ns - stamp_ns), default=None)

    def _reason(self, stamp_ns: int) -> str:
        nearest_ns = self._nearest(stamp_ns)
        if nearest_ns is None:
            return "no camera_info was recorded with this image"
        offset_s = (nearest_ns - stamp_ns) / NS_PER_S
        within_s = max(0.001, 2.0 * abs(offset_s))
        remedy = f"with --camera-info nearest:{within_s:.3g} it would serve"
        if within_s > LARGEST_NEAREST_S:
            remedy = "give a calibration file as --camera-info"
        return f"no camera_info has this image's stamp, the nearest is {1e3 * offset_s:+.3f} ms away: {remedy}"
