"""Where a late chunk is entered: at the action that begins where the arm has got to.

A chunk is about the moment of its image, and takes effect when it has been computed. Until then the arm followed the
chunk before, or stood still. Entered by the clock (the actions whose time is past are dropped), the new chunk makes the
arm leap wherever the two chunks disagree in path or phase, and where the arm stood still. Entered by pose, the arm goes
on from where it is; the clock only decides between passages of a path that comes back to the same place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sqap_vla_ros.robot.trajectory import PoseTrajectory


@dataclass(frozen=True)
class JoinWeights:
    """Weights that make rotations, steps and gripper states comparable with metres.

    rotation_m_per_rad: of the angle between the two orientations. step_m: of each action away from the expected one.
    gripper_m: of a gripper that was told otherwise.
    """

    rotation_m_per_rad: float = 0.1
    step_m: float = 0.004
    gripper_m: float = 0.05


def joining_action(
    chunk: PoseTrajectory,
    told: NDArray[np.float64],
    *,
    executed: int,
    gripper_at_image: float,
    gripper_told: float,
    weights: JoinWeights | None = None,
) -> int:
    """Return the index of the chunk's action that continues the commanded motion.

    Action j leads from pose j - 1 of the chunk (its anchor for j = 0) to pose j, so it is entered where the arm was
    told to be in pose j - 1: the index that minimises

        |p(j - 1) - p(told)| + w_r * angle(R(j - 1), R(told)) + w_s * |j - executed| + w_g * [gripper differs]

    chunk: anchored at the pose commanded when the image was taken. told: [4, 4] pose commanded now.
    executed: actions that the arm has executed since the image; 0 where it stood still.
    gripper_at_image, gripper_told: opening commanded then and now (0 closed, 1 open).
    """
    weights = weights or JoinWeights()
    poses = np.concatenate([chunk.anchor[None], chunk.poses[:-1]])  # [T, 4, 4] each where an action begins
    openings = np.concatenate([[gripper_at_image], chunk.gripper[:-1]])
    cost = np.linalg.norm(poses[:, :3, 3] - told[:3, 3], axis=1)
    cost += weights.rotation_m_per_rad * Rotation.from_matrix(poses[:, :3, :3] @ told[:3, :3].T).magnitude()
    cost += weights.step_m * np.abs(np.arange(len(poses)) - executed)
    cost += weights.gripper_m * (np.abs(openings - gripper_told) > 0.5)
    return int(np.argmin(cost))


def entered(chunk: PoseTrajectory, action: int, start_ns: int) -> PoseTrajectory:
    """Return the chunk from `action` on, its times moved so that this action begins at `start_ns`.

    The image's stamp stays what it is: a chunk does not get younger by beginning later. Raises ValueError where the
    chunk has no such action.
    """
    if not 0 <= action < len(chunk):
        raise ValueError(f"the chunk has actions 0 to {len(chunk) - 1}, it cannot be entered at {action}")
    begins_ns = chunk.anchor_ns if action == 0 else int(chunk.times_ns[action - 1])
    return replace(
        chunk,
        times_ns=chunk.times_ns[action:] + (start_ns - begins_ns),
        poses=chunk.poses[action:],
        gripper=chunk.gripper[action:],
        anchor=chunk.anchor if action == 0 else chunk.poses[action - 1],
        anchor_ns=start_ns,
    )
