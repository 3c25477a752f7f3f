"""Imitation learning of the small policy: AdamW, cosine schedule, averaged weights; resumes where it was stopped."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from sqap_vla_ros.policy.checkpoints.load import load_checkpoint
from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
from sqap_vla_ros.policy.checkpoints.writing import written_aside
from sqap_vla_ros.policy.cogact import CogACT, CogACTPolicy, Provenance
from sqap_vla_ros.policy.config import TABLETOP, PolicyConfig
from sqap_vla_ros.policy.micro.tokenizer import micro_tokenizer
from sqap_vla_ros.policy.sampling.diffusion import Sampler
from sqap_vla_ros.training.batch import Batch, Demonstrations, ReadOuts
from sqap_vla_ros.training.objective import LossWeights, Supervision, losses, total
from sqap_vla_ros.training.packed import decoder_block

STATE = "state.pt"  # in the folder of a training
CHECKPOINT = ".safetensors"
_SAVE_EVERY = 250  # steps
_AVERAGE_EVERY = 4


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of one training. rate: the peak of the cosine; average: decay of the averaged weights, per step.

    corrections: share of a batch drawn from the corrections where there are some. compiled: needs a C++ compiler.
    """

    steps: int = 16000
    batch: int = 16
    rate: float = 1.2e-3
    final_rate: float = 0.0
    warmup: float = 0.03
    weight_decay: float = 0.02
    clip: float = 1.0
    average: float = 0.998
    corrections: float = 0.5
    seed: int = 0
    compiled: bool = False
    loss: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1:
            raise ValueError(f"steps and batch must be positive, got {self.steps} and {self.batch}")

    def rate_at(self, step: int) -> float:
        """Return the rate of a step: linear warm-up, then half a cosine down to `final_rate` of the peak."""
        done = step / self.steps
        cosine = self.final_rate + (1.0 - self.final_rate) * 0.5 * (1.0 + np.cos(np.pi * done))
        return float(self.rate * min(1.0, done / self.warmup + 0.01) * cosine)


