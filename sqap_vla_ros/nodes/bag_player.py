"""bag_player: plays a recording onto topics, with /clock, for nodes that run in simulated time (`use_sim_time`).

Where rosbag2 is installed `ros2 bag play --clock` does the same for rosbag2 bags; this node also plays ROS 1 bags and
needs no rosbag2. Messages are published as they were recorded, byte for byte (ROS 1 ones converted). It waits for the
subscribers of the image before it starts, and ends when the bag does.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Sequence

import rclpy
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock

from sqap_vla_ros.nodes.bag import NS_PER_S, Bag, BagError, message_class
from sqap_vla_ros.nodes.bag_observations import IMAGE_TYPES
from sqap_vla_ros.nodes.messages import time_message

_CLOCK_PERIOD_NS = 10_000_000
_LATCHED = ("/tf_static", "/robot_description", "/instruction")


class BagPlayer(Node):
    """Plays in a thread of its own (`play`), so that the executor serves parameters and discovery meanwhile."""

    def __init__(self) -> None:
        super().__init__("bag_player")
        self._bag_path = str(self._parameter("bag", "", "recording to play: rosbag2 folder or ROS 1 .bag"))
        self._rate = float(self._parameter("rate", 1.0, "times real time"))
        self._wait_s = float(self._parameter("wait_for_subscriber_s", 30.0, "how long to wait for the image's reader"))
        self._tail_s = float(self._parameter("tail_s", 2.0, "bag time /clock goes on after the last message"))
        if not self._rate > 0:
            raise ValueError(f"parameter rate must be positive, got {self._rate}")
        if not self._bag_path:
            raise ValueError("parameter bag is not set: give the recording to play")

    def play(self) -> None:
        """Publish the whole bag; returns at its end or when ROS shuts down. Raises BagError."""
        with Bag(self._bag_path) as bag:
            publishers = self._advertise(bag)
            self._await_reader(bag, publishers)
            clock = self.create_publisher(Clock, "/clock", QoSProfile(depth=1))
            started_s, clock_ns, count = time.monotonic(), bag.start_ns, 0
            for topic, time_ns, data in bag.serialized(list(publishers)):
                clock_ns = self._advance(clock, clock_ns, time_ns, bag.start_ns, started_s)
                if not rclpy.ok():
                    return
                publishers[topic].publish(data)
                count += 1
            self._advance(clock, clock_ns, clock_ns + round(self._tail_s * NS_PER_S), bag.start_ns, started_s)
            self.get_logger().info(f"played {count} messages of {bag.path} in {time.monotonic() - started_s:.1f} s")

    def _parameter(self, name: str, default: str | float, description: str) -> str | float:
        descriptor = ParameterDescriptor(description=description, read_only=True)
        value: str | float = self.declare_parameter(name, default, descriptor).value
        return value

    def _advertise(self, bag: Bag) -> dict[str, Publisher]:
        publishers = {}
        for topic in bag.topics.values():
            if topic.name == "/clock":
                continue
            try:
                kind = message_class(topic.type)
            except BagError as error:
                self.get_logger().warning(f"not playing {topic}: {error}")
                continue
            latched = topic.name.endswith(_LATCHED)
            qos = QoSProfile(
                depth=100 if topic.name.endswith(("/tf", "/tf_static")) else 10,
                reliability=ReliabilityPolicy.RELIABLE,
                durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
            )
            publishers[topic.name] = self.create_publisher(kind, topic.name, qos)
        return publishers

    def _await_reader(self, bag: Bag, publishers: dict[str, Publisher]) -> None:
        images = [publishers[topic.name] for topic in bag.of_type(*IMAGE_TYPES) if topic.name in publishers]
        deadline_s = time.monotonic() + self._wait_s
        while images and rclpy.ok() and not any(image.get_subscription_count() for image in images):
            if time.monotonic() > deadline_s:
                names = ", ".join(image.topic_name for image in images)
                self.get_logger().warning(f"nobody subscribed to {names} within {self._wait_s:g} s: playing anyway")
                return
            time.sleep(0.05)

    def _advance(self, clock: Publisher, from_ns: int, to_ns: int, bag_start_ns: int, started_s: float) -> int:
        """Publish /clock up to bag time `to_ns`, sleeping until each tick is due; returns the clock's bag time."""
        now_ns = from_ns
        while now_ns < to_ns and rclpy.ok():
            now_ns = min(now_ns + _CLOCK_PERIOD_NS, to_ns)
            due_s = started_s + (now_ns - bag_start_ns) / NS_PER_S / self._rate
            time.sleep(max(0.0, due_s - time.monotonic()))
            clock.publish(Clock(clock=time_message(now_ns)))
        return max(now_ns, to_ns) if rclpy.ok() else now_ns


def main(args: Sequence[str] | None = None) -> int:
    """Console script `bag_player`; the exit status is 1 when the bag cannot be played."""
    rclpy.init(args=args)
    failure: list[BaseException] = []
    node = None
    try:
        node = BagPlayer()
        player = node

        def play() -> None:
            try:
                player.play()
            except (BagError, OSError) as error:
                failure.append(error)
            finally:
                rclpy.try_shutdown()

        thread = threading.Thread(target=play, name="bag_player")
        thread.start()
        with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
            rclpy.spin(node)
        rclpy.try_shutdown()
        thread.join()
    except ValueError as error:
        failure.append(error)
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    for reason in failure:
        print(f"bag_player: error: {reason}", file=sys.stderr)
    return 1 if failure else 0
