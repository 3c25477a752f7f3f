from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.robot.conventions import pose_matrix
from sqap_vla_ros.robot.safety import Code, Decision, SafetyLimits
from sqap_vla_ros.robot.trajectory import PoseTrajectory, anchor_chunk, blend, hold

STAMP_NS = 1_763_000_000_000_000_000
HOME = pose_matrix([0.4, 0.0, 0.3], [0.0, 1.0, 0.0, 0.0])
LIMITS = SafetyLimits(max_linear_velocity=0.2, max_linear_acceleration=1.0, max_linear_jerk=20.0)
UNBOUNDED = SafetyLimits(
    workspace_min_m=(-99.0,) * 3,
    workspace_max_m=(99.0,) * 3,
    **{f"max_{kind}_{name}": 1e9 for kind in ("linear", "angular") for name in ("velocity", "acceleration", "jerk")},
    max_step_m=99.0,
    max_step_rad=99.0,
)


def codes(verdict):
    return [code for code, _ in verdict.reasons]


def straight(step_m: float, steps: int = 16, dt_s: float = 0.2, axis: int = 0) -> PoseTrajectory:
    deltas = np.zeros((steps, 7))
    deltas[:, axis] = step_m
    return anchor_chunk(deltas, HOME, STAMP_NS, dt_s)


def test_a_gentle_chunk_is_accepted():
    verdict = LIMITS.check(straight(0.01), HOME, np.zeros(6))
    assert verdict.decision is Decision.ACCEPT
    assert verdict.reasons == ()
    assert verdict.time_scale == 1.0


