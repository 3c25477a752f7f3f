"""Joint positions and velocities over time, and the cubic that a trajectory controller draws through them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import NS_PER_S

NEAR_NS = 100_000  # two points nearer than this say the same twice
# Over which jerk is a difference. At a point of a cubic the acceleration leaps, so that without such a time the jerk
# would be infinite there, and a difference from segment to segment would depend on how finely the path is divided.
JERK_S = 0.01


@dataclass(frozen=True)
class JointState:
    """Position, velocity and acceleration [n] of every joint at one moment (rad or m, and per second)."""

    position: NDArray[np.float64]
    velocity: NDArray[np.float64]
    acceleration: NDArray[np.float64]


@dataclass(frozen=True)
class CubicPeaks:
    """Extremes of each segment of the cubic, [T - 1, n] each, in closed form.

    low, high: the positions between which the segment stays. speed, acceleration: largest magnitudes.
    jerk: change of the mean acceleration from the JERK_S before a moment to the JERK_S after it, over JERK_S. Before
        the first point it is `JointTrajectoryArrays.start_acceleration`.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    speed: NDArray[np.float64]
    acceleration: NDArray[np.float64]
    jerk: NDArray[np.float64]


@dataclass(frozen=True)
class ToolMotion:
    """Motion of the tool along joint paths, at moments of each of S segments, their ends included.

    positions: [S, m, 3] of its origin in the base frame (m). linear, angular: speeds [S, m] (m/s, rad/s).
    """

    positions: NDArray[np.float64]
    linear: NDArray[np.float64]
    angular: NDArray[np.float64]


