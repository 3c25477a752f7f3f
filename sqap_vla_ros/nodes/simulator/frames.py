"""TF of the simulated cell: the arm's links as robot_state_publisher would send them, and the camera's place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from geometry_msgs.msg import TransformStamped
from rclpy.node import Node

from sqap_vla_ros.nodes.messages import transform_message
from sqap_vla_ros.nodes.tf.api import StaticTransformBroadcaster, TransformBroadcaster
from sqap_vla_ros.robot.conventions import invert_pose
from sqap_vla_ros.simulation.camera import LINK_FROM_OPTICAL
from sqap_vla_ros.simulation.world import TabletopWorld

BASE_FRAME, TOOL_FRAME = "base_link", "tool0"
CAMERA_FRAME, OPTICAL_FRAME = "camera_link", "camera_optical_frame"
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
        self._parent_names = [model.body(parent).name for parent in self._parents]

    def publish_static(self, stamp_ns: int) -> None:
        """Publish the fixed frames, again after every reset: the camera stands a little differently in each episode."""
        base_from_hand, base_from_link7 = self._world.body_pose("hand"), self._world.body_pose("link7")
        base_from_camera = self._world.base_from_optical @ invert_pose(LINK_FROM_OPTICAL)
        fixed = (
            (invert_pose(base_from_link7) @ base_from_hand, "link7", "hand"),
            (invert_pose(base_from_hand) @ self._world.base_from_tool, "hand", TOOL_FRAME),
            (base_from_camera, BASE_FRAME, CAMERA_FRAME),
            (LINK_FROM_OPTICAL, CAMERA_FRAME, OPTICAL_FRAME),
        )
        self._static_broadcaster.sendTransform(
            [transform_message(pose, stamp_ns, parent, child) for pose, parent, child in fixed]
        )

    def moving(self, stamp_ns: int) -> list[TransformStamped]:
        """Return the links' transforms at the world's present state, whose kinematics must be current."""
        data = self._world.data
        rotations = data.xmat.reshape(-1, 3, 3)
        from_base = rotations[self._parents].transpose(0, 2, 1)  # [L, 3, 3]
        poses = np.tile(np.eye(4), (len(_MOVING), 1, 1))
        poses[:, :3, :3] = from_base @ rotations[self._children]
        poses[:, :3, 3] = np.einsum("lij,lj->li", from_base, data.xpos[self._children] - data.xpos[self._parents])
        return [
            transform_message(pose, stamp_ns, parent, child)
            for pose, parent, child in zip(poses, self._parent_names, _MOVING, strict=True)
        ]

    def broadcast(self, transforms: Sequence[TransformStamped]) -> None:
        """Send what `moving` returned."""
        self._broadcaster.sendTransform(list(transforms))
