"""Data of `committed_prefixes.py`: states, actions that somebody else chose, and what the expert does after them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from sqap_vla_ros.contracts import ActionChunk, Commitment, Observation
from sqap_vla_ros.evaluation.closed_loop.episodes import EpisodeRun, Execution
from sqap_vla_ros.policy.checkpoints.load import load_checkpoint
from sqap_vla_ros.policy.checkpoints.writing import written_aside
from sqap_vla_ros.policy.cogact import CogACTPolicy
from sqap_vla_ros.policy.sampling.continuing import Past
from sqap_vla_ros.policy.sampling.diffusion import draw_noise
from sqap_vla_ros.shipped import SHIPPED
from sqap_vla_ros.simulation.environment import CONTROL_DT_S, WORKSPACE_M, TabletopEnv
from sqap_vla_ros.simulation.experts import MAX_MOVE_M, plan_actions
from sqap_vla_ros.simulation.tasks import Task, WorldState, every_instruction
from sqap_vla_ros.training.collection import FIRST_SEED
from sqap_vla_ros.training.labels import FAMILIES, Asked, draw_tasks, sensible_tasks
from sqap_vla_ros.training.packed import PackedPrompts, common_prefix, packed_forward

SEEDS_APART = 700_000_000  # from those of the experts' layouts; corrections are 500 million apart
SUITES = ("visual_matching", "randomised")  # shards take turns
SHARDS, FRAMES = 7, 350  # the last shard is held out
LABELS = 3  # instructions a picture
LOCKSTEP = 6
LONGEST = 8  # actions of a prefix
OWN, OTHER, NOISY, DISPLACED = "own", "other", "noisy", "displaced"
KINDS = (OWN, OWN, OTHER, NOISY, DISPLACED)  # prefixes drawn for each picture and instruction

Actions = NDArray[np.float64]


# -- prefixes ---------------------------------------------------------------------------------------------------------


def inside(state: WorldState, actions: Actions) -> Actions:
    """Return the actions [d, 7] cut so that none is longer than the expert's and the tool stays in the workspace."""
    kept, tool = actions.copy(), state.tool_xyz_m
    for action in kept:
        there = np.clip(tool + np.clip(action[:3], -MAX_MOVE_M, MAX_MOVE_M), *WORKSPACE_M)
        action[:3], tool = there - tool, there
    return kept


def noisy(actions: Actions, rng: np.random.Generator) -> Actions:
    """Return actions [d, 7] with a drift, white noise and, one time in seven, a gripper that turns wrong on the way."""
    changed = actions.copy()
    changed[:, :3] += rng.normal(0.0, 0.012, 3) + rng.normal(0.0, 0.006, (len(actions), 3))
    changed[:, 5] += rng.normal(0.0, 0.05)
    if rng.random() < 1 / 7:
        first = int(rng.integers(len(actions)))
        changed[first:, 6] = 1.0 - changed[first:, 6]
    return changed


def prefix(
    kind: str, task: Task, state: WorldState, own: Actions | None, others: Sequence[Actions], rng: np.random.Generator
) -> Actions:
    """Draw the first actions [1 … LONGEST, 7] of a chunk, which somebody else chose.

    own: what the arm will do from this picture on, None where it stands still. others: the expert's chunks for other
    instructions. Where a kind has nothing to draw from, the prefix is a noisy one.
    """
    count = int(rng.integers(1, LONGEST + 1))
    if kind == OWN and own is not None:
        return own[:count]
    if kind == OTHER and others:
        return others[int(rng.integers(len(others)))][:count]
    if kind == DISPLACED:
        moved = replace(
            state,
            tool_xyz_m=state.tool_xyz_m + rng.normal(0.0, 0.04, 3),
            tool_yaw_rad=state.tool_yaw_rad + rng.normal(0.0, 0.3),
        )
        return inside(state, plan_actions(task, moved, count))
    return inside(state, noisy(plan_actions(task, state, count), rng))


def labels(
    env: TabletopEnv, asked: Sequence[Asked], own: Actions | None, rng: np.random.Generator
) -> dict[str, NDArray]:  # type: ignore[type-arg]
    """Return the chunks for each instruction: the expert's, and one behind each prefix.

    expert: [K, 16, 7]. chunk: [K, KINDS, 16, 7] and committed: [K, KINDS] how many first actions are the prefix.
    """
    layout = env.world.layout
    assert layout is not None
    possible = sensible_tasks(env.world)
    found: dict[str, list[object]] = {"expert": [], "chunk": [], "committed": []}
    for one in asked:
        task, state = one.task(layout), env.world.state(one.target, one.reference)
        different = [other for other in possible if other != one]
        drawn = [different[i] for i in rng.permutation(len(different))[:1]]
        others = [plan_actions(o.task(layout), env.world.state(o.target, o.reference), LONGEST) for o in drawn]
        prefixes = [prefix(kind, task, state, own, others, rng) for kind in KINDS]
        found["expert"].append(plan_actions(task, state))
        found["chunk"].append([plan_actions(task, state, committed=first) for first in prefixes])
        found["committed"].append([len(first) for first in prefixes])
    return {name: np.array(values, np.int64 if name == "committed" else np.float32) for name, values in found.items()}


# -- collecting -------------------------------------------------------------------------------------------------------


class NoisyRun(EpisodeRun):
    """An episode whose actions are not quite what was told, and sometimes not at all."""

    rng = np.random.default_rng(0)
    noise_m = 0.0

    def _step(self, action: Actions) -> bool:
        action = action.copy()
        action[:3] += self.rng.normal(0.0, self.noise_m, 3)
        if self.rng.random() < 0.03:
            action[:3] += self.rng.normal(0.0, 0.03, 3)
        return super()._step(action)


