"""The static frames between base and camera, and the one that a correction of the camera's pose belongs to."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from sqap_vla_ros.nodes.check.hand_eye.sights import Array
from sqap_vla_ros.robot.conventions import invert_pose, pose_matrix, split_pose

Mounts = Mapping[str, tuple[str, Array]]  # frame -> its parent and [4, 4] parent_from_frame


def add_mounts(mounts: dict[str, tuple[str, Array]], message: Any) -> None:
    """Note the parents of the frames in a message of /tf_static; one that is no pose is left out."""
    for transform in message.transforms:
        t, q = transform.transform.translation, transform.transform.rotation
        try:
            pose = pose_matrix((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))
        except ValueError:
            continue
        mounts[transform.child_frame_id.removeprefix("/")] = transform.header.frame_id.removeprefix("/"), pose


def correct_mount(
    mounts: Mounts, base_frame: str, optical_frame: str, base_from_optical: Array
) -> tuple[str, str, Array]:
    """Return (parent, child, [4, 4]) of the static transform to publish so that the optical frame is where it is given.

    A camera's driver publishes its own frames below one that the robot's builder places in the robot, and that one is
    returned: the topmost static frame above the optical frame that is not above the base.
    """
    above_base, base_in = _ancestors(mounts, base_frame)
    above_optical, optical_in = _ancestors(mounts, optical_frame)
    common = next((name for name in above_optical if name in above_base), None)
    if common is None or common == optical_frame:
        return base_frame, optical_frame, base_from_optical
    child = above_optical[above_optical.index(common) - 1]
    child_from_optical = optical_in[above_optical.index(child)]
    common_from_base = base_in[above_base.index(common)]
    return common, child, common_from_base @ base_from_optical @ invert_pose(child_from_optical)


def publisher_command(parent: str, child: str, pose: Array) -> str:
    """Return the command line that publishes a static transform."""
    (x, y, z), (qx, qy, qz, qw) = split_pose(pose)
    parent, child = shlex.quote(parent), shlex.quote(child)
    return (
        f"ros2 run tf2_ros static_transform_publisher --x {x:.4f} --y {y:.4f} --z {z:.4f} "
        f"--qx {qx:.6f} --qy {qy:.6f} --qz {qz:.6f} --qw {qw:.6f} --frame-id {parent} --child-frame-id {child}"
    )


def _ancestors(mounts: Mounts, frame: str) -> tuple[list[str], list[Array]]:
    """Return the frame and the static frames above it, and the pose [4, 4] of the frame in each."""
    names, poses = [frame], [np.eye(4)]
    while names[-1] in mounts and mounts[names[-1]][0] not in names:
        parent, pose = mounts[names[-1]]
        names.append(parent)
        poses.append(pose @ poses[-1])
    return names, poses
