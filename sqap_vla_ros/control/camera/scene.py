"""Remembers what a camera showed while it was seen to work, to know what a motion must change in its picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.control.camera.pictures import MOST_NOISE, Picture

FEW, FEW_ROWS = 0.02, 1 / 12  # of the cells, and of their rows: a clock that the driver writes into a frozen picture
SEEN_CELLS = 2.0  # what is seen to move so far is elsewhere
CORE = 0.5  # of GRIPPER_M: where the gripper itself is
KNOWN = 0.5  # of these cells must have been seen without it
SHOWS = 0.1  # of these cells must look different with it
OTHER = 0.3  # of the rest may look different, or the whole scene has changed
SHOWS_ALL = 0.25  # of all cells must change where a camera moves
FORGETS = 0.9  # of what was seen before, with each place of a camera that moves
PLACES, LIVES = 3.0, 0.2  # so many tell which cells change, those in this share of them


class Scene:
    """Keeps what a camera has shown.

    Of one that stands: each cell as it was when the tool was elsewhere. A gripper that is hidden, or looks like what is
    behind it, changes nothing as it leaves. Of one that moves: which cells change as it does. Its own gripper is not
    among them, and a bare table is not either.
    """

    def __init__(self) -> None:
        self._background: NDArray[np.int16] | None = None
        self._known: NDArray[np.bool_] | None = None
        self._camera: Picture | None = None  # for which the background holds
        self._place: Picture | None = None  # of a camera that moves, where it was last noted
        self._places = 0.0
        self._changed: NDArray[np.float64] | None = None

    def note(self, now: Picture) -> None:
        """Take a picture that has changed: the camera works."""
        if now.view is None:
            return
        if self._camera is None or self._camera.cells.shape != now.cells.shape or camera_way(self._camera, now) >= 1.0:
            self._background, self._known = now.cells.copy(), np.zeros(now.cells.shape[:2], bool)
            self._camera = now
        assert self._background is not None
        assert self._known is not None
        around = now.around_tool()
        free = np.ones_like(self._known) if around is None else ~around
        self._background[free] = now.cells[free]
        self._known |= free
        self._note_place(now)

    def shows_tool(self, picture: Picture) -> bool:
        """Return whether a gripper is to be seen where the tool is in the picture of a camera that stands."""
        around, core = picture.around_tool(), picture.around_tool(CORE)
        if around is None or core is None or self._background is None or self._known is None:
            return False
        known = core & self._known
        if self._background.shape != picture.cells.shape or known.sum() < KNOWN * core.sum():
            return False
        difference = picture.cells - self._background
        rest = self._known & ~around
        difference -= np.median(difference[rest], axis=0).astype(np.int16)
        differs = np.abs(difference).max(axis=2) > MOST_NOISE
        return bool(differs[rest].mean() <= OTHER and differs[known].mean() >= SHOWS)

    def moves_past(self, picture: Picture, way: NDArray[np.float64]) -> bool:
        """Return whether so much of a moving camera's picture lives that a shift by `way` [2] cells must change it."""
        if self._changed is None or self._places < PLACES or self._changed.shape != picture.cells.shape[:2]:
            return False
        height, width = picture.cells.shape[:2]
        most = np.array([width, height]) / 4
        right, down = (round(float(step)) for step in np.clip(way, -most, most))
        rows, columns = slice(max(0, -down), height - max(0, down)), slice(max(0, -right), width - max(0, right))
        there = slice(rows.start + down, rows.stop + down), slice(columns.start + right, columns.stop + right)
        differs = np.abs(picture.cells[rows, columns] - picture.cells[there]).max(axis=2) > MOST_NOISE
        lives = self._changed[rows, columns] > LIVES * self._places
        return bool((differs & lives).mean() >= SHOWS_ALL)

    def _note_place(self, now: Picture) -> None:
        before = self._place
        if before is None or before.cells.shape != now.cells.shape:
            self._place, self._places, self._changed = now, 0.0, np.zeros(now.cells.shape[:2])
            return
        if camera_way(before, now) < SEEN_CELLS:
            return
        self._place = now
        changed = np.abs(now.cells - before.cells).max(axis=2) > MOST_NOISE  # most of it, so noise is not told from it
        if changed.mean() > FEW and self._changed is not None:
            self._places = FORGETS * self._places + 1.0
            self._changed = FORGETS * self._changed + changed


def camera_way(then: Picture, now: Picture) -> float:
    """Return how many cells a point 1 m before the camera has moved in its picture since then; inf where unknown."""
    way = shift(then, now)
    return float("inf") if way is None else float(np.linalg.norm(way))


def shift(then: Picture, now: Picture) -> NDArray[np.float64] | None:
    """Return the way [2] (right, down) in cells of a point 1 m before the camera; None where it is behind it now."""
    if then.view is None or now.view is None:
        return None
    was, here = then.view.pixel(then.view.ahead), now.view.pixel(then.view.ahead)
    return None if was is None or here is None else (here - was) / then.cell
