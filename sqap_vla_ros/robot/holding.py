"""The hold: the one checked way to come to rest, for every kind of command, and the decision where to.

A hold starts from the commanded state, never from the measured one, for a single bad sample of a measurement would
become a jump. It brakes along the path that is under way (`braking`), ends in rest, and is checked like every other
trajectory. Only an arm that is proven to be blocked gets something else: it must not be pushed on, so the command
returns, slowly, to where the arm stands. `decide` holds that decision as a table. Nothing here has a clock.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.robot.braking import MotionLimits, brake_joints, brake_tool
from sqap_vla_ros.robot.conventions import pose_distance
from sqap_vla_ros.robot.joint_trajectory import JointTrajectoryArrays
from sqap_vla_ros.robot.kinematics import ArmKinematics
from sqap_vla_ros.robot.safety import SafetyLimits
from sqap_vla_ros.robot.trajectory import PoseTrajectory


class HoldReason(enum.Enum):
    """Cause of a hold, as far as it matters for what may be believed."""

    ORDER = "somebody asked for it"  # stop, disable, cancel, deadline, shutdown
    INPUT = "an input that says nothing about the arm is missing"  # images, camera_info, chunks, the worker
    TRACKING = "the arm is not where it was told to be"
    MEASUREMENT = "joint_states or TF are missing, stale, implausible, or contradict each other"
    TIME = "ROS time jumped, so that stamps of before and after do not compare"


class Commanded(enum.Enum):
    """State of the command at the moment of the hold."""

    UNKNOWN = "nothing was commanded, or what was is not finite"
    MOVING = "a path is under way"
    RESTING = "the path is at its end"


class Evidence(enum.Enum):
    """Judgement of the measured arm; see `weigh`."""

    NONE = "nothing measured, or not finite"
    STALE = "the newest stamp is too old, or in the future"
    NEAR = "where it was told to be"
    UNCONFIRMED = "somewhere else by too few samples, by samples that move, or with joints and TF in contradiction"
    BLOCKED = "it stands away from where it was told to be: several fresh samples, joints and TF agree"
    ELSEWHERE = "the same, but further away than a blocked arm can be"


class Course(enum.Enum):
    """Command to give."""

    NOTHING = "nothing"
    BRAKE = "come to rest along the commanded path"
    RETURN = "come to rest along the commanded path, then go slowly to where the arm stands"


@dataclass(frozen=True)
class Row:
    """One row of the decision: for these states, pieces of evidence and reasons, this course, because."""

    commanded: Commanded
    evidence: frozenset[Evidence]
    reasons: frozenset[HoldReason]
    course: Course
    because: str


_ANY_EVIDENCE, _ANY_REASON = frozenset(Evidence), frozenset(HoldReason)
_DISTRUST = frozenset({HoldReason.MEASUREMENT, HoldReason.TIME})
_TRUST = _ANY_REASON - _DISTRUST
_BLOCKED, _ELSEWHERE = frozenset({Evidence.BLOCKED}), frozenset({Evidence.ELSEWHERE})

DECISIONS = (
    Row(
        Commanded.UNKNOWN,
        _ANY_EVIDENCE,
        _ANY_REASON,
        Course.NOTHING,
        "without a commanded state any command would be a jump; the controller holds what it has",
    ),
    Row(
        Commanded.MOVING,
        _ANY_EVIDENCE - _BLOCKED,
        _ANY_REASON,
        Course.BRAKE,
        "the commanded path is known and was checked; the measurement adds nothing or is not proven",
    ),
    Row(Commanded.MOVING, _BLOCKED, _TRUST, Course.RETURN, "a blocked arm must not be pushed on"),
    Row(
        Commanded.MOVING,
        _BLOCKED,
        _DISTRUST,
        Course.BRAKE,
        "what is measured is the reason of the hold, so it proves nothing",
    ),
    Row(
        Commanded.RESTING,
        _ANY_EVIDENCE - _BLOCKED - _ELSEWHERE,
        _ANY_REASON,
        Course.BRAKE,
        "saying again where it rests moves nothing",
    ),
    Row(Commanded.RESTING, _BLOCKED, _TRUST, Course.RETURN, "a blocked arm must not be pushed on"),
    Row(
        Commanded.RESTING,
        _BLOCKED,
        _DISTRUST,
        Course.BRAKE,
        "what is measured is the reason of the hold, so it proves nothing",
    ),
    Row(
        Commanded.RESTING,
        _ELSEWHERE,
        _ANY_REASON,
        Course.NOTHING,
        "somebody else has moved the arm since; to say again where it rested would fetch it back",
    ),
)


def decide(commanded: Commanded, evidence: Evidence, reason: HoldReason) -> Row:
    """Return the one row of `DECISIONS` that applies."""
    (row,) = (r for r in DECISIONS if r.commanded is commanded and evidence in r.evidence and reason in r.reasons)
    return row


@dataclass(frozen=True)
class ArmSample:
    """The arm at one moment, by what was measured independently. Each pose is base_from_tool [4, 4].

    stamp_ns: time in the messages' headers, not of their arrival.
    tool: from TF. tool_by_joints: forward kinematics of the joint_states of about that time.
    told: where the command of that moment, less the arm's lag, would have it.
    None where it is not known.
    """

    stamp_ns: int
    tool: NDArray[np.float64] | None
    tool_by_joints: NDArray[np.float64] | None
    told: NDArray[np.float64] | None


@dataclass(frozen=True)
class EvidenceBounds:
    """Conditions under which a measurement is believed.

    max_age_s: of the newest sample's stamp; future_s: it may lie so far ahead, by clocks that differ.
    near_m, near_rad: the arm follows; as the tracking limits.
    agree_m, agree_rad: TF and the joints' forward kinematics say the same.
    still_m, still_rad: between any two samples of an arm that stands.
    count, span_s: so many samples, over at least so long, prove that it stands. window_s: none older.
    reach: a blocked arm is at most so many times near_* away; the command stops that soon after it.
    """

    max_age_s: float = 0.2
    future_s: float = 0.05
    near_m: float = 0.1
    near_rad: float = 0.6
    agree_m: float = 0.02
    agree_rad: float = 0.1
    still_m: float = 0.003
    still_rad: float = 0.02
    count: int = 5
    span_s: float = 0.08
    window_s: float = 0.5
    reach: float = 3.0


def weigh(samples: Sequence[ArmSample], now_ns: int, bounds: EvidenceBounds | None = None) -> Evidence:
    """Return what the measured arm proves at `now_ns`. samples: oldest first; only the newest few are looked at."""
    bounds = bounds or EvidenceBounds()
    if not samples or not _usable(samples[-1].tool):
        return Evidence.NONE
    newest = samples[-1]
    age_s = (now_ns - newest.stamp_ns) / NS_PER_S
    if not -bounds.future_s <= age_s <= bounds.max_age_s:
        return Evidence.STALE
    if not _usable(newest.told):
        return Evidence.NONE  # nothing to compare it with
    contradicted = _usable(newest.tool_by_joints) and not _agrees(newest, bounds)
    if not contradicted and _away(newest, bounds) <= 1.0:
        return Evidence.NEAR
    recent = [s for s in samples if now_ns - s.stamp_ns <= bounds.window_s * NS_PER_S]
    distinct = [s for i, s in enumerate(recent) if i == 0 or s.stamp_ns > recent[i - 1].stamp_ns]
    last = distinct[-bounds.count :]
    if len(last) < bounds.count or last[-1].stamp_ns - last[0].stamp_ns < bounds.span_s * NS_PER_S:
        return Evidence.UNCONFIRMED
    for sample in last:
        if not (_usable(sample.tool) and _usable(sample.told) and _usable(sample.tool_by_joints)):
            return Evidence.UNCONFIRMED
        if not _agrees(sample, bounds) or _away(sample, bounds) <= 1.0 or not _still(sample, newest, bounds):
            return Evidence.UNCONFIRMED
    return Evidence.BLOCKED if _away(newest, bounds) <= bounds.reach else Evidence.ELSEWHERE


def _usable(pose: NDArray[np.float64] | None) -> bool:
    if pose is None or np.shape(pose) != (4, 4) or not np.isfinite(pose).all():
        return False
    rotation = pose[:3, :3]
    return bool(np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-3 and np.linalg.det(rotation) > 0.0)


def _within(a: NDArray[np.float64] | None, b: NDArray[np.float64] | None, metres: float, radians: float) -> bool:
    assert a is not None
    assert b is not None
    away_m, away_rad = pose_distance(a, b)
    return away_m <= metres and away_rad <= radians


def _agrees(sample: ArmSample, bounds: EvidenceBounds) -> bool:
    return _within(sample.tool, sample.tool_by_joints, bounds.agree_m, bounds.agree_rad)


def _still(sample: ArmSample, newest: ArmSample, bounds: EvidenceBounds) -> bool:
    return _within(sample.tool, newest.tool, bounds.still_m, bounds.still_rad)


def _away(sample: ArmSample, bounds: EvidenceBounds) -> float:
    """Return the distance from where it was told to be, in units of near_*."""
    assert sample.tool is not None
    assert sample.told is not None
    away_m, away_rad = pose_distance(sample.tool, sample.told)
    return max(away_m / bounds.near_m, away_rad / bounds.near_rad)


RETURN_JOINT_SPEED, RETURN_LINEAR_SPEED, RETURN_ANGULAR_SPEED = 0.2, 0.05, 0.2  # rad/s, m/s, rad/s
RETURN_POINT_S = 0.05
WORKSPACE_SLACK_M = 0.01  # the chord of joints between two checked poses


@dataclass(frozen=True)
class JointHold:
    """joints: what to send; None: nothing, and `text` says why. course: what became of it."""

    joints: JointTrajectoryArrays | None
    course: Course
    text: str


@dataclass(frozen=True)
class ToolHold:
    """tool: poses until rest, to be sampled at the command rate; its `twist` ends at zero. Otherwise as `JointHold`."""

    tool: PoseTrajectory | None
    course: Course
    text: str


def joint_command(path: JointTrajectoryArrays | None, at_ns: int) -> Commanded:
    """Return the state of a joint command at `at_ns` of the path's own time."""
    if path is None or not (np.isfinite(path.positions).all() and np.isfinite(path.velocities).all()):
        return Commanded.UNKNOWN
    return Commanded.MOVING if at_ns < path.end_ns else Commanded.RESTING


