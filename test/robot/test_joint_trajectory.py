from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicHermiteSpline

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.robot.joint_trajectory import JointTrajectoryArrays, preceded_by, standing

STAMP_NS = 1_763_000_000_000_000_000
NAMES = ("a", "b", "c")


def random_path(seed: int, points: int = 6, start_ns: int = STAMP_NS) -> JointTrajectoryArrays:
    rng = np.random.default_rng(seed)
    times_ns = np.concatenate([[0], np.cumsum(rng.integers(10_000_000, 300_000_000, points - 1))])
    velocities = rng.uniform(-2, 2, (points, 3)) * (rng.uniform(size=(points, 3)) > 0.2)
    velocities[-1] = 0.0
    return JointTrajectoryArrays(NAMES, start_ns, times_ns, rng.uniform(-1, 1, (points, 3)), velocities)


def cubic(path: JointTrajectoryArrays) -> CubicHermiteSpline:
    return CubicHermiteSpline(path.times_from_stamp_ns / NS_PER_S, path.positions, path.velocities)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 100_000))
def test_the_state_is_that_of_the_cubic(seed):
    path = random_path(seed)
    spline = cubic(path)
    for share in (0.001, 0.31, 0.77, 0.999):
        at_ns = STAMP_NS + int(share * path.times_from_stamp_ns[-1])
        state, t = path.state(at_ns), (at_ns - STAMP_NS) / NS_PER_S
        np.testing.assert_allclose(state.position, spline(t), atol=1e-9)
        np.testing.assert_allclose(state.velocity, spline(t, 1), atol=1e-7)
        np.testing.assert_allclose(state.acceleration, spline(t, 2), atol=1e-5)


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 100_000))
def test_peaks_are_those_of_a_fine_sampling(seed):
    path = random_path(seed)
    spline, peaks = cubic(path), path.peaks()
    knots_s = path.times_from_stamp_ns / NS_PER_S
    for i in range(len(knots_s) - 1):
        inside = np.linspace(knots_s[i], knots_s[i + 1], 4001)
        positions = spline(inside)
        speeds = np.abs(spline(inside, 1))
        span = knots_s[i + 1] - knots_s[i]
        np.testing.assert_allclose(peaks.low[i], positions.min(axis=0), atol=1e-5 * (1 + span))
        np.testing.assert_allclose(peaks.high[i], positions.max(axis=0), atol=1e-5 * (1 + span))
        assert (peaks.low[i] <= positions.min(axis=0) + 1e-12).all()
        assert (peaks.speed[i] >= speeds.max(axis=0) - 1e-9).all()
        np.testing.assert_allclose(peaks.speed[i], speeds.max(axis=0), rtol=1e-5)
        assert (peaks.acceleration[i] >= np.abs(spline(inside[1:-1], 2)).max(axis=0) - 1e-6).all()


def test_a_cubic_between_equal_speeds_is_half_again_as_fast_as_its_mean():
    path = JointTrajectoryArrays(("a",), 0, np.array([0, NS_PER_S]), np.array([[0.0], [1.0]]), np.zeros((2, 1)))
    assert path.peaks().speed[0, 0] == pytest.approx(1.5)
    assert path.peaks().acceleration[0, 0] == pytest.approx(6.0)


def test_a_straight_and_a_standing_segment_have_no_infinite_peaks():
    times_ns = np.array([0, 1, 2]) * NS_PER_S
    path = JointTrajectoryArrays(
        ("a", "b"), 0, times_ns, np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]), np.array([[1.0, 0.0]] * 3)
    )
    peaks = path.peaks()
    np.testing.assert_allclose(peaks.speed, [[1.0, 0.0]] * 2)
    np.testing.assert_allclose(peaks.acceleration, 0.0, atol=1e-12)
    np.testing.assert_allclose(peaks.low, [[0.0, 1.0], [1.0, 1.0]])


def test_the_jerk_into_the_first_point_counts_from_how_the_arm_arrives():
    times_ns = np.array([0, 100_000_000])
    path = JointTrajectoryArrays(("a",), 0, times_ns, np.array([[0.0], [0.05]]), np.array([[0.0], [1.0]]))
    assert path.peaks().jerk[0, 0] == pytest.approx(10.0 / 0.05)
    assert replace(path, start_acceleration=np.array([10.0])).peaks().jerk[0, 0] == pytest.approx(0.0, abs=1e-9)


def test_outside_of_its_time_the_arm_rests():
    path = random_path(0)
    for at_ns, position in ((STAMP_NS - 1, path.positions[0]), (path.end_ns, path.positions[-1])):
        state = path.state(at_ns)
        np.testing.assert_array_equal(state.position, position)
        assert not state.velocity.any()
        assert not state.acceleration.any()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 100_000), head_ns=st.integers(1_000_000, 200_000_000))
def test_what_precedes_a_motion_is_the_path_that_it_leaves(seed, head_ns):
    previous = random_path(seed)
    leaves_ns = STAMP_NS + int(0.6 * previous.times_from_stamp_ns[-1])
    state = previous.state(leaves_ns)
    following = random_path(seed + 1, start_ns=leaves_ns)
    following.positions[0], following.velocities[0] = state.position, state.velocity
    whole = preceded_by(previous, following, leaves_ns - head_ns)
    assert whole.stamp_ns == max(leaves_ns - head_ns, STAMP_NS)
    assert whole.end_ns == following.end_ns
    for at_ns in whole.stamp_ns + np.linspace(0, leaves_ns - whole.stamp_ns - 1, 7).astype(np.int64):
        np.testing.assert_allclose(whole.state(int(at_ns)).position, previous.state(int(at_ns)).position, atol=2e-4)
    for at_ns in leaves_ns + np.linspace(0, following.end_ns - leaves_ns, 7).astype(np.int64):
        np.testing.assert_allclose(whole.state(int(at_ns)).position, following.state(int(at_ns)).position, atol=1e-6)


def test_nothing_precedes_a_motion_that_begins_no_later():
    following = random_path(1)
    assert preceded_by(standing(NAMES, np.zeros(3), STAMP_NS, 1000), following, STAMP_NS) is following


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"times_from_stamp_ns": np.array([5, 6, 7])}, "must rise from 0, got"),
        ({"times_from_stamp_ns": np.array([0, 6, 6])}, "must rise from 0"),
        ({"positions": np.zeros((3, 2))}, r"must be \[T, 3\]"),
        ({"velocities": np.zeros((2, 3))}, r"must be \[T, 3\]"),
        ({"times_from_stamp_ns": np.array([0])}, "T >= 2"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, text):
    with pytest.raises(ValueError, match=text):
        replace(random_path(0, points=3), **change)
