"""Checks of a trajectory before an arm follows it. Pure functions: a trajectory in, a verdict with reasons out.

The rule is to reject, not to clamp: a pose outside the workspace means the policy is wrong about the scene, and moving
to the nearest allowed one would follow it in its error. The repairs are slowing down, which keeps the path, and, where
`workspace_cut_m` allows it, sliding along a border that work is done at, such as a table.

Not certified for functional safety: the arm's own limits, its controller's and the emergency stop stay necessary.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.robot.conventions import pose_distance
from sqap_vla_ros.robot.joint_trajectory import CubicPeaks, JointTrajectoryArrays, ToolMotion
from sqap_vla_ros.robot.kinematics import ArmKinematics
from sqap_vla_ros.robot.trajectory import PoseTrajectory


class Decision(enum.Enum):
    """Treatment of a trajectory."""

    ACCEPT = "accept"
    SLOW_DOWN = "slow down"
    REJECT = "reject"


class Code(enum.Enum):
    """Kinds of reasons for a verdict other than a plain ACCEPT."""

    NON_FINITE = "non-finite"
    NOT_A_POSE = "not a pose"
    WORKSPACE = "workspace"
    STEP_JUMP = "step jump"
    START_JUMP = "start jump"
    JOINT_LIMIT = "joint limit"
    VELOCITY = "velocity"
    ACCELERATION = "acceleration"
    JERK = "jerk"


@dataclass(frozen=True)
class Verdict:
    """Decision about a trajectory. reasons: (code, text) each; time_scale: >= 1, for `PoseTrajectory.slowed`.

    segment_scales: [T - 1] >= 1 where slowing down these segments alone is enough, for `PoseTrajectory.stretched`.
    """

    decision: Decision
    reasons: tuple[tuple[Code, str], ...] = ()
    time_scale: float = 1.0
    segment_scales: NDArray[np.float64] | None = None

    @property
    def text(self) -> str:
        return "; ".join(text for _, text in self.reasons)


ACCEPTED = Verdict(Decision.ACCEPT)
MAX_SCALE_ITERATIONS = 50
# Joints that move evenly lead the tool along an arc: between two poses of the workspace it may be outside by so much.
BETWEEN_POINTS_M = 0.005


@dataclass(frozen=True)
class SafetyLimits:
    """Limits on tool motion in the base frame; `check` applies them.

    workspace_min_m, workspace_max_m: corners of the box the tool's origin stays in. A box is convex: the straight
        lines between poses inside stay inside.
    workspace_cut_m: `slid` takes so much from a motion that leads out of the box; more is rejected.
    max_linear_*, max_angular_*: m/s, m/s^2, m/s^3 and rad/s, rad/s^2, rad/s^3.
    max_step_m, max_step_rad: between two neighbouring poses; beyond it slowing down is no answer.
    max_start_m, max_start_rad: between the measured pose and where the trajectory starts.
    max_joint_velocity, max_joint_acceleration, max_joint_jerk: rad/s, rad/s^2, rad/s^3 (m for a sliding joint) of any
        joint, on top of the URDF's own limits. Most URDFs state no acceleration; then this is the only one.
    joint_margin: distance kept from every joint's limits, rad or m.
    hard_ratio: a trajectory that would have to be slowed by more than this is rejected.
    """

    workspace_min_m: tuple[float, float, float] = (0.15, -0.6, 0.0)
    workspace_max_m: tuple[float, float, float] = (0.85, 0.6, 0.8)
    workspace_cut_m: float = 0.0
    max_linear_velocity: float = 0.4
    max_linear_acceleration: float = 4.0
    max_linear_jerk: float = 200.0
    max_angular_velocity: float = 1.5
    max_angular_acceleration: float = 15.0
    max_angular_jerk: float = 750.0
    max_step_m: float = 0.1
    max_step_rad: float = 0.5
    max_start_m: float = 0.15
    max_start_rad: float = 0.8
    max_joint_velocity: float = 2.0
    max_joint_acceleration: float = 40.0
    max_joint_jerk: float = 4000.0
    joint_margin: float = 0.02
    hard_ratio: float = 3.0

    def __post_init__(self) -> None:
        low, high = np.asarray(self.workspace_min_m), np.asarray(self.workspace_max_m)
        if low.shape != (3,) or high.shape != (3,) or not (low < high).all():
            raise ValueError(
                f"workspace_min_m must be below workspace_max_m on every axis, got {self.workspace_min_m} and "
                f"{self.workspace_max_m}"
            )
        for name in (entry.name for entry in fields(self) if entry.name.startswith("max_")):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("joint_margin", "workspace_cut_m"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.hard_ratio >= 1.0:
            raise ValueError(f"hard_ratio must be at least 1, got {self.hard_ratio}")

    def slid(self, trajectory: PoseTrajectory) -> PoseTrajectory:
        """Return the same motion, stopped at the borders of the workspace and going on along them.

        Each pose is kept inside and the next begins there, as with a controller that saturates. Unchanged where more
        than `workspace_cut_m` would have to be taken away, or nothing: `check` then says what is wrong.
        """
        wanted, low, high = trajectory.poses[:, :3, 3], self.workspace_min_m, self.workspace_max_m
        if not (self.workspace_cut_m > 0.0 and np.isfinite(wanted).all()):
            return trajectory
        inside, offset = np.empty_like(wanted), np.zeros(3)
        for step, position in enumerate(wanted):
            inside[step] = np.clip(position + offset, low, high)
            offset = inside[step] - position
        cut_m = float(np.abs(inside - wanted).max())
        if not 0.0 < cut_m <= self.workspace_cut_m:
            return trajectory
        poses = trajectory.poses.copy()
        poses[:, :3, 3] = inside
        return replace(trajectory, poses=poses)

    def check(
        self,
        trajectory: PoseTrajectory,
        measured: NDArray[np.float64],
        measured_twist: NDArray[np.float64] | None = None,
    ) -> Verdict:
        """Judge whether an arm at the pose `measured` [4, 4] may follow `trajectory`, which starts at its anchor.

        measured_twist: [6] velocity now (m/s, rad/s, base axes); None when unknown, then the acceleration into the
            trajectory is not judged.
        Velocities are those of the segments. Accelerations and jerks are differences on a grid of the longest
        segment: the corners of a chunk are judged at the time scale of its steps, however finely a blend divides it.
        The stop at the end is not judged: the next chunk replaces it, or else the controller shapes it.
        """
        unusable = _content(trajectory, measured, measured_twist)
        if unusable is not None:
            return unusable
        reasons = self._outside_workspace(trajectory) + self._jumps(trajectory, measured)
        if reasons:
            return Verdict(Decision.REJECT, tuple(reasons))
        return self._slowed_enough(_peaks(trajectory, measured_twist))

    def joint_acceleration(self, arm: ArmKinematics) -> NDArray[np.float64]:
        """Return the acceleration limit [n] of the joints: the URDF's, if it states one, and max_joint_acceleration."""
        return np.minimum(arm.acceleration_limit, self.max_joint_acceleration)

    def check_joints(self, joints: JointTrajectoryArrays, arm: ArmKinematics) -> Verdict:
        """Judge the cubic that a controller draws through `joints`, at its peaks and from its first point on.

        Positions stay within the URDF's limits less `joint_margin`; speed, acceleration and jerk (as `CubicPeaks`
        defines it) within the URDF's and this object's limits. The tool, at every moment, stays in the workspace and
        within its linear and angular speed; a motion that starts outside or faster gets no further out and no faster.
        Where only the tool is too fast, only the segments in which it is need to take longer. The scales are a first
        guess, for slowing down does not change the speed at the start, nor one segment that of its neighbours in
        proportion: check again after it.
        """
        if not (np.isfinite(joints.positions).all() and np.isfinite(joints.velocities).all()):
            return _reject(Code.NON_FINITE, "the joint trajectory is not finite")
        peaks = joints.peaks()
        # A margin is asked of where the arm goes; an arm already inside it may come back out.
        start = joints.positions[0]
        low = np.minimum(arm.lower + self.joint_margin, np.maximum(start, arm.lower)) - 1e-9
        high = np.maximum(arm.upper - self.joint_margin, np.minimum(start, arm.upper)) + 1e-9
        outside = (peaks.low < low) | (peaks.high > high)
        if outside.any():
            step, joint = (int(index) for index in np.argwhere(outside)[0])
            value = peaks.low[step, joint] if peaks.low[step, joint] < low[joint] else peaks.high[step, joint]
            return _reject(
                Code.JOINT_LIMIT,
                f"step {step}: {joints.joint_names[joint]} = {value:.3f} is outside "
                f"[{low[joint]:.3f}, {high[joint]:.3f}]",
            )
        tool = arm.tool_motion(joints)
        if (astray := self._astray_between_points(tool)) is not None:
            return _reject(Code.WORKSPACE, astray)
        of_joints, of_tool = self._joint_rates(peaks, joints.joint_names, arm), self._tool_speeds(tool)
        needed = of_joints + of_tool
        if not needed:
            return ACCEPTED
        scales = np.maximum.reduce([scale for scale, _, _ in needed])
        scales = np.where(scales > 1.0, scales * (1.0 + 1e-4), 1.0)  # times are rounded
        reasons = tuple((code, text) for _, code, text in needed)
        if scales.max() > self.hard_ratio:
            return Verdict(Decision.REJECT, reasons)
        return Verdict(Decision.SLOW_DOWN, reasons, float(scales.max()), None if of_joints else scales)

    def _joint_rates(
        self, peaks: CubicPeaks, names: tuple[str, ...], arm: ArmKinematics
    ) -> list[tuple[NDArray[np.float64], Code, str]]:
        """Return (time scale [T - 1] that it needs, code, text) of each limit on the joints that is exceeded."""
        needed = []
        # What leaps at a point falls with the square of the time, and is all of the jerk where that is large.
        for order, power, code, values, limit in (
            (1, 1, Code.VELOCITY, peaks.speed, np.minimum(arm.velocity_limit, self.max_joint_velocity)),
            (2, 2, Code.ACCELERATION, peaks.acceleration, self.joint_acceleration(arm)),
            (3, 2, Code.JERK, peaks.jerk, np.full(len(names), self.max_joint_jerk)),
        ):
            step, joint = divmod(int(np.argmax(values / limit)), len(names))
            ratio = float(values[step, joint] / limit[joint])
            if ratio <= 1.0 + 1e-6:
                continue
            unit = "per second" + (f"^{order}" if order > 1 else "")
            text = (
                f"step {step}: the {code.value} of {names[joint]} would reach {values[step, joint]:.2f}, its limit is "
                f"{limit[joint]:.2f} {unit}"
            )
            needed.append((np.full(len(values), ratio ** (1.0 / power)), code, text))
        return needed

    def _tool_speeds(self, tool: ToolMotion) -> list[tuple[NDArray[np.float64], Code, str]]:
        """Return the same of the limits on the tool's speed, at the peaks between the points."""
        needed = []
        for kind, unit, speeds, limit in (
            ("linear", "m/s", tool.linear, self.max_linear_velocity),
            ("angular", "rad/s", tool.angular, self.max_angular_velocity),
        ):
            peaks = speeds.max(axis=1)
            step = int(np.argmax(peaks))
            fastest = float(peaks[step])
            if fastest > max(limit, float(speeds[0, 0])) * (1.0 + 1e-6):
                text = (
                    f"step {step}: the tool's {kind} velocity would reach {fastest:.2f}, its limit is {limit:g} {unit}"
                )
                needed.append((np.maximum(peaks / limit, 1.0), Code.VELOCITY, text))
        return needed

    def _astray_between_points(self, tool: ToolMotion) -> str | None:
        """Return where the tool would be outside the workspace, or None."""
        positions, start = tool.positions, tool.positions[0, 0]
        low = np.minimum(self.workspace_min_m, start) - BETWEEN_POINTS_M
        high = np.maximum(self.workspace_max_m, start) + BETWEEN_POINTS_M
        outside = ((positions < low) | (positions > high)).any(axis=2)
        if not outside.any():
            return None
        step, moment = (int(index) for index in np.argwhere(outside)[0])
        xyz = ", ".join(f"{c:.3f}" for c in positions[step, moment])
        return (
            f"step {step}: between two points the tool would pass ({xyz}) m, more than {BETWEEN_POINTS_M * 1e3:g} mm "
            f"outside the workspace {self.workspace_min_m} to {self.workspace_max_m}"
        )

    def _outside_workspace(self, trajectory: PoseTrajectory) -> list[tuple[Code, str]]:
        low, high = np.asarray(self.workspace_min_m), np.asarray(self.workspace_max_m)
        positions = trajectory.poses[:, :3, 3]
        outside = ((positions < low) | (positions > high)).any(axis=1)
        if not outside.any():
            return []
        step = int(np.argmax(outside))
        xyz = ", ".join(f"{c:.3f}" for c in positions[step])
        return [
            (
                Code.WORKSPACE,
                f"step {step}: ({xyz}) m is outside the workspace {self.workspace_min_m} to {self.workspace_max_m}",
            )
        ]

    def _jumps(self, trajectory: PoseTrajectory, measured: NDArray[np.float64]) -> list[tuple[Code, str]]:
        reasons = []
        away_m, away_rad = pose_distance(trajectory.anchor, measured)
        if away_m > self.max_start_m or away_rad > self.max_start_rad:
            reasons.append(
                (
                    Code.START_JUMP,
                    f"the trajectory starts {away_m:.3f} m and {away_rad:.2f} rad from the arm; allowed are "
                    f"{self.max_start_m:g} m and {self.max_start_rad:g} rad",
                )
            )
        durations_s = np.diff(trajectory.times_ns, prepend=trajectory.anchor_ns) / NS_PER_S
        step_m, step_rad = (np.linalg.norm(v, axis=1) * durations_s for v in trajectory.segment_velocities())
        too_far = (step_m > self.max_step_m) | (step_rad > self.max_step_rad)
        if too_far.any():
            step = int(np.argmax(too_far))
            reasons.append(
                (
                    Code.STEP_JUMP,
                    f"step {step} moves {step_m[step]:.3f} m and {step_rad[step]:.2f} rad; allowed are "
                    f"{self.max_step_m:g} m and {self.max_step_rad:g} rad",
                )
            )
        return reasons

    def _slowed_enough(self, peaks: Callable[[float], list[Peak]]) -> Verdict:
        """Return the smallest time scale that satisfies every limit, found by repeating its closed form.

        Stretching time by s divides velocity by s, acceleration by s^2, jerk by s^3, were it not for the measured
        velocity at the start, which stretching does not change; hence the repetition.
        """
        found = [(peak, self._ratio(peak)) for peak in peaks(1.0)]
        reasons = tuple((peak.code, self._text(peak)) for peak, ratio in found if ratio > 1.0)
        if not reasons:
            return ACCEPTED
        scale = 1.0
        for _ in range(MAX_SCALE_ITERATIONS):
            needed = max(self._ratio(peak) ** (1.0 / peak.order) for peak in peaks(scale))
            if needed <= 1.0:
                return Verdict(Decision.SLOW_DOWN, reasons, scale)
            scale *= needed * (1.0 + 1e-6)
            if scale > self.hard_ratio:
                break
        worst, _ = max(found, key=lambda entry: entry[1])
        text = f"it would have to be slowed {scale:.1f} times or more; the hard limit is {self.hard_ratio:g}"
        return Verdict(Decision.REJECT, (*reasons, (worst.code, text)))

    def _ratio(self, peak: Peak) -> float:
        return peak.value / float(getattr(self, f"max_{peak.kind}_{peak.code.value}"))

    def _text(self, peak: Peak) -> str:
        limit = float(getattr(self, f"max_{peak.kind}_{peak.code.value}"))
        unit = ("m" if peak.kind == "linear" else "rad") + "/s" + (f"^{peak.order}" if peak.order > 1 else "")
        return f"{peak.kind} {peak.code.value} {peak.value:.2f} is above {limit:g} {unit}"