def tool_command(path: PoseTrajectory | None, at_ns: int) -> Commanded:
    """Return the state of a pose or twist command at `at_ns` of the path's own time."""
    if path is None or not (_usable(path.anchor) and all(_usable(pose) for pose in path.poses)):
        return Commanded.UNKNOWN
    return Commanded.MOVING if at_ns < path.end_ns else Commanded.RESTING


def motion_limits(limits: SafetyLimits, arm: ArmKinematics | None = None) -> MotionLimits:
    """Return the limits that braking keeps; those of joints only with an arm."""
    joints = np.full(0 if arm is None else len(arm.joint_names), 1.0)
    return MotionLimits(
        limits.joint_acceleration(arm) if arm is not None else joints,
        limits.max_joint_jerk * joints,
        limits.max_linear_acceleration,
        limits.max_linear_jerk,
        limits.max_angular_acceleration,
        limits.max_angular_jerk,
    )


def hold_joints(
    path: JointTrajectoryArrays | None,
    at_ns: int,
    stamp_ns: int,
    *,
    evidence: Evidence,
    reason: HoldReason,
    measured: NDArray[np.float64] | None,
    limits: SafetyLimits,
    arm: ArmKinematics,
) -> JointHold:
    """Return the hold of an arm that is executing `path`, a checked joint trajectory, at `at_ns` of its time.

    stamp_ns: when the hold starts; other than `at_ns` only where ROS time jumped. measured: [n], used by RETURN alone.
    """
    row = decide(joint_command(path, at_ns), evidence, reason)
    if row.course is Course.NOTHING:
        return JointHold(None, Course.NOTHING, f"nothing is commanded: {row.because}")
    assert path is not None  # UNKNOWN leads to NOTHING
    braked = brake_joints(path, at_ns, stamp_ns, motion_limits(limits, arm), arm)
    note = _joint_problem(braked, path, limits, arm)
    text = row.because if note is None else f"{row.because}; {note}, and stopping there is all that is left"
    if row.course is Course.RETURN:
        returned = _return_joints(braked, measured, limits, arm)
        if isinstance(returned, JointTrajectoryArrays):
            return JointHold(returned, Course.RETURN, text)
        text += f"; it stays where it was told to be, for {returned}"
    return JointHold(braked, Course.BRAKE, text)