class Features:
    """The shipped policy up to its cognition features, for several instructions a picture."""

    def __init__(self, policy: CogACTPolicy) -> None:
        self._policy = policy
        prompts = {words: policy.tokenize(words) for words in every_instruction()}
        self._shared = common_prefix(list(prompts.values()))
        self._own = {words: ids[len(self._shared) :] for words, ids in prompts.items()}
        self._longest = max(map(len, self._own.values()))

    @torch.inference_mode()
    def of(self, observations: Sequence[Observation], instructions: Sequence[Sequence[str]]) -> Tensor:
        """Return the features [B, K, D] of B pictures with K instructions each."""
        squashed = np.stack([self._policy.transform.apply(one.image) for one in observations])
        own = [[self._own[words] for words in row] for row in instructions]
        pad = self._policy.model.config.prompt.pad
        prompts = PackedPrompts(
            torch.tensor(self._shared),
            torch.tensor([[ids + [pad] * (self._longest - len(ids)) for ids in row] for row in own]),
            torch.tensor([[len(ids) for ids in row] for row in own]),
        )
        return packed_forward(self._policy.model, torch.from_numpy(squashed).permute(0, 3, 1, 2), prompts).cognition


def collect(work: Path) -> None:
    """Write the shards that are missing."""
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    policy = shipped()
    features = Features(policy)
    for number in range(SHARDS):
        path = work / f"shard{number:02d}.npz"
        if not path.is_file():
            arrays = shard(policy, features, number)
            with written_aside(path) as partial, partial.open("wb") as file:
                np.savez(file, **arrays)


def shard(policy: CogACTPolicy, features: Features, number: int) -> dict[str, NDArray]:  # type: ignore[type-arg]
    """Return one shard: what `labels` returns, and the features [F, K, D] in float16."""
    rng = np.random.default_rng((17, number))
    seed = FIRST_SEED + SEEDS_APART + 10_000 * number
    suite = SUITES[number % len(SUITES)]
    envs = [TabletopEnv() for _ in range(LOCKSTEP)]
    frames: list[dict[str, NDArray]] = []  # type: ignore[type-arg]
    turn = 0
    with tqdm(total=FRAMES, desc=f"shard {number + 1} of {SHARDS}", unit="picture") as bar:
        while len(frames) < FRAMES:
            late = int(rng.integers(1, LONGEST + 1))
            how = Execution(int(rng.integers(max(2, late), 9)), "none", late * CONTROL_DT_S, "clock", "replace")
            family = FAMILIES[(number + turn) % len(FAMILIES)]
            runs = [NoisyRun(env, suite, family, seed + i, how) for i, env in enumerate(envs)]
            for run in runs:
                run.rng, run.noise_m = rng, float(rng.choice((0.0, 0.006, 0.012)))
            seed, turn = seed + LOCKSTEP, turn + 1
            while active := [(run, env) for run, env in zip(runs, envs, strict=True) if not run.finished]:
                before = len(frames)
                _decide(policy, features, active, frames, rng)
                bar.update(min(len(frames), FRAMES) - min(before, FRAMES))
    for env in envs:
        env.close()
    return {name: np.stack([frame[name] for frame in frames[:FRAMES]]) for name in frames[0]}


def _decide(
    policy: CogACTPolicy,
    features: Features,
    active: Sequence[tuple[EpisodeRun, TabletopEnv]],
    frames: list[dict[str, NDArray]],  # type: ignore[type-arg]
    rng: np.random.Generator,
) -> None:
    """Look once in every episode, keep what is seen with its labels, and act on the policy's chunk."""
    observations = [run.observe() for run, _ in active]
    asked = [draw_tasks(env.world, Asked(env.task.family, 0, 1), LABELS, rng) for _, env in active]
    words = [
        [one.task(env.world.layout).instruction for one in row] for row, (_, env) in zip(asked, active, strict=True)
    ]  # type: ignore[arg-type]
    cognition = features.of(observations, words)
    for row, (_, env) in enumerate(active):
        given = observations[row].commitment
        kept = labels(env, asked[row], None if given is None else given.actions, rng)
        frames.append({**kept, "cognition": cognition[row].numpy().astype(np.float16)})
    seeds = [run.noise_seed for run, _ in active]
    commitments = [one.commitment for one in observations]
    chunks = sampled(policy, policy.model.action_head, cognition[:, 0], commitments, seeds)
    for (run, _), normalized, observation in zip(active, chunks, observations, strict=True):
        deltas = policy.statistics[policy.unnorm_key].unnormalize(normalized)
        run.act(ActionChunk(observation.stamp_ns, deltas, CONTROL_DT_S, normalized))


def shipped() -> CogACTPolicy:
    """Load the shipped policy as training sees it, nothing fused."""
    weights = SHIPPED["tabletop"].weights
    assert weights is not None
    return load_checkpoint(weights)


def sampled(
    policy: CogACTPolicy,
    head: torch.nn.Module,
    cognition: Tensor,
    commitments: Sequence[Commitment | None],
    seeds: Sequence[int],
) -> Actions:
    """Sample normalised chunks [B, 16, 7] with a head: `replace` where there is a commitment."""
    model = copy.copy(policy.model)
    model._modules = {**policy.model._modules, "action_head": head}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = draw_noise(generators, torch.empty(len(seeds), model.config.head.horizon, model.config.head.channels))
    past = Past.of(commitments, policy.statistics[policy.unnorm_key], noise)
    chunks = model.sample_on("replace", cognition.float(), noise, generators, policy.sampler, past)
    return chunks.double().numpy()
