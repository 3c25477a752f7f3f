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
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import late_chunks
import numpy as np
import torch
from committed_prefixes_data import KINDS, LABELS, NOISY, OWN, SHARDS, Actions, collect, sampled, shipped
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from sqap_vla_ros.contracts import Commitment
from sqap_vla_ros.policy.checkpoints.load import load_checkpoint
from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
from sqap_vla_ros.policy.cogact import CogACTPolicy
from sqap_vla_ros.policy.sampling import continuing
from sqap_vla_ros.policy.sampling.continuing import Past, Replace
from sqap_vla_ros.policy.sampling.diffusion import Sampler
from sqap_vla_ros.training.labels import FAMILIES
from sqap_vla_ros.training.objective import LossWeights, diffusion_loss
from sqap_vla_ros.training.train import TrainingConfig

RESULTS = Path(__file__).parent / "results" / "committed_prefixes"
WORK = Path("out") / "committed_prefixes"
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
    print(f"\n{'cell':28s}{'n':>5s}  success [95 %]   jerk m/s³")
    for key, _ in CELLS:
        head, name = key.split("/")
        rows = late_chunks.read(name, folder_of(head))
        if not rows:
            continue
        print(f"{key:28s}{len(rows):5d}  {late_chunks.success_text(rows)}")
        delay = name.removeprefix("fp32_vm_").lstrip("abcdefghijklmnopqrstuvwxyz")
        others = [f"shipped/{name}", f"control/{name}", *([f"shipped/fp32_vm_path{delay}"] if delay else [])]
        for other in dict.fromkeys(others):
            against, cell = other.split("/")
            difference = late_chunks.difference_text(rows, late_chunks.read(cell, folder_of(against)))
            if other != key and difference:
                print(f"    minus {other:28s}{difference}")


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