def hold_tool(
    path: PoseTrajectory | None,
    at_ns: int,
    stamp_ns: int,
    *,
    evidence: Evidence,
    reason: HoldReason,
    measured: NDArray[np.float64] | None,
    limits: SafetyLimits,
    twist: bool = False,
) -> ToolHold:
    """Return the hold for pose commands or, with `twist`, velocity commands, which push nothing at rest: no RETURN.

    Arguments as `hold_joints`; measured: base_from_tool [4, 4].
    """
    row = decide(tool_command(path, at_ns), evidence, reason)
    if row.course is Course.NOTHING:
        return ToolHold(None, Course.NOTHING, f"nothing is commanded: {row.because}")
    assert path is not None
    braked, forced = brake_tool(path, at_ns, stamp_ns, motion_limits(limits))
    text = row.because
    if forced:
        text += "; the path ended at speed, so that stopping on it took more than the limits allow"
    if row.course is Course.RETURN and not twist:
        returned = _return_tool(braked, measured, limits)
        if isinstance(returned, PoseTrajectory):
            return ToolHold(returned, Course.RETURN, text)
        text += f"; it stays where it was told to be, for {returned}"
    return ToolHold(braked, Course.BRAKE, text)


def _joint_problem(
    hold: JointTrajectoryArrays, path: JointTrajectoryArrays, limits: SafetyLimits, arm: ArmKinematics
) -> str | None:
    """Return what is wrong with the path that a hold follows, or else with the hold; None if nothing is."""
    if (problem := limits.check_joints(path, arm).text) != "":
        return f"the commanded path itself breaks a limit ({problem})"
    verdict = limits.check_joints(hold, arm)
    return None if verdict.text == "" else f"the hold breaks a limit ({verdict.text})"


