"""Episodes in the simulator under a policy: from chunks to motion, many episodes in lockstep, and their results."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sqap_vla_ros.contracts import CONTINUATIONS, JOINS, ActionChunk, Commitment, Observation, Policy
from sqap_vla_ros.evaluation.action_metrics import rms_jerk
from sqap_vla_ros.evaluation.closed_loop.choices import ENSEMBLES, HORIZON
from sqap_vla_ros.policy.cogact import CogACTPolicy
from sqap_vla_ros.policy.sampling import continuing
from sqap_vla_ros.robot.conventions import compose_delta
from sqap_vla_ros.robot.ensemble import AdaptiveEnsemble
from sqap_vla_ros.robot.interchange.action_rate import is_rate_of, resample_chunk
from sqap_vla_ros.robot.joining import joining_ns
from sqap_vla_ros.robot.trajectory import PoseTrajectory, anchor_chunk
from sqap_vla_ros.simulation.environment import CONTROL_DT_S, CONTROL_NS, MAX_DELTA_M, TabletopEnv
from sqap_vla_ros.simulation.layout import VARIATIONS, sample_layout
from sqap_vla_ros.simulation.vocabulary import TaskFamily

CONTROL_HZ = 1.0 / CONTROL_DT_S
CHUNKS_PER_EPISODE = 1000  # noise seeds of one episode: seed * CHUNKS_PER_EPISODE + number of the chunk


@dataclass(frozen=True)
class Execution:
    """The way in which chunks become motion.

    horizon: the simulator's actions executed between two images, 1 to 16.
    ensemble: `none`; `by_time` averages chunks about the same moment (robot/ensemble.py); `original` as published: one
        action a call, so it needs horizon 1.
    latency_s: 0: the world waits for the policy. Otherwise it goes on: a chunk takes effect so long after its image was
        taken (rounded up to whole control steps), and the arm follows the chunk before, or holds still, until then.
        The chunk is anchored where the arm was told to be when the image was taken, as policy_node does.
    join: the action at which a late chunk is entered. `path`: the one that begins nearest to the arm
        (robot/joining.py). `clock`: as many actions are dropped as the arm has executed since the image; none where it
        stood still.
    continuation: how a late chunk is sampled so that it agrees with what the arm does meanwhile
        (policy/sampling/continuing.py), `none`: not at all. Where it repeats the executed actions, the others are
        composed onto the pose that these led to, and there is nothing to join.
    """

    horizon: int = HORIZON
    ensemble: str = ENSEMBLES[0]
    latency_s: float = 0.0
    join: str = JOINS[0]
    continuation: str = CONTINUATIONS[0]

    def __post_init__(self) -> None:
        if not 1 <= self.horizon <= 16:
            raise ValueError(f"horizon must be within 1 and 16 actions, got {self.horizon}")
        if self.ensemble not in ENSEMBLES:
            raise ValueError(f"ensemble must be one of {', '.join(ENSEMBLES)}, got {self.ensemble!r}")
        if self.ensemble == "original" and self.horizon != 1:
            raise ValueError(f"the original ensemble executes one action a call: horizon must be 1, got {self.horizon}")
        if self.join not in JOINS:
            raise ValueError(f"join must be one of {', '.join(JOINS)}, got {self.join!r}")
        if self.continuation not in CONTINUATIONS:
            raise ValueError(f"continuation must be one of {', '.join(CONTINUATIONS)}, got {self.continuation!r}")
        if self.continuation != "none" and (self.latency_s == 0.0 or self.ensemble != "none"):
            raise ValueError(
                f"continuation {self.continuation!r} needs a latency and no ensemble, got a latency of "
                f"{self.latency_s} s and ensemble {self.ensemble!r}"
            )
        if not 0.0 <= self.latency_s <= self.horizon * CONTROL_DT_S + 1e-9:
            raise ValueError(
                f"latency must be within 0 and the {self.horizon * CONTROL_DT_S:.1f} s between two images "
                f"(one image is thought about at a time), got {self.latency_s} s"
            )

    def to_dict(self) -> dict[str, object]:
        """Return plain values, those that change nothing left out: older studies without them go on."""
        values = asdict(self)
        if self.latency_s == 0.0:
            del values["join"]
        if self.continuation == "none":
            del values["continuation"]
        return values

    @property
    def delay_steps(self) -> int:
        """Control steps between an image and the first action that its chunk decides."""
        return math.ceil(self.latency_s / CONTROL_DT_S - 1e-9)


@dataclass(frozen=True)
class EpisodeResult:
    """The stored result of one episode.

    reason: why it ended: `success`, `time`, or `invalid action` where the policy's numbers were not finite.
    path_m: length of the tool's measured path. jerk_m_s3: root mean square of the third difference of the tool's
        positions at control steps over dt^3; None for fewer than four positions.
    inference_ms: processor time of one prediction in milliseconds, its share of a batch.
    """

    suite: str
    family: str
    seed: int
    success: bool
    steps: int
    reason: str
    chunks: int
    path_m: float
    jerk_m_s3: float | None
    inference_ms: float

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


class EpisodeRun:
    """One episode under way: `observe`, have a chunk predicted, `act`; again until `finished`."""

    def __init__(self, env: TabletopEnv, suite: str, family: TaskFamily, seed: int, execution: Execution) -> None:
        self.suite, self.family, self.seed = suite, family, seed
        self._env, self._execution = env, execution
        self._instruction = env.start(sample_layout(seed, family, VARIATIONS[suite])).instruction
        self._ensemble: AdaptiveEnsemble | None = None
        if execution.ensemble != "none":
            self._ensemble = AdaptiveEnsemble(align="time" if execution.ensemble == "by_time" else "call")
        self._anchor = np.eye(4)
        self._gripper_at_image = 1.0
        self._plan: tuple[int, NDArray[np.float64], NDArray[np.float64]] | None = None  # first step, poses, gripper
        self._executed = 0  # actions of plans since the image
        self._commitment: Commitment | None = None  # at the image
        self._path = [env.world.base_from_tool[:3, 3]]
        self.reason = ""
        self.chunks = 0
        self.inference_ms = 0.0

    @property
    def finished(self) -> bool:
        return bool(self.reason)

    @property
    def noise_seed(self) -> int:
        """The noise seed of the next chunk, the same for every method."""
        return self.seed * CHUNKS_PER_EPISODE + self.chunks

    def observe(self) -> Observation:
        """Return the observation that the policy acts on next."""
        env = self._env
        self._anchor = env.commanded_pose
        self._gripper_at_image = float(env.state.gripper_open)  # as decided: the simulated hand knows no band between
        self._executed = 0
        self._commitment = self._committed() if self._execution.continuation != "none" else None
        stamp_ns = env.steps * CONTROL_NS
        pixel = env.gripper_pixel
        return Observation(env.render(), stamp_ns, self._instruction, pixel, commitment=self._commitment)

    def act(self, chunk: ActionChunk, inference_ms: float = 0.0) -> None:
        """Let the world go on until the next image is due, or the episode is over.

        Chunks at another rate than the simulator's are resampled; a continuation of them is refused with ValueError,
        for what it commits to are the simulator's actions.
        """
        if self._commitment is not None and not is_rate_of(CONTROL_HZ, chunk.dt_s):
            raise ValueError(
                f"continuation {self._execution.continuation!r} needs a policy that acts every {CONTROL_DT_S} s as the "
                f"simulator does, got {chunk.dt_s} s"
            )
        self.chunks += 1
        self.inference_ms += inference_ms
        if not np.isfinite(chunk.deltas).all():
            self.reason = "invalid action"
            return
        deltas = resample_chunk(chunk.deltas, chunk.dt_s, CONTROL_HZ)
        if self._ensemble is not None:
            deltas = self._ensemble.update(deltas, chunk.stamp_ns, CONTROL_DT_S)
        if self._execution.delay_steps == 0:
            for action in deltas[: self._execution.horizon]:
                if not self._step(action):
                    return
            return
        motion = anchor_chunk(deltas, self._anchor, chunk.stamp_ns, CONTROL_DT_S)
        for passed in range(self._execution.horizon):
            if passed == self._execution.delay_steps:
                self._enter(motion, deltas)
            if not self._step(self._towards_plan()):
                return
        if self._execution.delay_steps == self._execution.horizon:
            self._enter(motion, deltas)

    def _enter(self, motion: PoseTrajectory, deltas: NDArray[np.float64]) -> None:
        """Follow a chunk from now on. motion: its poses, from where its image was taken."""
        how = self._execution
        if self._commitment is not None and continuing.CONTINUATIONS[how.continuation].keeps_executed:
            rest = anchor_chunk(deltas[how.delay_steps :], self._env.commanded_pose, motion.anchor_ns, CONTROL_DT_S)
            self._plan = (self._env.steps, rest.poses, rest.gripper)
            return
        first_step = self._env.steps - self._joining_action(motion)
        if self._ensemble is not None:
            self._ensemble.moved(first_step * CONTROL_NS - motion.anchor_ns)
        self._plan = (first_step, motion.poses, motion.gripper)

    def _joining_action(self, motion: PoseTrajectory) -> int:
        """Return the action of a chunk that comes first."""
        if self._execution.join == "clock":
            return self._executed
        entry_ns = joining_ns(
            motion,
            self._env.commanded_pose,
            executed_ns=self._executed * CONTROL_NS,
            gripper_at_image=self._gripper_at_image,
            gripper_told=float(self._env.state.gripper_open),
        )
        return round((entry_ns - motion.anchor_ns) / CONTROL_NS)

    def result(self) -> EpisodeResult:
        """Return what is stored of a finished episode."""
        path = np.array(self._path)
        jerk = rms_jerk(path, CONTROL_DT_S)
        return EpisodeResult(
            suite=self.suite,
            family=str(self.family),
            seed=self.seed,
            success=self.reason == "success",
            steps=self._env.steps,
            reason=self.reason,
            chunks=self.chunks,
            path_m=round(float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum()), 4),
            jerk_m_s3=None if jerk is None else round(jerk, 4),
            inference_ms=round(self.inference_ms / max(1, self.chunks), 2),
        )

    def _step(self, action: NDArray[np.float64]) -> bool:
        """Execute one action; False when the episode is over."""
        result = self._env.step(action)
        self._path.append(self._env.world.base_from_tool[:3, 3])
        self.reason = "success" if result.terminated else "time" if result.truncated else ""
        return not self.finished

    def _towards_plan(self) -> NDArray[np.float64]:
        """Return the action from the commanded pose to the plan's next one; without a plan it holds still."""
        if self._left_of_plan() > 0:
            self._executed += 1
        return self._planned(self._env.commanded_pose, self._env.steps)

    def _left_of_plan(self) -> int:
        """Return how many actions the plan still has."""
        return 0 if self._plan is None else max(0, self._plan[0] + len(self._plan[1]) - self._env.steps)

    def _planned(self, here: NDArray[np.float64], step: int) -> NDArray[np.float64]:
        """Return the action that the plan has for a step, from a commanded pose."""
        if self._plan is None or step - self._plan[0] >= len(self._plan[1]):
            return np.array([0.0] * 6 + [float(self._env.state.gripper_open)])
        first, poses, grippers = self._plan
        there = poses[step - first]
        turn = Rotation.from_matrix(there[:3, :3] @ here[:3, :3].T).as_euler("xyz")
        return np.concatenate([there[:3, 3] - here[:3, 3], turn, [grippers[step - first]]])

    def _committed(self) -> Commitment | None:
        """Return what the arm will do from now on if no chunk comes; None where it stands still."""
        left, how = self._left_of_plan(), self._execution
        if not left:
            return None
        pose = self._env.commanded_pose
        actions: list[NDArray[np.float64]] = []
        for index in range(max(left, how.delay_steps)):
            action = self._planned(pose, self._env.steps + index)
            if index >= left:
                action[6] = actions[-1][6]
            action[:3] = np.clip(action[:3], -MAX_DELTA_M, MAX_DELTA_M)
            pose = compose_delta(pose, action)
            actions.append(action)
        return Commitment(np.array(actions), how.delay_steps, how.continuation)


