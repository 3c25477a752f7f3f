"""`bag_player`: a node that plays a recording onto topics, with /clock, and records what the policy node answers.

The nodes it plays for run in simulated time (`use_sim_time`). Where rosbag2 is installed `ros2 bag play --clock` plays
rosbag2 bags too; this node also plays ROS 1 bags, enables the policy before it starts and keeps its answers. Messages
are published as they were recorded, byte for byte (ROS 1 ones converted). It ends when the bag does.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String
from std_srvs.srv import SetBool

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes.bags import player_parameters
from sqap_vla_ros.nodes.bags.bag import Bag
from sqap_vla_ros.nodes.bags.conversion import message_class
from sqap_vla_ros.nodes.bags.observations import IMAGE_TYPES
from sqap_vla_ros.nodes.bags.store import BagError
from sqap_vla_ros.nodes.bags.writer import BagWriter, TopicRecorder
from sqap_vla_ros.nodes.messages import time_message
from sqap_vla_ros.nodes.spinning import Interruption

_CLOCK_PERIOD_NS = 10_000_000
# A node that has just started may answer before it has discovered who listens: the answer is lost, so ask again.
_ANSWER_S = 5.0
_LATCHED = ("/tf_static", "/robot_description", "/instruction")
_ANSWERS = {
    "action_chunk": "sqap_vla_ros/msg/ActionChunk",
    "token_selection": "sqap_vla_ros/msg/TokenSelection",
    "status": "sqap_vla_ros/msg/PolicyStatus",
    "model_info": "std_msgs/msg/String",
}


class BagPlayer(Node):
    """Plays in a thread of its own (`play`); the executor meanwhile takes what is recorded.

    interrupted: once it is set, `play` returns.
    """

    def __init__(self, interrupted: Interruption) -> None:
        super().__init__("bag_player")
        self._interrupted = interrupted
        player_parameters.declare(self)
        self._values = player_parameters.read(self)
        self._bag_ns = 0
        self._instruction: Publisher | None = None
        if self._values["instruction"]:
            latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
            self._instruction = self.create_publisher(String, "instruction", latched)
            self._instruction.publish(String(data=self._values["instruction"]))
        policy = self._values["policy_node"]
        self._enable = self.create_client(SetBool, f"{policy}/enable") if policy else None
        self._writer: BagWriter | None = None
        if policy and self._values["record"]:
            self._writer = BagWriter(self._values["record"])
            topics = {self.resolve_topic_name(f"{policy}/{name}"): kind for name, kind in _ANSWERS.items()}
            self._recorder = TopicRecorder(self, self._writer, topics, lambda: self._bag_ns, latched=("/model_info",))

    def play(self) -> None:
        """Publish the whole bag; returns at its end or when interrupted. Raises BagError."""
        with Bag(self._values["bag"]) as bag:
            outputs = self._advertise(bag)
            clock = self.create_publisher(Clock, "/clock", QoSProfile(depth=1))
            self._bag_ns = bag.start_ns
            self._await_policy(clock)
            self._await_reader(bag, outputs)
            started_s, count = time.monotonic(), 0
            for topic, time_ns, data in bag.serialized(list(outputs)):
                self._advance(clock, time_ns, bag.start_ns, started_s)
                if self._interrupted.is_set():
                    return
                outputs[topic].publish(data)
                count += 1
            if not count:
                raise BagError(f"{bag.path} ends before its first message: it is damaged")
            self._advance(clock, self._bag_ns + round(self._values["tail_s"] * NS_PER_S), bag.start_ns, started_s)
            self.get_logger().info(f"played {count} messages of {bag.path} in {time.monotonic() - started_s:.1f} s")

    def close(self) -> None:
        """Finish the recording."""
        if self._writer is not None:
            self._writer.close()
            counts = ", ".join(f"{count} {name}" for name, count in self._recorder.counts.items())
            print(f"bag_player: recorded {counts} to {self._writer.path}")

    def _advertise(self, bag: Bag) -> dict[str, Publisher]:
        outputs = {}
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
            outputs[topic.name] = self.create_publisher(kind, topic.name, qos)
        if not outputs:
            raise BagError(f"{bag.path} has no messages to play")
        return outputs

    def _await_policy(self, clock: Publisher) -> None:
        """Enable the policy node. Its clock stands at the bag's start meanwhile: a node without time does nothing."""
        if self._enable is None:
            return
        deadline_s = time.monotonic() + self._values["wait_s"]
        answer, asked_s = None, 0.0
        while not self._interrupted.is_set() and time.monotonic() < deadline_s:
            clock.publish(Clock(clock=time_message(self._bag_ns)))
            if answer is None and self._enable.service_is_ready():
                answer, asked_s = self._enable.call_async(SetBool.Request(data=True)), time.monotonic()
            if answer is not None and answer.done():
                if (response := answer.result()) is not None and response.success:
                    return
                answer = None  # not configured yet: ask again
            if answer is not None and time.monotonic() > asked_s + _ANSWER_S:
                answer = None
            time.sleep(0.05)
        if not self._interrupted.is_set():
            raise BagError(f"{self._enable.srv_name} did not enable the policy within {self._values['wait_s']:g} s")

    def _await_reader(self, bag: Bag, outputs: dict[str, Publisher]) -> None:
        images = [outputs[topic.name] for topic in bag.of_type(*IMAGE_TYPES) if topic.name in outputs]
        deadline_s = time.monotonic() + self._values["wait_s"]
        while images and not self._interrupted.is_set() and not any(i.get_subscription_count() for i in images):
            if time.monotonic() > deadline_s:
                names = ", ".join(image.topic_name for image in images)
                self.get_logger().warning(f"nobody subscribed to {names}: playing anyway")
                return
            time.sleep(0.05)

    def _advance(self, clock: Publisher, to_ns: int, bag_start_ns: int, started_s: float) -> None:
        """Publish /clock up to bag time `to_ns`, sleeping until each tick is due."""
        while self._bag_ns < to_ns and not self._interrupted.is_set():
            self._bag_ns = min(self._bag_ns + _CLOCK_PERIOD_NS, to_ns)
            due_s = started_s + (self._bag_ns - bag_start_ns) / NS_PER_S / self._values["rate"]
            self._interrupted.wait(max(0.0, due_s - time.monotonic()))
            clock.publish(Clock(clock=time_message(self._bag_ns)))


def main(args: Sequence[str] | None = None) -> int:
    """Run the console script `bag_player`. Return 1 when the bag cannot be played; 0 at its end and on a signal."""
    # rclpy's own handlers would close the context under the thread that publishes.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    interrupted = Interruption.by_signals()
    failures: list[Exception] = []
    node: BagPlayer | None = None
    thread: threading.Thread | None = None
    try:
        node = BagPlayer(interrupted)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        thread = threading.Thread(target=_play, args=(node, failures), name="bag_player")
        thread.start()
        while thread.is_alive():
            executor.spin_once(timeout_sec=0.05)
        thread.join()
        executor.shutdown()
        node.close()
    except ValueError as error:
        failures.append(error)
    except OSError as error:
        failures.append(BagError(f"what is recorded cannot be written: {error.strerror or error}"))
    finally:
        interrupted.set()
        if thread is not None:
            thread.join()
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    for failure in failures:
        print(f"bag_player: error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _play(node: BagPlayer, failures: list[Exception]) -> None:
    try:
        node.play()
    except (BagError, OSError) as error:
        failures.append(error)


if __name__ == "__main__":
    sys.exit(main())
