from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.robot.conventions import compose_delta, pose_distance, pose_matrix
from sqap_vla_ros.robot.trajectory import PoseTrajectory, anchor_chunk, blend, hold, interrupted, under_way

STAMP_NS = 1_763_000_000_123_456_789
ANCHOR = pose_matrix([0.45, -0.1, 0.3], Rotation.from_euler("xyz", [3.0, 0.2, -0.4]).as_quat())


def chunk(seed: int = 0, steps: int = 16) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [rng.uniform(-0.02, 0.02, (steps, 3)), rng.uniform(-0.1, 0.1, (steps, 3)), rng.uniform(0, 1, (steps, 1))],
        axis=1,
    )


def seconds(value: float) -> int:
    return round(value * NS_PER_S)


def test_poses_are_the_deltas_composed_one_after_the_other():
    deltas = chunk()
    trajectory = anchor_chunk(deltas, ANCHOR, STAMP_NS, 0.2)
    pose = ANCHOR
    for step, delta in enumerate(deltas):
        pose = compose_delta(pose, delta)
        np.testing.assert_allclose(trajectory.poses[step], pose, atol=1e-12)
    np.testing.assert_array_equal(trajectory.gripper, deltas[:, 6])


def test_action_i_is_due_one_step_after_the_image_and_rounding_does_not_add_up():
    trajectory = anchor_chunk(chunk(steps=1000), ANCHOR, STAMP_NS, 1 / 3)
    assert trajectory.times_ns[0] == STAMP_NS + 333_333_333
    assert trajectory.times_ns[2] == STAMP_NS + NS_PER_S
    assert trajectory.times_ns[998] == STAMP_NS + 333 * NS_PER_S


