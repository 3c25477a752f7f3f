"""The stand-in's camera: a table, the arm as a stick figure, and where its tool is."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.robot.conventions import invert_pose

WIDTH, HEIGHT = 640, 480
FOCAL = 600.0  # pixels
GRID_M = 0.1


class StandInCamera:
    """A camera that looks at the workspace from the front and above.

    base_from_optical: [4, 4]. matrix: [3, 3] in pixels. width, height: of the image.
    """

    def __init__(
        self,
        workspace_min_m: NDArray[np.float64],
        workspace_max_m: NDArray[np.float64],
        calibration: tuple[float, ...] | None = None,
    ) -> None:
        """calibration: width, height, fx, fy, cx, cy in pixels; None for a camera of 640 x 480."""
        width, height, fx, fy, cx, cy = calibration or (WIDTH, HEIGHT, FOCAL, FOCAL, WIDTH / 2 - 0.5, HEIGHT / 2 - 0.5)
        self.width, self.height = round(width), round(height)
        self.matrix = np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
        target = 0.5 * (workspace_min_m + workspace_max_m)
        size = float(np.linalg.norm(workspace_max_m - workspace_min_m))
        self.base_from_optical = _looking(target + size * np.array([0.9, 0.3, 0.6]), target)
        self._ground_m = float(workspace_min_m[2])
        self._table = self._draw_table(target, size)
        self._random = np.random.default_rng(0)

    def draw(self, skeleton: NDArray[np.float64], tool: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Return the image [height, width, 3] uint8 RGB. skeleton: [m, 3] of the arm, base first; tool: [4, 4]."""
        image = self._table.copy()
        pixels = [p for p in (self._pixel(point) for point in skeleton) if p is not None]
        for a, b in itertools.pairwise(pixels):
            cv2.line(image, a, b, (225, 120, 40), 14, cv2.LINE_AA)
        for axis, colour in zip(tool[:3, :3].T, ((220, 40, 40), (40, 180, 40), (40, 40, 220)), strict=True):
            ends = self._pixel(tool[:3, 3]), self._pixel(tool[:3, 3] + 0.05 * axis)
            if ends[0] is not None and ends[1] is not None:
                cv2.line(image, ends[0], ends[1], colour, 4, cv2.LINE_AA)
        # A real sensor has noise; without it the images of an arm at rest were equal, like those of a frozen camera.
        noise = self._random.integers(-3, 4, (self.height, self.width, 1), np.int16)
        return np.clip(image.astype(np.int16) + noise, 0, 255).astype(np.uint8)

    def _draw_table(self, target: NDArray[np.float64], size: float) -> NDArray[np.uint8]:
        image = np.full((self.height, self.width, 3), (205, 200, 190), np.uint8)
        lines = np.arange(-size, size + GRID_M, GRID_M)
        for x in lines:
            for ends in (((x, -size), (x, size)), ((-size, x), (size, x))):
                points = [np.array([target[0] + u, target[1] + v, self._ground_m]) for u, v in ends]
                a, b = (self._pixel(point) for point in points)
                if a is not None and b is not None:
                    cv2.line(image, a, b, (150, 150, 150), 1, cv2.LINE_AA)
        return image

    def _pixel(self, point: NDArray[np.float64]) -> tuple[int, int] | None:
        """Return the pixel of a point [3] in the base frame; None behind the camera or far outside the image."""
        x, y, z = (invert_pose(self.base_from_optical) @ np.append(point, 1.0))[:3]
        if z < 0.01:
            return None
        u, v, w = self.matrix @ np.array([x, y, z])
        pixel = (round(u / w), round(v / w))
        return pixel if max(map(abs, pixel)) < 20_000 else None


def _looking(from_m: NDArray[np.float64], to_m: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return base_from_optical [4, 4] of a camera that looks at a point; the optical frame's z is its view."""
    forward = (to_m - from_m) / np.linalg.norm(to_m - from_m)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.column_stack([right, np.cross(forward, right), forward])
    pose[:3, 3] = from_m
    return pose
