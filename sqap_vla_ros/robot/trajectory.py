"""An action chunk anchored in space and time: deltas in, timed tool poses out, seams without jumps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from sqap_vla_ros.contracts import ACTION_DIM, NS_PER_S
from sqap_vla_ros.robot.conventions import rotation_from_rotvec, rotation_from_rpy


@dataclass(frozen=True)
class PoseTrajectory:
    """Tool poses in the base frame, each with the time at which it is due.

    times_ns: [T] int64, strictly increasing, all after `anchor_ns`.
    poses: [T, 4, 4] base_from_tool at these times.
    gripper: [T] opening while moving towards the pose of the same index (0 closed, 1 open).
    anchor: [4, 4] base_from_tool at `anchor_ns`; motion starts there.
    stamp_ns: time of the observation the trajectory was computed from.
    anchor_ns: time of `anchor`; `stamp_ns` for a fresh chunk, later once past steps were dropped.
    slowness: how many times as long as its actions it takes, on average.

    Between poses the origin moves on a straight line at constant speed and the orientation by slerp; before
    `anchor_ns` the tool is at the anchor, after the last pose it stays there. Shapes and times are checked here;
    whether the poses are finite and safe is for `SafetyLimits.check` to say.
    """

    times_ns: NDArray[np.int64]
    poses: NDArray[np.float64]
    gripper: NDArray[np.float64]
    anchor: NDArray[np.float64]
    stamp_ns: int
    anchor_ns: int
    slowness: float = 1.0

    def __post_init__(self) -> None:
        steps = self.times_ns.size
        if self.times_ns.dtype != np.int64 or self.times_ns.shape != (steps,) or steps == 0:
            raise ValueError(f"times_ns must be [T] int64, T > 0, got {self.times_ns.shape} of {self.times_ns.dtype}")
        if self.poses.shape != (steps, 4, 4) or self.anchor.shape != (4, 4) or self.gripper.shape != (steps,):
            raise ValueError(
                f"for {steps} times, poses must be [{steps}, 4, 4], gripper [{steps}] and anchor [4, 4]; got "
                f"{self.poses.shape}, {self.gripper.shape} and {self.anchor.shape}"
            )
        if (np.diff(self.times_ns, prepend=self.anchor_ns) <= 0).any():
            raise ValueError(f"times must increase from the anchor's {self.anchor_ns} ns, got {self.times_ns.tolist()}")

    def __len__(self) -> int:
        return len(self.times_ns)

    @property
    def end_ns(self) -> int:
        return int(self.times_ns[-1])

    @cached_property
    def _knots_s(self) -> NDArray[np.float64]:
        """Times [T + 1] from `anchor_ns`, seconds; subtracted in int64, where a stamp of today is exact."""
        return np.concatenate([[0.0], (self.times_ns - self.anchor_ns) / NS_PER_S])

    @cached_property
    def _positions(self) -> NDArray[np.float64]:
        return np.concatenate([self.anchor[None, :3, 3], self.poses[:, :3, 3]])  # [T + 1, 3]

    @cached_property
    def _rotations(self) -> NDArray[np.float64]:
        return np.concatenate([self.anchor[None, :3, :3], self.poses[:, :3, :3]])  # [T + 1, 3, 3]

    @cached_property
    def _turns(self) -> NDArray[np.float64]:
        """Rotation vectors [T, 3] of the segments, base axes."""
        rotations = self._rotations
        return Rotation.from_matrix(rotations[1:] @ rotations[:-1].transpose(0, 2, 1)).as_rotvec()

    def sample_many(self, times_ns: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return poses [N, 4, 4] and gripper openings [N] at any times [N] int64."""
        knots_s = self._knots_s
        since_s = np.clip((times_ns - self.anchor_ns) / NS_PER_S, 0.0, knots_s[-1])
        segment = np.minimum(np.searchsorted(knots_s, since_s, side="right"), len(self)) - 1
        share = (since_s - knots_s[segment]) / (knots_s[segment + 1] - knots_s[segment])
        begin = self._positions[segment]
        poses = np.zeros((len(since_s), 4, 4))
        poses[:, 3, 3] = 1.0
        poses[:, :3, :3] = rotation_from_rotvec(share[:, None] * self._turns[segment]) @ self._rotations[segment]
        poses[:, :3, 3] = begin + share[:, None] * (self._positions[segment + 1] - begin)
        under_way = np.minimum(np.searchsorted(self.times_ns, times_ns, side="left"), len(self) - 1)
        return poses, self.gripper[under_way]

    def sample(self, t_ns: int) -> tuple[NDArray[np.float64], float]:
        """Return pose [4, 4] and gripper opening at one time."""
        poses, gripper = self.sample_many(np.array([t_ns], dtype=np.int64))
        return poses[0], float(gripper[0])

    def twist(self, t_ns: int) -> NDArray[np.float64]:
        """Return the velocity [6] in the base frame at `t_ns`: m/s of the tool's origin, rad/s; zero outside."""
        if not self.anchor_ns <= t_ns < self.end_ns:
            return np.zeros(6)
        step = int(np.searchsorted(self.times_ns, t_ns, side="right"))
        return np.concatenate([v[step] for v in self.segment_velocities()])

    def segment_velocities(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return linear (m/s) and angular (rad/s, base axes) velocities [T, 3] of the segments anchor -> 0 -> 1 ..."""
        duration_s = np.diff(self._knots_s)[:, None]
        return np.diff(self._positions, axis=0) / duration_s, self._turns / duration_s

    def after(self, now_ns: int) -> PoseTrajectory | None:
        """Return what is still to come at `now_ns`; None when every step is past.

        Steps already past are dropped, never shifted: what remains is where and when it was, and the anchor becomes
        the pose that is due now. A trajectory that has not begun is returned as it is.
        """
        if now_ns <= self.anchor_ns:
            return self
        first = int(np.searchsorted(self.times_ns, now_ns, side="right"))
        if first == len(self):
            return None
        return replace(
            self,
            times_ns=self.times_ns[first:],
            poses=self.poses[first:],
            gripper=self.gripper[first:],
            anchor=self.sample(now_ns)[0],
            anchor_ns=now_ns,
        )

    def until(self, end_ns: int) -> PoseTrajectory | None:
        """Return the poses due by `end_ns`, without any the way towards the first one by then; None where it is past.

        After `slowed`, what ends within the open-loop limit. One pose may be due later than that on a very slow arm.
        """
        if end_ns <= self.anchor_ns:
            return None
        keep = int(np.searchsorted(self.times_ns, end_ns, side="right"))
        if keep == 0:
            pose, gripper = self.sample(end_ns)
            return replace(self, times_ns=np.array([end_ns]), poses=pose[None], gripper=np.array([gripper]))
        return replace(self, times_ns=self.times_ns[:keep], poses=self.poses[:keep], gripper=self.gripper[:keep])

    def divided_times_ns(self, longest_s: float) -> NDArray[np.int64]:
        """Return the due times, and others that part what lies between two of them so that no part is longer."""
        offsets_ns = np.concatenate([[0], self.times_ns - self.anchor_ns])
        parts = np.maximum(np.ceil(np.diff(offsets_ns) / (longest_s * NS_PER_S)), 1).astype(np.int64)
        spans = zip(offsets_ns[:-1], offsets_ns[1:], parts, strict=True)
        divided = np.concatenate([np.linspace(begin, end, count + 1)[1:] for begin, end, count in spans])
        return self.anchor_ns + np.rint(divided).astype(np.int64)

    def moved_by(self, ns: int) -> PoseTrajectory:
        """Return the same path, due so much later; sooner where `ns` is negative."""
        return replace(self, times_ns=self.times_ns + ns, anchor_ns=self.anchor_ns + ns)

    def slowed(self, time_scale: float) -> PoseTrajectory:
        """Return the same path from the anchor, every duration multiplied by `time_scale` >= 1."""
        if not 1.0 <= time_scale < np.inf:
            raise ValueError(f"time_scale must be at least 1 and finite (it only slows down), got {time_scale}")
        stretched = np.rint((self.times_ns - self.anchor_ns) * time_scale).astype(np.int64)
        return replace(self, times_ns=self.anchor_ns + stretched, slowness=self.slowness * time_scale)

    def stretched(self, knots_ns: NDArray[np.int64], scales: NDArray[np.float64]) -> PoseTrajectory:
        """Return the same path, in which each part takes `scales` >= 1 times as long.

        knots_ns: [K] from `anchor_ns` to `end_ns`, the borders of the parts; scales: [K - 1].
        """
        if knots_ns[0] != self.anchor_ns or knots_ns[-1] != self.end_ns or not (scales >= 1.0).all():
            raise ValueError(f"parts must be those of the whole path and none quicker, got {knots_ns} and {scales}")
        begun_ns = np.concatenate([[0.0], np.cumsum(np.diff(knots_ns) * scales)])
        stretched = np.interp(self.times_ns - self.anchor_ns, knots_ns - self.anchor_ns, begun_ns)
        slowness = self.slowness * float(begun_ns[-1] / (self.end_ns - self.anchor_ns))
        return replace(self, times_ns=self.anchor_ns + np.rint(stretched).astype(np.int64), slowness=slowness)


def anchor_chunk(deltas: ArrayLike, base_from_tool: ArrayLike, stamp_ns: int, dt_s: float) -> PoseTrajectory:
    """Integrate a chunk from the pose the arm had when the image was taken.

    deltas: [T, 7] as `ActionChunk.deltas`; the convention is `conventions.compose_delta`, one action after the other.
    base_from_tool: [4, 4] tool pose at `stamp_ns`, the stamp of the image and not of now.
    Raises ValueError for a misshapen or non-finite chunk or pose.
    """
    actions = np.asarray(deltas, dtype=np.float64)
    anchor = np.asarray(base_from_tool, dtype=np.float64)
    if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or len(actions) == 0:
        raise ValueError(f"a chunk must be [T, {ACTION_DIM}] with T > 0, got shape {actions.shape}")
    if not np.isfinite(actions).all():
        bad = int(np.argmin(np.isfinite(actions).all(axis=1)))
        raise ValueError(f"a chunk must be finite; step {bad} is {actions[bad].tolist()}")
    if anchor.shape != (4, 4) or not np.isfinite(anchor).all():
        raise ValueError(f"base_from_tool must be a finite [4, 4] pose, got {base_from_tool!r}")
    if not 0.0 < dt_s < np.inf:
        raise ValueError(f"dt_s must be positive and finite, got {dt_s}")
    poses = np.tile(np.eye(4), (len(actions), 1, 1))
    poses[:, :3, 3] = anchor[:3, 3] + np.cumsum(actions[:, :3], axis=0)
    rotation = anchor[:3, :3]
    for step, step_rotation in enumerate(rotation_from_rpy(actions[:, 3:6])):
        rotation = step_rotation @ rotation
        poses[step, :3, :3] = rotation
    # Each due time is rounded by itself, so that a dt that is no whole number of nanoseconds does not drift.
    times_ns = stamp_ns + np.rint(np.arange(1, len(actions) + 1) * (dt_s * NS_PER_S)).astype(np.int64)
    return PoseTrajectory(times_ns, poses, actions[:, 6].copy(), anchor.copy(), stamp_ns, stamp_ns)


def hold(base_from_tool: NDArray[np.float64], gripper: float, now_ns: int) -> PoseTrajectory:
    """Stay where the tool is. `blend(hold(measured, ...), first_chunk, ...)` is the ramp on the first commands."""
    times_ns = np.array([now_ns + 1], dtype=np.int64)
    return PoseTrajectory(
        times_ns, base_from_tool[None].copy(), np.array([gripper]), base_from_tool.copy(), now_ns, now_ns
    )


def under_way(paths: Sequence[PoseTrajectory], at_ns: int) -> PoseTrajectory | None:
    """Return the path that is executed at a moment: of those that have begun the last one, or else the first."""
    begun = [path for path in paths if path.anchor_ns <= at_ns]
    return begun[-1] if begun else next(iter(paths), None)


def since(paths: Sequence[PoseTrajectory], at_ns: int) -> Sequence[PoseTrajectory]:
    """Return those of `paths`, each executed until the next one begins, that were under way at `at_ns` or later."""
    return paths[max(sum(path.anchor_ns <= at_ns for path in paths) - 1, 0) :]


def interrupted(paths: Sequence[PoseTrajectory], at_ns: int, pause_ns: int) -> list[PoseTrajectory]:
    """Return `paths`, each executed until the next one begins, with a pause from `at_ns` on.

    The tool stands where it is then, and goes on `pause_ns` later with all that is left. Less than nothing is the pause
    of a clock that was set back.
    """
    begun = [path for path in paths if path.anchor_ns <= at_ns]
    left = [path.moved_by(pause_ns) for path in paths if path.anchor_ns > at_ns]
    if begun and (rest := begun[-1].after(at_ns)) is not None:
        pose, gripper = begun[-1].sample(at_ns)
        left.insert(0, rest.moved_by(pause_ns))
        if pause_ns > 0:
            left.insert(0, hold(pose, gripper, at_ns))
    return [*begun, *left]


def _halve_gaps(times_ns: NDArray[np.int64], start_ns: int, end_ns: int, wanted_ns: float) -> NDArray[np.int64]:
    """Return `times_ns` with a knot in the middle of every gap that begins within [start, end) and is too long.

    A blend from rest is up to twice as fast as the chunk itself: whole steps of it would be too long to be checked and
    to be solved for joints.
    """
    begins_ns = np.concatenate([np.array([start_ns], dtype=np.int64), times_ns[:-1]])
    long = (begins_ns < end_ns) & (times_ns - begins_ns > 1.2 * wanted_ns)
    return np.union1d(times_ns, ((begins_ns + times_ns) // 2)[long])


# Poses inserted in a blend: enough to follow the smooth ratio, but not so close together that a controller would turn
# the corners of the chunk itself sharper inside a blend than outside.
MAX_BLEND_KNOTS = 8
BLEND_KNOTS_PER_STEP = 2


def blend(old: PoseTrajectory, new: PoseTrajectory, now_ns: int, blend_s: float) -> PoseTrajectory | None:
    """Leave `old` now and be on `new` after `blend_s`, or at its step next to that; None when all of `new` is past.

    The pose goes from old(t) to new(t), straight in position and by slerp in orientation, by a ratio that rises from 0
    to 1 as 10x^3 - 15x^4 + 6x^5, whose velocity and acceleration vanish at both ends. Both trajectories keep moving
    while it rises, so a seam between two chunks that agree changes nothing. The gripper follows `new` at once.
    However short `blend_s` is, the trajectory begins at old(now): the command does not jump, it goes to the next step
    of `new` at a speed that `SafetyLimits.check` judges. Zero alone means to be on `new` at once, jump included.
    """
    if not 0.0 <= blend_s < np.inf:
        raise ValueError(f"blend_s must be finite and not negative, got {blend_s}")
    remaining = new.after(now_ns)
    if remaining is None:
        return None
    if blend_s == 0.0:
        return remaining
    start_ns = max(now_ns, remaining.anchor_ns)
    step_ns = (new.end_ns - new.anchor_ns) / len(new)
    blend_ns = max(round(blend_s * NS_PER_S), 1)
    knots = min(round(BLEND_KNOTS_PER_STEP * blend_ns / step_ns), MAX_BLEND_KNOTS)
    window_ns = start_ns + np.linspace(0, blend_ns, knots + 1)[1:].astype(np.int64)
    shortest_ns = blend_ns / max(2 * knots, 1)
    # The step that comes next may be due at once: joints that have a speed cannot take on another one in no time. What
    # is commanded so soon is the old path in any case.
    at_once = remaining.times_ns - start_ns < min(shortest_ns, step_ns / (2 * BLEND_KNOTS_PER_STEP))
    at_once[-1] = False
    steps_ns = remaining.times_ns[~at_once]
    # A knot next to a step that exists would make a segment too short to have a meaningful velocity.
    near_a_step = np.abs(window_ns[:, None] - steps_ns[None]).min(axis=1) < shortest_ns
    times_ns = np.union1d(window_ns[~near_a_step], steps_ns)
    times_ns = _halve_gaps(times_ns, start_ns, start_ns + blend_ns, step_ns / BLEND_KNOTS_PER_STEP)
    knots_ns = np.concatenate([np.array([start_ns], dtype=np.int64), times_ns])
    old_poses, _ = old.sample_many(knots_ns)
    new_poses, gripper = new.sample_many(knots_ns)
    x = np.clip((knots_ns - start_ns) / blend_ns, 0.0, 1.0)
    ratio = x**3 * (10.0 - 15.0 * x + 6.0 * x**2)  # [N]
    poses = new_poses.copy()
    poses[:, :3, 3] = old_poses[:, :3, 3] + ratio[:, None] * (new_poses[:, :3, 3] - old_poses[:, :3, 3])
    to_new = Rotation.from_matrix(new_poses[:, :3, :3] @ old_poses[:, :3, :3].transpose(0, 2, 1)).as_rotvec()
    poses[:, :3, :3] = Rotation.from_rotvec(ratio[:, None] * to_new).as_matrix() @ old_poses[:, :3, :3]
    return PoseTrajectory(times_ns, poses[1:], gripper[1:], poses[0], new.stamp_ns, start_ns, new.slowness)
