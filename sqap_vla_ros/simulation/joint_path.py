"""Joint trajectories as a joint_trajectory_controller executes them: cubic in time, replacing one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicHermiteSpline


class TrajectoryRejectedError(ValueError):
    """A joint trajectory that is not executed; the message says why, as an operator needs to read it."""


@dataclass(frozen=True)
class JointPath:
    """Positions over time, to be sampled from `start_ns` on; before it the first and after the end the last one holds.

    times_ns: [T] int64, ascending. positions: [T, n] rad. velocities: [T, n] rad/s, or None for straight segments.
    """

    times_ns: NDArray[np.int64]
    positions: NDArray[np.float64]
    velocities: NDArray[np.float64] | None

    def sample(self, now_ns: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Position and velocity [n] at `now_ns`; at rest outside of the path."""
        if now_ns <= self.times_ns[0] or now_ns >= self.times_ns[-1]:
            end = self.positions[0] if now_ns <= self.times_ns[0] else self.positions[-1]
            return end.copy(), np.zeros_like(end)
        i = int(np.searchsorted(self.times_ns, now_ns, side="right"))
        span_s = (self.times_ns[i] - self.times_ns[i - 1]) * 1e-9
        since_s = (now_ns - self.times_ns[i - 1]) * 1e-9
        if self.velocities is None:
            velocity = (self.positions[i] - self.positions[i - 1]) / span_s
            return self.positions[i - 1] + velocity * since_s, velocity
        segment = CubicHermiteSpline([0.0, span_s], self.positions[i - 1 : i + 1], self.velocities[i - 1 : i + 1])
        return segment(since_s), segment(since_s, 1)


def accept_trajectory(
    joints: Sequence[str],
    *,
    names: Sequence[str],
    times_ns: Sequence[int],
    positions: Sequence[Sequence[float]],
    velocities: Sequence[Sequence[float]],
    now_ns: int,
    position: NDArray[np.float64],
    velocity: NDArray[np.float64],
) -> JointPath:
    """The path of `joints` that a trajectory message asks for, starting at the state (`position`, `velocity`) [n].

    names: the message's joint order, any permutation of `joints`. times_ns: absolute time of each point. velocities:
    one empty entry for each point where the message has none.

    Raises:
        TrajectoryRejectedError: wrong joints, no points, non-finite values, times not ascending, or all of it past.
    """
    if len(names) != len(joints) or set(names) != set(joints):
        raise TrajectoryRejectedError(f"the trajectory is for joints {list(names)}, this arm has {list(joints)}")
    count, n = len(times_ns), len(joints)
    if count == 0:
        raise TrajectoryRejectedError("the trajectory has no points")
    if any(len(row) != n for row in positions):
        raise TrajectoryRejectedError(f"every point needs {n} positions, got {sorted({len(row) for row in positions})}")
    given = {len(row) for row in velocities}
    if given not in ({0}, {n}):
        raise TrajectoryRejectedError(f"all points or none must have {n} velocities, got {sorted(given)}")
    order = [list(names).index(joint) for joint in joints]
    q = np.asarray(positions, dtype=np.float64)[:, order]
    v = np.asarray(velocities, dtype=np.float64)[:, order] if given == {n} else None
    if not np.isfinite(q).all() or (v is not None and not np.isfinite(v).all()):
        raise TrajectoryRejectedError("the trajectory has a position or velocity that is not finite")
    times = np.asarray(times_ns, dtype=np.int64)
    if (np.diff(times) <= 0).any():
        raise TrajectoryRejectedError("time_from_start must rise from point to point")
    if times[-1] <= now_ns:
        raise TrajectoryRejectedError(f"the trajectory ended {(now_ns - int(times[-1])) * 1e-9:.3f} s ago")
    if times[0] > now_ns:
        times = np.concatenate([[now_ns], times])
        q = np.vstack([position, q])
        v = None if v is None else np.vstack([velocity, v])
    return JointPath(times, q, v)
