"""A synthetic camera on a tool, which looks at one point on the table."""

import numpy as np
from scipy.spatial.transform import Rotation

from sqap_vla_ros.robot.conventions import invert_pose
from sqap_vla_ros.robot.hand_eye.pairs import ToolPairs

from .scene import CAMERA, START_NS, STEP_NS, motion

POINT = np.array([0.42, 0.03, 0.02])  # in the base frame
TOOL_FROM_OPTICAL = motion((0.1, -0.1, 1.2), (0.06, -0.03, -0.08))


def looking_poses(count=20, seed=0, turn_rad=0.35):
    """base_from_tool [N, 4, 4] from which the camera has the point in view, turned about all axes."""
    rng = np.random.default_rng(seed)
    found = []
    while len(found) < count:
        down = Rotation.from_rotvec(rng.normal(0.0, turn_rad, 3)) * Rotation.from_euler("x", 180, degrees=True)
        pose = np.eye(4)
        pose[:3, :3] = down.as_matrix()
        pose[:3, 3] = POINT + rng.uniform([-0.2, -0.2, 0.25], [0.2, 0.2, 0.55])
        if seen(pose[None])[1].all():
            found.append(pose)
    return np.stack(found)


def seen(poses, error=None, point=POINT):
    """Pixels [N, 2] of the point, and whether they are in the image [N]. error: true_from_tf of the optical frame."""
    optical_from_tool = (np.eye(4) if error is None else error) @ invert_pose(TOOL_FROM_OPTICAL)
    optical_from_base = np.stack([optical_from_tool @ invert_pose(pose) for pose in poses])
    projection = CAMERA.project(optical_from_base[:, :3, :3] @ point + optical_from_base[:, :3, 3])
    return projection.pixels, projection.in_image


def pairs_on_hand(poses=None, *, error=None, noise_px=0.5, seed=1):
    """The pairs of a camera that is off by `error`, with TF that does not know."""
    poses = looking_poses() if poses is None else poses
    pixels = seen(poses, error)[0] + np.random.default_rng(seed).normal(0.0, noise_px, (len(poses), 2))
    optical = np.stack([invert_pose(pose @ TOOL_FROM_OPTICAL) for pose in poses])
    stamps = START_NS + STEP_NS * np.arange(len(poses), dtype=np.int64)
    return ToolPairs(CAMERA, stamps, poses, optical, pixels, np.zeros(3))
