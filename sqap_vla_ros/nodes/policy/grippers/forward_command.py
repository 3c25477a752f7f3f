"""Gripper kind forward_command: one number on a topic, for forward_command_controller."""

from __future__ import annotations

from typing import Any

from std_msgs.msg import Float64MultiArray

from sqap_vla_ros.nodes.policy.grippers.gripper import GripperParts, GripperSink
from sqap_vla_ros.nodes.policy.sinks.sink import COMMAND_QOS
from sqap_vla_ros.robot.gripper.hysteresis import GripperCommand
from sqap_vla_ros.robot.gripper.state import GripperReport, GripperState


class ForwardCommand(GripperSink):
    """std_msgs/Float64MultiArray on `gripper_command`: one value, the position of the gripper's joint."""

    SUMMARY = "std_msgs/Float64MultiArray with one position, for forward_command_controller."
    TOPIC = "gripper_command"
    MESSAGE = Float64MultiArray

    def __init__(self, node: Any, parts: GripperParts) -> None:
        super().__init__(node, parts)
        self._unheard: GripperCommand | None = None  # what was commanded and nobody heard; said again to who comes
        self.publisher = node.create_lifecycle_publisher(self.MESSAGE, self.TOPIC, COMMAND_QOS)

    def update(self, opening: float) -> None:
        super().update(opening)
        if self._unheard is not None and self.publisher.get_subscription_count() > 0:
            self._send(self._unheard)

    def report(self) -> GripperReport:
        report = super().report()
        if self._unheard is None:
            return report
        text = f"did not {self._unheard}: nobody subscribes to {self.publisher.topic_name}: does its controller run?"
        return GripperReport(GripperState.FAILED, text, report.position)

    def _send(self, command: GripperCommand) -> None:
        self._unheard = None if self.publisher.get_subscription_count() > 0 else command
        self.publisher.publish(Float64MultiArray(data=[self._span.target(command)]))
