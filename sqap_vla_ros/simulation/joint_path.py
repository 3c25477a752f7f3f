"""Joint trajectories as joint_trajectory_controller accepts and executes them, replacing one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BPoly


class TrajectoryRejectedError(ValueError):
    """A joint trajectory that is not executed; the message says why, as an operator needs to read it."""


@dataclass(frozen=True)
class JointPath:
    """Positions over time, to be sampled from the first time on; before it the first and after the end the last holds.

    Between two points each joint follows a straight line, the cubic through positions and velocities, or, where both
    points also have accelerations, the quintic.

    times_ns: [T] int64, ascending. positions: [T, n] rad. velocities: [T, n] rad/s, or None for straight segments.
    accelerations: [T, n] rad/s^2, NaN at a point without them; None for none at all.
    """

    times_ns: NDArray[np.int64]
    positions: NDArray[np.float64]
    velocities: NDArray[np.float64] | None
    accelerations: NDArray[np.float64] | None = None

    def sample(self, now_ns: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return position and velocity [n] at `now_ns`; at rest outside of the path."""
        if now_ns <= self.times_ns[0] or now_ns >= self.times_ns[-1]:
            end = self.positions[0] if now_ns <= self.times_ns[0] else self.positions[-1]
            return end.copy(), np.zeros_like(end)
        i = int(np.searchsorted(self.times_ns, now_ns, side="right"))
        span_s = (self.times_ns[i] - self.times_ns[i - 1]) * 1e-9
        since_s = (now_ns - self.times_ns[i - 1]) * 1e-9
        if self.velocities is None:
            velocity = (self.positions[i] - self.positions[i - 1]) / span_s
            return self.positions[i - 1] + velocity * since_s, velocity
        derivatives = [self.positions[i - 1 : i + 1], self.velocities[i - 1 : i + 1]]
        if self.accelerations is not None and np.isfinite(self.accelerations[i - 1 : i + 1]).all():
            derivatives.append(self.accelerations[i - 1 : i + 1])
        segment = BPoly.from_derivatives([0.0, span_s], np.stack(derivatives, axis=1))
        return segment(since_s), segment(since_s, 1)


STANDING_RAD_S = float(np.finfo(np.float32).eps)  # what joint_trajectory_controller takes for zero


def accept_trajectory(
    joints: Sequence[str],
    *,
    names: Sequence[str],
    times_ns: Sequence[int],
    positions: Sequence[Sequence[float]],
    velocities: Sequence[Sequence[float]],
    accelerations: Sequence[Sequence[float]] = (),
    efforts: Sequence[Sequence[float]] = (),
    now_ns: int,
    position: NDArray[np.float64],
    velocity: NDArray[np.float64],
) -> JointPath:
    """Return the path of `joints` that a trajectory message asks for, from the state (`position`, `velocity`) [n].

    The rules are those of joint_trajectory_controller 5 with its default parameters. A first point in the future is
    approached from the given state, by the interpolation that both allow; a message whose first point is not in the
    future is entered where it is now, and the given state does not matter.

    names: the message's joint order, any permutation of `joints`. times_ns: absolute time of each point. velocities,
    accelerations, efforts: one empty entry for each point where the message has none.

    Raises:
        TrajectoryRejectedError: wrong joints, no points, sizes that differ, non-finite values, efforts, times not
            ascending, all of it past, or an end that is not at rest.
    """
    if len(names) != len(joints) or set(names) != set(joints):
        raise TrajectoryRejectedError(f"the trajectory is for joints {list(names)}, this arm has {list(joints)}")
    count, n = len(times_ns), len(joints)
    if count == 0:
        raise TrajectoryRejectedError("the trajectory has no points")
    if any(len(row) != n for row in positions):
        raise TrajectoryRejectedError(f"every point needs {n} positions, got {sorted({len(row) for row in positions})}")
    if any(len(row) for row in efforts):
        raise TrajectoryRejectedError("the trajectory has efforts, which are not supported")
    order = [list(names).index(joint) for joint in joints]
    q = np.asarray(positions, dtype=np.float64)[:, order]
    v = _derivative("velocities", velocities, order)
    a = _derivative("accelerations", accelerations, order)
    if v is None and a is not None:
        raise TrajectoryRejectedError("the trajectory has accelerations and no velocities")
    for name, values in (("position", q), ("velocity", v), ("acceleration", a)):
        if values is not None and not np.isfinite(values).all():
            raise TrajectoryRejectedError(f"the trajectory has a {name} that is not finite")
    if v is not None and (np.abs(v[-1]) > STANDING_RAD_S).any():
        joint = int(np.argmax(np.abs(v[-1])))
        raise TrajectoryRejectedError(f"the last velocity must be zero, that of {joints[joint]} is {v[-1, joint]:g}")
    times = np.asarray(times_ns, dtype=np.int64)
    if (np.diff(times) <= 0).any():
        raise TrajectoryRejectedError("time_from_start must rise from point to point")
    if times[-1] <= now_ns:
        raise TrajectoryRejectedError(f"the trajectory ended {(now_ns - int(times[-1])) * 1e-9:.3f} s ago")
    if times[0] > now_ns:
        times = np.concatenate([[now_ns], times])
        q = np.vstack([position, q])
        v = None if v is None else np.vstack([velocity, v])
        a = None if a is None else np.vstack([np.full(n, np.nan), a])  # nobody measures accelerations
    return JointPath(times, q, v, a)


def _derivative(name: str, rows: Sequence[Sequence[float]], order: list[int]) -> NDArray[np.float64] | None:
    """Return [T, n] in the arm's order; None where no point has any."""
    given = {len(row) for row in rows}
    if given in (set(), {0}):
        return None
    if given != {len(order)}:
        raise TrajectoryRejectedError(f"all points or none must have {len(order)} {name}, got {sorted(given)}")
    return np.asarray(rows, dtype=np.float64)[:, order]
