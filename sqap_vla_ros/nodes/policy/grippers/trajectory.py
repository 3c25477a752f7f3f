"""Gripper kind joint_trajectory: a joint of the arm's own controller."""

from __future__ import annotations

from typing import Any

from sqap_vla_ros.nodes.policy.grippers.gripper import GripperParts, GripperSink
from sqap_vla_ros.robot.gripper.hysteresis import GripperCommand
from sqap_vla_ros.robot.gripper.joint_path import GripperJointPath


class TrajectoryGripper(GripperSink):
    """A column of the arm's JointTrajectory, for a controller that has the gripper's joint too.

    The joint is in every message, holds included, because such a controller refuses messages without it. A decision
    sends the rest of the motion again; before the first one the joint rests where it was measured.
    """

    SUMMARY = "one more joint in the arm's joint_trajectory; output_mode 'joint'."
    NEEDS_JOINT = True
    IN_TRAJECTORY = True

    def __init__(self, node: Any, parts: GripperParts) -> None:
        super().__init__(node, parts)
        config = parts.config
        self._arm = parts.arm
        self._path = GripperJointPath(config.joint, config.opened - config.closed, config.travel_s)
        self._arm.carry(self._path)

    def _send(self, command: GripperCommand) -> None:
        now_ns = self._node.get_clock().now().nanoseconds
        self._path.go_to(self._span.target(command), now_ns)
        self._arm.send_again(now_ns)

    def time_jumped(self, left_ns: int, now_ns: int) -> None:
        self._path.shift(now_ns - left_ns)