def new_model(config: PolicyConfig = TABLETOP, seed: int = 0) -> CogACT:
    """Make a model with random weights that keep the variance: the published 0.02 would mute so narrow a decoder."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = CogACT(config)
        for part in (model.vision, model.projector):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=module.in_features**-0.5)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        last: Any = model.projector[-1]
        last.weight *= 2.0  # after two GELUs: visual tokens of the size of word embeddings
        residual = (2.0 * config.decoder.depth) ** -0.5
        for name, module in model.decoder.named_modules():
            if isinstance(module, nn.Linear):
                gain = residual if name.endswith(("o_proj", "down_proj")) else 1.0
                nn.init.normal_(module.weight, std=gain * module.in_features**-0.5)
        nn.init.normal_(model.decoder.embed_tokens.weight, std=1.0)
        nn.init.normal_(model.vision.dino.embeddings.position_embeddings, std=0.3)
        nn.init.normal_(model.vision.siglip.embeddings.position_embedding.weight, std=0.3)
    return model


def augment(image: Tensor) -> Tensor:
    """Vary brightness, contrast and colour as lamps and cameras do; [B, 3, H, W] uint8 becomes float."""
    batch = len(image)
    gain = (1.0 + 0.12 * torch.randn(batch, 1, 1, 1, device=image.device)) * (
        1.0 + 0.05 * torch.randn(batch, 3, 1, 1, device=image.device)
    )
    cast = 255.0 * 0.02 * torch.randn(batch, 3, 1, 1, device=image.device)
    return (image.float() * gain + cast).clamp_(0.0, 255.0)


def train(
    demonstrations: Demonstrations,
    out: Path,
    config: TrainingConfig,
    *,
    start: Path | None = None,
    corrections: Demonstrations | None = None,
    device: str = "cpu",
    show: bool = True,
) -> Path:
    """Train and write `out/policy.safetensors` (averaged weights, bfloat16) and `out/log.jsonl`.

    start: weights to begin from instead of random ones: `state.pt` of another run, or a checkpoint. An interrupted
        run goes on.
    """
    out.mkdir(parents=True, exist_ok=True)
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(1000 * config.seed + rank)
    learner = Learner(config, demonstrations.read_outs, device, name=demonstrations.dataset)
    step = learner.restore(out / STATE)
    if step == 0 and start is not None:
        learner.begin_with(start)
    (out / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")

    batch = -(-config.batch // ranks)
    corrected = round(batch * config.corrections) if corrections is not None else 0
    seed = 1_000_003 * rank + 101 * config.seed + step
    sources = [demonstrations.batches(batch - corrected, config.steps - step, seed)]
    if corrections is not None and corrected:
        sources.append(corrections.batches(corrected, config.steps - step, seed + 1))
    smooth: dict[str, float] = {}
    clock = time.perf_counter()
    with (
        (out / f"log{rank or ''}.jsonl").open("a") as log,
        tqdm(total=config.steps, initial=step, disable=not show or rank > 0, unit="step") as bar,
    ):
        for parts in zip(*sources, strict=True):
            values = learner.learn(parts, step)
            step += 1
            for name, value in values.items():
                smooth[name] = value if name not in smooth else 0.98 * smooth[name] + 0.02 * value
            bar.update()
            if step % 50 == 0:
                bar.set_postfix_str(" ".join(f"{name} {value:.3f}" for name, value in smooth.items()))
                seconds = time.perf_counter() - clock
                log.write(json.dumps({"step": step, "seconds": round(seconds, 1), **smooth}) + "\n")
                log.flush()
            if rank == 0 and (step % _SAVE_EVERY == 0 or step == config.steps):
                learner.save(out / STATE, step)
                export(learner.model, learner.averaged, demonstrations, out / "policy.safetensors")
    return out / "policy.safetensors"


class Learner:
    """The model in training: weights in bfloat16 for the passes, in float32 for the optimiser and the average."""

    def __init__(self, config: TrainingConfig, read_outs: ReadOuts, device: str, name: str = TABLETOP.name) -> None:
        self.config, self.device = config, device
        self.model = new_model(TABLETOP.replace(name=name), config.seed).to(device).train()
        width = self.model.config.decoder.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.supervision = Supervision(width, read_outs).to(device)
        self._parameters: list[Tensor] = [*self.model.parameters(), *self.supervision.parameters()]
        self._masters: list[Tensor] = [nn.Parameter(p.detach().clone().float()) for p in self._parameters]
        self.averaged: list[Tensor] = [p.detach().clone() for p in self._masters]
        self.model.to(torch.bfloat16)
        self.supervision.to(torch.bfloat16)
        self._optimizer = torch.optim.AdamW(
            self._masters, config.rate, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True
        )
        self._sampler = Sampler(self.model.config.diffusion)
        self._block = torch.compile(decoder_block, dynamic=False) if config.compiled else None
        if device == "cpu":  # attention written out: the fused one's backward pass is slower there
            for tower in (self.model.vision.dino, self.model.vision.siglip):
                tower.config._attn_implementation = "eager"

    def learn(self, parts: Sequence[Batch], step: int) -> dict[str, float]:
        """Take one step of the optimiser on the frames of all parts together; return the losses."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.rate_at(step)
        batch = Batch.joined(parts).to(self.device)
        # on a CPU the fused attention's backward pass is slower than the written-out one's
        with sdpa_kernel(SDPBackend.MATH) if self.device == "cpu" else contextlib.nullcontext():
            image = augment(batch.image).to(torch.bfloat16)
            found = losses(self.model, self.supervision, self._sampler, batch, image, self.config.loss, self._block)
        total(found, self.config.loss).backward()
        self._collect_gradients()
        torch.nn.utils.clip_grad_norm_(self._masters, self.config.clip)
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, self._masters)
            if (step + 1) % _AVERAGE_EVERY == 0:
                decay = min(self.config.average, (step + 1) / (step + 21))
                torch._foreach_lerp_(self.averaged, self._masters, 1.0 - decay**_AVERAGE_EVERY)
        return {name: float(value.detach()) for name, value in found.items()}

    def _collect_gradients(self) -> None:
        """Put gradients on the masters as float32, averaged over the processes."""
        flat = torch.cat(
            [
                torch.zeros(p.numel(), device=p.device) if p.grad is None else p.grad.flatten().float()
                for p in self._parameters
            ]
        )
        if dist.is_initialized():
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
        for parameter, master, gradient in zip(
            self._parameters, self._masters, flat.split([p.numel() for p in self._parameters]), strict=True
        ):
            parameter.grad = None
            master.grad = gradient.view_as(master)

    def save(self, path: Path, step: int) -> None:
        """Write everything that a continuation needs; a file that is cut short never takes the name."""
        state = {"step": step, "masters": [p.detach() for p in self._masters], "averaged": self.averaged}
        with written_aside(path) as partial:
            torch.save({**state, "optimizer": self._optimizer.state_dict()}, partial)

    def begin_with(self, path: Path) -> None:
        """Take the weights of a `state.pt`, or those of a checkpoint, which has no read-outs: they begin anew."""
        if path.suffix != CHECKPOINT:
            self.restore(path, weights_only=True)
            return
        found = dict(load_checkpoint(path).model.named_parameters())
        with torch.no_grad():
            for (name, parameter), master, averaged in zip(
                self.model.named_parameters(), self._masters, self.averaged, strict=False
            ):
                for copy in (master, averaged, parameter):
                    copy.copy_(found[name])

    def restore(self, path: Path, *, weights_only: bool = False) -> int:
        """Read a state; return its step, 0 where there is no such file. weights_only: without the optimiser's state."""
        if not path.is_file():
            return 0
        state = torch.load(path, weights_only=True, map_location=self.device)
        if not weights_only:
            self._optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            torch._foreach_copy_(self._masters, state["averaged"] if weights_only else state["masters"])
            torch._foreach_copy_(self.averaged, state["averaged"])
            torch._foreach_copy_(self._parameters, self._masters)
        return int(state["step"])


def export(model: CogACT, averaged: Sequence[Tensor], demonstrations: Demonstrations, path: Path) -> None:
    """Write the averaged weights (the first of `averaged`, in the model's order) as a checkpoint in bfloat16."""
    copy = CogACT(model.config)
    with torch.no_grad():
        for parameter, value in zip(copy.parameters(), averaged, strict=False):
            parameter.copy_(value)
    name = demonstrations.dataset
    statistics = {name: demonstrations.statistics}
    policy = CogACTPolicy(copy.to(torch.bfloat16), micro_tokenizer(), statistics, provenance=Provenance(name))
    save_checkpoint(policy, path)
