"""A simulator_node process and a node that listens to it and commands it."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from beside import ProcessRig, ros_arguments
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Bool, Float64MultiArray, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from sqap_vla_ros.nodes.messages import duration_message, time_message, time_ns, transform_from_message
from sqap_vla_ros.nodes.tf.api import Buffer, TransformException, TransformListener

JOINTS = [f"joint{i}" for i in range(1, 8)]
TIMEOUT_S = 30.0
S = 1_000_000_000
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
COMMANDS = {
    "joint_trajectory": JointTrajectory,
    "target_pose": PoseStamped,
    "delta_twist_cmds": TwistStamped,
    "gripper_command": Float64MultiArray,
}


class Rig(ProcessRig):
    """The simulator's process and a node that listens and commands. Use as a context manager."""

    def __init__(self, **parameters: Any) -> None:
        super().__init__()
        self._arguments = ros_arguments({"task": "pick", "image_width": 320, "image_height": 240, **parameters})
        self.latest: dict[str, Any] = {}
        self.images: dict[int, Image] = {}

    def __enter__(self) -> Self:
        super().__enter__()
        self.start_python("-m", "sqap_vla_ros.nodes.simulator.node", *self._arguments)
        return self

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        end = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end:
            result = condition()
            if isinstance(result, np.ndarray) or result:
                return result
            time.sleep(0.01)
        raise AssertionError(f"waited {TIMEOUT_S} s for {what}; the simulator said:\n{self.log}")

    def wait_until_connected(self) -> None:
        self.wait(
            lambda: {"joint_states", "image", "camera_info", "instruction"} <= set(self.latest), "the first messages"
        )
        for topic, publisher in self.publishers.items():
            self.wait(lambda p=publisher: p.get_subscription_count(), f"a subscription to {topic}")

    @property
    def joints(self) -> np.ndarray:
        """[7] measured."""
        return np.array(self.latest["joint_states"].position[:7])

    @property
    def now_ns(self) -> int:
        return time_ns(self.latest["joint_states"].header.stamp)

    def at_rest(self) -> bool:
        return bool(np.abs(self.latest["joint_states"].velocity[:7]).max() < 2e-3)

    def trajectory(
        self,
        goal: Sequence[float],
        after_s: float,
        *,
        start_ns: int | None = None,
        names: Sequence[str] = tuple(JOINTS),
    ) -> None:
        message = JointTrajectory(joint_names=list(names))
        message.header.stamp = time_message(self.now_ns if start_ns is None else start_ns)
        point = JointTrajectoryPoint(positions=list(goal), velocities=[0.0] * len(goal))
        point.time_from_start = duration_message(round(after_s * S))
        message.points = [point]
        self.publishers["joint_trajectory"].publish(message)

    def call_reset(self) -> Trigger.Response:
        self.wait(self.reset.service_is_ready, "the reset service")
        future = self.reset.call_async(Trigger.Request())
        self.wait(future.done, "the answer to a reset")
        return future.result()

    def transform(self, parent: str, child: str, stamp_ns: int) -> np.ndarray | None:
        try:
            message = self.buffer.lookup_transform(parent, child, Time(nanoseconds=stamp_ns))
        except TransformException:
            return None
        return transform_from_message(message)

    def create(self) -> None:
        self.publishers = {topic: self.node.create_publisher(kind, topic, 1) for topic, kind in COMMANDS.items()}
        self.reset = self.node.create_client(Trigger, "/simulator/reset")
        self.buffer = Buffer(node=self.node)
        self.listener = TransformListener(self.buffer, self.node)
        for topic, kind, qos in (
            ("joint_states", JointState, 10),
            ("camera_info", CameraInfo, qos_profile_sensor_data),
            ("image", Image, qos_profile_sensor_data),
            ("instruction", String, LATCHED),
            ("robot_description", String, LATCHED),
            ("/simulator/success", Bool, LATCHED),
            ("/clock", Clock, 10),
        ):
            self.node.create_subscription(kind, topic, lambda m, t=topic: self._on_message(t, m), qos)

    def _on_message(self, topic: str, message: Any) -> None:
        self.latest[topic] = message
        if topic == "image":
            self.images[time_ns(message.header.stamp)] = message
