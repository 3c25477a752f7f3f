"""Coming to rest along a path: within the limits, without a jump, and on the path."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.braking import MotionLimits, brake_joints, brake_tool, brought_to_rest
from sqap_vla_ros.robot.conventions import pose_distance
from sqap_vla_ros.robot.joint_trajectory import JointTrajectoryArrays, standing
from sqap_vla_ros.robot.kinematics import ArmKinematics, KinematicsError
from sqap_vla_ros.robot.trajectory import PoseTrajectory, anchor_chunk

STAMP_NS = 1_763_000_000_000_000_000
HOLD_NS = STAMP_NS + 77 * NS_PER_S
READY = np.array([0.0, -0.5, 0.0, -2.2, 0.0, 1.7, 0.8])
SAMPLE_NS = 2_000_000  # 500 Hz
LIMITS = MotionLimits(np.full(7, 15.0), np.full(7, 1500.0), 4.0, 200.0, 15.0, 750.0)
JOINT_TUBE_RAD = 1e-3  # how far a hold may leave the path, between two of its points
TOOL_TUBE_M, TOOL_TUBE_RAD = 1e-3, 5e-3


@pytest.fixture(scope="module")
def arm() -> ArmKinematics:
    return ArmKinematics.from_urdf(share_path("config/robots/tabletop_arm.urdf").read_text(), "base_link", "tool0")


def chunk(seed: int, size_m: float, size_rad: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drift = rng.uniform(-1, 1, 6) * ([size_m] * 3 + [size_rad] * 3)
    noise = rng.uniform(-0.5, 0.5, (12, 6)) * ([size_m] * 3 + [size_rad] * 3)
    return np.concatenate([drift + noise, np.ones((12, 1))], axis=1)


def joint_path(arm, seed: int, size_m: float, size_rad: float) -> JointTrajectoryArrays | None:
    try:
        trajectory = anchor_chunk(chunk(seed, size_m, size_rad), arm.forward(READY), STAMP_NS, 0.2)
        return arm.joint_trajectory(trajectory, READY)
    except KinematicsError:
        return None


def times(start_ns: int, end_ns: int) -> list[int]:
    return [*range(start_ns, end_ns, SAMPLE_NS), end_ns]


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1_000_000),
    size_m=st.floats(0.002, 0.04),
    size_rad=st.floats(0.0, 0.12),
    share=st.floats(0.0, 1.0),
)
def test_from_any_instant_of_any_joint_path(arm, seed, size_m, size_rad, share):
    path = joint_path(arm, seed, size_m, size_rad)
    assume(path is not None)
    at_ns = STAMP_NS + int(share * path.times_from_stamp_ns[-1])
    hold = brake_joints(path, at_ns, HOLD_NS, LIMITS, arm)
    states = [hold.state(t) for t in times(HOLD_NS, hold.end_ns)]
    peaks, of_path = hold.peaks(), path.peaks()

    # It starts where the command is, as fast as the command is, and ends in rest.
    start = path.state(at_ns)
    np.testing.assert_allclose(states[0].position, start.position, atol=1e-9)
    np.testing.assert_allclose(states[0].velocity, start.velocity, atol=1e-9)
    assert not hold.velocities[-1].any()
    assert not states[-1].velocity.any()
    # Within the limits at its peaks, or no further out than the path it was given.
    assert (peaks.speed.max(axis=0) <= of_path.speed.max(axis=0) * (1 + 1e-3) + 1e-3).all()
    allowed = np.maximum(LIMITS.joint_acceleration, of_path.acceleration.max(axis=0))
    assert (peaks.acceleration.max(axis=0) <= allowed * (1 + 1e-3)).all()
    assert (peaks.low.min(axis=0) >= of_path.low.min(axis=0) - JOINT_TUBE_RAD).all()
    assert (peaks.high.max(axis=0) <= of_path.high.max(axis=0) + JOINT_TUBE_RAD).all()
    # On the path.
    ahead = np.stack([path.state(t).position for t in times(at_ns, min(at_ns + 3 * NS_PER_S, path.end_ns))])
    for state in states:
        assert (
            np.abs(ahead - state.position).max(axis=1).min() <= 2 * JOINT_TUBE_RAD + np.abs(start.velocity).max() * 1e-3
        )
    # Soon.
    assert hold.end_ns - HOLD_NS <= 0.6 * NS_PER_S


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1_000_000), share=st.floats(0.0, 0.99), limit=st.floats(2.0, 40.0))
def test_a_path_within_its_limits_is_stopped_within_them(arm, seed, share, limit):
    """The tool's too, as far as a sampling of 10 ms sees it."""
    path = joint_path(arm, seed, 0.015, 0.05)
    assume(path is not None)
    assume(path.peaks().acceleration.max() <= limit)
    limits = replace(LIMITS, joint_acceleration=np.full(7, limit), linear_acceleration=2.0, angular_acceleration=8.0)
    at_ns = STAMP_NS + int(share * path.times_from_stamp_ns[-1])

    def tool_accelerations(trajectory: JointTrajectoryArrays, start_ns: int, end_ns: int) -> np.ndarray:
        at = [*range(start_ns, end_ns, 10_000_000)]
        poses = np.stack([arm.forward(trajectory.state(t).position) for t in at])
        if len(at) < 3:
            return np.zeros((1, 2))
        linear = np.linalg.norm(np.diff(poses[:, :3, 3], 2, axis=0), axis=1) / 1e-4
        turned = Rotation.from_matrix(poses[1:, :3, :3] @ poses[:-1, :3, :3].transpose(0, 2, 1)).as_rotvec()
        return np.stack([linear, np.linalg.norm(np.diff(turned, axis=0), axis=1) / 1e-4], axis=1)

    of_path = tool_accelerations(path, STAMP_NS, path.end_ns).max(axis=0)
    assume(of_path[0] <= 2.0)
    assume(of_path[1] <= 8.0)
    hold = brake_joints(path, at_ns, HOLD_NS, limits, arm)
    assert hold.peaks().acceleration.max() <= limit * (1 + 1e-6)
    of_hold = tool_accelerations(hold, HOLD_NS, hold.end_ns).max(axis=0)
    assert of_hold[0] <= 2.0 * 1.05
    assert of_hold[1] <= 8.0 * 1.05


