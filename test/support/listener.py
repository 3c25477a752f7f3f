"""A node beside the nodes under test: collects messages, broadcasts static frames, waits on conditions."""

import time
from collections.abc import Callable
from typing import Any

from beside import NodeBeside
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rosgraph_msgs.msg import Clock

from sqap_vla_ros.nodes import messages

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Listener(NodeBeside):
    """A node that collects what others publish."""

    clock_ns = 0

    def publish_clock(self) -> None:
        """Publish `clock_ns` on /clock from now on."""
        publisher = self.node.create_publisher(Clock, "/clock", QoSProfile(depth=1))
        self.node.create_timer(0.01, lambda: publisher.publish(Clock(clock=messages.time_message(self.clock_ns))))

    def collect(self, message_type: Any, topic: str, qos: Any = qos_profile_sensor_data) -> list[Any]:
        """The list that the messages of a topic are appended to."""
        received: list[Any] = []
        self.node.create_subscription(message_type, topic, received.append, qos)
        return received

    def publish_once(self, message: Any, topic: str) -> None:
        self.node.create_publisher(type(message), topic, LATCHED).publish(message)

    def call(self, service_type: Any, name: str, request: Any, timeout_s: float) -> Any:
        """Repeat the call until it succeeds (a node that is loading refuses)."""
        client = self.node.create_client(service_type, name)
        deadline = time.monotonic() + timeout_s
        answer = None
        while time.monotonic() < deadline:
            if client.wait_for_service(timeout_sec=0.5):
                future = client.call_async(request)
                if wait(future.done, 10.0) and (answer := future.result()).success:
                    return answer
                time.sleep(0.2)
        raise AssertionError(f"{name} did not succeed within {timeout_s:g} s: {answer}")


def wait(condition: Callable[[], Any], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())
