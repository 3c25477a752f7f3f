"""Notices a camera that shows what was while the tool moves: frozen pictures, and old ones under fresh stamps.

Two rules find a picture that stands. Equal to the last bit is one. The other knows where the tool is in the picture:
when it went elsewhere, something must have changed where it was or where it is. Both compare pictures with the last few
different ones, because a broken driver may repeat several in turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.robot.camera import CameraModel
from sqap_vla_ros.robot.conventions import invert_pose

REPEATED = 4  # pictures that a broken driver may repeat in turn
BEGINS = 0.25  # of frozen_motion_m: a tool that is so far away has begun to move
CELLS_ACROSS = 80  # cells in which pictures are compared; the noise of their pixels averages out
LEVELS = 2.0  # of 255: a cell that differs by no more is the same, for pictures are rounded
NOISES = 4.0  # times the median difference of all cells: no more is noise
SOME = 3  # one cell in so many, each way, tells the median
MOST_NOISE = 12.0  # levels; in a picture with more nothing is found out
FEW, FEW_ROWS = 0.02, 1 / 12  # of the cells, and of their rows: a clock that the driver writes into a frozen picture
GRIPPER_M = 0.12  # around the tool's place, where a gripper that moves changes the picture
SEEN_CELLS = 2.0  # a tool that is seen to move so far is elsewhere
SHOWS = 0.1  # of the cells around the tool that must look different from those where it is now, or nothing would change
SHOWS_ALL = 0.25  # of all cells, for a camera that moves
STANDS_M = 0.002  # a tool that moved by no more stands
LATENCY_S = 0.6  # after which the picture of a tool that stands changes no more
CHANGES = 0.02  # of the cells around the tool: what moves there changes more, and noise fewer
LATE_S, LATE_CHANGES = 0.25, 3  # so long and so often it has to change all the same to be an old one
WATCHED = "the camera was frozen a moment ago, and is watched until the tool has stood for a second"
WATCHED_S = 1.0  # that a camera which was frozen is watched at rest before it is believed
LONGEST_WATCH_S = 5.0  # where the tool never rests, as in a recording


@dataclass(frozen=True)
class ToolView:
    """The geometry of a picture. optical_from_base, base_from_tool: [4, 4] at its stamp."""

    camera: CameraModel
    optical_from_base: NDArray[np.float64]
    base_from_tool: NDArray[np.float64]

    def pixel(self, point: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return the pixel [2] of a point [3] of the base frame; None where it is not before the camera."""
        found = self.camera.project((self.optical_from_base[:3, :3] @ point + self.optical_from_base[:3, 3])[None])
        return found.pixels[0] if np.isfinite(found.pixels[0]).all() else None

    @cached_property
    def tool(self) -> NDArray[np.float64] | None:
        """The pixel [2] of the tool; None where it is not in the picture."""
        pixel = self.pixel(self.base_from_tool[:3, 3])
        if pixel is None or not (0 <= pixel[0] < self.camera.width and 0 <= pixel[1] < self.camera.height):
            return None
        return pixel

    @cached_property
    def gripper_px(self) -> float:
        """GRIPPER_M in pixels, at the tool's distance."""
        depth_m = float((self.optical_from_base @ self.base_from_tool)[2, 3])
        return GRIPPER_M * float(self.camera.matrix[0, 0]) / max(depth_m, 0.05)

    @cached_property
    def ahead(self) -> NDArray[np.float64]:
        """The point [3] of the base frame that is 1 m before the camera."""
        return invert_pose(self.optical_from_base)[:3] @ np.array([0.0, 0.0, 1.0, 1.0])