def test_a_joint_that_brakes_at_its_limit_already_is_not_braked_harder(arm):
    """The path is at its own end in the shortest time there is: the hold is the path."""
    limit, speed = 15.0, 1.5
    duration_s = speed / limit
    times_ns = np.array([0, round(duration_s * NS_PER_S)])
    move = np.eye(7)[0] * 0.5 * speed * duration_s
    path = JointTrajectoryArrays(
        arm.joint_names,
        STAMP_NS,
        times_ns,
        np.stack([READY, READY + move]),
        np.stack([np.eye(7)[0] * speed, np.zeros(7)]),
    )
    hold = brake_joints(path, STAMP_NS, HOLD_NS, LIMITS, arm)
    assert hold.peaks().acceleration.max() <= limit * (1 + 1e-3)
    assert hold.end_ns - HOLD_NS == pytest.approx(times_ns[-1], abs=2e6)
    np.testing.assert_allclose(hold.positions[-1], path.positions[-1], atol=1e-6)


def test_a_path_that_breaks_its_limits_by_itself_is_stopped_all_the_same(arm):
    path = joint_path(arm, 3, 0.03, 0.1)
    tight = replace(LIMITS, joint_acceleration=np.full(7, 0.5))
    hold = brake_joints(path, STAMP_NS + NS_PER_S, HOLD_NS, tight, arm)
    assert hold.end_ns - HOLD_NS <= 2.1 * NS_PER_S
    assert hold.peaks().acceleration.max() <= 2.0 * path.peaks().acceleration.max() + 2.0 * path.peaks().speed.max()


@pytest.mark.parametrize("at_s", [-0.1, 0.05, 0.1, 5.0])
def test_a_path_without_motion_is_held_where_it_is(arm, at_s):
    path = standing(arm.joint_names, READY, STAMP_NS, 100_000_000)
    hold = brake_joints(path, STAMP_NS + round(at_s * NS_PER_S), HOLD_NS, LIMITS, arm)
    np.testing.assert_array_equal(hold.positions, [READY, READY])
    assert hold.stamp_ns == HOLD_NS
    assert not hold.velocities.any()


