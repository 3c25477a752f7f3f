"""Conversion of an action chunk to a trajectory that may be executed: checks, ensemble, seam, open-loop limit."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sqap_vla_ros.contracts import ACTION_DIM, JOINS, NS_PER_S, ActionChunk, Commitment, step_problem
from sqap_vla_ros.robot.conventions import deltas_between, pose_distance
from sqap_vla_ros.robot.ensemble import ALPHA, AdaptiveEnsemble
from sqap_vla_ros.robot.gripper.hysteresis import CLOSE_BELOW, OPEN_ABOVE
from sqap_vla_ros.robot.joining import SUBSTEPS, Reach, deciding_opening, entered, joining_ns
from sqap_vla_ros.robot.safety import Decision, SafetyLimits
from sqap_vla_ros.robot.trajectory import PoseTrajectory, anchor_chunk, blend, hold, interrupted

# Commands computed now reach the controller a little later; what is due before that would arrive in its past.
COMMAND_LEAD_NS = 10_000_000
REPEATED_M, REPEATED_RAD = 0.01, 0.05  # a chunk this near to where the arm is told to be repeats its commitment
SLOWED_BELOW = 1.4  # a chunk that is too fast is slowed to 1 / this of its limit: the seam and the joints overshoot
LAG_SAMPLES, LAG_SAMPLES_MIN, LAG_SPEED_M_S = 500, 50, 0.03


class MalformedChunk(ValueError):
    """Not a chunk: non-finite or misshapen. The model is at fault."""


class UnsafeChunk(ValueError):
    """A chunk that must not be executed; the message holds every reason."""


class ArmWasLed(UnsafeChunk):
    """A task must not go on by itself: somebody led the arm meanwhile, and may have his hands on it."""


@dataclass(frozen=True)
class MotionConfig:
    """Settings of the execution of chunks; the parameters of the same names in config/policy.yaml explain them."""

    execution_horizon: int = 0
    chunk_join: str = JOINS[0]
    max_open_loop_s: float = 4.0
    blend_s: float = 0.2
    ramp_s: float = 1.0
    ensemble_chunks: int = 1
    ensemble_alpha: float = ALPHA
    arm_lag_s: float = 0.0
    max_lead_m: float = 0.05
    max_lead_rad: float = 0.3
    max_tracking_m: float = 0.1
    max_tracking_rad: float = 0.6
    standstill_timeout_s: float = 1.5
    gripper_open_above: float = OPEN_ABOVE
    gripper_close_below: float = CLOSE_BELOW


@dataclass(frozen=True)
class SafeMotion:
    """An acceptable trajectory. note: what was changed to make it so and why; empty when nothing was."""

    trajectory: PoseTrajectory
    note: str = ""


class Motion:
    """Holds the trajectory under execution, and plans the one that follows it."""

    def __init__(self, config: MotionConfig, limits: SafetyLimits) -> None:
        self.config = config
        self.limits = limits
        self._executed: deque[PoseTrajectory] = deque()  # oldest first
        self._undecided = (config.gripper_close_below, config.gripper_open_above)
        self._gripper_before = sum(self._undecided) / 2  # what decided it before those: nothing so far
        self._ensemble = AdaptiveEnsemble(config.ensemble_chunks, config.ensemble_alpha)
        self.lag_ns = round(config.arm_lag_s * NS_PER_S)
        self._lags_s: deque[float] = deque(maxlen=LAG_SAMPLES)

    @property
    def current(self) -> PoseTrajectory | None:
        """The trajectory under execution; None when there is none."""
        return self._executed[-1] if self._executed else None

    def validate(self, chunk: ActionChunk, horizon: int) -> None:
        """Raises MalformedChunk naming what is wrong with the numbers of a chunk."""
        deltas = np.asarray(chunk.deltas)
        if deltas.shape != (horizon, ACTION_DIM) or deltas.dtype.kind != "f":
            raise MalformedChunk(
                f"the chunk is {list(deltas.shape)} of {deltas.dtype}, expected [{horizon}, {ACTION_DIM}] of floats"
            )
        if not np.isfinite(deltas).all():
            step, component = np.argwhere(~np.isfinite(deltas))[0]
            value = deltas[step, component]
            raise MalformedChunk(f"action {step} of the chunk is not finite: component {component} is {value}")
        if problem := step_problem("chunk", chunk.dt_s):
            raise MalformedChunk(problem)

    def plan(
        self,
        chunk: ActionChunk,
        base_from_tool: NDArray[np.float64],
        measured: NDArray[np.float64],
        now_ns: int,
        measured_twist: NDArray[np.float64] | None = None,
        *,
        commitment: Commitment | None = None,
    ) -> SafeMotion:
        """Return the trajectory to follow from now on; `commit` it once the arm is known to be able to.

        base_from_tool: [4, 4] measured at the image's stamp. measured: [4, 4] now. measured_twist: [6] now (m/s, rad/s,
        base axes); None when unknown, then the acceleration into the trajectory is not judged.
        commitment: what the chunk repeats. Nothing has to be joined where it comes in time: it is entered by the clock.
        Raises UnsafeChunk.
        """
        start_ns = now_ns + COMMAND_LEAD_NS
        deltas = self._ensemble.update(chunk.deltas, chunk.stamp_ns, chunk.dt_s)
        anchor = self.anchor(base_from_tool, chunk.stamp_ns)
        # What is to be done by a certain time has to be commanded earlier by what the arm lags behind.
        fresh = anchor_chunk(deltas, anchor, chunk.stamp_ns - self.lag_ns, chunk.dt_s)
        repeated_ns = 0 if commitment is None else round(commitment.executed * chunk.dt_s * NS_PER_S)
        rest = self._enter(replace(fresh, stamp_ns=chunk.stamp_ns), repeated_ns, measured, start_ns)
        self._ensemble.moved(rest.end_ns - fresh.end_ns)
        try:
            return self._checked(rest, measured, measured_twist, start_ns)
        except UnsafeChunk:
            self.refused()
            raise

    def _enter(
        self, fresh: PoseTrajectory, repeated_ns: int, measured: NDArray[np.float64], start_ns: int
    ) -> PoseTrajectory:
        """Return the chunk with its times moved to what the arm did since the image.

        repeated_ns: how much of its beginning is to repeat what the arm is told to do, as fast as it is told to. A
            chunk that does not is joined as any other.

        While the arm stood still (before the first chunk, after a hold, once a motion had ended) nothing of the chunk
        was executed, so nothing of it is past: its times move on by as long. Where `chunk_join` is `path` the chunk is
        entered where the arm was told to be by now, see robot/joining.py: later than by the clock only within
        max_lead_* of the measured pose [4, 4], which together with `anchor` bounds the push of a blocked arm.
        """
        shown_ns = fresh.anchor_ns  # of the commanded motion
        moved_ns = self._moving_ns(shown_ns, start_ns)
        if self.current is not None and repeated_ns and moved_ns <= repeated_ns:
            repeated = fresh.moved_by(start_ns - shown_ns - moved_ns)
            away_m, away_rad = pose_distance(repeated.sample(start_ns)[0], self.current.sample(start_ns)[0])
            if away_m <= REPEATED_M and away_rad <= REPEATED_RAD:
                return repeated
        executed_ns = self._moving_ns(shown_ns, start_ns, actions=True)
        if self.config.chunk_join == "clock" or self.current is None:
            return fresh.moved_by(max(0, start_ns - shown_ns - executed_ns))
        told, _ = self.current.sample(start_ns)
        entry_ns = joining_ns(
            fresh,
            told,
            executed_ns=executed_ns,
            gripper_at_image=self._gripper_told(shown_ns),
            gripper_told=self._gripper_told(start_ns),
            undecided=self._undecided,
            substeps=SUBSTEPS,
            reach=Reach(measured, self.config.max_lead_m, self.config.max_lead_rad),
        )
        return entered(fresh, entry_ns, start_ns)

    def _moving_ns(self, since_ns: int, until_ns: int, *, actions: bool = False) -> int:
        """Return how long (ns) the arm was in commanded motion between the two times.

        actions: in the time of the executed actions, which is less where the motion was slowed down.
        """
        moving_ns = 0.0
        for trajectory in reversed(self._executed):  # each until the next one took over
            part_ns = max(0, min(trajectory.end_ns, until_ns) - max(trajectory.anchor_ns, since_ns))
            moving_ns += part_ns / trajectory.slowness if actions else part_ns
            until_ns = min(until_ns, trajectory.anchor_ns)
        return round(moving_ns)

    def _gripper_told(self, at_ns: int) -> float:
        """Return the last commanded opening up to then that opened or closed the gripper, however long ago."""
        return deciding_opening(self._executed, at_ns, self._gripper_before, self._undecided)

    def commit(self, trajectory: PoseTrajectory) -> None:
        """Note that this trajectory is executed now."""
        self._executed.append(trajectory)
        self._forget_old()

    def opening(self, at_ns: int) -> float | None:
        """Return the opening (0 to 1) to command the gripper at `at_ns`: the fingers close where the tool is.

        As late as the arm, whichever chunk was under way then. None before the first one and after the last.
        """
        shown_ns = at_ns - self.lag_ns
        if self.current is None or not self._executed[0].anchor_ns <= shown_ns <= self.current.end_ns:
            return None
        return self._told(shown_ns)[1]

    def _forget_old(self) -> None:
        """Remember what a chunk may still be about, and of the trajectories before what they made of the gripper."""
        if self.current is None:
            return
        since_ns = self.current.anchor_ns - round(self.config.max_open_loop_s * NS_PER_S) - self.lag_ns
        while len(self._executed) > 1 and self._executed[1].anchor_ns <= since_ns:
            over_ns = self._executed[1].anchor_ns - 1
            self._gripper_before = deciding_opening(
                [self._executed.popleft()], over_ns, self._gripper_before, self._undecided
            )

    def refused(self) -> None:
        """Note that the newest chunk is not executed: it must not colour what comes next."""
        self._ensemble.reset()

    def interrupted(self, at_ns: int, pause_ns: int) -> None:
        """Note that what is executed stood still from `at_ns` on for so long, and goes on later."""
        self._executed = deque(interrupted(self._executed, at_ns, pause_ns))
        self._forget_old()
        self._ensemble.moved(pause_ns)

    def anchor(self, base_from_tool: NDArray[np.float64], stamp_ns: int) -> NDArray[np.float64]:
        """Return the pose [4, 4] that a chunk of the image of `stamp_ns` is composed onto.

        It is the commanded pose that the image shows. From where the arm was measured, every chunk would take back what
        the arm lags behind or misses its commands by: t seconds behind, with a new chunk every period, it would move
        1 / (1 + t / period) as far as the policy means, and an arm with friction not at all.
        But never further than max_lead_* from the measured pose [4, 4]: a blocked arm must not be pushed ever harder.
        """
        if (commanded := self.commanded(stamp_ns)) is None:
            return base_from_tool
        return toward(base_from_tool, commanded, self.config.max_lead_m, self.config.max_lead_rad)

    def commanded(self, at_ns: int) -> NDArray[np.float64] | None:
        """Return the commanded pose [4, 4] that an arm as late as arm_lag_s shows at `at_ns`; None before the first."""
        shown_ns = at_ns - self.lag_ns
        begun = bool(self._executed) and self._executed[0].anchor_ns <= shown_ns
        return self._told(shown_ns)[0] if begun else None

    def commitment(self, stamp_ns: int, dt_s: float, latency_s: float, continuation: str) -> Commitment | None:
        """Return what the arm is told to do from the image of `stamp_ns` on, in actions `dt_s` apart.

        None where it stands at any time of that: there is nothing whole to go on from. latency_s: expected from the
        image to the chunk; what is due until the chunk takes over counts as executed.
        """
        if self.current is None:
            return None
        begin_ns, step_ns = stamp_ns - self.lag_ns, dt_s * NS_PER_S
        left_ns = self.current.end_ns - begin_ns
        count = math.floor(left_ns / step_ns)
        if count < 1 or self._moving_ns(begin_ns, self.current.end_ns) < left_ns:
            return None
        edges_ns = [begin_ns + round(index * step_ns) for index in range(count + 1)]
        told = [self._told(at_ns) for at_ns in edges_ns]
        deltas = deltas_between(np.array([pose for pose, _ in told]))
        actions = np.column_stack([deltas, [gripper for _, gripper in told[1:]]])
        passes_ns = latency_s * NS_PER_S + COMMAND_LEAD_NS + self.lag_ns
        return Commitment(actions, min(math.ceil(passes_ns / step_ns), count), continuation)

    def _told(self, at_ns: int) -> tuple[NDArray[np.float64], float]:
        """Return the pose [4, 4] and the gripper's opening commanded for a time since the first one began."""
        return next(path for path in reversed(self._executed) if path.anchor_ns <= at_ns).sample(at_ns)

    def clear(self, at_ns: int) -> None:
        """Forget what was executed until then: the next plan starts from the measured pose, with a ramp.

        What the gripper was told stays: it is commanded as late as the arm is, and a hold does not touch it.
        """
        self._gripper_before = self._gripper_told(at_ns - self.lag_ns)
        self._executed.clear()
        self.new_task()

    def new_task(self) -> None:
        """Stop averaging with the chunks before: the next ones follow another instruction."""
        self._ensemble.reset()

    def tracking_error(self, measured: NDArray[np.float64], at_ns: int) -> str | None:
        """Return what is wrong with the arm's place at `at_ns`, or None."""
        if self.current is None:
            return None
        self._note_lag(self.current, measured, at_ns)
        commanded = self.commanded(at_ns)
        away_m, away_rad = pose_distance(self.current.anchor if commanded is None else commanded, measured)
        if away_m <= self.config.max_tracking_m and away_rad <= self.config.max_tracking_rad:
            return None
        return (
            f"tracking error: the tool is {away_m * 1e3:.0f} mm and {away_rad:.2f} rad from where it was told to be "
            f"(limits {self.config.max_tracking_m * 1e3:.0f} mm, {self.config.max_tracking_rad:g} rad); is it blocked, "
            "or does no controller listen?"
        )

    @property
    def measured_lag_s(self) -> float | None:
        """Delay (s) of the arm behind its commands, the median while it moved; None before it moved enough."""
        return float(np.median(self._lags_s)) if len(self._lags_s) >= LAG_SAMPLES_MIN else None

    def _note_lag(self, current: PoseTrajectory, measured: NDArray[np.float64], at_ns: int) -> None:
        velocity = current.twist(at_ns)[:3]
        if (square := float(velocity @ velocity)) > LAG_SPEED_M_S**2:
            behind = current.sample(at_ns)[0][:3, 3] - measured[:3, 3]
            self._lags_s.append(float(behind @ velocity) / square)

    def _checked(
        self,
        fresh: PoseTrajectory,
        measured: NDArray[np.float64],
        measured_twist: NDArray[np.float64] | None,
        start_ns: int,
    ) -> SafeMotion:
        age_s = (start_ns - fresh.stamp_ns) / NS_PER_S
        if 0 < self.config.execution_horizon < len(fresh):
            fresh = _first(fresh, self.config.execution_horizon)
        if fresh.after(start_ns) is None:
            length_s = (fresh.end_ns - fresh.stamp_ns) / NS_PER_S
            raise UnsafeChunk(
                f"every action is past: what is to be executed ends {length_s:.2f} s after its image and came "
                f"{age_s:.2f} s after it"
            )
        wanted = self._joined(fresh, measured, start_ns)
        joined = self.limits.slid(wanted)
        notes = [] if joined is wanted else ["kept inside the workspace"]
        verdict = self.limits.check(joined, measured, measured_twist)
        if verdict.decision is Decision.REJECT:
            raise UnsafeChunk(verdict.text)
        if verdict.decision is Decision.SLOW_DOWN:
            notes.append(f"slowed down: {verdict.text}")
            # A seam from the slow motion under way to a fast chunk would slow down the motion under way as well, with
            # each chunk again: the arm would creep. Where the chunk is slowed first, both sides are as fast.
            if self.current is not None and (slower := self._at_the_limit(fresh, start_ns)) is not None:
                gentle = self.limits.slid(self._joined(slower, measured, start_ns))
                again = self.limits.check(gentle, measured, measured_twist)
                if again.decision is not Decision.REJECT and again.time_scale < verdict.time_scale:
                    joined, verdict = gentle, again
        if verdict.decision is Decision.SLOW_DOWN:
            joined = self._limit_open_loop(joined.slowed(verdict.time_scale), start_ns)
        return SafeMotion(joined, "; ".join(notes))

    def _joined(self, fresh: PoseTrajectory, measured: NDArray[np.float64], start_ns: int) -> PoseTrajectory:
        """Return the chunk with the way into it, from the motion under way or from rest. Raises UnsafeChunk."""
        fresh = self._limit_open_loop(fresh, start_ns)
        if self.current is not None:
            joined = blend(self.current, fresh, start_ns, self.config.blend_s)
        else:
            joined = blend(hold(measured, float(fresh.gripper[0]), start_ns), fresh, start_ns, self.config.ramp_s)
        assert joined is not None  # something of it is still to come
        return self._limit_open_loop(joined, start_ns)  # a ramp may be longer than what is left of the chunk

    def _at_the_limit(self, fresh: PoseTrajectory, start_ns: int) -> PoseTrajectory | None:
        """Return what is still to come of a chunk, slowed down to the tool's speed limits; None within them."""
        if (rest := fresh.after(start_ns)) is None:
            return None
        linear, angular = (float(np.linalg.norm(part, axis=1).max()) for part in rest.segment_velocities())
        scale = max(linear / self.limits.max_linear_velocity, angular / self.limits.max_angular_velocity)
        return rest.slowed(SLOWED_BELOW * scale) if 1.0 < scale < math.inf else None

    def latest_ns(self, stamp_ns: int) -> int:
        """Return the time by which a motion computed from the image of `stamp_ns` has to be at rest."""
        return stamp_ns + round(self.config.max_open_loop_s * NS_PER_S)

    def _limit_open_loop(self, trajectory: PoseTrajectory, start_ns: int) -> PoseTrajectory:
        """Return the trajectory without the poses due beyond the open-loop limit.

        Raises UnsafeChunk when nothing is left after start_ns.
        """
        latest_ns = self.latest_ns(trajectory.stamp_ns)
        kept = trajectory.until(latest_ns)
        if kept is None or kept.end_ns <= start_ns:
            raise UnsafeChunk(
                f"the chunk came {(start_ns - trajectory.stamp_ns) / NS_PER_S:.2f} s after its image, of which nothing "
                f"is left to execute within max_open_loop_s = {self.config.max_open_loop_s:g} of it"
            )
        return kept


def toward(start: NDArray[np.float64], goal: NDArray[np.float64], max_m: float, max_rad: float) -> NDArray[np.float64]:
    """Return the pose `goal` [4, 4], or as far towards it as `max_m` and `max_rad` from `start` [4, 4] allow."""
    move = goal[:3, 3] - start[:3, 3]
    turn = Rotation.from_matrix(goal[:3, :3] @ start[:3, :3].T).as_rotvec()
    pose = np.eye(4)
    pose[:3, 3] = start[:3, 3] + move * min(1.0, max_m / max(float(np.linalg.norm(move)), 1e-12))
    turn *= min(1.0, max_rad / max(float(np.linalg.norm(turn)), 1e-12))
    pose[:3, :3] = Rotation.from_rotvec(turn).as_matrix() @ start[:3, :3]
    return pose


def _first(trajectory: PoseTrajectory, steps: int) -> PoseTrajectory:
    return replace(
        trajectory,
        times_ns=trajectory.times_ns[:steps],
        poses=trajectory.poses[:steps],
        gripper=trajectory.gripper[:steps],
    )
