"""Entry of a late chunk at the arm's pose instead of by the clock.

A chunk is about the moment of its image, and takes effect when it has been computed. Until then the arm followed the
chunk before, or stood still. Entered by the clock (as many actions are dropped as the arm has executed since the image,
none where it stood still), the new chunk makes the arm leap wherever the two chunks disagree in path or phase. Entered
by pose, the arm goes on from where it is; the clock only decides between passages of a path that comes back to the same
place.

The pose is the commanded one. An arm that is blocked stays behind it, and a chunk that was begun within a bounded
distance of the arm, entered where the command is by now, would give up that bound: each chunk would go on from the end
of the one before, and push further. `Reach` keeps it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.robot.trajectory import PoseTrajectory

SUBSTEPS = 8  # parts of an action at which policy_node may enter a chunk


@dataclass(frozen=True)
class JoinWeights:
    """Weights that make rotations, times and gripper states comparable with metres.

    rotation_m_per_rad: of the angle between the two orientations. clock_m_per_s: of each second away from the expected
    time, whatever the time between two actions is: where the path is slower than this, the clock decides alone.
    gripper_m: of a gripper that was told otherwise.
    """

    rotation_m_per_rad: float = 0.1
    clock_m_per_s: float = 0.02
    gripper_m: float = 0.05


@dataclass(frozen=True)
class Reach:
    """Poses that a command may skip to: no further than `max_m` and `max_rad` from the measured pose [4, 4]."""

    measured: NDArray[np.float64]
    max_m: float
    max_rad: float

    def holds(self, poses: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return [N] whether each of the poses [N, 4, 4] lies within reach."""
        away_m = np.linalg.norm(poses[:, :3, 3] - self.measured[:3, 3], axis=1)
        away_rad = Rotation.from_matrix(poses[:, :3, :3] @ self.measured[:3, :3].T).magnitude()
        return (away_m <= self.max_m) & (away_rad <= self.max_rad)


def joining_ns(
    chunk: PoseTrajectory,
    told: NDArray[np.float64],
    *,
    executed_ns: int,
    gripper_at_image: float,
    gripper_told: float,
    undecided: tuple[float, float] = (0.5, 0.5),
    substeps: int = 1,
    weights: JoinWeights | None = None,
    reach: Reach | None = None,
) -> int:
    """Return the time of the chunk's own clock at which it continues the commanded motion.

    Of all times at which an action begins it is the one that minimises

        |p(t) - p(told)| + w_r * angle(R(t), R(told)) + w_c * |t - executed_ns| + w_g * [gripper opposed]

    chunk: anchored at the pose commanded when the image was taken. told: [4, 4] pose commanded now.
    executed_ns: how long the arm has executed actions since the image; 0 where it stood still.
    gripper_at_image, gripper_told: the opening by which the gripper was decided then and now (0 closed, 1 open), see
        `deciding_opening`, and not the one that is commanded: a gripper that has closed stays closed where the policy
        hovers afterwards. One within `undecided` says that nothing has decided it yet, and opposes nothing.
    undecided: openings from the first to the second leave the gripper as it is, see GripperHysteresis. A policy that
        hovers there opposes nothing, and must not send the arm back to where it hovered otherwise.
    substeps: more than 1 looks at this many equal parts of each action, and at executed_ns itself, for commands that
        are not bound to whole actions.
    reach: beyond it the chunk is entered no later than at `executed_ns`, so that it leads a blocked arm no further than
        by the clock. None: the chunk may be entered anywhere, for an arm that cannot stay behind.
    """
    if substeps < 1:
        raise ValueError(f"substeps must be at least 1, got {substeps}")
    weights = weights or JoinWeights()
    knots_ns = np.concatenate([np.array([chunk.anchor_ns], dtype=np.int64), chunk.times_ns])  # [T + 1]
    parts = np.arange(substeps) / substeps
    times_ns = (knots_ns[:-1, None] + np.rint(np.diff(knots_ns)[:, None] * parts).astype(np.int64)).reshape(-1)
    if substeps > 1 and executed_ns < chunk.end_ns - chunk.anchor_ns:  # where chunks agree there is nothing to correct
        times_ns = np.union1d(times_ns, chunk.anchor_ns + executed_ns)
    poses, _ = chunk.sample_many(times_ns)
    # Between two actions the one before is in effect, in the middle of an action its own.
    openings = chunk.gripper[np.searchsorted(chunk.times_ns, times_ns, side="left")]
    openings[0] = gripper_at_image
    cost = np.linalg.norm(poses[:, :3, 3] - told[:3, 3], axis=1)
    cost += weights.rotation_m_per_rad * Rotation.from_matrix(poses[:, :3, :3] @ told[:3, :3].T).magnitude()
    cost += weights.clock_m_per_s * np.abs(times_ns - chunk.anchor_ns - executed_ns) / NS_PER_S
    cost += weights.gripper_m * (_decisions(openings, undecided) * _decisions(np.array([gripper_told]), undecided) < 0)
    if reach is not None:
        cost[(times_ns - chunk.anchor_ns > executed_ns) & ~reach.holds(poses)] = np.inf
    return int(times_ns[np.argmin(cost)])


def deciding_opening(
    paths: Iterable[PoseTrajectory], at_ns: int, before: float, undecided: tuple[float, float]
) -> float:
    """Return the last opening up to `at_ns` that decided the gripper; `before` where none of the paths' did.

    paths: oldest first, each executed until the next one begins. undecided: as in `joining_ns`.
    """
    executed: list[NDArray[np.float64]] = []
    until_ns = at_ns
    for path in reversed(list(paths)):
        if path.anchor_ns <= until_ns:
            executed.append(path.gripper[: int(np.searchsorted(path.times_ns, until_ns, side="left")) + 1])
            until_ns = path.anchor_ns - 1
    openings = np.concatenate([[before], *reversed(executed)])
    deciding = openings[(openings < undecided[0]) | (openings > undecided[1])]
    return float(deciding[-1]) if len(deciding) else before


def _decisions(openings: NDArray[np.float64], undecided: tuple[float, float]) -> NDArray[np.int64]:
    """Return [N] what a gripper does at each of the openings [N] in turn: 1 opens, -1 closes, 0 not decided so far."""
    decided = (openings > undecided[1]).astype(np.int64) - (openings < undecided[0])
    last = np.maximum.accumulate(np.where(decided != 0, np.arange(len(decided)), 0))
    return decided[last]


def entered(chunk: PoseTrajectory, at_ns: int, start_ns: int) -> PoseTrajectory:
    """Return what is left of the chunk at `at_ns` of its own clock, moved in time so that this begins at `start_ns`.

    The image's stamp stays what it is: a chunk does not get younger by beginning later. Raises ValueError where nothing
    is left at that time.
    """
    if not chunk.anchor_ns <= at_ns < chunk.end_ns:
        raise ValueError(
            f"the chunk runs from {chunk.anchor_ns} ns to {chunk.end_ns} ns, it cannot be entered at {at_ns} ns"
        )
    rest = chunk.after(at_ns)
    assert rest is not None  # at_ns lies before its end
    return replace(rest, times_ns=rest.times_ns + (start_ns - at_ns), anchor_ns=start_ns)
