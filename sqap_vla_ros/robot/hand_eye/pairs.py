"""Pairs of the tool as TF and camera_info project it, and as the camera sees it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.robot.camera import CameraModel
from sqap_vla_ros.robot.conventions import pose_distance

STILL_M, STILL_RAD = 0.002, 0.005  # of the camera in the base frame: noise of TF
Array = NDArray[np.float64]


@dataclass(frozen=True)
class ToolPairs:
    """One pair for each of N images of one camera.

    stamps_ns: [N] of the images. base_from_tool, optical_from_base: [N, 4, 4] by TF at those stamps.
    seen: [N, 2] pixel (u, v) at which the point is in the image. point_in_tool: [3] the point in the tool's frame, m.
    """

    camera: CameraModel
    stamps_ns: NDArray[np.int64]
    base_from_tool: Array
    optical_from_base: Array
    seen: Array
    point_in_tool: Array

    def __len__(self) -> int:
        return len(self.seen)

    def take(self, indices: NDArray[np.intp]) -> ToolPairs:
        """Return some of the pairs."""
        arrays = ("stamps_ns", "base_from_tool", "optical_from_base", "seen")
        return replace(self, **{name: getattr(self, name)[indices] for name in arrays})

    @cached_property
    def in_base(self) -> Array:
        """The points in the base frame, [N, 3] m."""
        return self.base_from_tool[:, :3, :3] @ self.point_in_tool + self.base_from_tool[:, :3, 3]

    @cached_property
    def in_optical(self) -> Array:
        """The points in the optical frame, [N, 3] m, by TF."""
        rotated = np.einsum("nij,nj->ni", self.optical_from_base[:, :3, :3], self.in_base)
        return np.asarray(rotated + self.optical_from_base[:, :3, 3])

    @cached_property
    def optical_from_tool_rotation(self) -> Array:
        """The turns [N, 3, 3] from the tool's axes to those of the optical frame, by TF."""
        return self.optical_from_base[:, :3, :3] @ self.base_from_tool[:, :3, :3]

    @cached_property
    def projected(self) -> Array:
        """The pixels [N, 2] that TF and camera_info give; NaN where the point has none."""
        return self.camera.project(self.in_optical).pixels

    @cached_property
    def camera_moves(self) -> bool:
        """True where the camera is not fixed in the base frame, as on a wrist."""
        apart = [pose_distance(pose, self.optical_from_base[0]) for pose in self.optical_from_base]
        return any(metres > STILL_M or angle > STILL_RAD for metres, angle in apart)

    def rays(self) -> Array:
        """Return the directions [N, 2] (x/z, y/z) at which the points are seen, in the intrinsics' frame."""
        camera, pixels = self.camera, self.seen[:, None]
        if camera.fisheye:
            return np.asarray(cv2.fisheye.undistortPoints(pixels, camera.matrix, camera.distortion)).reshape(-1, 2)
        distortion = camera.distortion if camera.distortion.size else None
        return np.asarray(cv2.undistortPoints(pixels, camera.matrix, distortion)).reshape(-1, 2)


def extent(points: Array) -> float:
    """Return the largest distance of points [N, D] from their median."""
    finite = points[np.isfinite(points).all(axis=1)]
    if not len(finite):
        return 0.0
    return float(np.linalg.norm(finite - np.median(finite, axis=0), axis=1).max())