def test_between_poses_straight_lines_and_constant_rotation():
    turn = np.zeros((2, 7))
    turn[0, :6] = [0.1, 0.0, 0.0, 0.0, 0.0, 0.8]
    trajectory = anchor_chunk(turn, np.eye(4), STAMP_NS, 0.5)
    pose, _ = trajectory.sample(STAMP_NS + seconds(0.125))
    np.testing.assert_allclose(pose[:3, 3], [0.025, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(Rotation.from_matrix(pose[:3, :3]).as_rotvec(), [0.0, 0.0, 0.2], atol=1e-12)
    np.testing.assert_allclose(trajectory.twist(STAMP_NS + 1), [0.2, 0.0, 0.0, 0.0, 0.0, 1.6], atol=1e-12)


def test_a_stamp_of_today_is_resolved_to_a_nanosecond():
    # As float seconds, 1.76e9 s has a resolution of 240 ns: 0.2 m/s would show it as 48 nm.
    fast = np.zeros((1, 7))
    fast[0, 0] = 0.2
    trajectory = anchor_chunk(fast, np.eye(4), STAMP_NS, 1.0)
    assert trajectory.sample(STAMP_NS + 10)[0][0, 3] == pytest.approx(2e-9, rel=1e-6)


def test_before_and_after_the_tool_stands():
    trajectory = anchor_chunk(chunk(), ANCHOR, STAMP_NS, 0.2)
    np.testing.assert_allclose(trajectory.sample(STAMP_NS - seconds(5))[0], ANCHOR, atol=1e-12)
    np.testing.assert_allclose(trajectory.sample(trajectory.end_ns + seconds(5))[0], trajectory.poses[-1], atol=1e-12)
    for outside_ns in (STAMP_NS - 1, trajectory.end_ns, trajectory.end_ns + 1):
        np.testing.assert_array_equal(trajectory.twist(outside_ns), np.zeros(6))


def test_the_gripper_is_that_of_the_action_under_way():
    trajectory = anchor_chunk(chunk(), ANCHOR, STAMP_NS, 0.2)
    assert trajectory.sample(STAMP_NS + seconds(0.1))[1] == trajectory.gripper[0]
    assert trajectory.sample(STAMP_NS + seconds(0.2))[1] == trajectory.gripper[0]
    assert trajectory.sample(STAMP_NS + seconds(0.2) + 1)[1] == trajectory.gripper[1]
    assert trajectory.sample(trajectory.end_ns + 1)[1] == trajectory.gripper[-1]


def test_the_integral_of_the_twist_is_the_motion():
    trajectory = anchor_chunk(chunk(3), ANCHOR, STAMP_NS, 0.2)
    pose = ANCHOR.copy()
    for since_ns in range(0, seconds(3.2), seconds(0.01)):
        twist = 0.01 * trajectory.twist(STAMP_NS + since_ns)
        pose[:3, 3] += twist[:3]
        pose[:3, :3] = Rotation.from_rotvec(twist[3:]).as_matrix() @ pose[:3, :3]
    assert pose_distance(pose, trajectory.poses[-1]) == pytest.approx((0.0, 0.0), abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(now=st.floats(-0.5, 3.19), later=st.floats(0.0, 4.0))
def test_past_steps_are_dropped_and_nothing_is_shifted(now, later):
    trajectory = anchor_chunk(chunk(), ANCHOR, STAMP_NS, 0.2)
    now_ns = STAMP_NS + seconds(now)
    rest = trajectory.after(now_ns)
    assert rest is not None
    assert (rest.times_ns > now_ns).all()
    assert set(rest.times_ns) == {t for t in trajectory.times_ns if t > now_ns}
    at_ns = now_ns + seconds(later)
    expected, opening = trajectory.sample(at_ns)
    assert pose_distance(rest.sample(at_ns)[0], expected) == pytest.approx((0.0, 0.0), abs=1e-7)
    if at_ns > now_ns:
        assert rest.sample(at_ns)[1] == opening


def test_when_every_step_is_past_nothing_is_left():
    trajectory = anchor_chunk(chunk(), ANCHOR, STAMP_NS, 0.2)
    assert trajectory.after(trajectory.end_ns) is None
    assert blend(hold(ANCHOR, 1.0, trajectory.end_ns), trajectory, trajectory.end_ns, 0.2) is None
    last = trajectory.after(trajectory.end_ns - 1)
    assert last is not None
    assert len(last) == 1


def test_slowing_keeps_the_path():
    trajectory = anchor_chunk(chunk(), ANCHOR, STAMP_NS, 0.2)
    slow = trajectory.slowed(1.7)
    for since in np.linspace(0, 3.2, 23):
        expected = trajectory.sample(STAMP_NS + seconds(since))[0]
        actual = slow.sample(STAMP_NS + seconds(1.7 * since))[0]
        np.testing.assert_allclose(actual, expected, atol=1e-8)
    np.testing.assert_allclose(slow.segment_velocities()[0], trajectory.segment_velocities()[0] / 1.7, rtol=1e-6)


def test_stretching_slows_down_the_parts_that_it_is_told():
    trajectory = anchor_chunk(chunk(), ANCHOR, STAMP_NS, 0.2)
    knots_ns = np.array([STAMP_NS, STAMP_NS + seconds(0.5), STAMP_NS + seconds(0.6), trajectory.end_ns], dtype=np.int64)
    slow = trajectory.stretched(knots_ns, np.array([1.0, 3.0, 1.0]))  # half of the third segment
    np.testing.assert_array_equal(slow.times_ns[:2], trajectory.times_ns[:2])
    np.testing.assert_allclose(slow.times_ns[2:] - trajectory.times_ns[2:], seconds(0.2), atol=1)
    np.testing.assert_array_equal(slow.poses, trajectory.poses)
    assert (slow.stamp_ns, slow.anchor_ns) == (trajectory.stamp_ns, trajectory.anchor_ns)
    for bad in (np.array([1.0, 0.9, 1.0]), np.array([1.0, np.nan, 1.0])):
        with pytest.raises(ValueError, match="none quicker"):
            trajectory.stretched(knots_ns, bad)
    with pytest.raises(ValueError, match="the whole path"):
        trajectory.stretched(knots_ns[:-1], np.array([1.0, 1.0]))


@pytest.mark.parametrize("time_scale", [0.5, np.inf, np.nan])
def test_slowing_never_speeds_up(time_scale):
    with pytest.raises(ValueError, match="at least 1"):
        anchor_chunk(chunk(), ANCHOR, STAMP_NS, 0.2).slowed(time_scale)


def largest_jump_of_velocity(trajectory: PoseTrajectory, begin_ns: int, end_ns: int) -> float:
    twists = [trajectory.twist(t) for t in range(begin_ns, end_ns, 1_000_000)]
    return max(float(np.abs(b - a).max()) for a, b in pairwise(twists))


def test_a_blend_leaves_where_the_old_is_and_arrives_where_the_new_is():
    old = anchor_chunk(chunk(1), ANCHOR, STAMP_NS, 0.2)
    shifted = ANCHOR.copy()
    shifted[:3, 3] += 0.02
    new = anchor_chunk(chunk(2), shifted, STAMP_NS + seconds(0.8), 0.2)
    now_ns = STAMP_NS + seconds(1.05)
    joined = blend(old, new, now_ns, 0.4)
    assert joined is not None
    assert joined.anchor_ns == now_ns
    assert joined.stamp_ns == new.stamp_ns
    assert pose_distance(joined.sample(now_ns)[0], old.sample(now_ns)[0]) == pytest.approx((0, 0), abs=1e-9)
    done = joined.times_ns >= now_ns + seconds(0.4)
    assert joined.times_ns[done][0] <= now_ns + seconds(0.6)
    for t_ns in joined.times_ns[done]:
        assert pose_distance(joined.sample(t_ns)[0], new.sample(t_ns)[0]) == pytest.approx((0, 0), abs=1e-7)
    assert set(new.times_ns[new.times_ns > now_ns]) <= set(joined.times_ns)


def test_a_seam_between_chunks_that_agree_changes_nothing():
    deltas = chunk(4)
    old = anchor_chunk(deltas, ANCHOR, STAMP_NS, 0.2)
    new = anchor_chunk(deltas[3:], old.poses[2], int(old.times_ns[2]), 0.2)
    joined = blend(old, new, STAMP_NS + seconds(0.71), 0.4)
    assert joined is not None
    for since in np.linspace(0.71, 3.2, 50):
        t_ns = STAMP_NS + seconds(since)
        assert pose_distance(joined.sample(t_ns)[0], old.sample(t_ns)[0]) == pytest.approx((0, 0), abs=2e-7)


def test_the_ramp_on_the_first_commands_starts_gently():
    moving = np.zeros((16, 7))
    moving[:, 0] = 0.02
    new = anchor_chunk(moving, ANCHOR, STAMP_NS, 0.2)
    now_ns = STAMP_NS + seconds(0.4)  # inference took two steps, the arm still stands at the anchor
    ramped = blend(hold(ANCHOR, 1.0, now_ns), new, now_ns, 1.0)
    assert ramped is not None
    np.testing.assert_allclose(ramped.anchor, ANCHOR, atol=1e-12)
    first_speed = np.linalg.norm(ramped.twist(now_ns)[:3])
    assert first_speed < 0.02  # of 0.1 m/s
    assert largest_jump_of_velocity(ramped, now_ns, ramped.end_ns - 2_000_000) < 0.1
    # Without it the first thing asked for is 4 cm away.
    assert pose_distance(ANCHOR, new.sample(now_ns)[0])[0] == pytest.approx(0.04)


def test_a_blend_takes_the_short_way_round():
    old = hold(pose_matrix([0, 0, 0], Rotation.from_euler("z", 170, degrees=True).as_quat()), 1.0, STAMP_NS)
    still = np.zeros((16, 7))
    target = pose_matrix([0, 0, 0], Rotation.from_euler("z", -170, degrees=True).as_quat())
    joined = blend(old, anchor_chunk(still, target, STAMP_NS, 0.2), STAMP_NS, 0.4)
    assert joined is not None
    for t_ns in range(STAMP_NS, STAMP_NS + seconds(0.4), seconds(0.02)):
        assert pose_distance(joined.sample(t_ns)[0], target)[1] <= np.radians(20) + 1e-6


@pytest.mark.parametrize("blend_s", [1e-12, 0.001, 0.04])
def test_however_short_the_blend_the_command_does_not_jump(blend_s):
    old = hold(ANCHOR, 1.0, STAMP_NS)
    away = ANCHOR.copy()
    away[0, 3] += 0.05
    new = anchor_chunk(np.zeros((16, 7)), away, STAMP_NS, 0.2)
    now_ns = STAMP_NS + seconds(0.35)
    joined = blend(old, new, now_ns, blend_s)
    assert joined is not None
    np.testing.assert_array_equal(joined.times_ns, new.times_ns[1:])
    np.testing.assert_allclose(joined.anchor, ANCHOR, atol=1e-12)
    fastest = max(np.linalg.norm(joined.twist(t)[:3]) for t in range(now_ns, joined.end_ns, seconds(0.005)))
    assert fastest == pytest.approx(0.05 / 0.05, rel=0.01)  # the next step is due in 0.05 s


@pytest.mark.parametrize("due_s", [1e-9, 0.001, 0.02])
def test_a_step_that_is_due_at_once_is_left_out_of_a_blend(due_s):
    """There the old path is still commanded. A step that is the only one left stays."""
    new = anchor_chunk(chunk(2), ANCHOR, STAMP_NS, 0.2)
    now_ns = STAMP_NS + seconds(0.6 - due_s)
    joined = blend(hold(ANCHOR, 1.0, now_ns), new, now_ns, 0.4)
    assert joined.times_ns[0] - now_ns >= seconds(0.05)
    assert joined.end_ns == new.end_ns
    last_ns = new.end_ns - seconds(due_s)
    assert blend(hold(ANCHOR, 1.0, last_ns), new, last_ns, 0.4).times_ns.tolist()[0] == new.end_ns


def test_no_blend_time_means_the_new_trajectory_at_once():
    new = anchor_chunk(chunk(2), ANCHOR, STAMP_NS, 0.2)
    joined = blend(hold(np.eye(4), 1.0, STAMP_NS), new, STAMP_NS + seconds(0.3), 0.0)
    assert joined is not None
    np.testing.assert_array_equal(joined.times_ns, new.times_ns[1:])
    np.testing.assert_array_equal(joined.anchor, new.sample(STAMP_NS + seconds(0.3))[0])
    with pytest.raises(ValueError, match="blend_s"):
        blend(new, new, STAMP_NS, -0.1)


@pytest.mark.parametrize("now", [0.0, 0.3, 0.399999999, 0.4, 2.9])
@pytest.mark.parametrize("blend_s", [0.001, 0.2, 1.0, 5.0])
def test_blends_of_any_length_have_increasing_times_and_no_tiny_segment(now, blend_s):
    new = anchor_chunk(chunk(2), ANCHOR, STAMP_NS, 0.2)
    now_ns = STAMP_NS + seconds(now)
    joined = blend(hold(ANCHOR, 1.0, now_ns), new, now_ns, blend_s)
    assert joined is not None
    rest = new.after(now_ns)
    assert rest is not None
    first_step_ns = int(rest.times_ns[0]) - joined.anchor_ns
    shortest_ns = int(np.diff(joined.times_ns, prepend=joined.anchor_ns).min())
    assert shortest_ns >= min(first_step_ns, seconds(0.05) - 2)


def test_a_hold_stays():
    trajectory = hold(ANCHOR, 0.3, STAMP_NS)
    pose, opening = trajectory.sample(STAMP_NS + seconds(9))
    np.testing.assert_allclose(pose, ANCHOR, atol=1e-12)
    assert opening == 0.3


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        (np.zeros((16, 6)), r"\[T, 7\]"),
        (np.zeros((0, 7)), "T > 0"),
        (np.zeros(7), r"shape \(7,\)"),
        (np.where(np.arange(112).reshape(16, 7) == 38, np.nan, 0.0), "step 5"),
    ],
)
def test_a_bad_chunk_is_refused(deltas, message):
    with pytest.raises(ValueError, match=message):
        anchor_chunk(deltas, ANCHOR, STAMP_NS, 0.2)


def test_a_bad_anchor_or_step_is_refused():
    with pytest.raises(ValueError, match="base_from_tool"):
        anchor_chunk(chunk(), np.full((4, 4), np.nan), STAMP_NS, 0.2)
    with pytest.raises(ValueError, match="dt_s must be positive"):
        anchor_chunk(chunk(), ANCHOR, STAMP_NS, 0.0)


def test_a_trajectory_whose_shapes_or_times_contradict_is_refused():
    times_ns = np.array([1, 2], dtype=np.int64)
    poses = np.tile(np.eye(4), (2, 1, 1))
    with pytest.raises(ValueError, match=r"gripper \[2\]"):
        PoseTrajectory(times_ns, poses, np.zeros(3), np.eye(4), 0, 0)
    with pytest.raises(ValueError, match="times must increase"):
        PoseTrajectory(times_ns[::-1].copy(), poses, np.zeros(2), np.eye(4), 0, 0)
    with pytest.raises(ValueError, match="int64"):
        PoseTrajectory(times_ns.astype(float), poses, np.zeros(2), np.eye(4), 0, 0)


def test_a_ramp_from_rest_has_no_long_steps():
    """Catching up with the chunk is up to twice as fast as the chunk: its poses lie closer there."""
    deltas = np.tile([0.05, 0.0, 0.0, 0.0, 0.0, 0.35, 1.0], (16, 1))
    chunk = anchor_chunk(deltas, np.eye(4), 0, 0.2)
    for latency_ns in range(10_000_000, 210_000_000, 20_000_000):
        ramp = blend(hold(np.eye(4), 1.0, latency_ns), chunk, latency_ns, 0.6)
        inside = ramp.times_ns <= latency_ns + 600_000_000
        steps_s = np.diff(ramp.times_ns, prepend=ramp.anchor_ns)[inside] / 1e9
        assert steps_s.max() <= 0.12 + 1e-9
        assert (np.linalg.norm(ramp.segment_velocities()[1], axis=1)[inside] * steps_s).max() < 0.45


@settings(deadline=None, max_examples=40)
@given(left_s=st.floats(-0.1, 3.4), pause_s=st.floats(0.001, 0.3), takes_over_s=st.floats(0.3, 2.0))
def test_paths_that_were_interrupted_stand_and_go_on_with_all_that_is_left(left_s, pause_s, takes_over_s):
    first = anchor_chunk(chunk(), ANCHOR, STAMP_NS, 0.2)
    second = blend(first, anchor_chunk(chunk(1), ANCHOR, STAMP_NS, 0.2), STAMP_NS + seconds(takes_over_s), 0.2)
    left_ns, pause_ns = STAMP_NS + seconds(left_s), seconds(pause_s)
    before, after = [first, second], interrupted([first, second], STAMP_NS + seconds(left_s), pause_ns)
    for at_s in np.linspace(-0.2, 4.0, 200):
        at_ns = STAMP_NS + seconds(at_s)
        then_ns = at_ns if at_ns <= left_ns else max(left_ns, at_ns - pause_ns)
        was, now = under_way(before, then_ns).sample(then_ns)[0], under_way(after, at_ns).sample(at_ns)[0]
        np.testing.assert_allclose(now, was, atol=1e-6)


def test_a_clock_that_was_set_back_takes_the_path_with_it():
    path = anchor_chunk(chunk(), ANCHOR, STAMP_NS, 0.2)
    after = interrupted([path], STAMP_NS + seconds(1.0), -seconds(0.05))
    for at_s in (0.95, 1.2, 3.0):
        at_ns = STAMP_NS + seconds(at_s)
        now, was = under_way(after, at_ns).sample(at_ns)[0], path.sample(at_ns + seconds(0.05))[0]
        np.testing.assert_allclose(now, was, atol=1e-9)
