#!/usr/bin/env python3
"""Does Real-Time Chunking win with an action head that was trained on chunks that begin with somebody else's actions?

The towers and the decoder of the shipped policy stay as they are; its action head is trained on, from its own weights,
on the same states in three ways. `clean` and `noised`: seven chunks of ten begin with one to eight actions of somebody
else, and go on as the expert would from where these lead. The network sees these actions as they are (Black et al.
2025, arXiv 2512.05964), or at the noise level of the others, as `replace` shows them; in training as in sampling.
`control`: all chunks are the expert's.

    python benchmarks/committed_prefixes.py collect    states, features and labels, 2,450 pictures
    python benchmarks/committed_prefixes.py train      the three heads
    python benchmarks/committed_prefixes.py errors     of each head on held-out pictures
    python benchmarks/committed_prefixes.py measure    the errors, then episodes, the main cells first
    python benchmarks/committed_prefixes.py measure --only clean/fp32_vm_replace0.8:240
    python benchmarks/committed_prefixes.py table      prints what is there

Data and weights are in `out/committed_prefixes` (--work), results in `benchmarks/results/committed_prefixes`. Shards,
heads and episodes that are there are not made again. Cells are those of `late_chunks.py`, on its seeds; those of the
shipped head are read from its results. States are of layouts from 700 million seeds behind the first one of training.

The states are those that the shipped policy comes to when its chunks are late and go on from the last one (`replace`),
with noise on what it does. Kinematics move the state by a prefix, as in every label: a prefix pushes nothing over.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import late_chunks
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from sqap_vla_ros.contracts import ActionChunk, Commitment, Observation
from sqap_vla_ros.evaluation.closed_loop.episodes import EpisodeRun, Execution
from sqap_vla_ros.evaluation.closed_loop.statistics import PairedOutcomes, wilson
from sqap_vla_ros.policy.checkpoints.load import load_checkpoint
from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
from sqap_vla_ros.policy.checkpoints.writing import written_aside
from sqap_vla_ros.policy.cogact import CogACTPolicy
from sqap_vla_ros.policy.sampling import continuing
from sqap_vla_ros.policy.sampling.continuing import Past, Replace
from sqap_vla_ros.policy.sampling.diffusion import Sampler, draw_noise
from sqap_vla_ros.shipped import SHIPPED
from sqap_vla_ros.simulation.environment import CONTROL_DT_S, WORKSPACE_M, TabletopEnv
from sqap_vla_ros.simulation.experts import MAX_MOVE_M, plan_actions
from sqap_vla_ros.simulation.tasks import Task, WorldState, every_instruction
from sqap_vla_ros.training.collection import FIRST_SEED
from sqap_vla_ros.training.labels import FAMILIES, Asked, draw_tasks, sensible_tasks
from sqap_vla_ros.training.objective import LossWeights, diffusion_loss
from sqap_vla_ros.training.packed import PackedPrompts, common_prefix, packed_forward
from sqap_vla_ros.training.train import TrainingConfig

RESULTS = Path(__file__).parent / "results" / "committed_prefixes"
WORK = Path("out") / "committed_prefixes"
SEEDS_APART = 700_000_000  # from those of the experts' layouts; corrections are 500 million apart
SUITES = ("visual_matching", "randomised")  # shards take turns
SHARDS, FRAMES = 7, 350  # the last shard is held out
LABELS = 3  # instructions a picture
LOCKSTEP = 6
LONGEST = 8  # actions of a prefix
OWN, OTHER, NOISY, DISPLACED = "own", "other", "noisy", "displaced"
KINDS = (OWN, OWN, OTHER, NOISY, DISPLACED)  # prefixes drawn for each picture and instruction
ORDINARY = 0.3  # share of chunks without a prefix
HELD_OUT = 160  # pictures that errors are measured on
AFTER = 8  # actions behind a prefix whose error is measured: those that are executed before the next ones
TRAINING = TrainingConfig(steps=2000, batch=96, rate=8e-4, weight_decay=0.01)
LOSS = LossWeights(repeats=1)
NOISED, CLEAN, CONTROL = "noised", "clean", "control"
HEADS = (NOISED, CLEAN, CONTROL)
# What is measured, and in how many episodes, the main cells first.
CELLS = (
    ("clean/fp32_vm_replace0.8", 240),
    ("clean/fp32_vm_replace1.6", 240),
    ("noised/fp32_vm_replace0.8", 120),
    ("clean/fp32_vm_sync", 240),
    ("control/fp32_vm_replace0.8", 120),
    ("noised/fp32_vm_replace1.6", 120),
    ("control/fp32_vm_replace1.6", 120),
    ("shipped/fp32_vm_replace1.6", 120),
    ("control/fp32_vm_sync", 120),
    ("noised/fp32_vm_sync", 120),
    ("clean/fp32_vm_path0.8", 120),
    ("clean/fp32_vm_path1.6", 120),
)

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


class Clean(Replace):
    """Show the network the executed actions as they are, whatever the noise level of the others."""

    def shown(self, past: Past, alpha: float, noise: Tensor) -> Tensor:
        return past.target


@contextlib.contextmanager
def shown_to(head: str) -> Iterator[None]:
    """Let `replace` show executed actions as this head was trained to see them."""
    before = continuing.CONTINUATIONS
    if head == CLEAN:
        continuing.CONTINUATIONS = {**before, "replace": Clean()}
    try:
        yield
    finally:
        continuing.CONTINUATIONS = before


# -- training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shards:
    """Some shards with normalised chunks; the shapes are those of `labels` with the pictures first."""

    cognition: Tensor
    expert: Tensor
    chunk: Tensor
    committed: Tensor

    @classmethod
    def read(cls, work: Path, numbers: Sequence[int], normalize: Callable[[NDArray], Actions]) -> Shards:  # type: ignore[type-arg]
        parts = [np.load(work / f"shard{number:02d}.npz") for number in numbers]
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0].files}
        for name in ("expert", "chunk"):
            found[name] = normalize(found[name]).astype(np.float32)
        return cls(**{name: torch.from_numpy(values) for name, values in found.items()})

    def first(self, pictures: int) -> Shards:
        """Return the first pictures."""
        return Shards(
            self.cognition[:pictures], self.expert[:pictures], self.chunk[:pictures], self.committed[:pictures]
        )

    def batch(self, size: int, rng: np.random.Generator, *, prefixes: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Draw features [B, 1, D], chunks [B, 1, 16, 7] and how many actions of each are given, [B, 1].

        The same rows are drawn with prefixes and without.
        """
        pictures, count, kinds = self.committed.shape
        row, one = rng.integers(pictures, size=size), rng.integers(count, size=size)
        kind, ordinary = rng.integers(kinds, size=size), rng.random(size) < ORDINARY
        plain = torch.from_numpy(ordinary | (not prefixes))
        chunk = torch.where(plain[:, None, None], self.expert[row, one], self.chunk[row, one, kind])
        committed = torch.where(plain, 0, self.committed[row, one, kind])
        return self.cognition[row, one].float().unsqueeze(1), chunk.unsqueeze(1), committed.unsqueeze(1)


