"""Judges whether anything can be seen in a picture, and whether its camera matrix can be one."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

SMALLEST_SIDE = 16  # pixels
BLACK = 8  # of 255: noise of a covered sensor
# Nothing can be seen where nearly the whole picture has one colour, in levels of 255. The dimmest recording at hand (a
# PR2 in a dark room, mean brightness 20) reaches 18, all others 98 and more, the simulator's 57 and more; noise of a
# covered sensor with a standard deviation of 10 reaches 3.
LEAST_CONTRAST = 4.0
CELLS = 64  # a side; the noise of the pixels in a cell averages out
ALIKE = 95  # percent of the cells
# But where most of the picture has one colour, as a white table, what stands out from it may be a gripper. A caption
# that the driver writes, or a dead row of pixels, is no picture: it is low, or narrow.
STANDS_OUT = 8.0  # levels
SOLID = 5  # cells in each direction that something fills
SPANNED = 16  # cells in each direction that something spans, however thin it is
NARROWEST_DEG, WIDEST_DEG = 1.0, 175.0


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
    away = _away_from_median(image)
    if (found := float(np.percentile(away, ALIKE))) > LEAST_CONTRAST or _stands_out(away > STANDS_OUT):
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
    return float(np.percentile(_away_from_median(image), ALIKE))


def _away_from_median(image: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Return by how much (levels of 255) each cell [64, 64] of an image [H, W, 3] differs from the median colour."""
    cells = cv2.resize(image, (CELLS, CELLS), interpolation=cv2.INTER_AREA).astype(np.int16)
    return np.asarray(np.abs(cells - np.median(cells, axis=(0, 1))).max(axis=2))


def _stands_out(cells: NDArray[np.bool_]) -> bool:
    """Return whether some of these cells [64, 64] are a thing: solid, or one that spans much of the picture."""
    mask = cells.astype(np.uint8)
    solid = cv2.erode(mask, np.ones((SOLID, SOLID), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    if solid.any():
        return True
    _, _, parts, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    sizes = parts[1:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]]  # the first one is what is left
    return bool((sizes.min(axis=1) >= SPANNED).any())


def lens_problem(width: int, height: int, fx: float, fy: float) -> str | None:
    """Return why this camera matrix (pixels) is implausible, or None; mostly it is normalised, or unset."""
    across, down = (float(np.degrees(2.0 * np.arctan2(side / 2.0, f))) for side, f in ((width, fx), (height, fy)))
    if all(NARROWEST_DEG <= view <= WIDEST_DEG for view in (across, down)):
        return None
    return (
        f"the camera matrix gives a field of view of {across:.1f} x {down:.1f} degrees (fx {fx:g}, fy {fy:g}, image "
        f"{width}x{height}): fx and fy must be in pixels"
    )