@pytest.mark.parametrize("where", ["poses", "gripper", "anchor"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_non_finite_number_anywhere_rejects(where, value):
    good = straight(0.01)
    bad = getattr(good, where).copy()
    bad.flat[-2 if where != "gripper" else -1] = value
    verdict = LIMITS.check(replace(good, **{where: bad}), HOME)
    assert verdict.decision is Decision.REJECT
    assert codes(verdict) == [Code.NON_FINITE]


def test_a_measured_state_that_is_not_known_rejects():
    for pose in (np.full((4, 4), np.nan), np.zeros(3)):
        assert codes(LIMITS.check(straight(0.01), pose)) == [Code.NON_FINITE]
    for twist in (np.full(6, np.nan), np.zeros(3)):
        assert codes(LIMITS.check(straight(0.01), HOME, twist)) == [Code.NON_FINITE]


@pytest.mark.parametrize("factor", [1.01 * np.eye(4), np.diag([1.0, 1.0, -1.0, 1.0]), np.zeros((4, 4))])
def test_a_matrix_that_is_no_pose_rejects(factor):
    good = straight(0.01)
    poses = good.poses.copy()
    poses[3] = poses[3] @ factor
    assert codes(LIMITS.check(replace(good, poses=poses), HOME)) == [Code.NOT_A_POSE]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [-1, 1])
def test_leaving_the_workspace_on_any_side_rejects_and_names_the_step(axis, sign):
    low, high = HOME[:3, 3] - 0.055, HOME[:3, 3] + 0.055
    limits = replace(UNBOUNDED, workspace_min_m=tuple(low), workspace_max_m=tuple(high))
    verdict = limits.check(straight(sign * 0.01, axis=axis), HOME)
    assert verdict.decision is Decision.REJECT
    assert codes(verdict) == [Code.WORKSPACE]
    assert verdict.text.startswith("step 5: ")
    assert limits.check(straight(sign * 0.01, steps=5, axis=axis), HOME).decision is Decision.ACCEPT


def test_a_start_far_from_the_arm_rejects():
    away = HOME.copy()
    away[1, 3] += 0.2
    verdict = LIMITS.check(straight(0.01), away)
    assert codes(verdict) == [Code.START_JUMP]
    assert "0.200 m" in verdict.text


def test_one_great_step_rejects_where_slowing_is_no_answer():
    deltas = np.zeros((16, 7))
    deltas[7, 4] = 0.6
    verdict = LIMITS.check(anchor_chunk(deltas, HOME, STAMP_NS, 0.2), HOME)
    assert verdict.decision is Decision.REJECT
    assert codes(verdict) == [Code.STEP_JUMP]
    assert "step 7" in verdict.text


def test_every_reason_is_reported():
    deltas = np.zeros((4, 7))
    deltas[2, 0] = 5.0
    away = HOME.copy()
    away[1, 3] += 0.2
    assert codes(LIMITS.check(anchor_chunk(deltas, HOME, STAMP_NS, 0.2), away)) == [
        Code.WORKSPACE,
        Code.START_JUMP,
        Code.STEP_JUMP,
    ]


def test_too_fast_is_slowed_by_the_ratio():
    limits = replace(UNBOUNDED, max_linear_velocity=0.2)
    verdict = limits.check(straight(0.05), HOME)  # 0.25 m/s
    assert verdict.decision is Decision.SLOW_DOWN
    assert codes(verdict) == [Code.VELOCITY]
    assert verdict.time_scale == pytest.approx(1.25, rel=1e-4)
    assert "0.25" in verdict.text
    assert "0.2 m/s" in verdict.text


def test_acceleration_counts_with_the_square_and_jerk_with_the_cube_of_time():
    deltas = np.zeros((16, 7))
    deltas[8:, 0] = 0.05  # from rest to 0.25 m/s within one step: 1.25 m/s^2, 6.25 m/s^3
    trajectory = anchor_chunk(deltas, HOME, STAMP_NS, 0.2)
    by_acceleration = replace(UNBOUNDED, max_linear_acceleration=1.0).check(trajectory, HOME)
    assert codes(by_acceleration) == [Code.ACCELERATION]
    assert by_acceleration.time_scale == pytest.approx(1.25**0.5, rel=1e-4)
    by_jerk = replace(UNBOUNDED, max_linear_jerk=2.0).check(trajectory, HOME)
    assert codes(by_jerk) == [Code.JERK]
    assert by_jerk.time_scale == pytest.approx((6.25 / 2.0) ** (1 / 3), rel=1e-4)


def test_turning_is_judged_like_moving():
    deltas = np.zeros((16, 7))
    deltas[:, 5] = 0.2  # 1 rad/s
    trajectory = anchor_chunk(deltas, HOME, STAMP_NS, 0.2)
    verdict = replace(UNBOUNDED, max_angular_velocity=0.5).check(trajectory, HOME)
    assert verdict.time_scale == pytest.approx(2.0, rel=1e-4)
    assert "rad/s" in verdict.text


def test_beyond_the_hard_ratio_it_is_rejected():
    limits = replace(UNBOUNDED, max_linear_velocity=0.1, hard_ratio=2.0)
    assert limits.check(straight(0.039), HOME).decision is Decision.SLOW_DOWN
    verdict = limits.check(straight(0.041), HOME)
    assert verdict.decision is Decision.REJECT
    assert verdict.time_scale == 1.0
    assert "hard limit is 2" in verdict.text


def test_an_arm_that_moves_the_other_way_is_an_acceleration():
    limits = replace(UNBOUNDED, max_linear_acceleration=4.0)
    trajectory = straight(0.04)  # 0.2 m/s
    assert limits.check(trajectory, HOME, np.array([0.2, 0, 0, 0, 0, 0.0])).decision is Decision.ACCEPT
    assert limits.check(trajectory, HOME).decision is Decision.ACCEPT
    opposite = limits.check(trajectory, HOME, np.array([-0.3, 0, 0, 0, 0, 0.0]))  # 0.5 m/s in half a step of 0.2 s
    assert opposite.decision is Decision.SLOW_DOWN
    assert codes(opposite) == [Code.ACCELERATION]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    size_m=st.floats(0.001, 0.08),
    moving=st.booleans(),
    blend_s=st.sampled_from([0.0, 0.2, 1.0]),
)
def test_a_trajectory_slowed_as_told_is_accepted(seed, size_m, moving, blend_s):
    rng = np.random.default_rng(seed)
    deltas = np.concatenate([rng.uniform(-size_m, size_m, (16, 3)), rng.uniform(-0.1, 0.1, (16, 4))], axis=1)
    joined = blend(
        hold(HOME, 1.0, STAMP_NS), anchor_chunk(deltas, HOME, STAMP_NS, 0.2), STAMP_NS + 250_000_000, blend_s
    )
    assert joined is not None
    twist = rng.uniform(-0.1, 0.1, 6) if moving else None
    limits = replace(LIMITS, max_step_m=1.0, max_start_m=1.0, workspace_min_m=(-9.0,) * 3, workspace_max_m=(9.0,) * 3)
    verdict = limits.check(joined, HOME, twist)
    assume(verdict.decision is not Decision.REJECT)
    assert (verdict.time_scale > 1.0) == (verdict.decision is Decision.SLOW_DOWN)
    slowed = joined.slowed(verdict.time_scale * (1 + 1e-5))
    assert limits.check(slowed, HOME, twist).decision is Decision.ACCEPT