def train(work: Path, heads: Sequence[str] = HEADS) -> None:
    """Train the heads that are missing and write each as a checkpoint with the shipped towers and decoder."""
    torch.set_num_threads(1)
    for name in heads:
        if (work / f"{name}.safetensors").is_file():
            continue
        policy = shipped()
        data = Shards.read(work, range(SHARDS - 1), policy.statistics[policy.unnorm_key].normalize)
        log = tune(policy, data, TRAINING, name)
        (work / f"{name}.json").write_text(json.dumps(log) + "\n")
        policy.model.to(torch.bfloat16)  # as the shipped file is
        save_checkpoint(policy, work / f"{name}.safetensors")


def tune(policy: CogACTPolicy, data: Shards, config: TrainingConfig, name: str) -> list[dict[str, float]]:
    """Train the policy's head on, put the averaged weights in, and return the smoothed loss every fifty steps."""
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    head = policy.model.action_head
    policy.model.requires_grad_(False)
    head.requires_grad_(True)
    weights = list(head.parameters())
    averaged = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, config.rate, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    sampler = Sampler(policy.model.config.diffusion)
    log: list[dict[str, float]] = []
    smooth: float | None = None
    with tqdm(total=config.steps, desc=name, unit="step") as bar:
        for step in range(config.steps):
            optimizer.param_groups[0]["lr"] = config.rate_at(step)
            cognition, chunk, committed = data.batch(config.batch, rng, prefixes=name != CONTROL)
            loss = diffusion_loss(policy.model, sampler, cognition, chunk, LOSS, committed, clean=name == CLEAN)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, config.clip)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(averaged, weights, 1.0 - min(config.average, (step + 1) / (step + 21)))
            value = float(loss.detach())
            smooth = value if smooth is None else 0.98 * smooth + 0.02 * value
            bar.update()
            if (step + 1) % 50 == 0:
                bar.set_postfix_str(f"loss {smooth:.4f}")
                log.append({"step": step + 1, "loss": round(smooth, 5)})
    with torch.no_grad():
        torch._foreach_copy_(weights, averaged)
    return log