@dataclass(frozen=True)
class Peak:
    """The largest norm of one derivative of the motion. kind: linear or angular; order: 1 velocity, 2, 3 jerk."""

    kind: str
    code: Code
    order: int
    value: float


def _peaks(trajectory: PoseTrajectory, measured_twist: NDArray[np.float64] | None) -> Callable[[float], list[Peak]]:
    """Return a function of the time scale for the peaks of the tool's velocity, acceleration and jerk."""
    segments = trajectory.segment_velocities()
    step_ns = int(np.diff(trajectory.times_ns, prepend=trajectory.anchor_ns).max())
    grid_ns = np.arange(trajectory.anchor_ns, trajectory.end_ns + 1, step_ns)
    poses, _ = trajectory.sample_many(grid_ns)
    on_grid = PoseTrajectory(grid_ns[1:], poses[1:], np.zeros(len(grid_ns) - 1), poses[0], 0, int(grid_ns[0]))
    coarse = on_grid.segment_velocities()
    step_s = step_ns / NS_PER_S

    def at_scale(scale: float) -> list[Peak]:
        peaks = []
        for axis, kind in enumerate(("linear", "angular")):
            peaks.append(Peak(kind, Code.VELOCITY, 1, _largest(segments[axis]) / scale))
            velocity = coarse[axis] / scale
            spacing_s = np.full(len(velocity) - 1, step_s * scale)  # between the middles of the grid's intervals
            if measured_twist is not None:
                velocity = np.concatenate([measured_twist[None, 3 * axis : 3 * axis + 3], velocity])
                spacing_s = np.concatenate([[0.5 * step_s * scale], spacing_s])
            acceleration = np.diff(velocity, axis=0) / spacing_s[:, None]
            jerk = np.diff(acceleration, axis=0) / (0.5 * (spacing_s[1:] + spacing_s[:-1]))[:, None]
            peaks.append(Peak(kind, Code.ACCELERATION, 2, _largest(acceleration)))
            peaks.append(Peak(kind, Code.JERK, 3, _largest(jerk)))
        return peaks

    return at_scale


