"""The publishers of the topics that this node hears and commands on: heard whatever their QoS, or named.

A subscription hears a publisher only when both agree on type, reliability and durability. Whoever gives orders must be
heard in any case (`HearAll`); of everything else `PublisherWatch` says when somebody speaks and is not heard.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.qos import (
    DurabilityPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
    qos_policy_name_from_kind,
)

from sqap_vla_ros.control.conditions import Input

DEPTH = 10  # of each subscription, so that none loses a message that another one delivers
_LATCHED = QoSProfile(depth=DEPTH, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_PLAIN = QoSProfile(depth=DEPTH)
_BEST_EFFORT = QoSProfile(depth=DEPTH, reliability=ReliabilityPolicy.BEST_EFFORT)
REMEMBERED = 64
NAMELESS = "_NODE_NAME_UNKNOWN_"  # rmw's word


class HearAll:
    """Subscribes to a topic so that latched, plain and best-effort publishers are all heard, each message once.

    callback: called with the message and the identity of its publisher, b"" where the middleware does not tell.
    """

    def __init__(self, node: Any, kind: type, topic: str, callback: Callable[[Any, bytes], None]) -> None:
        self._node = node
        self._callback = callback
        self._newest: OrderedDict[bytes, int] = OrderedDict()  # publisher -> number of its newest message
        self._seen: deque[tuple[bytes, int]] = deque(maxlen=REMEMBERED)  # publishers, and times of sending
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
        gid = info.get("publisher_gid")  # this and the number are not in every ROS distribution
        publisher = b"" if gid is None else bytes(gid["data"])
        if not self._again(publisher, info.get("publication_sequence_number"), info["source_timestamp"]):
            self._callback(message, publisher)

    def _again(self, publisher: bytes, number: int | None, sent: int) -> bool:
        """Return whether this message, or a later one of its publisher, came through another subscription.

        Its time of sending says only whether it is the very same: the publisher's clock may be set back.
        """
        if publisher and number is not None:
            again = number <= self._newest.get(publisher, -1)
            if not again:
                self._newest[publisher] = number
                self._newest.move_to_end(publisher)
            if len(self._newest) > REMEMBERED:
                self._newest.popitem(last=False)
            return again
        if sent and (publisher, sent) in self._seen:
            return True
        self._seen.append((publisher, sent))
        return False


class Mismatch:
    """Events of one subscription: a publisher came whose QoS does not fit. They say which policy, and not who it is.

    policy: of the newest such publisher. fresh: it came since the last look at the graph.
    """

    def __init__(self) -> None:
        self.policy, self.fresh = "", False
        self.events = SubscriptionEventCallbacks(incompatible_qos=self._on_incompatible)

    def _on_incompatible(self, event: Any) -> None:
        self.policy, self.fresh = qos_policy_name_from_kind(event.last_policy_kind).lower(), True


@dataclass(frozen=True)
class Listener:
    """A topic that this node listens to. qos: None where every publisher is heard that keeps to the type.

    mismatch: events of the subscription; None where it has none.
    """

    source: Input
    topic: str
    kind: str
    qos: QoSProfile | None = None
    remedy: str = ""
    mismatch: Mismatch | None = None


class PublisherWatch:
    """Looks at the publishers in the graph. commands: topics that nobody but this node may publish on."""

    def __init__(self, node: Any, listeners: list[Listener], commands: list[str]) -> None:
        self._node = node
        self._listeners = listeners
        self._commands = commands

    @property
    def due(self) -> bool:
        """True when a publisher that does not fit came since the last look."""
        return any(listener.mismatch is not None and listener.mismatch.fresh for listener in self._listeners)

    def look(self) -> dict[Input, str]:
        """Return which inputs have publishers that are not heard, and whether another node commands."""
        found: dict[Input, str] = {}
        for listener in self._listeners:
            if listener.mismatch is not None:
                listener.mismatch.fresh = False
            for publisher in self._node.get_publishers_info_by_topic(listener.topic):
                if (problem := unheard(publisher, listener)) is not None:
                    found.setdefault(listener.source, problem)
        for topic in self._commands:
            publishers = self._node.get_publishers_info_by_topic(topic)
            # One without a name belongs to a process that was killed, and that the middleware has not yet forgotten.
            publishers = [publisher for publisher in publishers if publisher.node_name != NAMELESS]
            if len(publishers) > 1:
                names = ", ".join(sorted({node_name(publisher) for publisher in publishers}))
                found.setdefault(Input.COMMANDS, f"{len(publishers)} publishers command on {topic}: {names}")
        return found


def unheard(publisher: Any, listener: Listener) -> str | None:
    """Return why a publisher, as the graph describes it, is not heard by a listener; None where it is."""
    if publisher.topic_type != listener.kind:
        return f"{node_name(publisher)} publishes {publisher.topic_type} on {listener.topic}, expected {listener.kind}"
    qos = publisher.qos_profile
    best_effort = qos.reliability == ReliabilityPolicy.BEST_EFFORT
    if listener.qos is None:
        if best_effort and qos.durability == DurabilityPolicy.TRANSIENT_LOCAL:
            return (
                f"{node_name(publisher)} publishes {listener.topic} latched but best effort: what it said before is "
                "lost; make it reliable"
            )
        return None
    compatible = qos_check_compatible(qos, listener.qos)[0]
    # Where the graph does not know every policy of a publisher, only the event can tell.
    policy = listener.mismatch.policy if listener.mismatch is not None else ""
    if compatible != QoSCompatibility.ERROR and not (compatible == QoSCompatibility.WARNING and policy):
        return None
    words = [
        *(["best effort"] if best_effort and listener.qos.reliability == ReliabilityPolicy.RELIABLE else []),
        *(["volatile"] if qos.durability == DurabilityPolicy.VOLATILE and _latched(listener.qos) else []),
    ]
    what = " and ".join(words) or f"with a {policy or 'QoS'} that does not match"
    return f"{node_name(publisher)} publishes {listener.topic}, but {what}, and is not heard{listener.remedy}"


def _latched(qos: QoSProfile) -> bool:
    return bool(qos.durability == DurabilityPolicy.TRANSIENT_LOCAL)


def node_name(publisher: Any) -> str:
    """Return the fully qualified name of the node that a publisher belongs to."""
    return f"{publisher.node_namespace.rstrip('/')}/{publisher.node_name}"