# -- measuring --------------------------------------------------------------------------------------------------------


def errors(policy: CogACTPolicy, head: torch.nn.Module, data: Shards) -> dict[str, float]:
    """Return a head's errors against the expert's labels. data: chunks in metres and radians.

    ordinary_mm: distance between where the first AFTER actions lead and where the expert's do, mean. own_…_mm: the same
    of the AFTER actions behind what the arm does from this picture on, for its own instruction, by the prefix's length.
    noisy_…_mm: behind noisy prefixes. …_gripper: share of wrong grippers among these actions. compensation: how much of
    what a noisy prefix did wrong the rest undoes; expert_compensation: how much of it the expert's rest undoes.
    """
    rows = [(frame, one) for frame in range(len(data.cognition)) for one in range(LABELS)]
    frames, asked = (torch.tensor(column) for column in zip(*rows, strict=True))
    cognition, expert = data.cognition[frames, asked], data.expert[frames, asked].double().numpy()
    step = np.arange(expert.shape[1])

    def chunks(prefixes: Sequence[Actions | None]) -> Actions:
        made = []
        for first in range(0, len(rows), 150):
            part = slice(first, first + 150)
            given = [None if one is None else Commitment(one, len(one), "replace") for one in prefixes[part]]
            made.append(sampled(policy, head, cognition[part], given, range(len(rows))[part]))
        return policy.statistics[policy.unnorm_key].unnormalize(np.concatenate(made))

    ordinary = np.linalg.norm((chunks([None] * len(rows)) - expert)[:, :AFTER, :3].sum(1), axis=1)
    found = {"ordinary_mm": 1e3 * float(ordinary.mean())}
    for kind in (OWN, NOISY):
        wanted = data.chunk[frames, asked, KINDS.index(kind)].double().numpy()
        count = data.committed[frames, asked, KINDS.index(kind)].numpy()
        made = chunks([chunk[:d] for chunk, d in zip(wanted, count, strict=True)])
        behind = (step >= count[:, None]) & (step < count[:, None] + AFTER)
        apart = np.linalg.norm(((made - wanted)[..., :3] * behind[..., None]).sum(1), axis=1)
        counted = (asked.numpy() == 0) | (kind == NOISY)
        for short, long in ((1, 4), (5, 8)):
            some = counted & (count >= short) & (count <= long)
            found[f"{kind}_{short}_to_{long}_mm"] = 1e3 * float(apart[some].mean())
        found[f"{kind}_gripper"] = float((made[..., 6] != wanted[..., 6])[counted][behind[counted]].mean())
    # from here on `wanted`, `made`, `count` and `behind` are those of noisy prefixes
    usual = chunks([chunk[:d] for chunk, d in zip(expert, count, strict=True)])
    wrong = ((wanted - expert)[..., :3] * (step < count[:, None])[..., None]).sum(1)
    found["compensation"] = _compensation(made, usual, behind, wrong)
    found["expert_compensation"] = _compensation(wanted, expert, behind, wrong)
    return {key: round(value, 4) for key, value in found.items()}


def _compensation(made: Actions, usual: Actions, behind: NDArray[np.bool_], wrong: Actions) -> float:
    """Return the share of the displacements `wrong` [B, 3] that the actions behind the prefixes undo."""
    undone = ((usual - made)[..., :3] * behind[..., None]).sum(1)
    return float((undone * wrong).sum() / np.square(wrong).sum())


def measure_errors(work: Path) -> None:
    """Measure the errors on held-out pictures of the heads that are there."""
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    policy = shipped()
    data = Shards.read(work, [SHARDS - 1], lambda values: values).first(HELD_OUT)
    for name in ("shipped", *HEADS):
        path, weights = RESULTS / f"{name}.json", work / f"{name}.safetensors"
        if path.is_file() or not (name == "shipped" or weights.is_file()):
            continue
        head = policy.model.action_head if name == "shipped" else load_checkpoint(weights).model.action_head
        loss = json.loads((work / f"{name}.json").read_text()) if name != "shipped" else []
        with shown_to(name):
            found = errors(policy, head, data)
        path.write_text(json.dumps({"errors": found, "loss": loss}) + "\n")


