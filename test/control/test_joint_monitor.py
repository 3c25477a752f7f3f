"""Which joints are believed, and why others are not."""

import numpy as np
import pytest

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.arm.joint_monitor import CONFIRMATIONS, JointMonitor
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.kinematics import ArmKinematics

NAMES = [f"joint{i}" for i in range(1, 8)]
Q = np.array([0.1, -0.5, 0.0, -2.2, 0.0, 0.3, 0.8])
URDF = share_path("config/robots/tabletop_arm.urdf").read_text()


def at(seconds: float) -> int:
    return round((1000.0 + seconds) * NS_PER_S)


@pytest.fixture
def monitor() -> JointMonitor:
    monitor = JointMonitor(timeout_s=0.5)
    assert "no robot_description" in monitor.problem(at(0.0))
    monitor.adopt(ArmKinematics.from_urdf(URDF, "base_link", "tool0"))
    return monitor


def feed(monitor: JointMonitor, positions, seconds: float, names=NAMES) -> None:
    monitor.update(list(names), [float(p) for p in positions], at(seconds), at(seconds))


def test_joints_come_in_any_order_among_others(monitor):
    assert "no joint_states" in monitor.problem(at(0.0))
    feed(monitor, [*reversed(Q), 9], 1.0, [*reversed(NAMES), "finger"])
    assert monitor.problem(at(1.4)) is None
    np.testing.assert_array_equal(monitor.joints, Q)


def test_joints_of_other_names_are_listed(monitor):
    feed(monitor, [0.0] * 9, 1.0, [f"ur_{i}" for i in range(9)])
    feed(monitor, [0.0], 1.0, ["finger"])
    said = "(joint1, joint2, joint3, joint4, joint5, joint6, joint7) were received yet; those that come are of ur_0, "
    assert said in monitor.problem(at(1.0))
    assert monitor.problem(at(1.0)).endswith("ur_7, …")
    monitor.forget()
    assert "those that come" not in monitor.problem(at(1.0))


def test_joints_that_come_in_several_messages_are_merged(monitor):
    feed(monitor, Q[:3], 1.0, NAMES[:3])
    assert monitor.joints is None
    assert monitor.problem(at(1.0)).startswith("joint_states lack joint4, joint5, joint6, joint7")
    feed(monitor, Q[3:], 1.01, NAMES[3:])
    assert monitor.problem(at(1.1)) is None
    np.testing.assert_array_equal(monitor.joints, Q)
    assert monitor.stamp_ns == at(1.0)
    feed(monitor, Q[3:], 1.8, NAMES[3:])  # the other half has stopped
    assert "stale: joint1 is stamped 0.8 s ago" in monitor.problem(at(1.8))


def test_age_is_that_of_the_stamp_and_not_of_the_arrival(monitor):
    feed(monitor, Q, 1.0)
    assert "stamped 0.8 s ago (limit 0.5 s)" in monitor.problem(at(1.8))
    feed(monitor, Q, 1.3)  # as a queue or a replayed bag delivers them: fresh in arrival, two seconds old
    assert "stamped 2.0 s ago" in monitor.problem(at(3.3))
    monitor.update(NAMES, Q.tolist(), at(9.0), at(3.3))
    assert "stamped 5.7 s in the future: synchronise" in monitor.problem(at(3.3))
    feed(monitor, Q, 3.4)  # later, and older than the one from the future
    assert monitor.problem(at(3.4)) is None


def test_a_message_of_the_gripper_alone_is_passed_over(monitor):
    feed(monitor, Q, 1.0)
    feed(monitor, [0.02], 1.1, ["finger"])
    assert monitor.problem(at(1.2)) is None


@pytest.mark.parametrize(
    ("names", "positions", "text"),
    [
        (NAMES, [np.nan, *Q[1:]], "non-finite position: joint1 is nan"),
        ([*NAMES, "joint1"], [*Q, 1.2], "name joint1 twice"),
        ([*NAMES, "x"], Q, "8 names and 7 positions"),
    ],
)
def test_a_malformed_message_is_refused_and_named(monitor, names, positions, text):
    feed(monitor, Q, 1.0)
    feed(monitor, positions, 1.1, names)
    assert text in monitor.problem(at(1.1))
    np.testing.assert_array_equal(monitor.joints, Q)
    feed(monitor, Q, 1.2)
    assert monitor.problem(at(1.2)) is None


def test_a_zero_stamp_is_named(monitor):
    monitor.update(NAMES, list(Q), 0, at(0.0))
    assert "stamped zero" in monitor.problem(at(1.0))


def test_one_leap_is_a_glitch_and_several_are_a_second_publisher(monitor):
    for step in range(20):
        feed(monitor, Q, 1.0 + 0.02 * step)
    feed(monitor, Q + 1.0, 1.41)
    np.testing.assert_array_equal(monitor.joints, Q)
    assert monitor.problem(at(1.41)) is None
    for step in range(20):  # joint_state_publisher beside the driver: all zeros between the true ones
        feed(monitor, Q if step % 2 else np.zeros(7), 1.42 + 0.02 * step)
    assert "is there a second publisher?" in monitor.problem(at(1.82))
    for step in range(100):
        feed(monitor, Q, 1.84 + 0.02 * step)
    assert monitor.problem(at(3.82)) is None


def test_silence_after_wrong_messages_is_named_as_silence(monitor):
    feed(monitor, Q, 1.0)
    feed(monitor, [float("nan"), *Q[1:]], 1.1)
    assert "non-finite" in monitor.problem(at(1.5))
    assert "stale: joint1 is stamped 0.7 s ago" in monitor.problem(at(1.7))
    for number in range(4):
        feed(monitor, Q, 2.0 + 0.02 * number)
        feed(monitor, Q + 1.5, 2.01 + 0.02 * number)
    assert "leapt" in monitor.problem(at(2.1))
    assert "stale" in monitor.problem(at(2.7))


def test_an_arm_that_was_moved_while_nothing_came_is_believed_again(monitor):
    feed(monitor, Q, 1.0)
    for step in range(CONFIRMATIONS):
        feed(monitor, Q + 0.8, 1.02 + 0.02 * step)
    np.testing.assert_allclose(monitor.joints, Q + 0.8)


def test_a_continuous_joint_counts_on_where_its_driver_wraps():
    monitor = JointMonitor(timeout_s=0.5)
    turning = URDF.replace('<joint name="joint7" type="revolute">', '<joint name="joint7" type="continuous">')
    assert turning != URDF
    monitor.adopt(ArmKinematics.from_urdf(turning, "base_link", "tool0"))
    for step in range(40):
        wrapped = (3.0 + 0.02 * step + np.pi) % (2 * np.pi) - np.pi
        feed(monitor, [*Q[:6], wrapped], 1.0 + 0.02 * step)
    assert monitor.joints[6] == pytest.approx(3.0 + 0.02 * 39)
    assert monitor.problem(at(1.8)) is None


def test_a_broken_description_keeps_the_one_before(monitor):
    before = monitor.kinematics
    monitor.refuse_description("no usable URDF")
    assert monitor.kinematics is before
    feed(monitor, Q, 1.0)
    assert monitor.problem(at(1.0)) is None
