"""A gripper from which nothing comes back but the position of its joint: what is said about it, in stepped time."""

from types import SimpleNamespace

import pytest

from sqap_vla_ros.nodes.policy.grippers import gripper as gripper_module
from sqap_vla_ros.nodes.policy.grippers.forward_command import ForwardCommand
from sqap_vla_ros.nodes.policy.grippers.gripper import GripperConfig, GripperParts
from sqap_vla_ros.robot.gripper.state import GripperState

CLOSED, OPEN = 0.8, 0.0
PERIOD_S = 0.1


class Publisher:
    def __init__(self):
        self.sent, self.listeners, self.topic_name = [], 1, "/gripper_command"

    def publish(self, message):
        self.sent.append(list(message.data))

    def get_subscription_count(self):
        return self.listeners


class Bench:
    """A gripper whose joint the test moves."""

    def __init__(self, monkeypatch):
        self.now_s = 100.0
        monkeypatch.setattr(gripper_module.time, "monotonic", lambda: self.now_s)
        self.publisher = Publisher()
        self.joints = SimpleNamespace(gripper=None, gripper_count=0)
        node = SimpleNamespace(create_lifecycle_publisher=lambda *_: self.publisher)
        config = GripperConfig(CLOSED, OPEN, "rad", joint="jaw", timeout_s=5.0)
        self.gripper = ForwardCommand(node, GripperParts(config, None, self.joints))

    def measure(self, position):
        self.joints.gripper, self.joints.gripper_count = position, self.joints.gripper_count + 1

    def watch(self, opening, position_at, seconds, period_s=PERIOD_S):
        """Let the policy ask for an opening, and the joint be measured each period. Return (time, state) of changes."""
        states, measured_s = [], -1.0
        for step in range(round(seconds / PERIOD_S)):
            t_s = step * PERIOD_S
            if t_s - measured_s >= period_s - 1e-6:
                self.measure(position_at(t_s))
                measured_s = t_s
            self.gripper.update(opening)
            state = self.gripper.report().state
            if not states or states[-1][1] is not state:
                states.append((round(t_s, 1), state))
            self.now_s += PERIOD_S
        return states


@pytest.fixture
def bench(monkeypatch):
    return Bench(monkeypatch)


def test_a_half_open_gripper_that_never_moves_has_closed_on_nothing(bench):
    found = bench.watch(0.0, lambda t: 0.4, 4.0)
    assert [state for _, state in found] == [GripperState.MOVING, GripperState.STALLED]
    assert found[1][0] == pytest.approx(2.0, abs=0.15)
    text = "told to close, it stays at 0.4 rad: does its driver listen, or does it hold something already?"
    assert bench.gripper.report().text == text


def test_a_gripper_that_reacts_late_is_moving_until_it_holds(bench):
    found = bench.watch(0.0, lambda t: 0.4 if t < 1.0 else min(0.6, 0.4 + 0.2 * (t - 1.0)), 4.0)
    assert [state for _, state in found] == [GripperState.MOVING, GripperState.HOLDING]
    assert found[1][0] == pytest.approx(2.4, abs=0.15)


def test_a_joint_that_is_measured_once_a_second_stands_when_two_measurements_say_so(bench):
    found = bench.watch(0.0, lambda t: min(0.5, 0.1 * t), 8.0, period_s=1.0)
    states = [state for _, state in found]
    assert states == [GripperState.MOVING, GripperState.LATE, GripperState.HOLDING]
    assert found[2][0] == pytest.approx(6.0, abs=0.15)


def test_a_gripper_that_is_told_to_close_again_still_holds_what_it_holds(bench):
    bench.watch(0.0, lambda t: min(0.5, t), 2.0)
    assert bench.gripper.report().state is GripperState.HOLDING
    bench.gripper.reset()
    found = bench.watch(0.0, lambda t: 0.5, 1.0)
    assert found[-1][1] is GripperState.HOLDING
    assert GripperState.STALLED not in [state for _, state in found]
    assert bench.publisher.sent == [[CLOSED], [CLOSED]]


def test_a_command_that_nobody_hears_is_named_and_said_again_to_who_comes(bench):
    bench.publisher.listeners = 0
    bench.watch(0.0, lambda t: 0.1, 0.5)
    report = bench.gripper.report()
    assert report.state is GripperState.FAILED
    assert report.text == "did not close: nobody subscribes to /gripper_command: does its controller run?"
    assert bench.publisher.sent == [[CLOSED]]
    bench.publisher.listeners = 1
    bench.watch(0.0, lambda t: 0.1, 0.5)
    assert bench.publisher.sent == [[CLOSED], [CLOSED]]
    assert bench.gripper.report().state is GripperState.MOVING