def _largest(vectors: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(vectors, axis=1).max(initial=0.0))


def _reject(code: Code, text: str) -> Verdict:
    return Verdict(Decision.REJECT, ((code, text),))


def _content(
    trajectory: PoseTrajectory, measured: NDArray[np.float64], measured_twist: NDArray[np.float64] | None
) -> Verdict | None:
    """Reject what is not finite or not rigid; everything later computes with it."""
    if np.shape(measured) != (4, 4) or not np.isfinite(measured).all():
        return _reject(Code.NON_FINITE, "the measured pose of the tool is not a finite [4, 4] matrix")
    if measured_twist is not None and (np.shape(measured_twist) != (6,) or not np.isfinite(measured_twist).all()):
        return _reject(Code.NON_FINITE, f"the measured twist must be 6 finite numbers, got {measured_twist}")
    poses = np.concatenate([trajectory.anchor[None], trajectory.poses])
    if not (np.isfinite(poses).all() and np.isfinite(trajectory.gripper).all()):
        return _reject(Code.NON_FINITE, "the trajectory is not finite")
    rotations = poses[:, :3, :3]
    rigid = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max() < 1e-6
    if not rigid or (np.linalg.det(rotations) < 0).any() or (poses[:, 3] != [0.0, 0.0, 0.0, 1.0]).any():
        return _reject(Code.NOT_A_POSE, "the trajectory holds a matrix that is no rigid pose")
    return None
