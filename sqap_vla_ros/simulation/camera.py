"""The simulated camera's geometry: pinhole intrinsics and the optical frame of a MuJoCo camera.

MuJoCo's camera looks along its -z axis with y up and has square pixels; `fovy` is the vertical angle between the edges
of the image. ROS's optical frame looks along z with y down. OpenGL puts pixel centres at half-integers, ROS and OpenCV
at integers, hence the principal point at ((W - 1) / 2, (H - 1) / 2).
"""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

# camera_link (x forward, y left, z up; REP-103) to its optical frame (z forward, x right, y down).
LINK_FROM_OPTICAL = np.array([[0.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])


def intrinsics(fovy_rad: float, width: int, height: int) -> NDArray[np.float64]:
    """K [3, 3] in pixels of a `width` x `height` rendering with vertical field of view `fovy_rad`."""
    focal = height / 2 / np.tan(fovy_rad / 2)
    return np.array([[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]])


def world_from_optical(data: mujoco.MjData, camera_id: int) -> NDArray[np.float64]:
    """Pose [4, 4] of the camera's optical frame; `data` must have had its kinematics and cameras computed."""
    pose = np.eye(4)
    pose[:3, :3] = data.cam_xmat[camera_id].reshape(3, 3) @ np.diag([1.0, -1.0, -1.0])
    pose[:3, 3] = data.cam_xpos[camera_id]
    return pose
