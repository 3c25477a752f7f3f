"""Training of the shipped policy: demonstrations, imitation, corrections, imitation of both. Resumes at any point."""

from __future__ import annotations

import dataclasses
import functools
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from sqap_vla_ros.policy.checkpoints.load import open_checkpoint
from sqap_vla_ros.policy.checkpoints.writing import WriteError
from sqap_vla_ros.policy.config import TABLETOP
from sqap_vla_ros.policy.micro.tokenizer import micro_tokenizer
from sqap_vla_ros.processes import end_with_parent
from sqap_vla_ros.training.batch import Demonstrations
from sqap_vla_ros.training.collection import CollectionConfig, collect_shards
from sqap_vla_ros.training.corrections import correction_shard
from sqap_vla_ros.training.dataset import TabletopDemonstrations
from sqap_vla_ros.training.objective import LossWeights
from sqap_vla_ros.training.recorded import RecordedDemonstrations, action_statistics
from sqap_vla_ros.training.train import CHECKPOINT, STATE, TrainingConfig, train

# Large tensors come and go with every operation: kept and on large pages they cost a CPU less.
_MEMORY = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:"
    "glibc.malloc.trim_threshold=100000000000:glibc.malloc.top_pad=268435456"
)


@dataclass(frozen=True)
class Round:
    """A round of corrections with the policy so far, then training on all of them and the experts' demonstrations."""

    shards: int
    training: TrainingConfig


@dataclass(frozen=True)
class PipelineConfig:
    """Everything that the result depends on, beside the machine's arithmetic."""

    collection: CollectionConfig
    imitation: TrainingConfig
    rounds: tuple[Round, ...] = field(default_factory=tuple)

    def scaled(self, factor: float) -> PipelineConfig:
        """Return the configuration with shards and steps times `factor`, at least one of each, to try the pipeline."""

        def steps(training: TrainingConfig) -> TrainingConfig:
            return dataclasses.replace(training, steps=max(1, round(training.steps * factor)))

        frames = max(8, round(self.collection.frames * min(1.0, 10.0 * factor)))
        shards = max(1, round(self.collection.shards * factor))
        return PipelineConfig(
            dataclasses.replace(self.collection, shards=shards, frames=frames),
            steps(self.imitation),
            tuple(Round(max(1, round(r.shards * factor)), steps(r.training)) for r in self.rounds),
        )

    def seeded(self, seed: int) -> PipelineConfig:
        """Return the same with other demonstrations, weights and noise."""
        return self._mapped(lambda training: dataclasses.replace(training, seed=seed), seed)

    def without_attention(self) -> PipelineConfig:
        """Return the control experiment, in which no head is told where to look."""
        loss = LossWeights(attention=0.0)
        return self._mapped(lambda training: dataclasses.replace(training, loss=loss), self.collection.seed)

    def _mapped(self, change: Callable[[TrainingConfig], TrainingConfig], seed: int) -> PipelineConfig:
        return PipelineConfig(
            dataclasses.replace(self.collection, seed=seed),
            change(self.imitation),
            tuple(Round(r.shards, change(r.training)) for r in self.rounds),
        )


# The shipped checkpoint was trained with this; docs/model_card.md tells how the order of its data differed.
SHIPPED = PipelineConfig(
    collection=CollectionConfig(),
    imitation=TrainingConfig(steps=7400, final_rate=0.35),
    rounds=(
        Round(6, TrainingConfig(steps=3400, rate=8e-4, final_rate=0.4, corrections=0.2)),
        Round(10, TrainingConfig(steps=4500, rate=6e-4, corrections=0.3)),
    ),
)


# For demonstrations that another world's script recorded, from nothing and from an earlier training's weights.
RECORDED = TrainingConfig(steps=20000)
RECORDED_AGAIN = TrainingConfig(steps=8000, rate=8e-4)

IMITATION = "imitation"  # folder of the first stage
Loader = Callable[[Sequence[Path]], Demonstrations]


def tabletop(folders: Sequence[Path]) -> Demonstrations:
    """Return the demonstrations of the embedded simulator in some folders."""
    return TabletopDemonstrations(shards_in(folders), micro_tokenizer())


def recorded(folders: Sequence[Path]) -> Demonstrations:
    """Return the demonstrations that another world's script recorded; the first folder describes them all."""
    return RecordedDemonstrations(folders[0], shards_in(folders), micro_tokenizer())


def recorded_training(scale: float, seed: int, *, attention: bool, again: bool = False) -> TrainingConfig:
    """Return the settings for recorded demonstrations, with steps times `scale`, at least one."""
    loss = LossWeights() if attention else LossWeights(attention=0.0)
    base = RECORDED_AGAIN if again else RECORDED
    return dataclasses.replace(base, steps=max(1, round(base.steps * scale)), seed=seed, loss=loss)


