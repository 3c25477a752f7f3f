"""Where a hold goes: every cell of the decision, what counts as evidence, and the checked command that follows."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot import holding
from sqap_vla_ros.robot.braking import brought_to_rest
from sqap_vla_ros.robot.conventions import pose_distance, pose_matrix
from sqap_vla_ros.robot.holding import ArmSample, Commanded, Course, Evidence, EvidenceBounds, HoldReason, weigh
from sqap_vla_ros.robot.kinematics import ArmKinematics
from sqap_vla_ros.robot.safety import SafetyLimits
from sqap_vla_ros.robot.trajectory import anchor_chunk

STAMP_NS = 1_763_000_000_000_000_000
READY = np.array([0.0, -0.5, 0.0, -2.2, 0.0, 1.7, 0.8])
HOME = pose_matrix([0.4, 0.0, 0.3], [0.0, 1.0, 0.0, 0.0])
LIMITS = SafetyLimits(max_joint_velocity=2.0, joint_margin=0.02)

# As a person wrote it down: rows of evidence; the letter under a reason is the course. N nothing, B brake, R return.
TABLE = """
            ORDER INPUT TRACKING MEASUREMENT TIME
UNKNOWN
NONE        N     N     N        N           N
STALE       N     N     N        N           N
NEAR        N     N     N        N           N
UNCONFIRMED N     N     N        N           N
BLOCKED     N     N     N        N           N
ELSEWHERE   N     N     N        N           N
MOVING
NONE        B     B     B        B           B
STALE       B     B     B        B           B
NEAR        B     B     B        B           B
UNCONFIRMED B     B     B        B           B
BLOCKED     R     R     R        B           B
ELSEWHERE   B     B     B        B           B
RESTING
NONE        B     B     B        B           B
STALE       B     B     B        B           B
NEAR        B     B     B        B           B
UNCONFIRMED B     B     B        B           B
BLOCKED     R     R     R        B           B
ELSEWHERE   N     N     N        N           N
"""
LETTERS = {"N": Course.NOTHING, "B": Course.BRAKE, "R": Course.RETURN}


def cells():
    lines = TABLE.split("\n")[1:-1]
    reasons = [HoldReason[name] for name in lines[0].split()]
    commanded = None
    for line in lines[1:]:
        words = line.split()
        if len(words) == 1:
            commanded = Commanded[words[0]]
            continue
        for reason, letter in zip(reasons, words[1:], strict=True):
            yield commanded, Evidence[words[0]], reason, LETTERS[letter]


CELLS = list(cells())


def test_the_table_has_every_cell():
    assert [cell[:3] for cell in CELLS] == list(itertools.product(Commanded, Evidence, HoldReason))


@pytest.mark.parametrize(("commanded", "evidence", "reason", "course"), CELLS)
def test_each_cell_of_the_decision(commanded, evidence, reason, course):
    rows = [
        row
        for row in holding.DECISIONS
        if row.commanded is commanded and evidence in row.evidence and reason in row.reasons
    ]
    assert len(rows) == 1  # one answer, and one reason for it
    assert holding.decide(commanded, evidence, reason) is rows[0]
    assert rows[0].course is course
    assert rows[0].because


# Evidence


def moved(pose: np.ndarray, xyz=(0.0, 0.0, 0.0), rad: float = 0.0) -> np.ndarray:
    other = pose.copy()
    other[:3, 3] += xyz
    other[:3, :3] = Rotation.from_rotvec([0.0, 0.0, rad]).as_matrix() @ pose[:3, :3]
    return other


def samples(tool, *, by_joints="same", told=HOME, count=10, period_s=0.02, age_s=0.01):
    """`count` samples, the newest `age_s` old at STAMP_NS. tool: a pose or a function of the index."""
    made = []
    for i in range(count):
        pose = tool(i) if callable(tool) else tool
        joints = pose if isinstance(by_joints, str) else (by_joints(i) if callable(by_joints) else by_joints)
        stamp_ns = STAMP_NS - round((age_s + (count - 1 - i) * period_s) * NS_PER_S)
        made.append(ArmSample(stamp_ns, pose, joints, told))
    return made


BLOCKED_AT = moved(HOME, (0.0, 0.12, 0.0))


@pytest.mark.parametrize(
    ("given", "evidence"),
    [
        pytest.param([], Evidence.NONE, id="nothing measured"),
        pytest.param(samples(None), Evidence.NONE, id="TF missing"),
        pytest.param(samples(np.full((4, 4), np.nan)), Evidence.NONE, id="TF not finite"),
        pytest.param(samples(np.zeros((4, 4))), Evidence.NONE, id="TF no pose"),
        pytest.param(samples(np.eye(3)), Evidence.NONE, id="misshapen"),
        pytest.param(samples(HOME, told=None), Evidence.NONE, id="nothing to compare with"),
        pytest.param(samples(HOME, told=np.full((4, 4), np.inf)), Evidence.NONE, id="told not finite"),
        pytest.param(samples(HOME, age_s=0.3), Evidence.STALE, id="stale"),
        pytest.param(samples(BLOCKED_AT, age_s=60.0), Evidence.STALE, id="a minute old"),
        pytest.param(samples(BLOCKED_AT, age_s=-0.2), Evidence.STALE, id="from the future"),
        pytest.param(samples(HOME), Evidence.NEAR, id="there"),
        pytest.param(samples(moved(HOME, (0.0, 0.0, 0.09), 0.5)), Evidence.NEAR, id="lagging"),
        pytest.param(
            samples(moved(HOME, (0.0, 0.0, 0.09)), by_joints=None), Evidence.NEAR, id="lagging, joints unknown"
        ),
        pytest.param(samples(HOME, count=1), Evidence.NEAR, id="there, one sample"),
        pytest.param(
            samples(lambda i: moved(HOME, (0, 0, -0.35)) if i == 9 else HOME), Evidence.UNCONFIRMED, id="one glitch"
        ),
        pytest.param(
            samples(lambda i: moved(HOME, (0, 0, -0.2)) if i >= 6 else HOME), Evidence.UNCONFIRMED, id="four glitches"
        ),
        pytest.param(samples(BLOCKED_AT, count=4), Evidence.UNCONFIRMED, id="too few"),
        pytest.param(samples(BLOCKED_AT, count=8, period_s=0.002), Evidence.UNCONFIRMED, id="all at once"),
        pytest.param(samples(BLOCKED_AT, count=5, period_s=0.0), Evidence.UNCONFIRMED, id="one sample repeated"),
        pytest.param(samples(BLOCKED_AT, period_s=0.3), Evidence.UNCONFIRMED, id="too long ago"),
        pytest.param(samples(BLOCKED_AT, by_joints=None), Evidence.UNCONFIRMED, id="joints unknown"),
        pytest.param(
            samples(BLOCKED_AT, by_joints=moved(BLOCKED_AT, (0.03, 0, 0))), Evidence.UNCONFIRMED, id="joints disagree"
        ),
        pytest.param(
            samples(HOME, by_joints=moved(HOME, (0.03, 0, 0))), Evidence.UNCONFIRMED, id="there, but joints not"
        ),
        pytest.param(
            samples(BLOCKED_AT, by_joints=lambda i: BLOCKED_AT if i != 7 else None),
            Evidence.UNCONFIRMED,
            id="joints unknown once",
        ),
        pytest.param(
            samples(lambda i: moved(BLOCKED_AT, (0.002 * i, 0, 0))), Evidence.UNCONFIRMED, id="away, and it moves"
        ),
        pytest.param(samples(lambda i: moved(BLOCKED_AT, rad=0.02 * i)), Evidence.UNCONFIRMED, id="away, and it turns"),
        pytest.param(samples(BLOCKED_AT), Evidence.BLOCKED, id="blocked"),
        pytest.param(samples(moved(HOME, rad=0.7)), Evidence.BLOCKED, id="blocked turning"),
        pytest.param(samples(lambda i: moved(BLOCKED_AT, (0.001 * (i % 2), 0, 0))), Evidence.BLOCKED, id="with noise"),
        pytest.param(samples(moved(HOME, (0, 0.35, 0))), Evidence.ELSEWHERE, id="elsewhere"),
    ],
)
def test_evidence(given, evidence):
    assert weigh(given, STAMP_NS) is evidence


def test_the_bounds_of_evidence_may_be_chosen():
    assert weigh(samples(BLOCKED_AT), STAMP_NS, EvidenceBounds(near_m=0.3)) is Evidence.NEAR
    assert weigh(samples(HOME, age_s=0.3), STAMP_NS, EvidenceBounds(max_age_s=0.5)) is Evidence.NEAR


# The command


@pytest.fixture(scope="module")
def arm() -> ArmKinematics:
    return ArmKinematics.from_urdf(share_path("config/robots/tabletop_arm.urdf").read_text(), "base_link", "tool0")


@pytest.fixture(scope="module")
def tool_path(arm):
    deltas = np.zeros((10, 7))
    deltas[:, 1], deltas[:, 5], deltas[:, 6] = 0.03, 0.05, 1.0  # 0.15 m/s
    return brought_to_rest(anchor_chunk(deltas, arm.forward(READY), STAMP_NS, 0.2), holding.motion_limits(LIMITS))


@pytest.fixture(scope="module")
def joint_path(arm, tool_path):
    return arm.joint_trajectory(tool_path, READY)


AT_NS = STAMP_NS + NS_PER_S


def hold_joints(
    path, arm, evidence=Evidence.NONE, *, at_ns=AT_NS, reason=HoldReason.ORDER, measured=None, limits=LIMITS
):
    return holding.hold_joints(
        path, at_ns, at_ns, evidence=evidence, reason=reason, measured=measured, limits=limits, arm=arm
    )


def hold_tool(path, evidence=Evidence.NONE, *, at_ns=AT_NS, reason=HoldReason.ORDER, measured=None, **options):
    limits = options.pop("limits", LIMITS)
    return holding.hold_tool(
        path, at_ns, at_ns, evidence=evidence, reason=reason, measured=measured, limits=limits, **options
    )


def checked(hold, path, arm, limits=LIMITS) -> None:
    assert limits.check_joints(hold.joints, arm).text == ""
    assert not hold.joints.velocities[-1].any()
    state = path.state(AT_NS)
    np.testing.assert_allclose(hold.joints.positions[0], state.position, atol=1e-9)
    np.testing.assert_allclose(hold.joints.velocities[0], state.velocity, atol=1e-9)


@pytest.mark.parametrize("evidence", list(Evidence))
@pytest.mark.parametrize("reason", list(HoldReason))
@pytest.mark.parametrize("wrong", [None, np.nan, 0.0, 9.0])
def test_a_hold_of_joints_starts_from_the_command_whatever_was_measured(arm, joint_path, evidence, reason, wrong):
    """A zero JointState, one that is not finite, one far off, none: none of them becomes a jump."""
    measured = None if wrong is None else np.full(7, wrong)
    hold = hold_joints(joint_path, arm, evidence, reason=reason, measured=measured)
    checked(hold, joint_path, arm)
    assert hold.course is Course.BRAKE  # also where RETURN was decided: there is nothing to return to
    assert hold.joints.end_ns - AT_NS < 0.3 * NS_PER_S


def test_a_blocked_arm_is_not_pushed_on(arm, joint_path):
    measured = joint_path.state(AT_NS - 700_000_000).position
    hold = hold_joints(joint_path, arm, Evidence.BLOCKED, reason=HoldReason.TRACKING, measured=measured)
    assert hold.course is Course.RETURN
    checked(hold, joint_path, arm)
    np.testing.assert_allclose(hold.joints.positions[-1], measured, atol=1e-9)
    # Slowly, once it has braked.
    braked_ns = int(hold_joints(joint_path, arm).joints.end_ns)
    states = [hold.joints.state(t) for t in range(braked_ns, hold.joints.end_ns, 20_000_000)]
    poses = np.stack([arm.forward(state.position) for state in states])
    assert np.abs([state.velocity for state in states]).max() <= holding.RETURN_JOINT_SPEED * 1.001
    assert np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).max() / 0.02 <= holding.RETURN_LINEAR_SPEED * 1.05


def test_what_is_measured_is_not_believed_when_it_is_the_reason(arm, joint_path):
    measured = joint_path.state(AT_NS - 700_000_000).position
    for reason in (HoldReason.MEASUREMENT, HoldReason.TIME):
        hold = hold_joints(joint_path, arm, Evidence.BLOCKED, reason=reason, measured=measured)
        assert hold.course is Course.BRAKE


@pytest.mark.parametrize(
    ("limits", "change", "text"),
    [
        (LIMITS, (3, 0.5), "outside the arm's limits"),
        (replace(LIMITS, workspace_min_m=(-1.0, 0.02, -0.05)), (0, -0.6), "leads out of the workspace"),
    ],
)
def test_no_return_to_a_place_where_the_arm_may_not_be(arm, joint_path, limits, change, text):
    measured = joint_path.state(AT_NS).position.copy()
    measured[change[0]] = change[1]
    hold = hold_joints(joint_path, arm, Evidence.BLOCKED, measured=measured, limits=limits)
    assert hold.course is Course.BRAKE
    assert text in hold.text
    checked(hold, joint_path, arm)


def test_nothing_is_commanded_where_nothing_was(arm, joint_path, tool_path):
    broken = replace(joint_path, positions=np.full_like(joint_path.positions, np.nan))
    for path in (None, broken):
        hold = hold_joints(path, arm, Evidence.NEAR, measured=READY)
        assert (hold.joints, hold.course) == (None, Course.NOTHING)
        assert "without a commanded state" in hold.text
    broken = replace(tool_path, poses=np.full_like(tool_path.poses, np.inf))
    for path in (None, broken):
        hold = hold_tool(path, Evidence.NEAR, measured=HOME)
        assert (hold.tool, hold.course) == (None, Course.NOTHING)


def test_at_rest_it_says_again_where_it_rests_unless_somebody_moved_the_arm(arm, joint_path, tool_path):
    later_ns = joint_path.end_ns + 5 * NS_PER_S
    hold = hold_joints(joint_path, arm, Evidence.NONE, at_ns=later_ns)
    np.testing.assert_array_equal(hold.joints.positions, [joint_path.positions[-1]] * 2)
    assert hold_joints(joint_path, arm, Evidence.ELSEWHERE, at_ns=later_ns).joints is None
    tool = hold_tool(tool_path, Evidence.NONE, at_ns=later_ns).tool
    np.testing.assert_allclose(tool.poses[-1], tool_path.poses[-1])
    assert hold_tool(tool_path, Evidence.ELSEWHERE, at_ns=later_ns).tool is None


def test_a_commanded_state_outside_of_the_limits_is_stopped_and_said(arm, joint_path):
    outside = replace(joint_path, positions=joint_path.positions + 2.5 * np.eye(7)[3])  # joint4 goes to -0.07 at most
    hold = hold_joints(outside, arm)
    assert hold.course is Course.BRAKE
    assert "the commanded path itself breaks a limit" in hold.text
    assert hold.joints.peaks().high.max() <= outside.peaks().high.max() + 1e-3
    fast = hold_joints(joint_path, arm, limits=replace(LIMITS, max_joint_velocity=0.05))
    assert "the commanded path itself breaks a limit" in fast.text
    assert fast.joints.peaks().speed.max() <= joint_path.peaks().speed.max() * 1.001


def test_after_a_jump_of_time_the_hold_starts_then_from_the_state_of_before(arm, joint_path):
    then_ns = AT_NS - 3600 * NS_PER_S
    hold = holding.hold_joints(
        joint_path,
        AT_NS,
        then_ns,
        evidence=Evidence.STALE,
        reason=HoldReason.TIME,
        measured=None,
        limits=LIMITS,
        arm=arm,
    )
    assert hold.joints.stamp_ns == then_ns
    np.testing.assert_allclose(hold.joints.positions[0], joint_path.state(AT_NS).position, atol=1e-12)


@pytest.mark.parametrize("measured", [None, HOME, np.full((4, 4), np.nan), moved(HOME, (0, 0, -0.35))])
def test_one_wrong_sample_of_tf_does_not_move_the_tool(tool_path, measured):
    hold = hold_tool(tool_path, Evidence.UNCONFIRMED, reason=HoldReason.TRACKING, measured=measured)
    assert hold.course is Course.BRAKE
    times_ns = np.arange(AT_NS, hold.tool.end_ns, 2_000_000)
    positions = hold.tool.sample_many(times_ns)[0][:, :3, 3]
    commanded = tool_path.sample(AT_NS)[0]
    np.testing.assert_allclose(positions[0], commanded[:3, 3], atol=1e-9)
    assert np.linalg.norm(np.diff(positions, axis=0), axis=1).max() / 0.002 <= 0.151
    assert np.linalg.norm(positions[-1] - positions[0]) < 0.03
    assert not hold.tool.twist(hold.tool.end_ns).any()


def test_a_blocked_tool_returns_slowly_and_twists_only_stop(tool_path):
    measured = tool_path.sample(AT_NS - 800_000_000)[0]
    hold = hold_tool(tool_path, Evidence.BLOCKED, reason=HoldReason.TRACKING, measured=measured)
    assert hold.course is Course.RETURN
    assert pose_distance(hold.tool.poses[-1], measured) == pytest.approx((0.0, 0.0), abs=1e-6)
    braked = hold_tool(tool_path)
    speeds = [
        np.linalg.norm(hold.tool.twist(int(t))[:3]) for t in range(braked.tool.end_ns, hold.tool.end_ns, 10_000_000)
    ]
    assert max(speeds) <= holding.RETURN_LINEAR_SPEED * 1.01
    twist = hold_tool(tool_path, Evidence.BLOCKED, reason=HoldReason.TRACKING, measured=measured, twist=True)
    assert twist.course is Course.BRAKE
    outside = moved(measured, (0.0, 3.0, 0.0))
    stays = hold_tool(tool_path, Evidence.BLOCKED, measured=outside)
    assert stays.course is Course.BRAKE
    assert "leads out of the workspace" in stays.text
    assert hold_tool(tool_path, Evidence.BLOCKED, measured=np.full((4, 4), np.nan)).course is Course.BRAKE


def test_a_path_that_stops_dead_says_that_its_hold_was_forced():
    deltas = np.zeros((10, 7))
    deltas[:, 0] = 0.04
    path = anchor_chunk(deltas, HOME, STAMP_NS, 0.1)
    hold = hold_tool(path, at_ns=path.end_ns - 20_000_000)
    assert "took more than the limits allow" in hold.text
