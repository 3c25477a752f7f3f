"""The gripper's joint in the arm's trajectory: smooth, in its range, without a change of the arm's path."""

from dataclasses import replace

import numpy as np
import pytest

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.robot.gripper.joint_path import GripperJointPath
from sqap_vla_ros.robot.joint_trajectory import JointTrajectoryArrays, remaining

CLOSED, OPEN, TRAVEL_S = -0.17, 1.75, 0.6
BEGIN_NS = 100 * NS_PER_S


def ms(value: float) -> int:
    return round(value * 1e6)


def arm_path(length_ms: float = 500.0) -> JointTrajectoryArrays:
    times_ns = np.array([0, ms(130), ms(310), ms(length_ms)], dtype=np.int64)
    positions = np.array([[0.0, 1.0], [0.1, 0.9], [0.25, 0.6], [0.3, 0.5]])
    velocities = np.array([[0.1, -0.4], [0.9, -1.0], [0.4, -0.9], [0.0, 0.0]])
    return JointTrajectoryArrays(("a", "b"), BEGIN_NS, times_ns, positions, velocities)


def opened() -> GripperJointPath:
    path = GripperJointPath("jaw", OPEN - CLOSED, TRAVEL_S)
    path.begin(OPEN, BEGIN_NS - NS_PER_S)
    return path


def sampled(joined: JointTrajectoryArrays, column: int, until_ns: int) -> np.ndarray:
    return np.array([joined.state(t).position[column] for t in range(BEGIN_NS, until_ns, ms(2))])


def test_the_arm_keeps_its_path_and_the_gripper_ends_at_its_target():
    arm, gripper = arm_path(), opened()
    gripper.go_to(CLOSED, BEGIN_NS + ms(50))
    joined = gripper.joined(arm)
    assert joined.joint_names == ("a", "b", "jaw")
    assert joined.end_ns == BEGIN_NS + ms(50 + 1e3 * TRAVEL_S)  # the arm rests until the gripper is there
    for t in range(BEGIN_NS, joined.end_ns, ms(3)):
        state, alone = joined.state(t), arm.state(t)
        np.testing.assert_allclose(state.position[:2], alone.position, atol=1e-9)
        np.testing.assert_allclose(state.velocity[:2], alone.velocity, atol=1e-7)
    assert joined.positions[0, 2] == pytest.approx(OPEN)
    assert joined.positions[-1, 2] == pytest.approx(CLOSED)
    assert not joined.velocities[-1].any()


@pytest.mark.parametrize("interrupted_ms", [5, 60, 150, 300, 450, 560, 595])
def test_a_change_of_mind_neither_leaps_nor_leaves_the_range(interrupted_ms):
    gripper = opened()
    gripper.go_to(CLOSED, BEGIN_NS)
    before = gripper.joined(arm_path())
    turn_ns = BEGIN_NS + ms(interrupted_ms)
    gripper.go_to(OPEN, turn_ns)
    after = gripper.joined(arm_path())
    # What was under way stays as it was until the change, for a message begins in the past.
    for t in range(BEGIN_NS, turn_ns, ms(5)):
        assert after.state(t).position[2] == pytest.approx(before.state(t).position[2], abs=1e-9)
    way = sampled(after, 2, after.end_ns + ms(10))
    assert np.abs(np.diff(way)).max() < 2.0 * 0.002 * (OPEN - CLOSED) / TRAVEL_S
    assert way.min() >= CLOSED - 1e-3
    assert way.max() <= OPEN + 1e-3
    assert way[-1] == pytest.approx(OPEN)


def test_the_rest_of_a_motion_is_the_motion():
    arm = arm_path()
    left = remaining(arm, BEGIN_NS + ms(200))
    assert left.stamp_ns == BEGIN_NS + ms(200)
    for t in range(left.stamp_ns, arm.end_ns, ms(7)):
        np.testing.assert_allclose(left.state(t).position, arm.state(t).position, atol=1e-9)
    assert remaining(arm, BEGIN_NS - 1) is arm
    over = remaining(arm, arm.end_ns + NS_PER_S)
    np.testing.assert_array_equal(over.positions, np.tile(arm.positions[-1], (2, 1)))


def test_a_jump_of_time_takes_the_path_along():
    gripper = opened()
    gripper.go_to(CLOSED, BEGIN_NS)
    before = gripper.joined(arm_path())
    gripper.shift(-50 * NS_PER_S)
    after = gripper.joined(replace(arm_path(), stamp_ns=BEGIN_NS - 50 * NS_PER_S))
    np.testing.assert_array_equal(after.positions, before.positions)


def test_what_it_keeps_does_not_grow():
    gripper = opened()
    for k in range(50):
        gripper.go_to(CLOSED if k % 2 else OPEN, BEGIN_NS + k * NS_PER_S)
    joined = gripper.joined(replace(arm_path(), stamp_ns=BEGIN_NS + 49 * NS_PER_S))
    assert len(joined.times_from_stamp_ns) <= 8