@dataclass(frozen=True)
class JointTrajectoryArrays:
    """A trajectory as a joint trajectory controller takes it.

    The first point is the state in which the motion starts, due at `stamp_ns` itself. A controller that has no such
    point draws the way to the second one from wherever it measured the arm, and an arm that lags jumps.

    joint_names: n names, in the order of the columns.
    stamp_ns: time at which the trajectory's own clock starts.
    times_from_stamp_ns: [T] int64, T >= 2, rising from 0.
    positions, velocities: [T, n] (rad or m, and per second); the last velocity is zero.
    start_acceleration: [n] with which the joints arrive at the first point; None for an arm at rest.

    Between two points each joint follows the cubic through their positions and velocities, as
    joint_trajectory_controller draws it. Before the first point and after the last the arm rests there. Raises
    ValueError for arrays of other shapes and times that do not rise.
    """

    joint_names: tuple[str, ...]
    stamp_ns: int
    times_from_stamp_ns: NDArray[np.int64]
    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]
    start_acceleration: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        points, joints = len(self.times_from_stamp_ns), len(self.joint_names)
        if points < 2 or self.positions.shape != (points, joints) or self.velocities.shape != (points, joints):
            raise ValueError(
                f"positions and velocities must be [T, {joints}] with a time for each of T >= 2 points, got "
                f"{self.positions.shape}, {self.velocities.shape} and {points} times"
            )
        if self.times_from_stamp_ns[0] != 0 or (np.diff(self.times_from_stamp_ns) <= 0).any():
            raise ValueError(f"times must rise from 0, got {self.times_from_stamp_ns.tolist()}")

    @property
    def times_ns(self) -> NDArray[np.int64]:
        """Absolute times [T] int64."""
        return self.stamp_ns + self.times_from_stamp_ns

    @property
    def end_ns(self) -> int:
        """Time at which the motion comes to rest."""
        return self.stamp_ns + int(self.times_from_stamp_ns[-1])

    @cached_property
    def spans_s(self) -> NDArray[np.float64]:
        """Durations [T - 1, 1] of the segments, seconds."""
        return np.diff(self.times_from_stamp_ns)[:, None] / NS_PER_S

    @cached_property
    def accelerations(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Acceleration [T - 1, n] at the beginning and at the end of each segment; it is linear in between."""
        slope = np.diff(self.positions, axis=0) / self.spans_s
        before, after = self.velocities[:-1], self.velocities[1:]
        begin = (6.0 * slope - 4.0 * before - 2.0 * after) / self.spans_s
        return begin, (4.0 * after + 2.0 * before - 6.0 * slope) / self.spans_s

    def state(self, at_ns: int) -> JointState:
        """Return the commanded state at a moment; at a point, that of the segment which begins there."""
        since_ns = at_ns - self.stamp_ns
        joints = np.zeros(len(self.joint_names))
        if since_ns < 0 or since_ns >= self.times_from_stamp_ns[-1]:
            return JointState(self.positions[0 if since_ns < 0 else -1].copy(), joints, joints.copy())
        i = int(np.searchsorted(self.times_from_stamp_ns, since_ns, side="right")) - 1
        t, span = (since_ns - int(self.times_from_stamp_ns[i])) / NS_PER_S, float(self.spans_s[i, 0])
        begin, end = self.accelerations[0][i], self.accelerations[1][i]
        jerk = (end - begin) / span
        velocity = self.velocities[i] + t * (begin + 0.5 * t * jerk)
        position = self.positions[i] + t * (self.velocities[i] + t * (0.5 * begin + t / 6.0 * jerk))
        return JointState(position, velocity, begin + t * jerk)

    def sampled(self, parts: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return positions and velocities [(T - 1) * parts + 1, n] at the ends of equal parts of every segment."""
        begin, end = (a[:, None] for a in self.accelerations)
        t = np.arange(parts)[:, None] / parts * self.spans_s[:, None]  # [T - 1, parts, 1]
        jerk = (end - begin) / self.spans_s[:, None]
        start = self.velocities[:-1, None]
        velocities = start + t * (begin + 0.5 * t * jerk)
        positions = self.positions[:-1, None] + t * (start + t * (0.5 * begin + t / 6.0 * jerk))
        joints = len(self.joint_names)
        return (
            np.concatenate([positions.reshape(-1, joints), self.positions[-1:]]),
            np.concatenate([velocities.reshape(-1, joints), self.velocities[-1:]]),
        )

    def peaks(self) -> CubicPeaks:
        """Return the extremes of every segment, its inside included."""
        begin, end = self.accelerations
        span = self.spans_s
        jerk = (end - begin) / span
        start = self.velocities[:-1]

        def at(t: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            inside = np.clip(np.nan_to_num(t, nan=0.0, posinf=0.0, neginf=0.0), 0.0, span)
            position = self.positions[:-1] + inside * (start + inside * (0.5 * begin + inside / 6.0 * jerk))
            return position, start + inside * (begin + 0.5 * inside * jerk)

        with np.errstate(divide="ignore", invalid="ignore"):
            fastest = at(-begin / jerk)[1]
            # Where the velocity begin-point + begin t + jerk t^2 / 2 vanishes, in the form that does not cancel.
            root = np.sqrt(np.maximum(begin**2 - 2.0 * jerk * start, 0.0))
            q = -(begin + np.copysign(root, begin))
            turns = [at(q / jerk)[0], at(2.0 * start / q)[0]]
        ends = [self.positions[:-1], self.positions[1:]]
        speeds = np.abs([self.velocities[:-1], self.velocities[1:], fastest])
        return CubicPeaks(
            low=np.min([*ends, *turns], axis=0),
            high=np.max([*ends, *turns], axis=0),
            speed=speeds.max(axis=0),
            acceleration=np.maximum(np.abs(begin), np.abs(end)),
            jerk=self._jerks(),
        )

    def _jerks(self) -> NDArray[np.float64]:
        """Return the largest jerk [T - 1, n] of each segment, at its begin and at moments half of JERK_S apart."""
        points_s = self.times_from_stamp_ns / NS_PER_S
        last_s = max(points_s[-1] - JERK_S, 0.0)  # the end is not judged: the next message takes over before it
        at_s = np.union1d(np.arange(0.0, last_s, 0.5 * JERK_S), points_s[points_s <= last_s])
        before, now, after = (self._velocities(at_s + shift) for shift in (-JERK_S, 0.0, JERK_S))
        jerks = np.zeros(self.velocities[1:].shape)
        segments = np.clip(np.searchsorted(points_s, at_s, side="right") - 1, 0, len(jerks) - 1)
        np.maximum.at(jerks, segments, np.abs(after - 2.0 * now + before) / JERK_S**2)
        return jerks

    def _velocities(self, at_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the velocities [N, n] at moments [N] since the first point, those before it included."""
        points_s = self.times_from_stamp_ns / NS_PER_S
        i = np.clip(np.searchsorted(points_s, at_s, side="right") - 1, 0, len(points_s) - 2)
        begin, end = (acceleration[i] for acceleration in self.accelerations)
        t = np.clip(at_s - points_s[i], 0.0, self.spans_s[i, 0])[:, None]
        velocities = self.velocities[i] + t * (begin + 0.5 * t * (end - begin) / self.spans_s[i])
        if self.start_acceleration is not None:
            velocities += np.minimum(at_s, 0.0)[:, None] * self.start_acceleration
        return velocities


def preceded_by(
    previous: JointTrajectoryArrays, following: JointTrajectoryArrays, from_ns: int
) -> JointTrajectoryArrays:
    """Return `following` with the end of `previous` in front of it, from `from_ns` on.

    A controller draws the way to the first point from the measured arm if that point lies in its future when the
    message arrives; so the message has to begin a little in the past, on the motion that is under way. Unchanged where
    `from_ns` is not even NEAR_NS before the first point.
    """
    from_ns = max(from_ns, previous.stamp_ns)
    if from_ns > following.stamp_ns - NEAR_NS:
        return following
    state = previous.state(from_ns)
    times_ns = previous.times_ns
    between = (times_ns > from_ns + NEAR_NS) & (times_ns < following.stamp_ns - NEAR_NS)
    return JointTrajectoryArrays(
        following.joint_names,
        from_ns,
        np.concatenate([np.array([from_ns], dtype=np.int64), times_ns[between], following.times_ns]) - from_ns,
        np.concatenate([state.position[None], previous.positions[between], following.positions]),
        np.concatenate([state.velocity[None], previous.velocities[between], following.velocities]),
        state.acceleration,
    )


def remaining(path: JointTrajectoryArrays, from_ns: int) -> JointTrajectoryArrays:
    """Return what is left of a path from a moment on; rest at its end where nothing is."""
    if from_ns >= path.end_ns - NEAR_NS:
        return standing(path.joint_names, path.positions[-1], from_ns, NEAR_NS)
    if from_ns <= path.stamp_ns:
        return path
    state = path.state(from_ns)
    left = path.times_ns > from_ns + NEAR_NS
    return JointTrajectoryArrays(
        path.joint_names,
        from_ns,
        np.concatenate([[0], path.times_ns[left] - from_ns]),
        np.concatenate([state.position[None], path.positions[left]]),
        np.concatenate([state.velocity[None], path.velocities[left]]),
        state.acceleration,
    )


def lasting(path: JointTrajectoryArrays, longer_ns: int) -> JointTrajectoryArrays:
    """Return a path that ends at rest, with that rest so much longer.

    A controller refuses a trajectory whose end is past when it arrives, and goes on with the one before.
    """
    return replace(
        path,
        times_from_stamp_ns=np.append(path.times_from_stamp_ns, path.times_from_stamp_ns[-1] + longer_ns),
        positions=np.concatenate([path.positions, path.positions[-1:]]),
        velocities=np.concatenate([path.velocities, np.zeros_like(path.velocities[-1:])]),
    )


def standing(
    joint_names: tuple[str, ...], position: NDArray[np.float64], at_ns: int, length_ns: int
) -> JointTrajectoryArrays:
    """Return rest at `position` [n] from `at_ns` on, as two points `length_ns` apart."""
    return JointTrajectoryArrays(
        joint_names,
        at_ns,
        np.array([0, length_ns], dtype=np.int64),
        np.stack([position, position]),
        np.zeros((2, len(position))),
    )