def _rest_to_rest(distance: float, speed: float, acceleration: float) -> float:
    """Return the seconds for the motion 10x^3 - 15x^4 + 6x^5 over a distance, within a speed and an acceleration."""
    return max(1.875 * distance / speed, (5.774 * distance / acceleration) ** 0.5)


def _progress(duration_s: float) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return times (ns), shares of the way and their rates (1/s) of that motion, from its second point on."""
    count = max(round(duration_s / RETURN_POINT_S), 8)
    x = np.linspace(0.0, 1.0, count + 1)[1:]
    share = x**3 * (10.0 - 15.0 * x + 6.0 * x**2)
    return np.rint(x * duration_s * NS_PER_S).astype(np.int64), share, 30.0 * x**2 * (1.0 - x) ** 2 / duration_s


def _return_joints(
    braked: JointTrajectoryArrays, measured: NDArray[np.float64] | None, limits: SafetyLimits, arm: ArmKinematics
) -> JointTrajectoryArrays | str:
    """Return `braked` with the way from its rest to the measured joints [n], or why there is none."""
    rest = braked.positions[-1]
    if measured is None or np.shape(measured) != rest.shape or not np.isfinite(measured).all():
        return "the measured joints are not finite"
    if ((measured < arm.lower) | (measured > arm.upper)).any():
        return "the measured joints are outside the arm's limits"
    move = measured - rest
    way = np.stack([arm.forward(rest + share * move) for share in np.linspace(0.0, 1.0, 11)])
    if (problem := _outside(way[:, :3, 3], way[0, :3, 3], limits)) is not None:
        return problem
    steps = [pose_distance(a, b) for a, b in itertools.pairwise(way)]
    duration_s = max(
        _rest_to_rest(float(np.abs(move).max()), RETURN_JOINT_SPEED, float(limits.joint_acceleration(arm).min())),
        _rest_to_rest(10.0 * max(m for m, _ in steps), RETURN_LINEAR_SPEED, limits.max_linear_acceleration),
        _rest_to_rest(10.0 * max(rad for _, rad in steps), RETURN_ANGULAR_SPEED, limits.max_angular_acceleration),
    )
    times_ns, share, rate = _progress(max(duration_s, RETURN_POINT_S))
    return replace(
        braked,
        times_from_stamp_ns=np.concatenate([braked.times_from_stamp_ns, braked.times_from_stamp_ns[-1] + times_ns]),
        positions=np.concatenate([braked.positions, rest + share[:, None] * move]),
        velocities=np.concatenate([braked.velocities, rate[:, None] * move]),
    )


def _return_tool(
    braked: PoseTrajectory, measured: NDArray[np.float64] | None, limits: SafetyLimits
) -> PoseTrajectory | str:
    """Return `braked` with the way from its rest to the measured pose [4, 4], or why there is none."""
    if measured is None or not _usable(measured):
        return "the measured pose is not finite"
    rest = braked.poses[-1]
    if (problem := _outside(measured[None, :3, 3], rest[:3, 3], limits)) is not None:
        return problem
    move = measured[:3, 3] - rest[:3, 3]
    turn = Rotation.from_matrix(measured[:3, :3] @ rest[:3, :3].T).as_rotvec()
    duration_s = max(
        _rest_to_rest(float(np.linalg.norm(move)), RETURN_LINEAR_SPEED, limits.max_linear_acceleration),
        _rest_to_rest(float(np.linalg.norm(turn)), RETURN_ANGULAR_SPEED, limits.max_angular_acceleration),
    )
    times_ns, share, _ = _progress(max(duration_s, RETURN_POINT_S))
    poses = np.tile(rest, (len(share), 1, 1))
    poses[:, :3, 3] += share[:, None] * move
    poses[:, :3, :3] = Rotation.from_rotvec(share[:, None] * turn).as_matrix() @ rest[:3, :3]
    return replace(
        braked,
        times_ns=np.concatenate([braked.times_ns, braked.end_ns + times_ns]),
        poses=np.concatenate([braked.poses, poses]),
        gripper=np.concatenate([braked.gripper, np.full(len(share), braked.gripper[-1])]),
    )


def _outside(positions: NDArray[np.float64], rest: NDArray[np.float64], limits: SafetyLimits) -> str | None:
    """Return why a way leads out of the workspace, or None; an arm that rests outside may come nearer to it."""
    low = np.minimum(np.asarray(limits.workspace_min_m), rest) - WORKSPACE_SLACK_M
    high = np.maximum(np.asarray(limits.workspace_max_m), rest) + WORKSPACE_SLACK_M
    if ((positions < low) | (positions > high)).any():
        return "the way to the measured arm leads out of the workspace"
    return None
