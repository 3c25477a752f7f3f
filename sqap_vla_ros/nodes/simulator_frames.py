"""TF of the simulated cell: the arm's links as robot_state_publisher would send them, and the camera's place."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np
from geometry_msgs.msg import TransformStamped
from numpy.typing import ArrayLike
from rclpy.node import Node
from rclpy.time import Time

from sqap_vla_ros.nodes.tf import StaticTransformBroadcaster, TransformBroadcaster
from sqap_vla_ros.robot.conventions import invert_pose, split_pose
from sqap_vla_ros.simulation.camera import LINK_FROM_OPTICAL
from sqap_vla_ros.simulation.scene import HAND_TO_TOOL_M
from sqap_vla_ros.simulation.world import TabletopWorld

_MOVING = (*(f"link{i}" for i in range(1, 8)), "left_finger", "right_finger")


class SimulatorFrames:
    """Sends /tf and /tf_static. Not thread-safe; reading the world needs its lock."""

    def __init__(self, node: Node, world: TabletopWorld) -> None:
        self._world = world
        self._broadcaster = TransformBroadcaster(node)
        self._static_broadcaster = StaticTransformBroadcaster(node)
        model = world.model
        self._children = np.array([model.body(name).id for name in _MOVING])
        self._parents = model.body_parentid[self._children]

    def publish_static(self, stamp_ns: int) -> None:
        """The fixed frames, again after every reset: the camera stands a little differently in each episode."""
        camera_link = self._world.base_from_optical @ invert_pose(LINK_FROM_OPTICAL)
        hand = self._world.model.body("hand")
        transforms = [
            transform("link7", "hand", hand.pos, np.roll(hand.quat, -1), stamp_ns),
            transform("hand", "tool0", (0.0, 0.0, HAND_TO_TOOL_M), (0.0, 0.0, 0.0, 1.0), stamp_ns),
            transform("base_link", "camera_link", *split_pose(camera_link), stamp_ns),
            transform("camera_link", "camera_optical_frame", *split_pose(LINK_FROM_OPTICAL), stamp_ns),
        ]
        self._static_broadcaster.sendTransform(transforms)

    def moving(self, stamp_ns: int) -> list[TransformStamped]:
        """The links' transforms at the world's present state, whose kinematics must be current."""
        data, model = self._world.data, self._world.model
        rotations = data.xmat.reshape(-1, 3, 3)
        parent = rotations[self._parents].transpose(0, 2, 1)  # [L, 3, 3]
        offsets = data.xpos[self._children] - data.xpos[self._parents]
        xyz = np.einsum("lij,lj->li", parent, offsets)
        relative = (parent @ rotations[self._children]).reshape(-1, 9)
        transforms = []
        quat = np.zeros(4)
        for i, (child, parent_id) in enumerate(zip(_MOVING, self._parents, strict=True)):
            mujoco.mju_mat2Quat(quat, relative[i])  # wxyz
            transforms.append(transform(model.body(parent_id).name, child, xyz[i], np.roll(quat, -1), stamp_ns))
        return transforms

    def broadcast(self, transforms: Sequence[TransformStamped]) -> None:
        self._broadcaster.sendTransform(list(transforms))


def transform(parent: str, child: str, xyz: ArrayLike, quat_xyzw: ArrayLike, stamp_ns: int) -> TransformStamped:
    """A TransformStamped: `parent_from_child`."""
    message = TransformStamped()
    message.header.stamp = Time(nanoseconds=stamp_ns).to_msg()
    message.header.frame_id, message.child_frame_id = parent, child
    t, q = message.transform.translation, message.transform.rotation
    t.x, t.y, t.z = np.asarray(xyz, dtype=float).tolist()
    q.x, q.y, q.z, q.w = np.asarray(quat_xyzw, dtype=float).tolist()
    return message
