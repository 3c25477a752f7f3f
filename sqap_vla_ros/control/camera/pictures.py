"""A picture with its geometry, in cells, and what differs between two."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.robot.camera import CameraModel
from sqap_vla_ros.robot.conventions import invert_pose

CELLS_ACROSS = 80  # cells in which pictures are compared; the noise of their pixels averages out
LEVELS = 2.0  # of 255: a cell that differs by no more is the same, for pictures are rounded
NOISES = 4.0  # times the median difference of all cells: no more is noise
SOME = 3  # one cell in so many, each way, tells the median
MOST_NOISE = 12.0  # levels; in a picture with more nothing is found out, and what differs by more looks different
GRIPPER_M = 0.12  # around the tool's place, where a gripper that moves changes the picture


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

    @property
    def tool(self) -> NDArray[np.float64]:
        """The pixel [2] of the tool. Raises ValueError where it is not in the picture; see `around_tool`."""
        if self.view is None or self.view.tool is None:
            raise ValueError("the tool is not in this picture")
        return self.view.tool

    def away(self, other: Picture) -> float:
        """Return how far the tool is from its place in another picture, metres."""
        return float(np.linalg.norm(self.tool_position - other.tool_position))

    def around_tool(self, share: float = 1.0) -> NDArray[np.bool_] | None:
        """Return the cells [h, w] around the tool, up to a share of GRIPPER_M; None where it is not in the picture."""
        if self.view is None or self.view.tool is None:
            return None
        height, width = self.cells.shape[:2]
        u, v = (self.view.tool + 0.5) / self.cell - 0.5
        radius = share * float(np.clip(self.view.gripper_px / self.cell, 3.0, width / 4))
        rows, columns = np.ogrid[:height, :width]
        return np.asarray((columns - u) ** 2 + (rows - v) ** 2 <= radius**2)


def changed_cells(then: Picture, now: Picture) -> NDArray[np.bool_] | None:
    """Return which cells [h, w] differ by more than noise and a change of brightness; None where that is not known."""
    difference = now.cells - then.cells
    some = difference[::SOME, ::SOME].reshape(-1, 3)  # medians of all take as long as the rest
    difference -= np.median(some, axis=0).astype(np.int16)
    levels = np.abs(difference).max(axis=2)
    limit = max(LEVELS, NOISES * float(np.median(levels[::SOME, ::SOME])))
    return np.asarray(levels > limit) if limit <= MOST_NOISE else None