def measure(work: Path, cells: Mapping[str, int], lockstep: int) -> None:
    """Run the missing episodes of each cell."""
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for key, episodes in cells.items():
        name, cell = key.split("/")
        folder_of(name).mkdir(exist_ok=True)
        checkpoint = "tabletop" if name == "shipped" else str(work / f"{name}.safetensors")
        with shown_to(name):
            late_chunks.run(cell, -(-episodes // len(FAMILIES)), lockstep, checkpoint, folder_of(name))


def folder_of(head: str) -> Path:
    """Return where the episodes of a head are."""
    return late_chunks.RESULTS if head == "shipped" else RESULTS / head


def table() -> None:
    """Print the errors, and the success of each cell with its differences, on the same episodes, from other cells."""
    for name in ("shipped", *HEADS):
        if (path := RESULTS / f"{name}.json").is_file():
            print(name + ": " + ", ".join(f"{k} {v:.3g}" for k, v in json.loads(path.read_text())["errors"].items()))
    print(f"\n{'cell':28s}{'n':>5s}  success [95 %]      jerk m/s³")
    for key, _ in CELLS:
        head, name = key.split("/")
        rows = late_chunks.read(name, folder_of(head))
        if not rows:
            continue
        rate = wilson(sum(bool(row["success"]) for row in rows.values()), len(rows))
        jerk = [float(row["jerk_m_s3"]) for row in rows.values() if row["jerk_m_s3"] is not None]
        success = f"{100 * rate.value:5.1f} [{100 * rate.low:4.1f}, {100 * rate.high:4.1f}]"
        print(f"{key:28s}{len(rows):5d}  {success:22s}{sum(jerk) / max(1, len(jerk)):5.2f}")
        delay = name.removeprefix("fp32_vm_").lstrip("abcdefghijklmnopqrstuvwxyz")
        others = [f"shipped/{name}", f"control/{name}", f"shipped/fp32_vm_path{delay}" if delay else ""]
        for other in dict.fromkeys(others):
            if other in ("", key):
                continue
            against = late_chunks.read(other.split("/")[1], folder_of(other.split("/")[0]))
            if shared := sorted(rows.keys() & against.keys()):
                d = PairedOutcomes.of(
                    [bool(rows[one]["success"]) for one in shared], [bool(against[one]["success"]) for one in shared]
                ).difference()
                print(
                    f"    minus {other:28s}{100 * d.value:+5.1f} [{100 * d.low:+5.1f}, {100 * d.high:+5.1f}] "
                    f"({len(shared)})"
                )


def wanted(text: str) -> tuple[str, int]:
    """Read `HEAD/CELL` or `HEAD/CELL:EPISODES`."""
    key, _, episodes = text.partition(":")
    head, _, name = key.partition("/")
    if head not in ("shipped", *HEADS) or name not in late_chunks.cells() or not (episodes or "1").isdigit():
        raise argparse.ArgumentTypeError(f"HEAD/CELL:EPISODES is needed, as clean/fp32_vm_replace0.8:240, got {text!r}")
    return key, int(episodes or dict(CELLS).get(key, 240))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("collect", "train", "errors", "measure", "table"))
    parser.add_argument("--work", type=Path, default=WORK, help="folder of data and weights (default: %(default)s)")
    parser.add_argument("--heads", nargs="*", choices=HEADS, default=HEADS, help="heads to train (default: all)")
    parser.add_argument(
        "--only", nargs="*", type=wanted, default=[], metavar="CELL", help="cells to run (default: all)"
    )
    parser.add_argument("--lockstep", type=int, default=10, help="episodes that share a prediction")
    args = parser.parse_args()
    if args.stage == "collect":
        collect(args.work)
    elif args.stage == "train":
        train(args.work, args.heads)
    elif args.stage == "measure":
        if not args.only:
            measure_errors(args.work)
        measure(args.work, dict(args.only or CELLS), args.lockstep)
    elif args.stage == "errors":
        measure_errors(args.work)
    table()
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # the renderers' OpenGL contexts end with the process