def lockstep_width(policy: Policy, wanted: int) -> int:
    """Return how many episodes may share a prediction without touching each other.

    One for policies that remember frames, and for selectors that draw at random: their draw follows the batch's first
    seed.
    """
    return wanted if isinstance(policy, CogACTPolicy) and not policy.unbatchable() else 1


def run_episodes(
    policy: Policy,
    envs: Sequence[TabletopEnv],
    suite: str,
    family: TaskFamily,
    seeds: Sequence[int],
    execution: Execution,
    runs: type[EpisodeRun] = EpisodeRun,
) -> list[EpisodeResult]:
    """Run one episode for each seed, side by side in environments of their own, and predict for all of them together.

    Rows of a batch differ from single predictions by rounding alone (a test holds them together), so an episode does
    not depend on its neighbours; what is batched together is fixed by the seeds, so a run can be repeated exactly.

    runs: what an episode is; a benchmark tries another executor with it.
    """
    if len(envs) < len(seeds):
        raise ValueError(f"{len(seeds)} episodes side by side need as many environments, got {len(envs)}")
    policy.reset()
    episodes = [runs(env, suite, family, seed, execution) for env, seed in zip(envs, seeds, strict=False)]
    while active := [episode for episode in episodes if not episode.finished]:
        observations = [episode.observe() for episode in active]
        chunks = predict_together(
            policy,
            observations,
            [episode.noise_seed for episode in active],
        )
        for episode, (chunk, inference_ms) in zip(active, chunks, strict=True):
            episode.act(chunk, inference_ms)
    return [episode.result() for episode in episodes]


