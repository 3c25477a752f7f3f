"""From chunks to trajectories that may be executed."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sqap_vla_ros.contracts import JOINS, NS_PER_S, ActionChunk
from sqap_vla_ros.control.motion import COMMAND_LEAD_NS, MalformedChunk, Motion, MotionConfig, UnsafeChunk
from sqap_vla_ros.robot.safety import SafetyLimits
from sqap_vla_ros.robot.trajectory import anchor_chunk

DT_S = 0.1
HORIZON = 16
STAMP_NS = 1_700_000_000 * NS_PER_S
LIMITS = SafetyLimits(
    workspace_min_m=(0.0, -0.5, 0.0), workspace_max_m=(1.0, 0.5, 1.0), max_linear_velocity=0.5, max_linear_jerk=500.0
)


def pose(x: float = 0.4, y: float = 0.0, z: float = 0.3) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = x, y, z
    return matrix


def chunk(step=(0.005, 0.0, 0.0), *, stamp_ns: int = STAMP_NS, gripper: float = 1.0) -> ActionChunk:
    deltas = np.zeros((HORIZON, 7))
    deltas[:, :3] = step
    deltas[:, 6] = gripper
    return ActionChunk(stamp_ns, deltas, DT_S, deltas.copy())


def motion(limits: SafetyLimits = LIMITS, **config) -> Motion:
    return Motion(MotionConfig(**{"ensemble_chunks": 1, "ramp_s": 0.3, "blend_s": 0.2, **config}), limits)


def at(seconds: float) -> int:
    return STAMP_NS + round(seconds * NS_PER_S)


def test_a_good_chunk_is_valid():
    motion().validate(chunk(), HORIZON)


def broken(**changes) -> ActionChunk:
    good = chunk()
    return ActionChunk(**{**{f: getattr(good, f) for f in ("stamp_ns", "deltas", "dt_s", "normalized")}, **changes})


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (broken(deltas=np.zeros((15, 7))), r"\[15, 7\] of float64, expected \[16, 7\]"),
        (broken(deltas=np.zeros((16, 6))), r"\[16, 6\]"),
        (broken(deltas=np.zeros(112)), r"\[112\]"),
        (broken(deltas=np.full((16, 7), "a")), "of floats"),
        (broken(deltas=np.where(np.arange(112).reshape(16, 7) == 23, np.nan, 0.0)), "action 3 .* component 2 is nan"),
        (broken(deltas=np.where(np.arange(112).reshape(16, 7) == 7, -np.inf, 0.0)), "action 1 .* component 0 is -inf"),
        (broken(dt_s=0.0), "time step .* got 0.0"),
        (broken(dt_s=1e-9), "time step .* got 1e-09"),
        (broken(dt_s=float("nan")), "got nan"),
    ],
)
def test_malformed_chunks_are_refused_with_what_is_wrong(bad, text):
    with pytest.raises(MalformedChunk, match=text):
        motion().validate(bad, HORIZON)


LEAD_S = COMMAND_LEAD_NS / NS_PER_S


def under_way(planner: Motion) -> Motion:
    """A planner that has followed one straight chunk from the stamp on, 5 mm in each 0.1 s."""
    planner.commit(anchor_chunk(chunk().deltas, pose(), STAMP_NS, DT_S))
    return planner


def test_a_commitment_is_what_the_arm_is_told_from_the_image_on():
    goes_on = under_way(motion()).commitment(at(0.25), DT_S, 0.3, "guided")
    assert goes_on.executed == 4  # 0.3 s and the lead of a command, in whole actions
    np.testing.assert_allclose(goes_on.actions, np.tile([0.005, 0, 0, 0, 0, 0, 1], (13, 1)), atol=1e-12)


def test_a_commitment_goes_over_the_seam_of_two_chunks_and_shows_an_arm_that_is_late():
    planner = under_way(motion(arm_lag_s=0.1))
    planner.commit(anchor_chunk(chunk((0.0, 0.005, 0.0)).deltas, pose(0.42), at(0.4), DT_S))
    actions = planner.commitment(at(0.3), DT_S, 0.1, "replace").actions  # shows what was commanded for 0.2 s
    np.testing.assert_allclose(actions[:2, :3], [[0.005, 0, 0]] * 2, atol=1e-12)
    np.testing.assert_allclose(actions[2:, :3], [[0, 0.005, 0]] * 16, atol=1e-12)


@pytest.mark.parametrize("image_s", [-0.05, 1.55, 3.0])
def test_an_arm_that_stands_at_some_time_from_the_image_on_is_not_committed(image_s):
    assert under_way(motion()).commitment(at(image_s), DT_S, 0.1, "guided") is None
    assert motion().commitment(at(0.0), DT_S, 0.1, "guided") is None


def test_a_chunk_that_continues_is_entered_by_the_clock():
    """Its first three actions repeat what the arm does, and then it turns; by pose it would be entered elsewhere."""
    planner = under_way(motion(max_lead_m=0.2))
    commitment = planner.commitment(at(0.5), DT_S, 0.25, "guided")
    deltas = commitment.actions[:1].repeat(HORIZON, 0)
    deltas[3:, :3] = 0.0, 0.005, 0.0
    late = replace(chunk(stamp_ns=at(0.5)), deltas=deltas)
    safe = planner.plan(late, pose(0.425), pose(0.435), at(0.7), commitment=commitment)
    times = np.array([at(s) for s in (0.75, 0.8, 1.2, 1.6)])
    poses, _ = safe.trajectory.sample_many(times)
    expected = [[0.4375, 0, 0.3], [0.44, 0, 0.3], [0.44, 0.02, 0.3], [0.44, 0.04, 0.3]]
    np.testing.assert_allclose(poses[:, :3, 3], expected, atol=1e-9)


def test_nothing_of_a_chunk_is_past_while_the_arm_stands_still():
    """However late the first chunk comes, or the first after a motion has ended, it begins with its first action."""
    planner = motion(ramp_s=0.0, blend_s=0.0)
    for stamp_s, now_s, x_m in ((0.0, 0.52, 0.4), (10.0, 11.3, 0.48)):
        late = planner.plan(chunk(stamp_ns=at(stamp_s)), pose(x_m), pose(x_m), at(now_s)).trajectory
        assert late.anchor_ns == at(now_s + LEAD_S)
        assert late.times_ns[0] == at(now_s + LEAD_S + DT_S)
        np.testing.assert_allclose(late.poses[0, :3, 3], [x_m + 0.005, 0.0, 0.3], atol=1e-9)
        assert late.end_ns == at(now_s + LEAD_S + 1.6)
        assert late.stamp_ns == at(stamp_s)  # it is as old as its image all the same
        planner.commit(late)


def test_what_the_arm_executed_since_the_image_is_dropped_and_no_more():
    """The motion ended 0.2 s after the image: of a chunk that is 0.6 s late, two actions are past and not six."""
    planner = under_way(motion(blend_s=0.0))
    planner.commit(planner.current.until(at(1.0)))
    stopped = planner.current.poses[-1]
    plan = planner.plan(chunk(stamp_ns=at(0.8)), planner.current.sample(at(0.8))[0], stopped, at(1.4 - LEAD_S))
    assert plan.trajectory.anchor_ns == at(1.4)
    np.testing.assert_allclose(plan.trajectory.poses[0, 0, 3], stopped[0, 3] + 0.005, atol=1e-9)
    assert len(plan.trajectory) == 14


def test_past_actions_are_dropped_not_shifted_while_the_arm_moves():
    planner = under_way(motion(blend_s=0.0, chunk_join="clock"))
    now_ns = at(1.02)  # five actions of the chunk are past
    plan = planner.plan(chunk(stamp_ns=at(0.5)), pose(0.425), pose(0.451), now_ns)
    assert plan.trajectory.times_ns[0] == at(1.1)
    np.testing.assert_allclose(plan.trajectory.poses[0, :3, 3], [0.425 + 6 * 0.005, 0.0, 0.3], atol=1e-12)
    assert plan.trajectory.end_ns == at(2.1)
    np.testing.assert_allclose(plan.trajectory.poses[-1, :3, 3], [0.425 + 16 * 0.005, 0.0, 0.3], atol=1e-12)
    assert plan.trajectory.anchor_ns == now_ns + COMMAND_LEAD_NS
    assert plan.note == ""


@pytest.mark.parametrize("join", JOINS)
def test_a_motion_that_was_slowed_down_has_done_fewer_actions(join):
    """Of 0.2 m/s the arm is allowed half: in 0.8 s it does four actions of 0.1 s, and the chunk is entered there."""
    half = replace(LIMITS, max_linear_velocity=0.1, hard_ratio=10.0)
    planner = motion(half, chunk_join=join, ramp_s=0.1)
    first = planner.plan(chunk((0.02, 0.0, 0.0)), pose(), pose(), at(0.5))
    assert first.note.startswith("slowed down")
    planner.commit(first.trajectory)
    seen = planner.commanded(at(0.8))
    told = planner.current.sample(at(1.6) + COMMAND_LEAD_NS)[0]
    second = planner.plan(chunk((0.02, 0.0, 0.0), stamp_ns=at(0.8)), seen, told, at(1.6)).trajectory
    # from where the arm is on at its own speed: a chunk further ahead would make the seam faster than that
    assert second.sample(at(1.9))[0][0, 3] - told[0, 3] < 0.1 * 0.3 + 0.002
    assert planner._moving_ns(at(0.8), at(1.6), actions=True) == pytest.approx(
        (planner.commanded(at(1.6))[0, 3] - seen[0, 3]) / 0.2 * NS_PER_S, rel=0.25
    )


def test_a_chunk_may_be_entered_where_the_arm_is():
    """The new chunk goes twice as far in a step, so what was executed of the old is half as much of the new."""
    now_ns = at(1.3 - LEAD_S)  # 0.8 s after the image: 40 mm
    for join, entered_mm in (("path", 40.0), ("clock", 80.0)):
        planner = under_way(motion(blend_s=0.0, chunk_join=join))
        told, _ = planner.current.sample(now_ns + COMMAND_LEAD_NS)
        fast = chunk((0.01, 0.0, 0.0), stamp_ns=at(0.5))
        trajectory = planner.plan(fast, pose(0.425), told, now_ns).trajectory
        # at 100 mm/s from where it is entered, whether that is where the arm is or ahead of it
        later = trajectory.sample(at(1.5))[0][0, 3]
        assert later == pytest.approx(0.425 + 1e-3 * entered_mm + 0.02, abs=1.3e-3)


def test_the_first_chunk_ramps_from_the_measured_pose():
    planner = motion(ramp_s=0.4)
    measured = pose(0.41, 0.01)
    trajectory = planner.plan(chunk(), pose(), measured, at(0.1)).trajectory
    np.testing.assert_allclose(trajectory.anchor, measured, atol=1e-9)
    start, _ = trajectory.sample(at(0.13))
    assert np.linalg.norm(start[:3, 3] - measured[:3, 3]) < 1e-3  # slow at first
    # From the end of the ramp on it is the chunk itself.
    expected = anchor_chunk(chunk().deltas, pose(), at(0.1 + LEAD_S), DT_S)
    np.testing.assert_allclose(trajectory.sample(at(0.9))[0], expected.sample(at(0.9))[0], atol=1e-9)


def test_a_seam_between_disagreeing_chunks_has_no_jump():
    planner = motion()
    planner.commit(planner.plan(chunk(), pose(), pose(), at(0.05)).trajectory)
    old = planner.current
    turned = chunk((0.0, 0.005, 0.0), stamp_ns=at(0.5))
    now_ns = at(0.6)
    plan = planner.plan(turned, old.sample(at(0.5))[0], old.sample(now_ns)[0], now_ns)
    start_ns = now_ns + COMMAND_LEAD_NS
    np.testing.assert_allclose(plan.trajectory.anchor, old.sample(start_ns)[0], atol=1e-9)
    times_ns = start_ns + np.arange(0, 250, 5) * 1_000_000
    positions = plan.trajectory.sample_many(times_ns.astype(np.int64))[0][:, :3, 3]
    steps_m = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    assert steps_m.max() < 1e-3  # the chunks are 7 mm apart here, and the gap is closed over the whole seam


@pytest.mark.parametrize("join", JOINS)
def test_agreeing_chunks_leave_no_trace_at_the_seam(join):
    planner = under_way(motion(chunk_join=join))
    later = planner.plan(chunk(stamp_ns=at(0.5)), pose(0.4 + 0.025), pose(0.4 + 0.03), at(0.6)).trajectory
    for t in (0.62, 0.7, 0.8, 1.2):
        assert later.sample(at(t))[0][0, 3] == pytest.approx(0.4 + 0.05 * t, abs=1e-6)


def test_a_chunk_that_is_all_past_is_refused():
    planner = motion(chunk_join="clock")
    planner.commit(anchor_chunk(np.repeat(chunk().deltas, 2, axis=0), pose(), STAMP_NS, DT_S))
    with pytest.raises(UnsafeChunk, match=r"every action is past: .* ends 1.60 s after its image and came 1.7"):
        planner.plan(chunk(), pose(), pose(0.485), at(1.7))


def test_only_the_execution_horizon_is_executed_and_checked():
    fast = SafetyLimits(**{**vars(LIMITS), "max_linear_velocity": 1.0})
    planner = motion(fast, execution_horizon=4, ramp_s=0.0)
    leaving = chunk((0.0, 0.05, 0.0))  # outside the workspace from the eleventh action on
    trajectory = planner.plan(leaving, pose(), pose(), at(0.05)).trajectory
    assert trajectory.end_ns == at(0.05 + LEAD_S + 0.4)
    np.testing.assert_allclose(trajectory.poses[-1, :3, 3], [0.4, 0.2, 0.3], atol=1e-9)
    planner = motion(fast, execution_horizon=4, chunk_join="clock")
    with pytest.raises(UnsafeChunk, match=r"every action is past: .* ends 0.40 s"):
        under_way(planner).plan(chunk(stamp_ns=at(1.0)), pose(0.45), pose(0.47), at(1.45))


def test_motion_never_reaches_beyond_the_open_loop_limit():
    planner = motion(max_open_loop_s=0.75)
    assert planner.plan(chunk(), pose(), pose(), at(0.1)).trajectory.end_ns <= at(0.75)
    with pytest.raises(UnsafeChunk, match=r"max_open_loop_s = 0.75"):
        motion(max_open_loop_s=0.75).plan(chunk(), pose(), pose(), at(0.8))


def test_leaving_the_workspace_is_refused_with_the_place():
    with pytest.raises(UnsafeChunk, match=r"outside the workspace"):
        motion().plan(chunk((0.0, 0.05, 0.0)), pose(), pose(), at(0.05))


def test_what_leads_a_little_out_of_the_workspace_goes_on_along_its_border():
    planner = motion(replace(LIMITS, workspace_cut_m=0.05))
    plan = planner.plan(chunk((0.0, 0.0, -0.02)), pose(), pose(z=0.29), at(0.05))  # 3 cm below the floor at the end
    assert "kept inside the workspace" in plan.note
    assert plan.trajectory.poses[-1, 2, 3] == pytest.approx(0.0, abs=1e-9)
    assert plan.trajectory.poses[:, 2, 3].min() >= 0.0


def test_too_fast_is_slowed_down_on_the_same_path():
    planner = motion(SafetyLimits(**{**vars(LIMITS), "max_linear_velocity": 0.03}), ramp_s=0.0)
    plan = planner.plan(chunk(), pose(), pose(), at(0.05))  # 5 cm/s
    assert "linear velocity" in plan.note
    speeds = np.linalg.norm(plan.trajectory.segment_velocities()[0], axis=1)
    assert speeds.max() <= 0.03 + 1e-9
    np.testing.assert_allclose(plan.trajectory.poses[:, 1:3, 3], [[0.0, 0.3]] * len(plan.trajectory), atol=1e-9)


def test_the_acceleration_into_a_chunk_is_judged_by_the_measured_velocity():
    planner = motion(SafetyLimits(**{**vars(LIMITS), "max_linear_acceleration": 2.0}), ramp_s=0.3)
    against = np.array([-0.15, 0.0, 0.0, 0.0, 0.0, 0.0])  # m/s, while the chunk begins at rest
    assert planner.plan(chunk(), pose(), pose(), at(0.05)).note == ""
    assert planner.plan(chunk(stamp_ns=at(0.1)), pose(), pose(), at(0.15), np.zeros(6)).note == ""
    plan = planner.plan(chunk(stamp_ns=at(0.2)), pose(), pose(), at(0.25), against)
    assert "linear acceleration" in plan.note
    with pytest.raises(UnsafeChunk, match=r"linear acceleration .* hard limit"):
        planner.plan(chunk(stamp_ns=at(0.3)), pose(), pose(), at(0.35), 10.0 * against)


def test_far_too_fast_is_refused():
    planner = motion(SafetyLimits(**{**vars(LIMITS), "max_linear_velocity": 0.01}))
    with pytest.raises(UnsafeChunk, match="hard"):
        planner.plan(chunk(), pose(), pose(), at(0.05))


def test_a_slowed_trajectory_keeps_the_open_loop_limit():
    limits = SafetyLimits(**{**vars(LIMITS), "max_linear_velocity": 0.03})
    plan = motion(limits, max_open_loop_s=1.6, ramp_s=0.0).plan(chunk(), pose(), pose(), at(0.05))
    assert plan.note
    assert plan.trajectory.end_ns <= at(1.6)


def test_two_chunks_are_averaged_where_they_speak_of_the_same_moment():
    planner = motion(ensemble_chunks=2, ensemble_alpha=0.0, ramp_s=0.0, blend_s=0.0)
    planner.commit(planner.plan(chunk((0.004, 0.0, 0.0)), pose(), pose(), at(0.01)).trajectory)
    second = planner.plan(chunk((0.006, 0.0, 0.0), stamp_ns=at(0.1)), pose(0.404), pose(0.404), at(0.11)).trajectory
    np.testing.assert_allclose(np.diff(second.poses[:14, 0, 3]), 0.005, atol=1e-9)


def winding(*, stamp_ns: int, first: int) -> ActionChunk:
    """What is left from action `first` on of a motion whose actions all differ, as a policy without memory sees it."""
    deltas = np.zeros((HORIZON, 7))
    deltas[:, 0] = 0.004 * np.cos(0.4 * (first + np.arange(HORIZON)))
    deltas[:, 6] = 1.0
    return ActionChunk(stamp_ns, deltas, DT_S, deltas.copy())


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("paused_s", [0.0, 0.3])
def test_a_chunk_that_began_late_is_averaged_by_what_the_arm_did_of_it(join, paused_s):
    planner = motion(ensemble_chunks=2, ensemble_alpha=0.0, ramp_s=0.0, blend_s=0.0, chunk_join=join)
    late_s = 0.8 - COMMAND_LEAD_NS / NS_PER_S
    first = planner.plan(winding(stamp_ns=STAMP_NS, first=0), pose(), pose(), at(late_s)).trajectory
    planner.commit(first)
    if paused_s:
        planner.interrupted(at(0.9), round(paused_s * NS_PER_S))
    seen = at(1.0 + paused_s)  # two actions are done of the first chunk
    where = planner.commanded(seen)
    second = planner.plan(winding(stamp_ns=seen, first=2), where, where, seen - COMMAND_LEAD_NS).trajectory
    expected = winding(stamp_ns=seen, first=2).deltas[:, 0]
    np.testing.assert_allclose(np.diff(second.poses[:, 0, 3]), expected[1:], atol=1e-9)


def test_clear_forgets_the_ensemble_and_the_seam():
    planner = motion(ensemble_chunks=2, ensemble_alpha=0.0, ramp_s=0.0)
    planner.commit(planner.plan(chunk((0.004, 0.0, 0.0)), pose(), pose(), at(0.01)).trajectory)
    planner.clear(at(0.01))
    # Also an image from before the first one, as after a time jump, is no error now.
    again = planner.plan(chunk((0.006, 0.0, 0.0), stamp_ns=at(-5.0)), pose(), pose(), at(-4.99)).trajectory
    np.testing.assert_allclose(np.diff(again.poses[:, 0, 3]), 0.006, atol=1e-9)


def lagging(planner, lag_s: float, seconds: float, blocked_at: float = np.inf) -> float:
    """How far along x the commands lead an arm that is `lag_s` behind them, with a new chunk every 0.2 s."""
    times, commanded = [at(0.0)], [0.4]
    for moment in np.arange(0.0, seconds, 0.2):
        stamp_ns, now_ns = at(moment), at(moment + 0.05)
        x = min(float(np.interp(stamp_ns - lag_s * NS_PER_S, times, commanded)), blocked_at)
        now = min(float(np.interp(now_ns - lag_s * NS_PER_S, times, commanded)), blocked_at)
        planner.commit(planner.plan(chunk((0.01, 0.0, 0.0), stamp_ns=stamp_ns), pose(x), pose(now), now_ns).trajectory)
        for later in np.arange(0.06, 0.26, 0.01):
            times.append(at(moment + later))
            commanded.append(planner.current.sample(times[-1])[0][0, 3])
    return commanded[-1] - 0.4


@pytest.mark.parametrize("join", JOINS)
def test_an_arm_that_lags_loses_nothing_of_the_motion(join):
    asked_m = 0.1 * 3.0
    told = lagging(motion(max_lead_m=0.05, ramp_s=0.02, chunk_join=join), 0.1, 3.0)
    assert told == pytest.approx(asked_m, abs=0.015)
    # Composed onto the measured tool, every chunk takes back what the arm lags behind.
    assert lagging(motion(max_lead_m=0.0, ramp_s=0.02, chunk_join=join), 0.1, 3.0) < 0.8 * asked_m


def test_the_lag_of_the_arm_is_measured_and_made_up_for():
    planner = motion(ramp_s=0.02)
    planner.commit(planner.plan(chunk((0.01, 0.0, 0.0)), pose(), pose(), at(0.0)).trajectory)
    assert planner.measured_lag_s is None
    for moment in np.arange(0.3, 1.3, 0.01):  # an arm that shows each command 80 ms later
        assert planner.tracking_error(planner.current.sample(at(moment - 0.08))[0], at(moment)) is None
    assert planner.measured_lag_s == pytest.approx(0.08, abs=1e-6)

    known = motion(ramp_s=0.02, arm_lag_s=0.08)
    first = known.plan(chunk((0.01, 0.0, 0.0)), pose(), pose(), at(0.0)).trajectory
    known.commit(first)
    # It began with the first command, 10 ms after now, and shows at 1.0 s what it was told 80 ms before.
    assert first.sample(at(1.0 - 0.08))[0][0, 3] == pytest.approx(0.491, abs=1e-6)
    shown = first.sample(at(1.0 - 0.08))[0]
    np.testing.assert_allclose(known.anchor(shown, at(1.0)), shown, atol=1e-12)
    # A goal that is named again is reached and not overshot.
    rest = known.plan(chunk((0.0, 0.0, 0.0), stamp_ns=at(1.0)), shown, shown, at(1.05)).trajectory
    assert rest.poses[-1, 0, 3] == pytest.approx(0.491, abs=1e-6)
    assert known.tracking_error(shown, at(1.0)) is None


@pytest.mark.parametrize("join", JOINS)
def test_an_arm_that_is_blocked_is_not_pushed_ever_further(join):
    """Chunks that ask for more of the same lead no further than max_lead_m and what they ask for themselves."""
    blocked = [motion(max_lead_m=lead, ramp_s=0.02, chunk_join=join) for lead in (0.0, 0.03)]
    reach_m = [lagging(planner, 0.0, 3.0, blocked_at=0.45) for planner in blocked]
    one_chunk_m = 0.1 * 0.26  # of the last, from its image on
    assert reach_m[0] <= 0.05 + one_chunk_m + 1e-6
    assert reach_m[1] <= 0.05 + 0.03 + one_chunk_m + 1e-6
    assert reach_m[1] > reach_m[0] + 0.02


def test_a_chunk_is_composed_onto_what_was_told_at_its_image_within_bounds():
    planner = motion(max_lead_m=0.02, max_lead_rad=0.1, ramp_s=0.02)
    measured = pose(0.4, 0.01)
    np.testing.assert_array_equal(planner.anchor(measured, at(0.0)), measured)  # nothing was told yet
    first = planner.plan(chunk(), pose(), pose(), at(0.05)).trajectory
    planner.commit(first)
    np.testing.assert_array_equal(planner.anchor(measured, at(0.0)), measured)
    near = first.sample(at(0.5))[0]
    np.testing.assert_allclose(planner.anchor(near, at(0.5)), near, atol=1e-12)
    off = near.copy()
    off[:3, 3] -= (0.03, 0.04, 0.0)
    off[:3, :3] = Rotation.from_rotvec([0.0, 0.0, -0.5]).as_matrix()
    bounded = planner.anchor(off, at(0.5))
    np.testing.assert_allclose(bounded[:3, 3] - off[:3, 3], [0.012, 0.016, 0.0], atol=1e-12)
    np.testing.assert_allclose(Rotation.from_matrix(bounded[:3, :3]).as_rotvec(), [0.0, 0.0, -0.4], atol=1e-12)
    # A chunk came while this one was computed: what counts is what was being executed at the image.
    planner.commit(planner.plan(chunk((0.0, 0.005, 0.0), stamp_ns=at(0.5)), near, near, at(0.6)).trajectory)
    np.testing.assert_allclose(planner.anchor(near, at(0.55)), first.sample(at(0.55))[0], atol=1e-12)
    planner.clear(at(0.6))
    np.testing.assert_array_equal(planner.anchor(off, at(0.55)), off)


def test_tracking_error():
    planner = motion(max_tracking_m=0.05, max_tracking_rad=0.3)
    assert planner.tracking_error(pose(9.0), at(0.5)) is None  # nothing is executed
    planner.commit(planner.plan(chunk(), pose(), pose(), at(0.01)).trajectory)
    there = planner.current.sample(at(1.0))[0]
    assert planner.tracking_error(there, at(1.0)) is None
    off = there.copy()
    off[2, 3] += 0.06
    assert "60 mm and 0.00 rad from where it was told to be" in planner.tracking_error(off, at(1.0))
    turned = there.copy()
    turned[:3, :3] = Rotation.from_rotvec([0.0, 0.4, 0.0]).as_matrix()
    assert "0 mm and 0.40 rad" in planner.tracking_error(turned, at(1.0))
