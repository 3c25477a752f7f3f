import numpy as np
import pytest

from sqap_vla_ros.simulation.commander import ArmCommander
from sqap_vla_ros.simulation.joint_path import JointPath
from sqap_vla_ros.simulation.layout import sample_layout
from sqap_vla_ros.simulation.world import ReachError, TabletopWorld, tool_pose

S = 1_000_000_000
TICK_S = 0.01


@pytest.fixture
def commander() -> ArmCommander:
    world = TabletopWorld()
    world.reset(sample_layout(0, "pick"))
    return ArmCommander(world, max_joint_velocity_rad_s=1.0, twist_timeout_s=0.2)


def advance(commander: ArmCommander, seconds: float, start_ns: int = 0) -> int:
    for i in range(1, round(seconds / TICK_S) + 1):
        before = commander.position.copy()
        after = commander.update(start_ns + round(i * TICK_S * S), TICK_S)
        assert np.abs(after - before).max() <= 1.0 * TICK_S + 1e-9  # never faster than allowed
    return start_ns + round(seconds * S)


def tool(commander: ArmCommander) -> np.ndarray:
    return commander._world.forward(commander.position)


def test_a_pose_is_reached_and_held(commander):
    goal = tool_pose(np.array([0.45, -0.1, 0.2]), yaw_rad=0.4)
    commander.move_to(goal)
    advance(commander, 3.0)
    np.testing.assert_allclose(tool(commander), goal, atol=2e-3)
    assert np.abs(commander.velocity).max() < 1e-6


def test_a_pose_out_of_reach_changes_nothing(commander):
    path = JointPath(np.array([0, S]), np.vstack([commander.position, commander.position + 0.1]), None)
    commander.follow(path)
    with pytest.raises(ReachError):
        commander.move_to(tool_pose(np.array([1.5, 0.0, 0.2])))
    commander.update(S, TICK_S)
    np.testing.assert_allclose(commander.position, path.positions[-1])


def test_a_twist_moves_the_tool_straight_and_stops_when_it_is_not_renewed(commander):
    start = tool(commander)
    now = 0
    for _ in range(10):
        commander.move_along(np.array([0.05, 0.0, -0.02, 0, 0, 0.2]), now)
        now = advance(commander, 0.1, now)
    np.testing.assert_allclose(tool(commander)[:3, 3] - start[:3, 3], (0.05, 0.0, -0.02), atol=2e-3)
    now = advance(commander, 0.2, now)  # the deadman's time
    there = tool(commander)
    advance(commander, 1.0, now)
    np.testing.assert_allclose(tool(commander), there, atol=1e-9)
    assert np.linalg.norm(there[:3, 3] - start[:3, 3]) < 0.07


def test_a_new_command_replaces_the_one_before(commander):
    commander.follow(JointPath(np.array([0, 10 * S]), np.vstack([commander.position, commander.position + 1]), None))
    advance(commander, 0.5)
    commander.move_along(np.zeros(6), S // 2)
    still = commander.position.copy()
    advance(commander, 1.0, S // 2)
    np.testing.assert_allclose(commander.position, still, atol=1e-3)


def test_a_trajectory_is_approached_from_the_measured_state_unless_asked_otherwise():
    world = TabletopWorld()
    world.reset(sample_layout(0, "pick"))
    options = {"max_joint_velocity_rad_s": 1.0, "twist_timeout_s": 0.2}
    measured, desired = (
        ArmCommander(world, **options),
        ArmCommander(world, **options, interpolate_from_desired_state=True),
    )
    for commander in (measured, desired):
        commander.follow(JointPath(np.array([0, S]), np.vstack([commander.position, commander.position + 0.1]), None))
        commander.update(S // 2, TICK_S)  # the world has not moved
    np.testing.assert_array_equal(measured.start_state()[0], world.arm_position)
    np.testing.assert_array_equal(measured.start_state()[1], world.arm_velocity)
    np.testing.assert_allclose(desired.start_state()[0], world.arm_position + 0.05, atol=1e-6)
    np.testing.assert_allclose(desired.start_state()[1], 0.1, atol=1e-6)
