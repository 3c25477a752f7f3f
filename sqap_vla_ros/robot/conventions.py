"""The conventions of the whole package, stated once.

Units are SI: metres, radians, seconds; times are integer nanoseconds (`_ns`). `a_from_b` is the 4x4 homogeneous matrix
that maps coordinates in frame b to coordinates in frame a: `p_a = a_from_b @ p_b`, `a_from_c = a_from_b @ b_from_c`.
In tf2's words `a_from_b` is `lookup_transform(target="a", source="b")`. Optical frames (REP-103): z forward, x right,
y down. Quaternions are xyzw, as in ROS messages and scipy.

An action is `[dx, dy, dz, droll, dpitch, dyaw, gripper]`. The translation is along the axes of the base frame. The
rotation is extrinsic xyz roll-pitch-yaw ("sxyz", scipy's lower-case "xyz"), about the base frame's axes, composed on
the left, and does not move the tool's origin:

    R_next = R_delta @ R,    R_delta = Rz(dyaw) @ Ry(dpitch) @ Rx(droll),    p_next = p + dp

Gripper: 1 is open, 0 is closed. Action i (from 0) of a chunk observed at `stamp` is due, that is its pose is reached,
at `stamp + (i + 1) * dt`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation


def pose_matrix(translation: ArrayLike, quat_xyzw: ArrayLike) -> NDArray[np.float64]:
    """Return a translation [3] (metres) and a quaternion [4] (xyzw) as a [4, 4] matrix.

    The quaternion is normalised; one whose norm is off by more than 1 % (an unset message field is all zeros) is
    refused with ValueError, for a direction cannot be guessed from it.
    """
    xyz = np.asarray(translation, dtype=np.float64)
    quat = np.asarray(quat_xyzw, dtype=np.float64)
    if xyz.shape != (3,) or not np.isfinite(xyz).all():
        raise ValueError(f"translation must be 3 finite numbers, got {translation!r}")
    if quat.shape != (4,) or not abs(np.linalg.norm(quat) - 1.0) <= 0.01:
        raise ValueError(f"quaternion must be 4 numbers (xyzw) of norm 1, got {quat_xyzw!r}")
    x, y, z, w = (quat / np.linalg.norm(quat)).tolist()
    pose = np.eye(4)
    pose[0, :3] = 1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - z * w), 2.0 * (x * z + y * w)
    pose[1, :3] = 2.0 * (x * y + z * w), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - x * w)
    pose[2, :3] = 2.0 * (x * z - y * w), 2.0 * (y * z + x * w), 1.0 - 2.0 * (x * x + y * y)
    pose[:3, 3] = xyz
    return pose


def split_pose(pose: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Invert `pose_matrix`: return translation [3] and quaternion [4] (xyzw, w >= 0)."""
    matrix = np.asarray(pose, dtype=np.float64)
    (a, b, c), (d, e, f), (g, h, i) = matrix[:3, :3].tolist()
    # Each row is one component's square and its products with the others: the row of the largest loses no digits
    # (Shepperd 1978, "Quaternion from Rotation Matrix").
    rows = (
        (1.0 + a - e - i, b + d, c + g, h - f),
        (b + d, 1.0 - a + e - i, f + h, c - g),
        (c + g, f + h, 1.0 - a - e + i, d - b),
        (h - f, c - g, d - b, 1.0 + a + e + i),
    )
    largest = max(range(4), key=lambda k: rows[k][k])
    quat = np.array(rows[largest])
    return matrix[:3, 3].copy(), quat / math.copysign(float(np.linalg.norm(quat)), quat[3] if quat[3] != 0.0 else 1.0)


def invert_pose(pose: ArrayLike) -> NDArray[np.float64]:
    """Return `b_from_a` for `a_from_b` [4, 4] by the transpose, which is exact for a rigid motion."""
    matrix = np.asarray(pose, dtype=np.float64)
    inverse = np.eye(4)
    inverse[:3, :3] = matrix[:3, :3].T
    inverse[:3, 3] = -matrix[:3, :3].T @ matrix[:3, 3]
    return inverse


def rotation_from_rpy(rpy: ArrayLike) -> NDArray[np.float64]:
    """Return roll, pitch, yaw [..., 3] (extrinsic xyz, rad) as [..., 3, 3]: Rz(yaw) @ Ry(pitch) @ Rx(roll)."""
    return Rotation.from_euler("xyz", np.asarray(rpy, dtype=np.float64)).as_matrix()


def deltas_between(poses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the actions [N, 6], without the gripper, that lead from each of the poses [N + 1, 4, 4] to the next."""
    turns = Rotation.from_matrix(poses[1:, :3, :3] @ poses[:-1, :3, :3].transpose(0, 2, 1))
    return np.concatenate([np.diff(poses[:, :3, 3], axis=0), turns.as_euler("xyz")], axis=1)


def compose_delta(pose: ArrayLike, delta: ArrayLike) -> NDArray[np.float64]:
    """Return the pose [4, 4] after one action `delta` [6 or 7], as the module docstring defines; not the gripper."""
    action = np.asarray(delta, dtype=np.float64)
    following = np.array(pose, dtype=np.float64)
    following[:3, :3] = rotation_from_rpy(action[3:6]) @ following[:3, :3]
    following[:3, 3] += action[:3]
    return following


def rotation_from_rotvec(rotvec: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rotation vectors [..., 3] as matrices [..., 3, 3], by Rodrigues' formula."""
    angle = np.linalg.norm(rotvec, axis=-1)[..., None, None]
    square = np.maximum(angle**2, 1e-24)  # where the limits of both factors are exact
    cross = np.zeros((*rotvec.shape[:-1], 3, 3))
    cross[..., 0, 1], cross[..., 0, 2], cross[..., 1, 2] = -rotvec[..., 2], rotvec[..., 1], -rotvec[..., 0]
    cross -= np.swapaxes(cross, -1, -2)
    half = np.sin(0.5 * angle)
    return (
        np.eye(3)
        + np.sinc(angle / np.pi) * cross
        + np.where(square > 1e-24, 2.0 * half**2 / square, 0.5) * (cross @ cross)
    )


def pose_distance(a: ArrayLike, b: ArrayLike) -> tuple[float, float]:
    """Return how far apart two poses [4, 4] are: metres between origins, radians of the rotation between them.

    Both are infinite where a pose is not finite, so that no comparison with a limit takes it for near.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    turn = first[:3, :3].T @ second[:3, :3]
    sine = 0.5 * math.hypot(turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1])
    angle = math.atan2(sine, 0.5 * (turn[0, 0] + turn[1, 1] + turn[2, 2] - 1.0))
    distance = math.dist(first[:3, 3], second[:3, 3])
    return (distance, angle) if math.isfinite(distance + angle) else (math.inf, math.inf)


def largest_turn(reached: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [3], the most that is left to turn about the tool's x, y and z axis (rad) at any of n poses [n, 4, 4]."""
    left = np.swapaxes(reached[:, :3, :3], 1, 2) @ wanted[:, :3, :3]
    return np.abs(Rotation.from_matrix(left).as_rotvec()).max(axis=0)