def test_dividing_a_path_finer_does_not_change_the_verdict():
    coarse = straight(0.05, steps=8)
    deltas = np.zeros((8, 7))
    deltas[:, 0] = [0.05, 0.0] * 4
    coarse = anchor_chunk(deltas, HOME, STAMP_NS, 0.2)
    between = np.arange(1, 81) * (NS_PER_S // 50) + STAMP_NS
    # The last segment keeps the full length, so that both are judged on the same grid.
    times_ns = np.concatenate([between[:70], coarse.times_ns[-1:]])
    poses, gripper = coarse.sample_many(times_ns)
    fine = PoseTrajectory(times_ns, poses, gripper, HOME, STAMP_NS, STAMP_NS)
    limits = replace(UNBOUNDED, max_linear_acceleration=0.5)
    assert limits.check(fine, HOME).time_scale == pytest.approx(limits.check(coarse, HOME).time_scale, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workspace_min_m": (0.0, 0.0, 2.0)}, "workspace_min_m must be below"),
        ({"max_linear_jerk": 0.0}, "max_linear_jerk must be positive, got 0"),
        ({"max_step_m": float("nan")}, "max_step_m must be positive, got nan"),
        ({"joint_margin": -0.1}, "joint_margin"),
        ({"hard_ratio": 0.9}, "hard_ratio must be at least 1"),
    ],
)
def test_limits_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SafetyLimits(**change)


def test_a_motion_slides_along_the_border_and_leaves_it_at_once():
    """As TabletopEnv composes actions: each pose is clipped, and the next action begins there."""
    limits = SafetyLimits(workspace_min_m=(0.0, -1.0, 0.25), workspace_max_m=(1.0, 1.0, 1.0), workspace_cut_m=0.05)
    deltas = np.zeros((6, 7))
    deltas[:, 0] = 0.01
    deltas[:, 2] = (-0.04, -0.04, -0.01, 0.0, 0.02, 0.02)  # down from 0.30 m: 4 cm too far, then up
    wanted = anchor_chunk(deltas, HOME, STAMP_NS, 0.2)
    slid = limits.slid(wanted)
    np.testing.assert_allclose(slid.poses[:, 2, 3], [0.26, 0.25, 0.25, 0.25, 0.27, 0.29], atol=1e-12)
    np.testing.assert_allclose(slid.poses[:, :2, 3], wanted.poses[:, :2, 3], atol=1e-12)
    np.testing.assert_array_equal(slid.poses[:, :3, :3], wanted.poses[:, :3, :3])
    assert limits.check(slid, HOME).decision is not Decision.REJECT


def test_too_far_outside_is_left_to_be_rejected():
    box = {"workspace_min_m": (0.0, -1.0, 0.25), "workspace_max_m": (1.0, 1.0, 1.0)}
    down = straight(-0.02, steps=5, axis=2)  # 5 cm out
    for limits in (SafetyLimits(**box, workspace_cut_m=0.04), SafetyLimits(**box)):
        assert limits.slid(down) is down
        assert codes(limits.check(down, HOME)) == [Code.WORKSPACE]
    inside = straight(0.01)
    assert SafetyLimits(workspace_cut_m=0.05).slid(inside) is inside
    lost = replace(down, poses=np.full_like(down.poses, np.nan))
    assert SafetyLimits(**box, workspace_cut_m=0.05).slid(lost) is lost
    with pytest.raises(ValueError, match=r"workspace_cut_m must not be negative, got -0\.1"):
        SafetyLimits(workspace_cut_m=-0.1)
