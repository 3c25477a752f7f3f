"""Output mode pose: samples of the trajectory for a Cartesian controller."""

from __future__ import annotations

from typing import Any

from geometry_msgs.msg import PoseStamped

from sqap_vla_ros.nodes import messages
from sqap_vla_ros.nodes.policy.sinks.sink import COMMAND_QOS, MeasuredTool, SinkParts, StreamSink
from sqap_vla_ros.robot.trajectory import PoseTrajectory


class PoseSink(StreamSink):
    """geometry_msgs/PoseStamped in the base frame. The end of a motion is sent, and stays commanded."""

    SUMMARY = "PoseStamped samples for Cartesian controllers."
    TOPIC = "target_pose"
    MESSAGE = PoseStamped
    KEEPS_POSE = True

    def __init__(self, node: Any, parts: SinkParts) -> None:
        super().__init__(node, parts)
        self.publisher = node.create_lifecycle_publisher(self.MESSAGE, self.TOPIC, COMMAND_QOS)

    def _send_sample(self, path: PoseTrajectory, now_ns: int, tool: MeasuredTool | None) -> None:
        header = messages.header(now_ns, self._parts.base_frame)
        self.publisher.publish(PoseStamped(header=header, pose=messages.pose_message(path.sample(now_ns)[0])))
