"""Which joints are known, and why not."""

import numpy as np
import pytest
from sensor_msgs.msg import JointState

from sqap_vla_ros.control.joint_monitor import JointMonitor
from sqap_vla_ros.resources import share_path

NAMES = [f"joint{i}" for i in range(1, 8)]


@pytest.fixture
def monitor() -> JointMonitor:
    monitor = JointMonitor("base_link", "tool0", timeout_s=0.5)
    assert "no robot_description" in monitor.problem(0.0)
    assert monitor.set_description(share_path("config/robots/tabletop_arm.urdf").read_text()) is None
    return monitor


def state(names, positions) -> JointState:
    return JointState(name=list(names), position=[float(p) for p in positions])


def test_joints_come_in_any_order_among_others(monitor):
    assert "no joint_states" in monitor.problem(0.0)
    monitor.update(state([*reversed(NAMES), "finger"], [*range(7, 0, -1), 9]), now_s=1.0)
    assert monitor.problem(1.4) is None
    np.testing.assert_array_equal(monitor.joints, range(1, 8))


def test_they_become_stale(monitor):
    monitor.update(state(NAMES, range(7)), now_s=1.0)
    assert monitor.problem(1.8) == "joint_states are stale: the last came 0.8 s ago (limit 0.5 s)"


def test_a_message_of_the_gripper_alone_is_passed_over(monitor):
    monitor.update(state(NAMES, range(7)), now_s=1.0)
    monitor.update(state(["finger"], [0.02]), now_s=1.1)
    assert monitor.problem(1.2) is None


def test_a_missing_joint_is_named(monitor):
    monitor.update(state(NAMES[:-1], range(6)), now_s=1.0)
    assert "lacks joint7" in monitor.problem(1.0)
    monitor.update(state(NAMES, range(7)), now_s=1.1)
    assert monitor.problem(1.1) is None


def test_a_position_that_is_not_finite_is_not_used(monitor):
    monitor.update(state(NAMES, range(7)), now_s=1.0)
    monitor.update(state(NAMES, [np.nan, *range(6)]), now_s=1.1)
    assert "non-finite" in monitor.problem(1.1)
    np.testing.assert_array_equal(monitor.joints, range(7))


def test_a_broken_description_keeps_the_one_before(monitor):
    before = monitor.kinematics
    assert "no usable URDF" in monitor.set_description("<robot")
    assert monitor.kinematics is before
