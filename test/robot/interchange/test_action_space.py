"""The numbers that clients get, against closed forms."""

import numpy as np
import pytest

from sqap_vla_ros.robot.interchange.action_space import ACTION_SPACES, ActionSpace

DELTAS = np.array([[0.01, -0.02, 0.005, 0.0, 0.0, 0.1, 1.0], [0.0, 0.0, 0.0, 0.2, 0.0, 0.0, 0.0]])


def test_metric_is_the_chunk_itself():
    assert (ACTION_SPACES["metric"].actions(DELTAS) == DELTAS).all()


def test_libero_scales_by_its_controllers_limits_and_turns_the_gripper_round():
    actions = ACTION_SPACES["libero"].actions(DELTAS)
    np.testing.assert_allclose(actions[0], [0.2, -0.4, 0.1, 0.0, 0.0, 0.2, -1.0], atol=1e-12)
    np.testing.assert_allclose(actions[1], [0.0, 0.0, 0.0, 0.4, 0.0, 0.0, 1.0], atol=1e-12)
    assert np.abs(ACTION_SPACES["libero"].actions(100 * DELTAS)).max() == 1.0


def test_a_policy_of_displacements_commands_what_the_controller_makes_of_them():
    commands, moves = (ACTION_SPACES[name].actions(DELTAS / 10) for name in ("libero", "libero_displacement"))
    np.testing.assert_allclose(moves[:, :6], commands[:, :6] / 0.23)
    np.testing.assert_allclose(moves[0, :3], [0.02 / 0.23, -0.04 / 0.23, 0.01 / 0.23])
    assert (moves[:, 6] == commands[:, 6]).all()
    assert np.abs(ACTION_SPACES["libero_displacement"].actions(DELTAS)).max() == 1.0


def test_simpler_takes_axis_angles():
    # A quarter turn about z after a quarter turn about x is a third of a turn about (1, 1, 1) / sqrt(3).
    deltas = np.array([[0, 0, 0, np.pi / 2, 0, np.pi / 2, 0.5]])
    actions = ACTION_SPACES["simpler"].actions(deltas)
    np.testing.assert_allclose(actions[0, 3:6], np.full(3, 2 * np.pi / 3 / np.sqrt(3)), atol=1e-12)
    assert actions[0, 6] == 0.5


def test_the_chunk_is_left_as_it_was():
    before = DELTAS.copy()
    for space in ACTION_SPACES.values():
        space.actions(DELTAS)
    assert (before == DELTAS).all()


@pytest.mark.parametrize(
    ("space", "rotation", "gripper"),
    [("metric", "euler_xyz", "continuous_01"), ("libero", "axis_angle", "binary_close_positive")],
)
def test_the_specification_says_the_same(space, rotation, gripper):
    spec = ACTION_SPACES[space].spec()
    assert spec["rotation"]["format"] == rotation
    assert spec["gripper"]["format"] == gripper
    assert ActionSpace(limit=1.0).spec()["position"]["range"] == [-1.0, 1.0]
