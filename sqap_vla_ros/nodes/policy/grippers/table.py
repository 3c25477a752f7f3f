"""The table of grippers: a new kind is a class and a row here."""

from __future__ import annotations

from sqap_vla_ros.nodes.policy.grippers.actions import GripperCommandAction, ParallelGripperCommandAction
from sqap_vla_ros.nodes.policy.grippers.forward_command import ForwardCommand
from sqap_vla_ros.nodes.policy.grippers.gripper import GripperSink
from sqap_vla_ros.nodes.policy.grippers.trajectory import TrajectoryGripper

GRIPPER_SINKS: dict[str, type[GripperSink]] = {
    "forward_command": ForwardCommand,
    "gripper_command": GripperCommandAction,
    "parallel_gripper_command": ParallelGripperCommandAction,
    "joint_trajectory": TrajectoryGripper,
}