@dataclass(frozen=True)
class Picture:
    """An image [H, W, 3] with the tool's position [3] (m) at its stamp; view None: of a camera without calibration."""

    image: NDArray[np.uint8]
    stamp_ns: int
    tool_position: NDArray[np.float64]
    view: ToolView | None = None

    @cached_property
    def cell(self) -> int:
        """The side of a cell in pixels."""
        return max(1, round(self.image.shape[1] / CELLS_ACROSS))

    @cached_property
    def cells(self) -> NDArray[np.int16]:
        """The mean colours [h, w, 3] of the cells."""
        height, width = (max(1, side // self.cell) for side in self.image.shape[:2])
        return cv2.resize(self.image, (width, height), interpolation=cv2.INTER_AREA).astype(np.int16)

    def away(self, other: Picture) -> float:
        """Return how far the tool is from its place in another picture, metres."""
        return float(np.linalg.norm(self.tool_position - other.tool_position))

    def around_tool(self) -> NDArray[np.bool_] | None:
        """Return the cells [h, w] around the tool; None where it is not seen."""
        if self.view is None or self.view.tool is None:
            return None
        height, width = self.cells.shape[:2]
        u, v = (self.view.tool + 0.5) / self.cell - 0.5
        radius = float(np.clip(self.view.gripper_px / self.cell, 3.0, width / 4))
        rows, columns = np.ogrid[:height, :width]
        return np.asarray((columns - u) ** 2 + (rows - v) ** 2 <= radius**2)


@dataclass(frozen=True)
class Same:
    """Two pictures that count as one.

    shown: whether the tool moved so that they should not. else_share: of the picture that changed all the same.
    """

    shown: bool
    else_share: float = 0.0


def equal(then: Picture, now: Picture) -> Same | None:
    """Return Same for two pictures that are equal to the last bit."""
    one, other = then.image, now.image
    if one.shape != other.shape or not np.array_equal(one[::16, ::16], other[::16, ::16]):
        return None
    return Same(shown=True) if np.array_equal(one, other) else None


def changed_cells(then: Picture, now: Picture) -> NDArray[np.bool_] | None:
    """Return which cells [h, w] differ by more than noise and a change of brightness; None where that is not known."""
    difference = now.cells - then.cells
    some = difference[::SOME, ::SOME].reshape(-1, 3)  # medians of all take as long as the rest
    difference -= np.median(some, axis=0).astype(np.int16)
    levels = np.abs(difference).max(axis=2)
    limit = max(LEVELS, NOISES * float(np.median(levels[::SOME, ::SOME])))
    return np.asarray(levels > limit) if limit <= MOST_NOISE else None


def unchanged(then: Picture, now: Picture) -> Same | None:
    """Return Same for two pictures without a change where the tool was and is, and with no more than a clock elsewhere.

    For a camera that moves the place of the tool does not count. None also where the tool is not seen: a still scene
    looks like this.
    """
    before, after = then.view, now.view
    if before is None or after is None or then.image.shape != now.image.shape:
        return None
    ahead, was_ahead = after.pixel(before.ahead), before.pixel(before.ahead)
    if ahead is None or was_ahead is None:
        return None
    changed = changed_cells(then, now)
    if changed is None or changed.mean() > FEW or _rows(changed) > FEW_ROWS * len(changed):
        return None
    share = float(changed.mean())
    way = (ahead - was_ahead) / then.cell
    if np.linalg.norm(way) >= 1.0:  # the camera moves, and with it all that it sees
        limit = np.array(then.cells.shape[1::-1]) / 4
        return Same(_moves(way) and _differs(then.cells, np.clip(way, -limit, limit)) >= SHOWS_ALL, share)
    was, here = then.around_tool(), now.around_tool()
    if was is None or here is None or before.tool is None or after.tool is None or changed[was | here].any():
        return None
    way = (after.tool - before.tool) / then.cell
    return Same(_moves(way) and _differs(then.cells, way, was) >= SHOWS, share)


def _rows(cells: NDArray[np.bool_]) -> int:
    """Return how many rows these cells [h, w] span."""
    (rows,) = np.nonzero(cells.any(axis=1))
    return int(rows[-1] - rows[0] + 1) if rows.size else 0


def _moves(way: NDArray[np.float64]) -> bool:
    return bool(np.linalg.norm(way) >= SEEN_CELLS)


def _differs(cells: NDArray[np.int16], way: NDArray[np.float64], where: NDArray[np.bool_] | None = None) -> float:
    """Return the share of the cells [h, w, 3] that look different from those that are `way` [2] (right, down) away."""
    height, width = cells.shape[:2]
    right, down = (round(float(step)) for step in way)
    rows, columns = slice(max(0, -down), height - max(0, down)), slice(max(0, -right), width - max(0, right))
    there = slice(rows.start + down, rows.stop + down), slice(columns.start + right, columns.stop + right)
    differs = np.abs(cells[rows, columns] - cells[there]).max(axis=2) > MOST_NOISE
    if where is not None:
        differs = differs[where[rows, columns]]
    return float(differs.mean()) if differs.size else 0.0


class Repetition:
    """A row of pictures that repeat those before: the time it takes, and the motion of the tool meanwhile.

    same_s: seconds by the stamps since the tool began to move. moved_m: metres. else_share: see Same.
    """

    def __init__(self, same: Callable[[Picture, Picture], Same | None], motion_m: float) -> None:
        """same: judges an earlier picture and the newest. motion_m: that shows a camera to be frozen."""
        self._same, self._motion_m = same, motion_m
        self._pictures: deque[Picture] = deque(maxlen=REPEATED)
        self._restart(0)

    def _restart(self, stamp_ns: int) -> None:
        self.same_s = self.moved_m = self.else_share = 0.0
        self._begin_ns, self._begun, self._shown = stamp_ns, False, False

    def add(self, now: Picture) -> None:
        """Take the next picture."""
        found = [(now.away(then), same) for then in self._pictures if (same := self._same(then, now)) is not None]
        if not found:
            self._pictures.append(now)
            self._restart(now.stamp_ns)
            return
        away_m, same = min(found, key=lambda pair: pair[0])
        self._begun = self._begun or away_m >= BEGINS * self._motion_m
        if not self._begun:
            self._begin_ns = now.stamp_ns
        self._shown |= same.shown
        self.same_s = (now.stamp_ns - self._begin_ns) / NS_PER_S
        self.moved_m = max(self.moved_m, away_m)
        self.else_share = max(self.else_share, same.else_share)

    def lasts(self, frozen_s: float) -> bool:
        """Return whether the same was seen for long enough while the tool moved."""
        return self._shown and self.same_s >= frozen_s and self.moved_m >= self._motion_m


class FrozenCamera:
    """Judges one picture after the other.

    A camera that was frozen is believed again once it was watched for WATCHED_S of a tool at rest. When its picture
    goes on changing then, where the tool is, it shows what was: it is late, and stays so until the next task.
    """

    def __init__(self, frozen_s: float, motion_m: float) -> None:
        """frozen_s, motion_m: a picture that stood for so long while the tool moved so far is frozen."""
        self._frozen_s, self._motion_m = frozen_s, motion_m
        self.reset()

    def reset(self) -> None:
        """Forget every picture."""
        self._equal = Repetition(equal, self._motion_m)
        self._unchanged = Repetition(unchanged, self._motion_m)
        self._before: Picture | None = None
        self.begin()

    def begin(self) -> None:
        """Believe the camera again: another task begins."""
        self._frozen_ns: int | None = None  # when it was last, and is not believed again yet
        self._late: str | None = None
        self._rest: Picture | None = None  # since when the tool stands
        self._changes: list[int] = []  # stamps at which the picture changed although the tool stands

    def problem(self, now: Picture) -> str | None:
        """Return the problem when the camera shows what was, else None."""
        before, self._before = self._before, now
        self._equal.add(now)
        self._unchanged.add(now)
        for found, what in ((self._equal, "equal images"), (self._unchanged, "equal images but for noise")):
            if found.lasts(self._frozen_s):
                self._frozen_ns, self._rest, self._changes = now.stamp_ns, None, []
                but = f" and {found.else_share * 100:.1f} % of the picture" if found.else_share > 0.0 else ""
                return (
                    f"the camera is frozen: {found.same_s:.1f} s of {what}{but} while the tool moved "
                    f"{found.moved_m * 1e3:.0f} mm"
                )
        return self._late or (self._watch(before, now, self._frozen_ns) if self._frozen_ns is not None else None)

    def _watch(self, before: Picture | None, now: Picture, frozen_ns: int) -> str | None:
        """Return what is wrong with a camera that was frozen, or that it is still watched; None when it is believed."""
        if before is None or self._rest is None or now.away(self._rest) > STANDS_M:
            self._rest, self._changes = now, []
        elif (stands_s := (now.stamp_ns - self._rest.stamp_ns) / NS_PER_S) >= LATENCY_S:
            if _changed_at_tool(before, now):
                self._changes.append(now.stamp_ns)
            if len(self._changes) >= LATE_CHANGES and now.stamp_ns - self._changes[0] >= LATE_S * NS_PER_S:
                self._late = (
                    f"the camera is late by {stands_s:.1f} s or more, under fresh stamps: its picture stood while the "
                    "tool moved, and moved while the tool stood"
                )
                return self._late
            if stands_s >= WATCHED_S:
                self.begin()
                return None
        if now.stamp_ns - frozen_ns < LONGEST_WATCH_S * NS_PER_S:
            return WATCHED
        self.begin()
        return None


def _changed_at_tool(before: Picture, now: Picture) -> bool:
    """Return whether a picture differs from the one before, where the tool is or, where it is not seen, anywhere."""
    if before.image.shape != now.image.shape or (changed := changed_cells(before, now)) is None:
        return False
    around = now.around_tool()
    return float((changed if around is None else changed[around]).mean()) >= CHANGES
