"""Several publishers of safety_stop: the go of one does not release the stop of another."""

from types import SimpleNamespace

import pytest
from std_msgs.msg import Bool

from sqap_vla_ros.nodes.policy.safety_stop import REMEMBERED, SafetyStop


class Cell:
    """A node with publishers of safety_stop. names: of those that exist now.

    told: messages tell who published them; alike: as the graph knows the publisher, which not every middleware does.
    """

    def __init__(self, monkeypatch, *, told: bool = True, alike: bool = True):
        self.alike = alike
        self.now_s, self.number, self.told, self.names = 100.0, 0, told, []
        monkeypatch.setattr("time.monotonic", lambda: self.now_s)
        self._hear = []
        self.stop = SafetyStop(self)

    def create_subscription(self, kind, topic, callback, qos, event_callbacks):
        self._hear.append(callback)
        return SimpleNamespace(topic_name=f"/{topic}")

    def get_publishers_info_by_topic(self, topic):
        return [
            SimpleNamespace(
                node_namespace="/", node_name=name, endpoint_gid=[*name.encode(), *([] if self.alike else [0])]
            )
            for name in self.names
        ]

    def say(self, name: str, stop: bool) -> None:
        self.now_s += 0.1
        self.number += 1
        if name not in self.names:
            self.names.append(name)
        gid = {"publisher_gid": {"data": name.encode()}, "publication_sequence_number": self.number}
        info = {"source_timestamp": self.number, **(gid if self.told else {})}
        self._hear[0](Bool(data=stop), info)

    @property
    def reason(self) -> str | None:
        return self.stop.reason(self.now_s)


@pytest.fixture
def cell(monkeypatch):
    return Cell(monkeypatch)


def test_a_stop_holds_until_each_that_said_stop_said_go(cell):
    for name in "ab":
        cell.say(name, False)
    assert not cell.stop.pressed
    cell.say("a", True)
    cell.say("b", False)
    assert cell.reason == "safety_stop is set by /a"
    cell.say("b", True)
    cell.say("a", False)
    assert cell.stop.reset_refusal() == "safety_stop is still set by /b: release it first"
    cell.say("b", False)
    assert not cell.stop.pressed
    assert cell.stop.reset_refusal() is None


def test_the_stop_of_one_that_is_gone_is_released_by_one_that_came_later(cell):
    cell.say("button", False)
    cell.say("beat", False)
    cell.say("button", True)
    cell.names.remove("button")  # it died while it was pressed
    for _ in range(3):
        cell.say("beat", False)  # was there before: says nothing about the button
    assert cell.stop.pressed
    cell.say("button again", False)
    assert not cell.stop.pressed
    cell.say("beat", True)
    assert cell.stop.pressed


def test_one_that_came_later_releases_nothing_while_the_other_is_there(cell):
    cell.say("button", True)
    cell.say("later", False)
    assert cell.stop.pressed
    cell.names.remove("button")
    assert not cell.stop.pressed
    cell.names.append("button")  # a hiccup of the discovery
    cell.say("button", True)
    assert cell.stop.pressed


def test_publishers_that_cannot_be_told_apart_release_nothing_together(monkeypatch):
    cell = Cell(monkeypatch, told=False)
    cell.say("a", True)
    cell.say("b", False)
    assert cell.reason == "safety_stop is set"
    cell.names.remove("a")
    cell.say("b", False)
    assert not cell.stop.pressed


def test_where_the_graph_knows_publishers_by_another_identity_the_last_one_that_is_left_releases(monkeypatch):
    cell = Cell(monkeypatch, alike=False)
    cell.say("button", True)
    cell.say("later", False)
    assert cell.stop.pressed
    cell.names.remove("button")
    assert not cell.stop.pressed


def test_the_silence_of_one_is_not_covered_by_another(cell):
    cell.stop.timeout_s = 0.5
    assert "was not heard yet" in cell.reason
    cell.say("a", False)
    for _ in range(8):
        cell.say("b", False)
    assert cell.reason == "safety_stop has not been heard for 0.8 s from /a (limit 0.5 s)"
    assert cell.stop.reset_refusal() is None
    assert cell.reason is not None  # it is still there, and silent
    cell.names.remove("a")
    assert cell.reason is not None
    assert cell.stop.reset_refusal() is None  # a person has seen that it is gone
    assert cell.reason is None


def test_what_is_remembered_is_bounded_and_forgets_no_stop(cell):
    cell.say("button", True)
    for number in range(3 * REMEMBERED):
        cell.say(f"ros2cli {number}", False)
    assert len(cell.stop._speakers) <= REMEMBERED
    assert cell.stop.pressed


@pytest.mark.parametrize("stop", [True, False])
def test_a_button_that_is_there_is_not_forgotten_for_publishers_that_are_gone(cell, stop):
    """As many times `ros2 topic pub --once`, which is gone when it has spoken."""
    cell.stop.timeout_s = 0.5
    cell.say("button", stop)
    for number in range(3 * REMEMBERED):
        cell.say(f"ros2cli {number}", True)
        cell.names.remove(f"ros2cli {number}")
    assert len(cell.stop._speakers) <= REMEMBERED
    cell.say("ros2cli go", False)
    assert cell.stop.pressed == stop
    assert "/button" in cell.reason
