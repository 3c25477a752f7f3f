"""A writer of rosbag2 recordings (MCAP) that `ros2 bag play` and the rosbag2 tools read; it does not need rosbag2."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from rclpy.subscription import Subscription
from rosbags.interfaces import Connection, Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from sqap_vla_ros.nodes.bags.conversion import message_class
from sqap_vla_ros.nodes.bags.store import BagError, require_new
from sqap_vla_ros.resources import share_path

_FOREVER = QosTime(9223372036, 854775807)


class BagWriter:
    """A new recording; use it in a `with`. Not thread-safe. Raises BagError where the folder exists or cannot be made.

    Topics are added with their first message. latched: topics that late readers must be given (transient_local).
    """

    def __init__(self, path: str | Path, *, latched: tuple[str, ...] = ("/tf_static", "/robot_description")) -> None:
        self.path = Path(path).expanduser()
        require_new(self.path)
        self._latched = latched
        self._connections: dict[str, Connection] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = Writer(self.path, version=9, storage_plugin=StoragePlugin.MCAP)
            self._writer.open()
        except OSError as error:
            raise BagError(f"{self.path} cannot be written ({error.strerror}): choose another folder") from error
        self._open = True

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, topic: str, time_ns: int, message: Any) -> None:
        """Append a ROS message, recorded at time_ns."""
        package = type(message).__module__.split(".")[0]
        self.write_serialized(topic, f"{package}/msg/{type(message).__name__}", time_ns, serialize_message(message))

    def write_serialized(self, topic: str, type_name: str, time_ns: int, data: bytes) -> None:
        """Append CDR bytes of a message of type "package/msg/Name"."""
        connection = self._connections.get(topic)
        if connection is None:
            qos = _qos(topic.endswith(self._latched))
            connection = self._connections[topic] = self._writer.add_connection(
                topic, type_name, typestore=_typestore(), offered_qos_profiles=[qos]
            )
        elif connection.msgtype != type_name:
            raise BagError(f"{topic} was recorded as {connection.msgtype}, now comes {type_name}")
        self._writer.write(connection, time_ns, data)

    def close(self) -> None:
        """Finish the files; safe to call twice."""
        if self._open:
            self._open = False
            self._writer.close()


class TopicRecorder:
    """Records topics of a running system as they come, without deserialising them.

    topics: name -> "package/msg/Name". now_ns: the time to record at. latched: names whose readers come late.
    """

    def __init__(
        self,
        node: Node,
        writer: BagWriter,
        topics: dict[str, str],
        now_ns: Callable[[], int],
        *,
        latched: tuple[str, ...] = (),
    ) -> None:
        self.counts = dict.fromkeys(topics, 0)
        self._node, self._writer, self._now_ns = node, writer, now_ns
        self._subscriptions = [
            self._subscribe(topic, kind, bool(latched) and topic.endswith(latched)) for topic, kind in topics.items()
        ]

    def _subscribe(self, topic: str, type_name: str, latched: bool) -> Subscription:
        qos = QoSProfile(
            depth=100,
            reliability=ReliabilityPolicy.RELIABLE,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )

        def store(data: bytes) -> None:
            self._writer.write_serialized(topic, type_name, self._now_ns(), bytes(data))
            self.counts[topic] += 1

        return self._node.create_subscription(message_class(type_name), topic, store, qos, raw=True)


@cache
def _typestore() -> Any:
    """Return message definitions of ROS 2 and of this package, for readers that have neither."""
    typestore = get_typestore(Stores.ROS2_KILTED)
    for path in sorted(share_path("msg").glob("*.msg")):
        typestore.register(get_types_from_msg(path.read_text("utf-8"), f"sqap_vla_ros/msg/{path.stem}"))
    return typestore


def _qos(latched: bool) -> Qos:
    return Qos(
        QosHistory.KEEP_LAST,
        10,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        _FOREVER,
        _FOREVER,
        QosLiveliness.AUTOMATIC,
        _FOREVER,
        False,
    )
