from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicHermiteSpline
from scipy.spatial.transform import Rotation

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.joint_trajectory import JERK_S, NEAR_NS, JointTrajectoryArrays, preceded_by, standing
from sqap_vla_ros.robot.kinematics import ArmKinematics
from sqap_vla_ros.robot.safety import BETWEEN_POINTS_M, Code, Decision, SafetyLimits
from sqap_vla_ros.robot.trajectory import anchor_chunk

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
    assert path.peaks().jerk[0, 0] == pytest.approx(10.0 / JERK_S)
    assert replace(path, start_acceleration=np.array([10.0])).peaks().jerk[0, 0] == pytest.approx(0.0, abs=1e-9)


def test_the_jerk_of_a_path_does_not_depend_on_how_finely_it_is_divided():
    path = random_path(3)
    positions, velocities = path.sampled(10)
    steps_ns = np.repeat(np.diff(path.times_from_stamp_ns) // 10, 10)
    times_ns = np.concatenate([[0], np.cumsum(steps_ns)])
    finely = JointTrajectoryArrays(NAMES, STAMP_NS, times_ns, positions, velocities)
    whole, parts = path.peaks().jerk, finely.peaks().jerk
    assert parts.max() == pytest.approx(whole.max(), rel=0.02)
    # Where the acceleration leaps at a point, and hardly changes beside it, that leap over JERK_S is all there is.
    times_ns = np.array([0, 100, 200]) * 1_000_000
    corner = JointTrajectoryArrays(
        ("a",), 0, times_ns, np.array([[0.0], [0.05], [0.1]]), np.array([[0.0], [1.0], [0.0]])
    )
    np.testing.assert_allclose(corner.peaks().jerk[:, 0], [10.0 / JERK_S, 20.0 / JERK_S])


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
    # A point nearer than NEAR_NS is left out: then the path is off by what its acceleration does in that time.
    left_out = 0.5 * previous.peaks().acceleration.max() * (NEAR_NS / NS_PER_S) ** 2
    for at_ns in whole.stamp_ns + np.linspace(0, leaves_ns - whole.stamp_ns - 1, 7).astype(np.int64):
        state = previous.state(int(at_ns))
        np.testing.assert_allclose(whole.state(int(at_ns)).position, state.position, atol=1e-6 + left_out)
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


# The tool between the points

READY = np.array([0.0, -0.5, 0.0, -2.2, 0.0, 1.7, 0.8])
URDF = share_path("config/robots/tabletop_arm.urdf").read_text()


@pytest.fixture(scope="module", params=["as it is", "joint3 continuous, from link1"])
def arm(request) -> ArmKinematics:
    if request.param == "as it is":
        return ArmKinematics.from_urdf(URDF, "base_link", "tool0")
    head, tail = URDF.split('<joint name="joint3" type="revolute"')
    return ArmKinematics.from_urdf(f'{head}<joint name="joint3" type="continuous"{tail}', "link1", "tool0")


def densely(path: JointTrajectoryArrays, arm: ArmKinematics) -> tuple[np.ndarray, np.ndarray]:
    """Positions and linear speeds of the tool every half millisecond, by forward kinematics alone."""
    knots_s = path.times_from_stamp_ns / NS_PER_S
    moments = np.linspace(0.0, knots_s[-1], round(knots_s[-1] / 5e-4))
    positions = np.stack([arm.forward(q)[:3, 3] for q in cubic(path)(moments)])
    return positions, np.linalg.norm(np.diff(positions, axis=0), axis=1) / moments[1]


def swinging(arm: ArmKinematics, seed: int, points: int = 7) -> JointTrajectoryArrays:
    """A brisk motion with segments of 20 to 250 ms and velocities of any size at its points."""
    rng = np.random.default_rng(seed)
    joints = len(arm.joint_names)
    times_ns = np.concatenate([[0], np.cumsum(rng.integers(20_000_000, 250_000_000, points - 1))])
    spans_s = np.diff(times_ns) / NS_PER_S
    steps = rng.uniform(-0.7, 0.7, (points - 1, joints)) * spans_s[:, None]
    positions = READY[-joints:] + np.concatenate([np.zeros((1, joints)), np.cumsum(steps, axis=0)])
    velocities = rng.uniform(-0.7, 0.7, (points, joints)) * (rng.uniform(size=(points, joints)) > 0.3)
    velocities[-1] = 0.0
    return JointTrajectoryArrays(arm.joint_names, STAMP_NS, times_ns, positions, velocities)


@pytest.mark.parametrize("seed", range(6))
def test_the_tools_motion_is_that_of_a_dense_sampling(arm, seed):
    path = swinging(arm, seed)
    tool = arm.tool_motion(path)
    positions, speeds = densely(path, arm)
    assert tool.linear.max() == pytest.approx(speeds.max(), rel=5e-3)
    np.testing.assert_allclose(tool.positions.min(axis=(0, 1)), positions.min(axis=0), atol=2e-4)
    np.testing.assert_allclose(tool.positions.max(axis=(0, 1)), positions.max(axis=0), atol=2e-4)
    for i in (0, len(path.spans_s) - 1):
        np.testing.assert_allclose(tool.positions[i, 0], arm.forward(path.positions[i])[:3, 3], atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_tool_turns_as_fast_as_a_dense_sampling_says(arm, seed):
    path = swinging(arm, seed)
    step_s = 1e-3
    moments = np.arange(0.0, path.times_from_stamp_ns[-1] / NS_PER_S, step_s)
    rotations = Rotation.from_matrix([arm.forward(q)[:3, :3] for q in cubic(path)(moments)])
    fastest = (rotations[1:] * rotations[:-1].inv()).magnitude().max() / step_s
    assert arm.tool_motion(path).angular.max() == pytest.approx(fastest, rel=5e-3)


def test_a_motion_within_its_mean_speed_is_slowed_down_to_the_peak_of_its_cubic():
    """From rest to rest over one step the cubic moves the tool at 1.5 times the mean speed."""
    arm = ArmKinematics.from_urdf(URDF, "base_link", "tool0")
    limits = SafetyLimits(max_joint_acceleration=1e3, max_joint_jerk=1e6)
    deltas = np.zeros((6, 7))
    deltas[::2, 1], deltas[1::2, 1] = 0.07, -0.07  # forth and back at 0.35 m/s
    chunk = anchor_chunk(deltas, arm.forward(READY), STAMP_NS, 0.2)
    assert np.linalg.norm(chunk.segment_velocities()[0], axis=1).max() < limits.max_linear_velocity
    path = arm.joint_trajectory(chunk, READY)
    assert densely(path, arm)[1].max() > 1.25 * limits.max_linear_velocity
    verdict = limits.check_joints(path, arm)
    assert verdict.decision is Decision.SLOW_DOWN
    assert "the tool's linear velocity would reach 0.5" in verdict.text
    slowed = arm.joint_trajectory(chunk.slowed(verdict.time_scale), READY)
    assert densely(slowed, arm)[1].max() == pytest.approx(limits.max_linear_velocity, rel=5e-3)
    assert replace(limits, max_linear_velocity=0.405).check_joints(slowed, arm).decision is Decision.ACCEPT
    turns = replace(
        limits, max_linear_velocity=9.0, max_angular_velocity=0.5 * float(arm.tool_motion(path).angular.max())
    )
    assert turns.check_joints(path, arm).time_scale == pytest.approx(2.0, rel=1e-3)


def test_only_the_segments_in_which_the_tool_is_too_fast_take_longer():
    arm = ArmKinematics.from_urdf(URDF, "base_link", "tool0")
    limits = SafetyLimits(max_joint_acceleration=1e3, max_joint_jerk=1e6)
    deltas = np.zeros((8, 7))
    deltas[:, 1] = 0.01, 0.01, 0.07, -0.07, 0.01, 0.01, 0.01, 0.01
    chunk = anchor_chunk(deltas, arm.forward(READY), STAMP_NS, 0.2)
    path = arm.joint_trajectory(chunk, READY)
    verdict = limits.check_joints(path, arm)
    slowed = chunk.stretched(path.times_ns, verdict.segment_scales)
    before_s, after_s = (np.diff(c.times_ns, prepend=c.anchor_ns) / NS_PER_S for c in (chunk, slowed))
    np.testing.assert_allclose(after_s[[0, 1, 4, 5, 6, 7]], before_s[[0, 1, 4, 5, 6, 7]], atol=1e-8)
    assert (after_s[2:4] > 1.2 * before_s[2:4]).all()
    again = arm.joint_trajectory(slowed, READY)
    assert densely(again, arm)[1].max() <= limits.max_linear_velocity * 1.005
    assert limits.check_joints(again, arm).decision is Decision.ACCEPT
    # What is too fast for a joint is slowed down as a whole, as ever.
    assert replace(limits, max_joint_velocity=0.5).check_joints(path, arm).segment_scales is None


def test_a_start_at_speed_may_keep_it_but_not_gain():
    arm = ArmKinematics.from_urdf(URDF, "base_link", "tool0")
    turning = np.eye(7)[0]
    times_ns = np.array([0, 100_000_000, 200_000_000])
    radius_m = float(np.hypot(*arm.forward(READY)[:2, 3]))
    limits = SafetyLimits(max_linear_velocity=0.5 * radius_m)
    for speeds, decision in (((0.6, 0.4, 0.0), Decision.ACCEPT), ((0.6, 0.9, 0.0), Decision.SLOW_DOWN)):
        velocities = np.outer(speeds, turning)
        means = np.array([0.0, 0.5, 0.7]) if decision is Decision.ACCEPT else np.array([0.0, 0.8, 1.2])
        path = JointTrajectoryArrays(arm.joint_names, 0, times_ns, READY + np.outer(0.1 * means, turning), velocities)
        assert limits.check_joints(path, arm).decision is decision


def test_between_two_points_of_the_workspace_the_tool_does_not_leave_it():
    """The first joint alone leads the tool along an arc, whose middle is further out than its ends."""
    arm = ArmKinematics.from_urdf(URDF, "base_link", "tool0")
    sides = np.stack([READY - 0.25 * np.eye(7)[0], READY + 0.25 * np.eye(7)[0]])
    path = JointTrajectoryArrays(arm.joint_names, 0, np.array([0, 3 * NS_PER_S]), sides, np.zeros((2, 7)))
    end_x, middle_x = arm.forward(sides[0])[0, 3], arm.forward(READY)[0, 3]
    assert middle_x > end_x + 2.0 * BETWEEN_POINTS_M
    inside = SafetyLimits(workspace_max_m=(middle_x - 0.9 * BETWEEN_POINTS_M, 0.6, 0.8))
    assert inside.check_joints(path, arm).decision is Decision.ACCEPT
    verdict = SafetyLimits(workspace_max_m=(middle_x - 1.1 * BETWEEN_POINTS_M, 0.6, 0.8)).check_joints(path, arm)
    assert [code for code, _ in verdict.reasons] == [Code.WORKSPACE]
    assert f"({middle_x:.3f}, " in verdict.text
    # An arm that starts outside may come in, and no further out.
    outside = SafetyLimits(workspace_max_m=(end_x - 0.05, 0.6, 0.8))
    half = JointTrajectoryArrays(
        arm.joint_names, 0, np.array([0, NS_PER_S]), np.stack([READY, sides[1]]), np.zeros((2, 7))
    )
    assert outside.check_joints(half, arm).decision is Decision.ACCEPT
    assert outside.check_joints(path, arm).decision is Decision.REJECT