def predict_together(
    policy: Policy,
    observations: Sequence[Observation],
    seeds: Sequence[int],
) -> list[tuple[ActionChunk, float]]:
    """Return a chunk for each observation, and its share of the processor time in milliseconds.

    Only observations of one `batch_key` share a batch.
    Raises ValueError where chunks are to be continued by a policy that cannot.
    """
    continued = next((one.commitment for one in observations if one.commitment is not None), None)
    if continued is not None and not isinstance(policy, CogACTPolicy):
        raise ValueError(
            f"continuation {continued.continuation!r} needs a policy in this process that remembers nothing, "
            f"got {policy.info.checkpoint!r} under recipe {policy.info.recipe!r}"
        )
    alike: dict[int, list[int]] = defaultdict(list)
    for row, observation in enumerate(observations):
        key = policy.batch_key(observation) if isinstance(policy, CogACTPolicy) else row
        alike[key].append(row)
    answers: dict[int, tuple[ActionChunk, float]] = {}
    for rows in alike.values():
        started = time.process_time()
        if isinstance(policy, CogACTPolicy) and len(rows) > 1:
            chunks = policy.predict_batch([observations[row] for row in rows], seeds=[seeds[row] for row in rows])
        else:
            chunks = [policy.predict(observations[row], seed=seeds[row]) for row in rows]
        spent_ms = 1e3 * (time.process_time() - started) / len(rows)
        answers |= {row: (chunk, spent_ms) for row, chunk in zip(rows, chunks, strict=True)}
    return [answers[row] for row in range(len(observations))]
