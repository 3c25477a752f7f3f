"""Compares the robot's camera with the one the policy was trained with, by where directions appear in the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sqap_vla_ros.robot.camera import CameraModel

_GRID = 9  # directions compared along each side of the image


@dataclass(frozen=True)
class CameraContract:
    """The camera of the training images: a pinhole of `width` x `height` pixels; fx, fy, cx, cy in pixels.

    tolerance: how far from its place in the training image a direction may appear, as a share of the image's side. The
    policy squashes any image to its own size, so shares count and pixels do not: field of view, principal point,
    distortion, binning and region of interest all show in them.
    """

    width: float
    height: float
    fx: float
    fy: float
    cx: float
    cy: float
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        numbers = (self.width, self.height, self.fx, self.fy, self.cx, self.cy)
        if not (np.isfinite(numbers).all() and min(numbers[:4]) > 0.0):
            raise ValueError(f"a camera needs positive width, height, fx, fy and finite cx, cy, got {numbers}")
        if not 0.0 < self.tolerance < 1.0:
            raise ValueError(f"tolerance must be between 0 and 1 image sides, got {self.tolerance}")

    def displacement(self, camera: CameraModel) -> float:
        """Return how far a direction of the training image is displaced at most; infinite where `camera` sees none."""
        share = (np.arange(_GRID) + 0.5) / _GRID
        x, y = (grid.ravel() for grid in np.meshgrid(share, share))
        u, v = x * self.width - 0.5, y * self.height - 0.5
        directions = np.stack([(u - self.cx) / self.fx, (v - self.cy) / self.fy, np.ones_like(u)], axis=1)
        pixels = camera.project(directions).pixels
        there = (pixels + 0.5) / (camera.width, camera.height)
        away = np.abs(there - np.stack([x, y], axis=1)).max()
        return float(away) if np.isfinite(away) else float("inf")

    def problem(self, camera: CameraModel) -> str | None:
        """Return why the policy should not act on this camera's images, or None."""
        away = self.displacement(camera)
        if away <= self.tolerance:
            return None
        ours = _field_of_view(camera.width, camera.height, camera.matrix[0, 0], camera.matrix[1, 1])
        theirs = _field_of_view(self.width, self.height, self.fx, self.fy)
        how_far = "outside the lens model" if np.isinf(away) else f"{away:.0%} of the image"
        return (
            f"this is not the camera that the policy was trained with: a direction appears {how_far} away from its "
            f"place, {self.tolerance:.0%} is allowed; the field of view is about {ours} degrees and was {theirs}. Use "
            "a lens, resolution or region of interest that sees the same, or correct training_camera"
        )


def _field_of_view(width: float, height: float, fx: float, fy: float) -> str:
    horizontal, vertical = (2 * np.degrees(np.arctan2(size / 2, f)) for size, f in ((width, fx), (height, fy)))
    return f"{horizontal:.0f} x {vertical:.0f}"
