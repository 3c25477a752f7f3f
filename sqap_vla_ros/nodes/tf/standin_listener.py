"""Stand-ins for the listener and the broadcasters of `tf2_ros`, over the real topics. Import from `nodes.tf.api`."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from geometry_msgs.msg import TransformStamped
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from tf2_msgs.msg import TFMessage

from sqap_vla_ros.nodes.tf.transform_gate import TransformStore


class TransformListener:
    """Fill a buffer from `/tf` and `/tf_static`.

    Its callbacks run in the executor that spins `node`, or in a thread of their own with `spin_thread`
    (then nobody else may spin `node`).
    """

    def __init__(
        self,
        buffer: TransformStore,
        node: Node,
        *,
        spin_thread: bool = False,
        qos: QoSProfile | int | None = None,
        static_qos: QoSProfile | int | None = None,
        tf_topic: str = "/tf",
        tf_static_topic: str = "/tf_static",
    ) -> None:
        self.buffer = buffer
        self.node = node
        # Reentrant, so that a callback of the node may wait for a transform.
        self.group = ReentrantCallbackGroup()
        self.tf_sub = node.create_subscription(
            TFMessage, tf_topic, self.callback, qos or QoSProfile(depth=100), callback_group=self.group
        )
        self.tf_static_sub = node.create_subscription(
            TFMessage,
            tf_static_topic,
            self.static_callback,
            static_qos or QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL),
            callback_group=self.group,
        )
        self.executor: SingleThreadedExecutor | None = None
        if spin_thread:
            self.executor = SingleThreadedExecutor(context=node.context)
            self.executor.add_node(node)
            self._ending = threading.Event()
            self.dedicated_listener_thread = threading.Thread(target=self._spin, name="tf_listener")
            self.dedicated_listener_thread.start()

    def unregister(self) -> None:
        """Stop listening."""
        if self.executor is not None:
            self._ending.set()
            self.executor.wake()
            self.dedicated_listener_thread.join()
            self.executor.remove_node(self.node)
            self.executor.shutdown()  # it does not wait for a callback, so the thread ends before
            self.executor = None
        self.node.destroy_subscription(self.tf_sub)
        self.node.destroy_subscription(self.tf_static_sub)

    def _spin(self) -> None:
        while self.executor is not None and not self._ending.is_set() and self.node.context.ok():
            self.executor.spin_once(timeout_sec=0.1)

    def callback(self, data: TFMessage) -> None:
        for transform in data.transforms:
            self.buffer.set_transform(transform, "/tf")

    def static_callback(self, data: TFMessage) -> None:
        for transform in data.transforms:
            self.buffer.set_transform_static(transform, "/tf_static")


class TransformBroadcaster:
    """Publish moving transforms on `/tf`."""

    def __init__(self, node: Node, qos: QoSProfile | int | None = None) -> None:
        self.pub_tf = node.create_publisher(TFMessage, "/tf", qos or QoSProfile(depth=100))

    def sendTransform(self, transform: TransformStamped | Iterable[TransformStamped]) -> None:
        self.pub_tf.publish(TFMessage(transforms=_as_list(transform)))


class StaticTransformBroadcaster:
    """Publish transforms that never change on `/tf_static`, where late readers still get them."""

    def __init__(self, node: Node, qos: QoSProfile | int | None = None) -> None:
        self.pub_tf = node.create_publisher(
            TFMessage, "/tf_static", qos or QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        )
        self._by_child: dict[str, TransformStamped] = {}

    def sendTransform(self, transform: TransformStamped | Iterable[TransformStamped]) -> None:
        self._by_child.update((item.child_frame_id, item) for item in _as_list(transform))
        self.pub_tf.publish(TFMessage(transforms=list(self._by_child.values())))


def _as_list(transform: TransformStamped | Iterable[TransformStamped]) -> list[TransformStamped]:
    return [transform] if isinstance(transform, TransformStamped) else list(transform)
