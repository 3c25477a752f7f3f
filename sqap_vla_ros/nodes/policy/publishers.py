"""The publishers of the topics that this node hears and commands on: heard whatever their QoS, or named.

A subscription hears a publisher only when both agree on type, reliability and durability. Whoever gives orders must be
heard in any case (`HearAll`); of everything else `PublisherWatch` says when somebody speaks and is not heard.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.qos import DurabilityPolicy, QoSCompatibility, QoSProfile, ReliabilityPolicy, qos_check_compatible

from sqap_vla_ros.control.conditions import Input

_LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_PLAIN = QoSProfile(depth=5)
_BEST_EFFORT = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
REMEMBERED = 64
NAMELESS = "_NODE_NAME_UNKNOWN_"  # rmw's word


class HearAll:
    """Subscribes to a topic so that latched, plain and best-effort publishers are all heard, each message once."""

    def __init__(self, node: Any, kind: type, topic: str, callback: Callable[[Any], None]) -> None:
        self._node = node
        self._callback = callback
        self._seen: deque[int] = deque(maxlen=REMEMBERED)  # times at which messages were sent
        silent = SubscriptionEventCallbacks(use_default_callbacks=False)  # one of the three fits
        self._subscriptions = [
            node.create_subscription(kind, topic, self._on_message, qos, event_callbacks=silent)
            for qos in (_LATCHED, _PLAIN, _BEST_EFFORT)
        ]
        self.topic: str = self._subscriptions[0].topic_name

    def destroy(self) -> None:
        """Remove the subscriptions from the node."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def _on_message(self, message: Any, info: Mapping[str, Any]) -> None:
        sent = info["source_timestamp"]
        if sent and sent in self._seen:
            return
        self._seen.append(sent)
        self._callback(message)


@dataclass(frozen=True)
class Listener:
    """A topic that this node listens to. qos: None where every publisher is heard that keeps to the type."""

    source: Input
    topic: str
    kind: str
    qos: QoSProfile | None = None
    remedy: str = ""


class PublisherWatch:
    """Looks at the publishers in the graph. commands: topics that nobody but this node may publish on."""

    def __init__(self, node: Any, listeners: list[Listener], commands: list[str]) -> None:
        self._node = node
        self._listeners = listeners
        self._commands = commands

    def look(self) -> dict[Input, str]:
        """Return which inputs have publishers that are not heard, and whether another node commands."""
        found: dict[Input, str] = {}
        for listener in self._listeners:
            for publisher in self._node.get_publishers_info_by_topic(listener.topic):
                if (unheard := _unheard(publisher, listener)) is not None:
                    found.setdefault(listener.source, unheard)
        for topic in self._commands:
            publishers = self._node.get_publishers_info_by_topic(topic)
            # One without a name belongs to a process that was killed, and that the middleware has not yet forgotten.
            publishers = [publisher for publisher in publishers if publisher.node_name != NAMELESS]
            if len(publishers) > 1:
                names = ", ".join(sorted({_name(publisher) for publisher in publishers}))
                found.setdefault(Input.COMMANDS, f"{len(publishers)} publishers command on {topic}: {names}")
        return found


def _unheard(publisher: Any, listener: Listener) -> str | None:
    if publisher.topic_type != listener.kind:
        return f"{_name(publisher)} publishes {publisher.topic_type} on {listener.topic}, expected {listener.kind}"
    qos = publisher.qos_profile
    best_effort = qos.reliability == ReliabilityPolicy.BEST_EFFORT
    if listener.qos is None:
        if best_effort and qos.durability == DurabilityPolicy.TRANSIENT_LOCAL:
            return (
                f"{_name(publisher)} publishes {listener.topic} latched but best effort: what it said before is "
                "lost; make it reliable"
            )
        return None
    if qos_check_compatible(qos, listener.qos)[0] != QoSCompatibility.ERROR:
        return None
    words = [
        *(["best effort"] if best_effort and listener.qos.reliability == ReliabilityPolicy.RELIABLE else []),
        *(["volatile"] if qos.durability == DurabilityPolicy.VOLATILE and _latched(listener.qos) else []),
    ]
    what = " and ".join(words) or "with a QoS that does not match"
    return f"{_name(publisher)} publishes {listener.topic}, but {what}, and is not heard{listener.remedy}"


def _latched(qos: QoSProfile) -> bool:
    return bool(qos.durability == DurabilityPolicy.TRANSIENT_LOCAL)


def _name(publisher: Any) -> str:
    return f"{publisher.node_namespace.rstrip('/')}/{publisher.node_name}"
