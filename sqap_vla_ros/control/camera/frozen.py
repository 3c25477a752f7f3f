"""Notices a camera that shows what was while the tool moves: frozen pictures, and old ones under fresh stamps.

Two rules find a picture that stands. Equal to the last bit is one. The other knows where the tool is in the picture,
and how it looks without: when a gripper that was seen went elsewhere, something must have changed. Both compare
pictures with the last few different ones, because a broken driver may repeat several in turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.camera.pictures import Picture, changed_cells
from sqap_vla_ros.control.camera.scene import FEW, FEW_ROWS, SEEN_CELLS, Scene, shift

REPEATED = 4  # pictures that a broken driver may repeat in turn
BEGINS = 0.25  # of frozen_motion_m: a tool that is so far away has begun to move
STANDS_M = 0.002  # a tool that moved by no more stands
LATENCY_S = 0.6  # after which the picture of a tool that stands changes no more
CHANGES = 0.02  # of the cells around the tool: what moves there changes more, and noise fewer
LATE_S, LATE_CHANGES = 0.25, 3  # so long and so often it has to change all the same to be an old one
HIDDEN = "; or is the tool hidden from it?"
WATCHED = "the camera was frozen a moment ago, and is watched until the tool has stood for a second"
WATCHED_S = 1.0  # that a camera which was frozen is watched at rest before it is believed
LONGEST_WATCH_S = 5.0  # where the tool never rests, as in a recording


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


def unchanged(scene: Scene, then: Picture, now: Picture) -> Same | None:
    """Return Same for two pictures without a change where the tool was and is, and with no more than a clock elsewhere.

    For a camera that moves the place of the tool does not count. None also where the tool is not in the picture: a
    still scene looks like this.
    """
    if then.image.shape != now.image.shape or (way := shift(then, now)) is None:
        return None
    changed = changed_cells(then, now)
    if changed is None or changed.mean() > FEW or _rows(changed) > FEW_ROWS * len(changed):
        return None
    share = float(changed.mean())
    if np.linalg.norm(way) >= 1.0:  # the camera moves, and with it all that it sees
        return Same(_elsewhere(way) and scene.moves_past(then, way), share)
    was, here = then.around_tool(), now.around_tool()
    if was is None or here is None or changed[was | here].any():
        return None
    return Same(_elsewhere((now.tool - then.tool) / then.cell) and scene.shows_tool(then), share)


def _rows(cells: NDArray[np.bool_]) -> int:
    """Return how many rows these cells [h, w] span."""
    (rows,) = np.nonzero(cells.any(axis=1))
    return int(rows[-1] - rows[0] + 1) if rows.size else 0


def _elsewhere(way: NDArray[np.float64]) -> bool:
    return bool(np.linalg.norm(way) >= SEEN_CELLS)


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

    def add(self, now: Picture) -> bool:
        """Take the next picture. Return whether it is another one than those before."""
        found = [(now.away(then), same) for then in self._pictures if (same := self._same(then, now)) is not None]
        if not found:
            self._pictures.append(now)
            self._restart(now.stamp_ns)
            return True
        away_m, same = min(found, key=lambda pair: pair[0])
        self._begun = self._begun or away_m >= BEGINS * self._motion_m
        if not self._begun:
            self._begin_ns = now.stamp_ns
        self._shown |= same.shown
        self.same_s = (now.stamp_ns - self._begin_ns) / NS_PER_S
        self.moved_m = max(self.moved_m, away_m)
        self.else_share = max(self.else_share, same.else_share)
        return False

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
        self._scene = Scene()
        self._equal = Repetition(equal, self._motion_m)
        self._before: Picture | None = None
        self.begin()

    def begin(self) -> None:
        """Believe the camera again: another task begins. Pictures that are equal to the last bit stay so."""
        self._unchanged = Repetition(partial(unchanged, self._scene), self._motion_m)
        self._late: str | None = None
        self._believe()

    def _believe(self) -> None:
        self._frozen_ns: int | None = None  # when it was last, and is not believed again yet
        self._rest: Picture | None = None  # since when the tool stands
        self._changes: list[int] = []  # stamps at which the picture changed although the tool stands

    def problem(self, now: Picture) -> str | None:
        """Return the problem when the camera shows what was, else None."""
        before, self._before = self._before, now
        self._equal.add(now)
        if self._unchanged.add(now):
            self._scene.note(now)
        rules = ((self._equal, "equal images", ""), (self._unchanged, "equal images but for noise", HIDDEN))
        for found, what, doubt in rules:
            if found.lasts(self._frozen_s):
                self._frozen_ns, self._rest, self._changes = now.stamp_ns, None, []
                but = f" and {found.else_share * 100:.1f} % of the picture" if found.else_share > 0.0 else ""
                return (
                    f"the camera is frozen: {found.same_s:.1f} s of {what}{but} while the tool moved "
                    f"{found.moved_m * 1e3:.0f} mm{doubt}"
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
                self._believe()
                return None
        if now.stamp_ns - frozen_ns < LONGEST_WATCH_S * NS_PER_S:
            return WATCHED
        self._believe()
        return None


def _changed_at_tool(before: Picture, now: Picture) -> bool:
    """Return whether a picture differs from the one before, where the tool is or, where it is not seen, anywhere."""
    if before.image.shape != now.image.shape or (changed := changed_cells(before, now)) is None:
        return False
    around = now.around_tool()
    return float((changed if around is None else changed[around]).mean()) >= CHANGES