def train_on_recorded(
    out: Path,
    folders: Sequence[Path],
    training: TrainingConfig,
    *,
    start: Path | None = None,
    jobs: int = 2,
    device: str = "cpu",
    compiled: bool = False,
    show: bool = True,
) -> Path:
    """Imitate the shards in `folders`, or go on with that, and return the checkpoint.

    folders: the first one's description and scale of the actions count for all. start: whose weights this one begins
        with: the `out` of a training on demonstrations, or a checkpoint of the same geometry.
    """
    for folder in folders:
        if not shards_in([folder]):
            raise ValueError(f"{folder} holds no finished shards of demonstrations: collect some first")
    weights = None if start is None else starting_weights(start)
    action_statistics(folders[0], shards_in(folders[:1]))  # written once, before several processes read it
    stage = out / IMITATION
    _train(stage, training, folders, [], weights, jobs, device, compiled, show, load=recorded)
    return stage / "policy.safetensors"


def starting_weights(start: Path) -> Path:
    """Return the file of the weights: of the training whose `out` this is, or the checkpoint. Raises ValueError."""
    if start.suffix == CHECKPOINT:
        if not start.is_file():
            raise ValueError(f"{start} does not exist")
        if open_checkpoint(start).config.replace(name=TABLETOP.name) != TABLETOP:
            raise ValueError(f"{start} is of another geometry than the network that is trained")
        return start
    state = start / IMITATION / STATE
    if not state.is_file():
        raise ValueError(f"{state} is missing: {start} is neither a training on demonstrations nor a checkpoint")
    return state


def run_pipeline(
    out: Path, config: PipelineConfig, *, jobs: int = 2, device: str = "cpu", compiled: bool = False, show: bool = True
) -> Path:
    """Do what is still missing under `out` and return the checkpoint of the last stage.

    jobs: processes, also those a CPU training is spread over; each draws its own share of a batch, so another number
        gives another model of the same recipe.
    """
    expert = out / "expert"
    collect_shards(expert, config.collection, jobs=jobs, show=show)
    stage = out / IMITATION
    _train(stage, config.imitation, [expert], [], None, jobs, device, compiled, show)
    corrections: list[Path] = []
    for number, one in enumerate(config.rounds):
        corrections.append(out / f"corrections{number}")
        make = functools.partial(correction_shard, checkpoint=stage / "policy.safetensors")
        # other layouts than the experts' and the rounds' before
        collection = dataclasses.replace(config.collection, shards=one.shards, seed=config.collection.seed + number)
        collect_shards(corrections[-1], collection, jobs=jobs, make=make, show=show)
        before, stage = stage, out / f"round{number}"
        _train(stage, one.training, [expert], corrections, before / STATE, jobs, device, compiled, show)
    return stage / "policy.safetensors"


def _train(
    stage: Path,
    training: TrainingConfig,
    expert: Sequence[Path],
    corrections: Sequence[Path],
    start: Path | None,
    jobs: int,
    device: str,
    compiled: bool,
    show: bool,
    load: Loader = tabletop,
) -> None:
    if (stage / "done").is_file():
        return
    training = dataclasses.replace(training, compiled=compiled)
    os.environ.setdefault("GLIBC_TUNABLES", _MEMORY)  # read when the processes below start
    jobs = jobs if device == "cpu" else 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (jobs, port, stage, training, expert, corrections, start, device, show, load)
    processes = mp.spawn(_worker, arguments, nprocs=jobs, join=False)
    try:
        while not processes.join():
            pass
    except BaseException as error:  # the others would train on without the one that ended, or without this process
        for process in processes.processes:
            process.terminate()
        _, full, sentence = str(error).rstrip().rpartition(f"{WriteError.__name__}: ")
        if isinstance(error, mp.ProcessRaisedException) and full:
            raise WriteError(sentence) from error
        raise
    (stage / "done").touch()


def _worker(
    rank: int,
    jobs: int,
    port: int,
    stage: Path,
    training: TrainingConfig,
    expert: Sequence[Path],
    corrections: Sequence[Path],
    start: Path | None,
    device: str,
    show: bool,
    load: Loader,
) -> None:
    """Train in one process, on one thread: two threads on tensors this small would wait for each other."""
    end_with_parent()
    if device == "cpu":
        torch.set_num_threads(1)
    if jobs > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=jobs)
    try:
        train(
            load(expert),
            stage,
            training,
            start=start,
            corrections=load(corrections) if corrections else None,
            device=device,
            show=show,
        )
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def shards_in(folders: Sequence[Path]) -> list[Path]:
    """Return the finished shards of some folders, in order."""
    found = [sorted(folder.glob("shard[0-9][0-9][0-9][0-9]")) for folder in folders]
    return [path for shards in found for path in shards if path.is_dir()]