def test_an_arm_at_rest_before_its_path_moves_on_is_kept_there(arm):
    """Zero speed at this instant, with motion still to come: at its very first moment the path has not begun."""
    path = joint_path(arm, 0, 0.02, 0.05)
    hold = brake_joints(path, STAMP_NS, HOLD_NS, LIMITS, arm)
    np.testing.assert_array_equal(hold.positions, [READY, READY])
    slowly = brake_joints(path, STAMP_NS + 2_000_000, HOLD_NS, LIMITS, arm)
    np.testing.assert_allclose(slowly.velocities[0], path.state(STAMP_NS + 2_000_000).velocity)
    assert np.abs(slowly.positions[-1] - slowly.positions[0]).max() <= 1e-3


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1_000_000), size_m=st.floats(0.0, 0.05), size_rad=st.floats(0.0, 0.2), share=st.floats(0, 1))
def test_from_any_instant_of_any_path_of_the_tool(seed, size_m, size_rad, share):
    raw = anchor_chunk(chunk(seed, size_m, size_rad), np.eye(4), STAMP_NS, 0.1)
    path = brought_to_rest(raw, LIMITS)
    at_ns = STAMP_NS + int(share * (path.end_ns - STAMP_NS))
    hold, _ = brake_tool(path, at_ns, HOLD_NS, LIMITS)
    sampled = np.array(times(HOLD_NS, hold.end_ns), dtype=np.int64)
    poses, gripper = hold.sample_many(sampled)
    np.testing.assert_allclose(poses[0], path.sample(at_ns)[0], atol=1e-9)
    assert (gripper == path.sample(at_ns)[1]).all()  # a hold leaves the gripper as it is
    assert not hold.twist(hold.end_ns).any()
    # The speed begins at that of the path, never exceeds it, and falls no faster than the limits allow.
    speeds = np.stack([np.linalg.norm(v, axis=1) for v in hold.segment_velocities()], axis=1)
    allowed = np.stack([np.linalg.norm(v, axis=1) for v in path.segment_velocities()], axis=1).max(axis=0)
    assert (speeds <= allowed * (1 + 1e-3) + 1e-6).all()
    begins = np.linalg.norm(path.twist(at_ns).reshape(2, 3), axis=1)
    assert (np.abs(speeds[0] - begins) <= 0.02 + 0.15 * allowed).all()
    # On the path.
    ahead_ns = np.array(times(at_ns, path.end_ns), dtype=np.int64)
    ahead, _ = path.sample_many(ahead_ns)
    for pose in poses[::5]:
        nearest = np.linalg.norm(ahead[:, :3, 3] - pose[:3, 3], axis=1).argmin()
        away_m, away_rad = pose_distance(ahead[nearest], pose)
        assert away_m <= TOOL_TUBE_M + 2e-3 * allowed[0]
        if allowed[0] > 0.05:  # a tool that hardly moves finds its place on the path by turning
            assert away_rad <= TOOL_TUBE_RAD + 0.25 * allowed[1]
    assert hold.end_ns - HOLD_NS <= 0.6 * NS_PER_S


def test_a_straight_path_of_the_tool_is_stopped_within_its_limits():
    deltas = np.zeros((10, 7))
    deltas[:, 0] = 0.04  # 0.4 m/s
    path = anchor_chunk(deltas, np.eye(4), STAMP_NS, 0.1)
    hold, forced = brake_tool(path, STAMP_NS + 333_000_000, HOLD_NS, LIMITS)
    assert not forced
    x = hold.sample_many(np.array(times(HOLD_NS, hold.end_ns), dtype=np.int64))[0][:, 0, 3]
    speed = np.diff(x) / 2e-3
    assert speed[0] == pytest.approx(0.4, rel=0.02)
    assert (np.diff(speed[:-1]) <= 1e-9).all()
    on_grid = np.diff(x[::10]) / 20e-3
    assert np.abs(np.diff(on_grid)).max() / 20e-3 <= LIMITS.linear_acceleration
    assert hold.end_ns - HOLD_NS == pytest.approx(0.15 * NS_PER_S, abs=0.05 * NS_PER_S)


def test_at_the_end_of_a_path_that_stops_dead_stopping_is_forced_and_says_so():
    deltas = np.zeros((10, 7))
    deltas[:, 0] = 0.04
    path = anchor_chunk(deltas, np.eye(4), STAMP_NS, 0.1)
    hold, forced = brake_tool(path, path.end_ns - 20_000_000, HOLD_NS, LIMITS)
    assert forced
    np.testing.assert_allclose(hold.poses[-1], path.poses[-1], atol=1e-6)
    rested = brought_to_rest(path, LIMITS)
    assert brake_tool(rested, rested.end_ns - 20_000_000, HOLD_NS, LIMITS)[1] is False


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1_000_000), size_m=st.floats(0.0, 0.05), steps=st.integers(1, 12))
def test_a_motion_brought_to_rest_ends_where_it_ended_and_slowly(seed, size_m, steps):
    raw = anchor_chunk(chunk(seed, size_m, 0.1)[:steps], np.eye(4), STAMP_NS, 0.1)
    path = brought_to_rest(raw, LIMITS)
    np.testing.assert_allclose(path.poses[-1], raw.poses[-1], atol=1e-9)
    np.testing.assert_array_equal(path.anchor, raw.anchor)
    assert path.end_ns >= raw.end_ns
    linear, angular = (np.linalg.norm(v, axis=1) for v in path.segment_velocities())
    durations_s = np.diff(path.times_ns, prepend=path.anchor_ns) / NS_PER_S
    # The last step alone: what is left of the speed.
    assert linear[-1] <= LIMITS.linear_acceleration * durations_s[-1] + 1e-6
    assert angular[-1] <= LIMITS.angular_acceleration * durations_s[-1] + 1e-6
    assert isinstance(path, PoseTrajectory)
