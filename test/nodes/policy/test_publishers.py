"""Publishers in whatever QoS: each message once and in order, each publisher known, and those that do not fit named."""

from types import SimpleNamespace

import pytest
from rclpy.qos import DurabilityPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Bool

from sqap_vla_ros.control.conditions import Input
from sqap_vla_ros.nodes.policy import publishers
from sqap_vla_ros.nodes.policy.publishers import HearAll, Listener, Mismatch, PublisherWatch

RELIABLE = QoSProfile(depth=1)
BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


class Graph:
    """A node that knows publishers, and keeps the callbacks of its subscriptions."""

    def __init__(self):
        self.publishers = []
        self.hear = []

    def add(self, name, qos=RELIABLE, kind="std_msgs/msg/Bool", gid=b""):
        self.publishers.append(
            SimpleNamespace(node_namespace="/", node_name=name, topic_type=kind, qos_profile=qos, endpoint_gid=[*gid])
        )

    def get_publishers_info_by_topic(self, topic):
        return self.publishers

    def create_subscription(self, kind, topic, callback, qos, event_callbacks):
        self.hear.append(callback)
        return SimpleNamespace(topic_name=f"/{topic}")


def info(gid=None, number=None, sent=0):
    """As rclpy tells it; older ones tell neither publisher nor number."""
    told = {"source_timestamp": sent, "publication_sequence_number": number}
    return told if gid is None else {**told, "publisher_gid": {"data": gid}}


@pytest.fixture
def heard():
    graph, got = Graph(), []
    HearAll(graph, Bool, "safety_stop", lambda message, publisher: got.append((message, publisher)))
    return graph.hear, got


def test_a_message_that_comes_through_several_subscriptions_counts_once(heard):
    hear, got = heard
    for callback in hear:
        callback("stop", info(b"a", 1, sent=5))
        callback("stop", info(b"b", 1, sent=5))  # of another publisher, at the same instant
        callback("old rclpy", info(sent=7))
    assert got == [("stop", b"a"), ("stop", b"b"), ("old rclpy", b"")]


def test_an_older_message_that_comes_through_another_subscription_later_changes_nothing(heard):
    """After the executor stood still: the queue of one subscription has lost what another one still has."""
    (latched, plain, _), got = heard
    latched("stop", info(b"a", 2, sent=20))
    plain("go", info(b"a", 1, sent=10))
    plain("stop", info(b"a", 2, sent=20))
    assert got == [("stop", b"a")]


def test_a_publisher_whose_clock_was_set_back_is_heard(heard):
    (latched, *_), got = heard
    latched("go", info(b"a", 1, sent=10**18))
    latched("stop", info(b"a", 2, sent=10**17))
    latched("go", info(sent=10**18))
    latched("stop", info(sent=10**17))
    assert [message for message, _ in got] == ["go", "stop", "go", "stop"]


def test_every_subscription_keeps_as_many_messages():
    assert {qos.depth for qos in (publishers._LATCHED, publishers._PLAIN, publishers._BEST_EFFORT)} == {10}


def watch(graph, qos=RELIABLE, mismatch=None):
    return PublisherWatch(graph, [Listener(Input.IMAGE, "/image", "std_msgs/msg/Bool", qos, ": do this", mismatch)], [])


def incompatible(mismatch, kind=QoSPolicyKind.RELIABILITY):
    mismatch.events.incompatible_qos(SimpleNamespace(last_policy_kind=kind))


def test_an_event_of_the_middleware_makes_the_next_look_due_and_the_publisher_is_named_once():
    graph, mismatch = Graph(), Mismatch()
    looking = watch(graph, mismatch=mismatch)
    assert looking.look() == {}
    assert not looking.due
    graph.add("camera", BEST_EFFORT)
    incompatible(mismatch)
    assert looking.due
    assert looking.look() == {Input.IMAGE: "/camera publishes /image, but best effort, and is not heard: do this"}
    assert not looking.due
    graph.publishers.clear()
    assert looking.look() == {}  # it is gone, and so is what was said of it


def test_where_the_graph_does_not_know_a_policy_the_event_names_it():
    graph, mismatch = Graph(), Mismatch()
    graph.add("camera", QoSProfile(depth=1, durability=DurabilityPolicy.UNKNOWN))
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    looking = watch(graph, latched, mismatch)
    assert looking.look() == {}
    incompatible(mismatch, QoSPolicyKind.DURABILITY)
    text = "/camera publishes /image, but with a durability that does not match, and is not heard: do this"
    assert looking.look() == {Input.IMAGE: text}


def test_a_publisher_of_another_type_is_named():
    graph = Graph()
    graph.add("camera", kind="sensor_msgs/msg/Image")
    assert (
        "/camera publishes sensor_msgs/msg/Image on /image, expected std_msgs/msg/Bool"
        in watch(graph).look()[Input.IMAGE]
    )
