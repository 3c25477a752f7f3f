"""Coming to rest along a path: its own time is slowed down to a standstill as fast as the limits allow.

A path q(s) executed by s(t) has the velocity q' s' and the acceleration q'' s'^2 + q' s''. Where the path itself is
within its limits (s' = 1, s'' = 0), every s'' between a bound that is not positive and zero keeps it there at every
s' <= 1, so braking as hard as that bound allows never ends in a dead end. (The bound is that of time-optimal path
parameterisation: Bobrow, Dubowsky and Gibson 1985.) Jerk is limited by how fast s'' may fall.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.robot.joint_trajectory import JointTrajectoryArrays, standing
from sqap_vla_ros.robot.kinematics import ArmKinematics
from sqap_vla_ros.robot.trajectory import PoseTrajectory

STEP_S = 0.002
POINT_S = 0.01  # between two points of what is sent to stop the tool
MARGIN = 0.9  # of the acceleration limits of the tool; the rest is for what lies between two points
# Of the joints' limits, and the seconds between points: one after the other while the cubic between two points, which
# smooths what changes between them, exceeds a limit.
JOINT_MARGINS = ((0.9, 0.01), (0.8, 0.006), (0.7, 0.002))
AT_ONCE_RAD = 1e-3  # an arm so slow that it moves no further than this is stopped without regard to its path
QUICKEST_S = 0.05  # nothing stops in less, however wide the limits are
SLOWEST_S = 1.0  # a path that breaks its limits by itself is still stopped at this rate
AT_REST = 1e-4  # s' at which what is left of the velocity is dropped
TOOL_GRID_S = 0.02
LONGEST_S = 10.0
STANDING_NS = 100_000_000  # from the first to the last point of a hold that does not move


@dataclass(frozen=True)
class MotionLimits:
    """Largest accelerations and jerks while braking.

    joint_acceleration, joint_jerk: [n] rad/s^2 and rad/s^3 (m for a sliding joint).
    linear_*, angular_*: of the tool, m/s^2, m/s^3 and rad/s^2, rad/s^3.
    """

    joint_acceleration: NDArray[np.float64]
    joint_jerk: NDArray[np.float64]
    linear_acceleration: float
    linear_jerk: float
    angular_acceleration: float
    angular_jerk: float


@dataclass(frozen=True)
class Slowing:
    """Progress s(t) along a path from the present to rest. times_s, path_s, rate: [K]; the rate s' falls from 1 to 0.

    forced: the path ends at speed, and the limits had to be broken to stop on it.
    """

    times_s: NDArray[np.float64]
    path_s: NDArray[np.float64]
    rate: NDArray[np.float64]
    forced: bool


def slow_to_rest(
    start_s: float,
    knots_s: NDArray[np.float64],
    bound: Callable[[float, float], float],
    steepest: float,
    *,
    ends_at_rest: bool,
    point_s: float = POINT_S,
) -> Slowing:
    """Return the s(t) that brakes as hard as `bound(s, s')` <= 0 allows for s''.

    steepest: s'' falls no faster than this (1/s^2).

    knots_s: where q'' of the path may leap; each becomes a point of the result. The last is the path's end.
    ends_at_rest: the path's own velocity vanishes there, so s' need not. point_s: time between points of the result.
    """
    end_s, time_s, s, rate, slope, forced = float(knots_s[-1]), 0.0, start_s, 1.0, 0.0, False
    times, path, rates, kept_s = [0.0], [s], [1.0], 0.0
    following = int(np.searchsorted(knots_s, s + 1e-9, side="right"))
    while rate > AT_REST and end_s - s > 1e-9 and time_s < LONGEST_S:
        # -sqrt(2 j s') is the slope from which s'' can still return to zero at rest.
        allowed = bound(s, rate)
        slope = max(allowed, -1.0 / QUICKEST_S, slope - steepest * STEP_S, -math.sqrt(2.0 * steepest * rate))
        if not ends_at_rest and slope > (needed := -0.5 * rate**2 / (end_s - s)):
            forced, slope = forced or needed < allowed, needed
        slope = min(slope, 0.0)
        step = min(STEP_S, rate / -slope) if slope < 0.0 else STEP_S
        onward = step * (rate + 0.5 * step * slope)
        to_knot = knots_s[following] - s if following < len(knots_s) else math.inf
        at_knot = onward >= to_knot
        if at_knot:
            onward = float(to_knot)
            root = math.sqrt(max(rate**2 + 2.0 * slope * onward, 0.0))
            step = 2.0 * onward / (rate + root)
            following += 1
        time_s, s, rate = time_s + step, s + onward, max(rate + step * slope, 0.0)
        resting = rate <= AT_REST or end_s - s <= 1e-9
        if at_knot or resting or time_s - kept_s >= point_s - 0.5 * STEP_S:
            if time_s - times[-1] < 1e-4 and len(times) > 1:  # a knot just behind a point: say it once
                del times[-1], path[-1], rates[-1]
            times.append(time_s)
            path.append(s)
            rates.append(0.0 if resting else rate)
            kept_s = time_s
    rates[-1] = 0.0
    return Slowing(np.array(times), np.array(path), np.array(rates), forced)


def brake_joints(
    path: JointTrajectoryArrays, at_ns: int, stamp_ns: int, limits: MotionLimits, arm: ArmKinematics
) -> JointTrajectoryArrays:
    """Leave `path` at `at_ns` of its time and come to rest on it. The result starts at `stamp_ns`."""
    state = path.state(at_ns)
    start_s = (at_ns - path.stamp_ns) / NS_PER_S
    knots_s = path.times_from_stamp_ns / NS_PER_S
    if not 0.0 <= start_s < knots_s[-1]:
        return standing(path.joint_names, state.position, stamp_ns, STANDING_NS)
    at_once_s = max(float(np.max(np.abs(state.velocity) / (MARGIN * limits.joint_acceleration))), QUICKEST_S)
    if 0.5 * at_once_s * float(np.abs(state.velocity).max()) <= AT_ONCE_RAD:
        return JointTrajectoryArrays(
            path.joint_names,
            stamp_ns,
            np.array([0, round(at_once_s * NS_PER_S)], dtype=np.int64),
            np.stack([state.position, state.position + 0.5 * at_once_s * state.velocity]),
            np.stack([state.velocity, np.zeros_like(state.velocity)]),
            state.acceleration,
        )
    first = int(np.searchsorted(knots_s, start_s, side="right")) - 1
    tool = _ToolMotion(path, start_s, arm, limits)
    own = path.peaks()
    fastest = np.maximum(own.speed[first:].max(axis=0), 1e-9)
    steepest = min(float(np.min(limits.joint_jerk / fastest)), tool.steepest, 4.0 / QUICKEST_S**2)
    allowed = np.maximum(limits.joint_acceleration, own.acceleration[first:].max(axis=0)) * (1.0 + 1e-6)
    rests = bool((path.velocities[-1] == 0.0).all())
    for margin, point_s in JOINT_MARGINS:
        bound = _joint_bound(path, limits.joint_acceleration, margin, tool)
        slowing = slow_to_rest(start_s, knots_s, bound, steepest, ends_at_rest=rests, point_s=point_s)
        if len(slowing.times_s) < 2:
            return standing(path.joint_names, state.position, stamp_ns, STANDING_NS)
        states = [path.state(path.stamp_ns + round(s * NS_PER_S)) for s in slowing.path_s]
        hold = JointTrajectoryArrays(
            path.joint_names,
            stamp_ns,
            np.rint(slowing.times_s * NS_PER_S).astype(np.int64),
            np.stack([state.position, *(at.position for at in states[1:])]),
            np.stack([rate * at.velocity for rate, at in zip(slowing.rate, states, strict=True)]),
            state.acceleration,
        )
        if (hold.peaks().acceleration <= allowed).all():
            break
    return hold


def _joint_bound(
    path: JointTrajectoryArrays, limit: NDArray[np.float64], margin: float, tool: _ToolMotion
) -> Callable[[float, float], float]:
    """Return a function for the lowest s'' at (s, s') that keeps the accelerations of joints and tool within limits."""
    knots_s, span = path.times_from_stamp_ns / NS_PER_S, path.spans_s[:, 0]
    begin, end = path.accelerations

    def bound(s: float, rate: float) -> float:
        i = min(int(np.searchsorted(knots_s, s + 1e-9, side="right")) - 1, len(span) - 1)
        t = s - knots_s[i]
        jerk = (end[i] - begin[i]) / span[i]
        velocity = path.velocities[i] + t * (begin[i] + 0.5 * t * jerk)
        against = np.sign(velocity) * (begin[i] + t * jerk) * rate**2
        speed = np.maximum(np.abs(velocity), 1e-9)
        within = float(np.max(-(margin * limit + against) / speed))
        beyond = float(np.max(-(1.001 * limit + against) / speed))
        return min(max(within, tool.bound(s, rate)), 0.0 if beyond <= 0.0 else -1.0 / SLOWEST_S)

    return bound


def brake_tool(path: PoseTrajectory, at_ns: int, stamp_ns: int, limits: MotionLimits) -> tuple[PoseTrajectory, bool]:
    """Do the same for poses of the tool. True: the path ends at speed, and stopping on it breaks the limits."""
    start_s = (at_ns - path.anchor_ns) / NS_PER_S
    knots_s = np.concatenate([[0.0], (path.times_ns - path.anchor_ns) / NS_PER_S])
    pose, gripper = path.sample(at_ns)
    if not 0.0 <= start_s < knots_s[-1]:
        return _still(pose, gripper, stamp_ns), False
    linear, angular = (np.linalg.norm(v, axis=1) for v in path.segment_velocities())
    first = int(np.searchsorted(knots_s, start_s, side="right")) - 1
    linear, angular = np.maximum(linear, 1e-9), np.maximum(angular, 1e-9)
    allowed = MARGIN * np.minimum(limits.linear_acceleration / linear, limits.angular_acceleration / angular)

    def bound(s: float, rate: float) -> float:
        i = min(int(np.searchsorted(knots_s, s + 1e-9, side="right")) - 1, len(allowed) - 1)
        return -float(allowed[i])

    jerks = np.minimum(limits.linear_jerk / linear, limits.angular_jerk / angular)
    steepest = min(float(jerks[first:].min()), 4.0 / QUICKEST_S**2)
    slowing = slow_to_rest(start_s, knots_s, bound, steepest, ends_at_rest=False)
    if len(slowing.times_s) < 2:
        return _still(pose, gripper, stamp_ns), False
    poses, _ = path.sample_many(path.anchor_ns + np.rint(slowing.path_s * NS_PER_S).astype(np.int64))
    times_ns = stamp_ns + np.rint(slowing.times_s[1:] * NS_PER_S).astype(np.int64)
    opening = np.full(len(times_ns), gripper)
    return PoseTrajectory(times_ns, poses[1:], opening, pose, stamp_ns, stamp_ns), slowing.forced


class _ToolMotion:
    """The tool's speeds and accelerations along a joint path, on a grid from where braking begins."""

    def __init__(self, path: JointTrajectoryArrays, start_s: float, arm: ArmKinematics, limits: MotionLimits) -> None:
        end_s = min(float(path.times_from_stamp_ns[-1]) / NS_PER_S, start_s + SLOWEST_S)
        count = max(math.ceil((end_s - start_s) / TOOL_GRID_S), 2)
        grid_s = start_s + np.arange(-1, count + 2) * ((end_s - start_s) / count)
        times_ns = path.stamp_ns + np.rint(np.clip(grid_s, 0.0, None) * NS_PER_S).astype(np.int64)
        poses = np.stack([arm.forward(path.state(int(t)).position) for t in times_ns])
        step_s = (end_s - start_s) / count
        self._start_s, self._step_s = start_s, step_s
        turned = poses[1:, :3, :3] @ poses[:-1, :3, :3].transpose(0, 2, 1)
        axes = np.stack([turned[:, 2, 1] - turned[:, 1, 2], turned[:, 0, 2] - turned[:, 2, 0]], axis=1)
        axes = 0.5 * np.concatenate([axes, (turned[:, 1, 0] - turned[:, 0, 1])[:, None]], axis=1)  # small angles
        moved = (np.diff(poses[:, :3, 3], axis=0) / step_s, axes / step_s)
        self._speeds, self._accelerations = [], []
        for velocity in moved:
            self._speeds.append(np.maximum(np.linalg.norm(0.5 * (velocity[1:] + velocity[:-1]), axis=1), 1e-9))
            self._accelerations.append(np.linalg.norm(np.diff(velocity, axis=0), axis=1) / step_s)
        self._limits = (limits.linear_acceleration, limits.angular_acceleration)
        jerks = (limits.linear_jerk, limits.angular_jerk)
        self.steepest = min(jerk / float(speed.max()) for jerk, speed in zip(jerks, self._speeds, strict=True))

    def bound(self, s: float, rate: float) -> float:
        """Return the lowest s'' that keeps the tool's acceleration within its limits; not above zero."""
        i = min(max(round((s - self._start_s) / self._step_s), 0), len(self._speeds[0]) - 1)
        bounds = [
            -(MARGIN * limit - float(acceleration[i]) * rate**2) / float(speed[i])
            for limit, speed, acceleration in zip(self._limits, self._speeds, self._accelerations, strict=True)
        ]
        return min(max(bounds), 0.0)


def _still(pose: NDArray[np.float64], gripper: float, stamp_ns: int) -> PoseTrajectory:
    times_ns = np.array([stamp_ns + round(POINT_S * NS_PER_S)], dtype=np.int64)
    return PoseTrajectory(times_ns, pose[None].copy(), np.array([gripper]), pose.copy(), stamp_ns, stamp_ns)


def brought_to_rest(path: PoseTrajectory, limits: MotionLimits) -> PoseTrajectory:
    """Return `path` with an end at rest: its last part is executed ever more slowly, so that it ends a little later.

    A chunk ends at speed, for the next one is expected to replace it. Where none does, a stream of poses or twists
    would stop dead. The rate falls as 1 - (10x^3 - 15x^4 + 6x^5) over T, in which T/2 of the path is done.
    """
    linear, angular = path.segment_velocities()
    knots_s = np.concatenate([[0.0], (path.times_ns - path.anchor_ns) / NS_PER_S])
    tail = knots_s[1:] > knots_s[-1] - SLOWEST_S / 2.0
    duration_s = QUICKEST_S
    for velocity, acceleration, jerk in (
        (linear, limits.linear_acceleration, limits.linear_jerk),
        (angular, limits.angular_acceleration, limits.angular_jerk),
    ):
        speed = float(np.linalg.norm(velocity[tail], axis=1).max())
        duration_s = max(duration_s, 1.875 * speed / (MARGIN * acceleration), (5.774 * speed / jerk) ** 0.5)
    duration_s = min(duration_s, SLOWEST_S, 2.0 * float(knots_s[-1]))
    begin_ns = path.end_ns - round(0.5 * duration_s * NS_PER_S)
    x = np.linspace(0.0, 1.0, max(round(duration_s / POINT_S), 4) + 1)[1:]
    done = duration_s * (x - x**4 * (2.5 - 3.0 * x + x**2))
    source_ns = np.minimum(begin_ns + np.rint(done * NS_PER_S).astype(np.int64), path.end_ns)
    poses, gripper = path.sample_many(source_ns)
    poses[-1] = path.poses[-1]
    keep = path.times_ns <= begin_ns
    times_ns = begin_ns + np.rint(x * duration_s * NS_PER_S).astype(np.int64)
    return replace(
        path,
        times_ns=np.concatenate([path.times_ns[keep], times_ns]),
        poses=np.concatenate([path.poses[keep], poses]),
        gripper=np.concatenate([path.gripper[keep], gripper]),
    )
