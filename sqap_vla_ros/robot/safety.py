"""What a trajectory must satisfy before an arm follows it. Pure functions: a trajectory in, a verdict with reasons out.

The rule is to reject, not to clamp: a pose outside the workspace means the policy is wrong about the scene, and moving
to the nearest allowed one would follow it in its error. The one repair is slowing down, which keeps the path.

Not certified for functional safety: the arm's own limits, its controller's and the emergency stop stay necessary.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sqap_vla_ros.contracts import ACTION_DIM
from sqap_vla_ros.robot.conventions import pose_distance
from sqap_vla_ros.robot.kinematics import ArmKinematics, JointTrajectoryArrays
from sqap_vla_ros.robot.trajectory import NS_PER_S, PoseTrajectory


class Decision(enum.Enum):
    """What to do with a trajectory."""

    ACCEPT = "accept"
    SLOW_DOWN = "slow down"
    REJECT = "reject"


class Code(enum.Enum):
    """Why a verdict is not a plain ACCEPT."""

    MISSHAPEN = "misshapen"
    NON_FINITE = "non-finite"
    NOT_A_POSE = "not a pose"
    WORKSPACE = "workspace"
    STEP_JUMP = "step jump"
    START_JUMP = "start jump"
    TRACKING_ERROR = "tracking error"
    JOINT_LIMIT = "joint limit"
    VELOCITY = "velocity"
    ACCELERATION = "acceleration"
    JERK = "jerk"


@dataclass(frozen=True)
class Verdict:
    """decision; reasons: (code, text) each; time_scale: >= 1, by which `PoseTrajectory.slowed` makes it acceptable."""

    decision: Decision
    reasons: tuple[tuple[Code, str], ...] = ()
    time_scale: float = 1.0

    @property
    def text(self) -> str:
        return "; ".join(text for _, text in self.reasons)


ACCEPTED = Verdict(Decision.ACCEPT)


@dataclass(frozen=True)
class ArmState:
    """What is measured of the arm when a trajectory is checked.

    base_from_tool: [4, 4] measured tool pose.
    twist: [6] measured velocity (m/s, rad/s, base axes); None when unknown, then the acceleration into the first
        segment is not judged.
    """

    base_from_tool: NDArray[np.float64]
    twist: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class SafetyLimits:
    """Limits on tool motion in the base frame; `check` applies them.

    workspace_min_m, workspace_max_m: corners of the box the tool's origin stays in. A box is convex: the straight
        lines between poses inside stay inside.
    max_linear_*, max_angular_*: m/s, m/s^2, m/s^3 and rad/s, rad/s^2, rad/s^3.
    max_step_m, max_step_rad: between two neighbouring poses; beyond it slowing down is no answer.
    max_start_m, max_start_rad: between the measured pose and where the trajectory starts.
    max_tracking_m, max_tracking_rad: between the measured pose and the commanded one while moving.
    joint_margin: distance kept from every joint's limits, rad or m.
    hard_ratio: a trajectory that would have to be slowed by more than this is rejected.
    """

    workspace_min_m: tuple[float, float, float] = (-1.0, -1.0, -0.05)
    workspace_max_m: tuple[float, float, float] = (1.0, 1.0, 1.2)
    max_linear_velocity: float = 0.5
    max_linear_acceleration: float = 4.0
    max_linear_jerk: float = 60.0
    max_angular_velocity: float = 1.5
    max_angular_acceleration: float = 15.0
    max_angular_jerk: float = 250.0
    max_step_m: float = 0.1
    max_step_rad: float = 0.5
    max_start_m: float = 0.15
    max_start_rad: float = 0.6
    max_tracking_m: float = 0.05
    max_tracking_rad: float = 0.3
    joint_margin: float = 0.0
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
        if not self.joint_margin >= 0.0:
            raise ValueError(f"joint_margin must not be negative, got {self.joint_margin}")
        if not self.hard_ratio >= 1.0:
            raise ValueError(f"hard_ratio must be at least 1, got {self.hard_ratio}")

    def check_chunk(self, deltas: ArrayLike, horizon: int | None = None) -> Verdict:
        """The policy's raw answer, before anything is computed from it: shape [T, 7] (T = horizon if given), finite."""
        try:
            actions = np.asarray(deltas, dtype=np.float64)
        except (TypeError, ValueError) as error:
            return _reject(Code.MISSHAPEN, f"the chunk is not an array of numbers: {error}")
        steps = f"{horizon}" if horizon else "T"
        if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or len(actions) != (horizon or len(actions) or 1):
            return _reject(Code.MISSHAPEN, f"the chunk is {list(actions.shape)}, expected [{steps}, {ACTION_DIM}]")
        finite = np.isfinite(actions).all(axis=1)
        if not finite.all():
            bad = int(np.argmin(finite))
            return _reject(Code.NON_FINITE, f"step {bad} of the chunk is not finite: {actions[bad].tolist()}")
        return ACCEPTED

    def check(self, trajectory: PoseTrajectory, state: ArmState) -> Verdict:
        """Whether the arm in `state` may follow `trajectory`, which starts at its anchor.

        Accelerations and jerks are differences of the segments' mean velocities; the stop at the end is not judged,
        for the next chunk replaces it and the controller shapes it otherwise. Every reason found is reported.
        """
        shape = _content(trajectory, state)
        if shape is not None:
            return shape
        reasons = self._outside_workspace(trajectory) + self._jumps(trajectory, state)
        if reasons:
            return Verdict(Decision.REJECT, tuple(reasons))
        return self._slowed_enough(lambda scale: self._tool_excess(trajectory, state, scale))

    def check_joints(self, joints: JointTrajectoryArrays, q_start: NDArray[np.float64], arm: ArmKinematics) -> Verdict:
        """Joint positions within the URDF's limits less `joint_margin`, joint speeds within its velocity limits."""
        if not (np.isfinite(joints.positions).all() and np.isfinite(joints.velocities).all()):
            return _reject(Code.NON_FINITE, "the joint trajectory is not finite")
        # A margin is asked of where the arm goes; an arm already inside it may come back out.
        low = np.minimum(arm.lower + self.joint_margin, np.maximum(q_start, arm.lower)) - 1e-9
        high = np.maximum(arm.upper - self.joint_margin, np.minimum(q_start, arm.upper)) + 1e-9
        outside = (joints.positions < low) | (joints.positions > high)
        if outside.any():
            step, joint = (int(index) for index in np.argwhere(outside)[0])
            return _reject(
                Code.JOINT_LIMIT,
                f"step {step}: {joints.joint_names[joint]} = {joints.positions[step, joint]:.3f} is outside "
                f"[{low[joint]:.3f}, {high[joint]:.3f}]",
            )
        durations_s = np.diff(joints.times_from_stamp_ns, prepend=0)[:, None] / NS_PER_S
        moved = np.abs(np.diff(joints.positions, axis=0, prepend=q_start[None])) / durations_s
        speed = np.maximum(moved, np.abs(joints.velocities))
        ratio = speed / arm.velocity_limit
        step, joint = divmod(int(np.argmax(ratio)), ratio.shape[1])
        if ratio[step, joint] <= 1.0:
            return ACCEPTED
        text = (
            f"step {step}: {joints.joint_names[joint]} would move at {speed[step, joint]:.2f}, its limit is "
            f"{arm.velocity_limit[joint]:.2f} per second"
        )
        scale = float(ratio[step, joint])
        decision = Decision.SLOW_DOWN if scale <= self.hard_ratio else Decision.REJECT
        return Verdict(decision, ((Code.VELOCITY, text),), scale if decision is Decision.SLOW_DOWN else 1.0)

    def check_tracking(self, commanded: NDArray[np.float64], measured: NDArray[np.float64]) -> Verdict:
        """How far the arm [4, 4] is from where it was told to be [4, 4]. REJECT means: stop and hold."""
        if not (np.isfinite(commanded).all() and np.isfinite(measured).all()):
            return _reject(Code.NON_FINITE, "the commanded or the measured pose is not finite")
        away_m, away_rad = pose_distance(commanded, measured)
        if away_m <= self.max_tracking_m and away_rad <= self.max_tracking_rad:
            return ACCEPTED
        return _reject(
            Code.TRACKING_ERROR,
            f"the arm is {away_m:.3f} m and {away_rad:.2f} rad from the command; allowed are "
            f"{self.max_tracking_m:g} m and {self.max_tracking_rad:g} rad",
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

    def _jumps(self, trajectory: PoseTrajectory, state: ArmState) -> list[tuple[Code, str]]:
        reasons = []
        away_m, away_rad = pose_distance(trajectory.anchor, state.base_from_tool)
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

    def _tool_excess(
        self, trajectory: PoseTrajectory, state: ArmState, scale: float
    ) -> list[tuple[float, float, Code, str]]:
        """For each limit: (peak / limit, power of time in the unit, code, text), with all durations times `scale`."""
        durations_s = np.diff(trajectory.times_ns, prepend=trajectory.anchor_ns) / NS_PER_S * scale
        excess = []
        for velocity, kind, unit, measured in zip(
            trajectory.segment_velocities(),
            ("linear", "angular"),
            ("m", "rad"),
            (None, None) if state.twist is None else (state.twist[:3], state.twist[3:]),
            strict=True,
        ):
            # [S, 3] derivative and [S] duration each value stands for, from mean velocities over segments
            derivative, spans_s = velocity / scale, durations_s
            if measured is not None:
                derivative = np.concatenate([measured[None], derivative])
                spans_s = np.concatenate([[0.0], spans_s])  # a velocity at an instant, where the first segment begins
            for order, (code, name) in enumerate(
                ((Code.VELOCITY, "velocity"), (Code.ACCELERATION, "acceleration"), (Code.JERK, "jerk")), start=1
            ):
                if order > 1:
                    gaps_s = 0.5 * (spans_s[1:] + spans_s[:-1])
                    derivative, spans_s = np.diff(derivative, axis=0) / gaps_s[:, None], gaps_s
                if len(derivative) == 0:
                    break
                peak = float(np.linalg.norm(derivative, axis=1).max())
                limit = float(getattr(self, f"max_{kind}_{name}"))
                power = f"^{order}" if order > 1 else ""
                text = f"{kind} {name} {peak:.2f} is above {limit:g} {unit}/s{power}"
                excess.append((peak / limit, 1.0 / order, code, text))
        return excess

    def _slowed_enough(self, excess: Callable[[float], list[tuple[float, float, Code, str]]]) -> Verdict:
        """The smallest time scale that satisfies every limit, found by repeating its closed form.

        Stretching time by s divides velocity by s, acceleration by s^2, jerk by s^3, were it not for the measured
        velocity at the start, which stretching does not change; hence the repetition.
        """
        found = excess(1.0)
        reasons = tuple((code, text) for ratio, _, code, text in found if ratio > 1.0)
        if not reasons:
            return ACCEPTED
        scale = 1.0
        for _ in range(20):
            further = max(ratio**root for ratio, root, _, _ in excess(scale))
            if further <= 1.0:
                return Verdict(Decision.SLOW_DOWN, reasons, scale)
            scale *= further * 1.001
            if scale > self.hard_ratio:
                break
        needed = f"it would have to be slowed {scale:.1f} times or more, the hard limit is {self.hard_ratio:g}"
        code = max(found)[2]
        return Verdict(Decision.REJECT, (*reasons, (code, needed)))


def _reject(code: Code, text: str) -> Verdict:
    return Verdict(Decision.REJECT, ((code, text),))


def _content(trajectory: PoseTrajectory, state: ArmState) -> Verdict | None:
    """Reject what is not finite or not rigid; everything later computes with it."""
    if state.base_from_tool.shape != (4, 4) or not np.isfinite(state.base_from_tool).all():
        return _reject(Code.NON_FINITE, "the measured pose of the tool is not finite")
    if state.twist is not None and (state.twist.shape != (6,) or not np.isfinite(state.twist).all()):
        return _reject(Code.NON_FINITE, f"the measured twist of the tool must be 6 finite numbers, got {state.twist}")
    poses = np.concatenate([trajectory.anchor[None], trajectory.poses])
    if not (np.isfinite(poses).all() and np.isfinite(trajectory.gripper).all()):
        return _reject(Code.NON_FINITE, "the trajectory is not finite")
    rotations = poses[:, :3, :3]
    rigid = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max() < 1e-6
    if not rigid or (np.linalg.det(rotations) < 0).any() or (poses[:, 3] != [0.0, 0.0, 0.0, 1.0]).any():
        return _reject(Code.NOT_A_POSE, "the trajectory holds a matrix that is no rigid pose")
    return None
