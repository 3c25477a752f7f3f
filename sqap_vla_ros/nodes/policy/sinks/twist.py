"""Output mode twist: velocity samples for moveit_servo and other velocity controllers."""

from __future__ import annotations

from typing import Any

import numpy as np
from geometry_msgs.msg import TwistStamped
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sqap_vla_ros.nodes import messages
from sqap_vla_ros.nodes.policy.sinks.sink import COMMAND_QOS, MeasuredTool, SinkParts, StreamSink
from sqap_vla_ros.robot.trajectory import PoseTrajectory

TWIST_GAIN_HZ = 2.0  # a lag is made up for in half a second
TWIST_CORRECTION_LIMITS = (0.05, 0.25)  # m/s and rad/s that a correction may add


class TwistSink(StreamSink):
    """geometry_msgs/TwistStamped in the base frame. Every motion ends with zero twists.

    The trajectory's velocity and a bounded correction towards where the trajectory has the tool: a velocity alone never
    makes up for what was lost on the way. Together they stay within the tool's speed limits. A hold is not corrected:
    the measurement may be its very reason.
    """

    SUMMARY = "TwistStamped samples for moveit_servo."
    TOPIC = "delta_twist_cmds"
    MESSAGE = TwistStamped
    TWIST = True
    KEEPS_POSE = False

    def __init__(self, node: Any, parts: SinkParts) -> None:
        super().__init__(node, parts)
        self.publisher = node.create_lifecycle_publisher(self.MESSAGE, self.TOPIC, COMMAND_QOS)

    def _send_sample(self, path: PoseTrajectory, now_ns: int, tool: MeasuredTool | None) -> None:
        twist = path.twist(now_ns)
        shown = None if tool is None else self.commanded_tool(tool.shows_ns)
        if tool is not None and shown is not None and now_ns < path.end_ns:
            limits = self._parts.limits
            fastest = (limits.max_linear_velocity, limits.max_angular_velocity)
            twist = _limited(twist + tracking_twist(shown, tool.base_from_tool), fastest)
        message = TwistStamped(header=messages.header(now_ns, self._parts.base_frame))
        linear, angular = message.twist.linear, message.twist.angular
        linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = map(float, twist)
        self.publisher.publish(message)


def tracking_twist(commanded: NDArray[np.float64], measured: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twist [6] from the measured towards the commanded pose, both [4, 4]; bounded in m/s and rad/s."""
    linear = TWIST_GAIN_HZ * (commanded[:3, 3] - measured[:3, 3])
    angular = TWIST_GAIN_HZ * Rotation.from_matrix(commanded[:3, :3] @ measured[:3, :3].T).as_rotvec()
    return _limited(np.concatenate([linear, angular]), TWIST_CORRECTION_LIMITS)


def _limited(twist: NDArray[np.float64], fastest: tuple[float, float]) -> NDArray[np.float64]:
    """Return a twist [6] in the same directions, no faster than so many m/s and rad/s."""
    parts = zip((twist[:3], twist[3:]), fastest, strict=True)
    return np.concatenate([part * min(1.0, limit / max(float(np.linalg.norm(part)), 1e-12)) for part, limit in parts])
