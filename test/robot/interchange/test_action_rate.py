"""Chunks at a client's rate, against closed forms."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sqap_vla_ros.robot.conventions import compose_delta
from sqap_vla_ros.robot.interchange.action_rate import resample_chunk, resampled_steps

RATES = [(5.0, 20.0), (20.0, 5.0), (5.0, 15.0), (10.0, 7.0), (7.0, 10.0)]
STEPS = 16


def straight(policy_hz: float) -> np.ndarray:
    """A line at 0.1, -0.05 and 0.02 m/s."""
    deltas = np.zeros((STEPS, 7))
    deltas[:, :3] = np.array([0.1, -0.05, 0.02]) / policy_hz
    return deltas


def screw(policy_hz: float) -> np.ndarray:
    """A turn about the base's z axis at 0.8 rad/s while the tool goes along it at 0.03 m/s."""
    deltas = np.zeros((STEPS, 7))
    deltas[:, 2], deltas[:, 5] = 0.03 / policy_hz, 0.8 / policy_hz
    return deltas


def tilted(policy_hz: float) -> np.ndarray:
    """A turn about (1, 2, -1) at 0.5 rad/s, whose roll, pitch and yaw all change."""
    axis = np.array([1.0, 2.0, -1.0]) / np.sqrt(6.0)
    deltas = np.zeros((STEPS, 7))
    deltas[:, 3:6] = Rotation.from_rotvec(0.5 / policy_hz * axis).as_euler("xyz")
    return deltas


def wandering(policy_hz: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.2, 0.2, (STEPS, 7)) / policy_hz


def end(deltas: np.ndarray, steps: int | None = None) -> np.ndarray:
    pose = np.eye(4)
    for delta in deltas[:steps]:
        pose = compose_delta(pose, delta)
    return pose


@pytest.mark.parametrize(("policy_hz", "control_hz"), RATES)
@pytest.mark.parametrize("motion", [straight, screw, tilted])
def test_a_steady_motion_keeps_its_speed(motion, policy_hz, control_hz):
    found = resample_chunk(motion(policy_hz), 1.0 / policy_hz, control_hz)
    whole = int(STEPS * control_hz / policy_hz + 1e-9)
    np.testing.assert_allclose(found[:whole], np.tile(motion(control_hz)[0], (whole, 1)), rtol=1e-6, atol=1e-11)


@pytest.mark.parametrize(("policy_hz", "control_hz"), RATES)
@pytest.mark.parametrize("motion", [straight, screw, tilted, wandering])
def test_the_actions_compose_to_the_same_end_in_the_same_time(motion, policy_hz, control_hz):
    deltas = motion(policy_hz)
    found = resample_chunk(deltas, 1.0 / policy_hz, control_hz)
    assert len(found) == resampled_steps(STEPS, 1.0 / policy_hz, control_hz) == np.ceil(STEPS * control_hz / policy_hz)
    np.testing.assert_allclose(found[:, :3].sum(axis=0), deltas[:, :3].sum(axis=0), atol=1e-12)
    np.testing.assert_allclose(end(found), end(deltas), atol=1e-12)


def test_poses_that_both_rates_reach_are_the_same():
    deltas = wandering(20.0)
    slower, faster = resample_chunk(deltas, 0.05, 5.0), resample_chunk(deltas, 0.05, 60.0)
    for step in range(1, 5):
        np.testing.assert_allclose(end(slower, step), end(deltas, 4 * step), atol=1e-12)
        np.testing.assert_allclose(end(faster, 12 * step), end(deltas, 4 * step), atol=1e-12)


def test_a_last_step_that_the_chunk_does_not_fill_is_shorter():
    found = resample_chunk(straight(10.0), 0.1, 7.0)  # 1.6 s are 11.2 steps
    assert len(found) == 12
    np.testing.assert_allclose(found[-1, 0], 0.2 * found[0, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("policy_hz", "control_hz", "expected"),
    [
        (5.0, 20.0, [1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]),
        (15.0, 5.0, [1]),  # what is in force when the step begins; the shorter closing falls between two steps
        (5.0, 7.5, [1, 1, 0, 1, 1]),  # 0.4 s, where the third opening begins, is the edge of the fourth step
    ],
)
def test_the_gripper_is_held(policy_hz, control_hz, expected):
    deltas = np.zeros((3, 7))
    deltas[:, 6] = [1, 0, 1]
    assert resample_chunk(deltas, 1.0 / policy_hz, control_hz)[:, 6].tolist() == expected


@pytest.mark.parametrize("dt_s", [0.2, 0.05, 1.0 / 3.0, 0.1])
def test_the_same_rate_changes_not_a_bit(dt_s):
    deltas = wandering(5.0)
    assert resample_chunk(deltas, dt_s, 1.0 / dt_s) is deltas
