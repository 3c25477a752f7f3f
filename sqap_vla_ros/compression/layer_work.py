"""A decoder layer while it is quantised, as the steps of a scheme see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.policy.decoder import Decoder
from sqap_vla_ros.quantization.input_statistics import InputStatistics

OnProgress = Callable[[str, int, int], None]  # called as (stage, done, total)
Rotary = Callable[[Tensor], tuple[Tensor, Tensor]]  # hidden [1, S, D] -> cos, sin [1, S, head width]


def rotary_of(decoder: Decoder) -> Rotary:
    """Return the function that makes a decoder's position tables, with a leading batch axis."""

    def rotary(x: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = decoder.rotary(x.shape[1], x)
        return cos[None], sin[None]

    return rotary


class Settings(Protocol):
    """The part of a recipe's quantisation that the steps read; see `recipe.QuantizationSpec`."""

    @property
    def weight_group(self) -> int: ...

    @property
    def weight_symmetric(self) -> bool: ...

    @property
    def weight_clip(self) -> bool: ...

    @property
    def smooth_alpha(self) -> float: ...

    @property
    def activation_granularity(self) -> str: ...

    @property
    def text_activation_bits(self) -> int | None: ...

    def bits(self, linear: str) -> tuple[int, int]: ...


def group_size(settings: Settings, in_features: int) -> int:
    """Return the input channels per weight scale, 0 for all.

    A wanted size that does not divide `in_features` is reduced to the greatest common divisor.
    """
    return math.gcd(settings.weight_group, in_features) if settings.weight_group else 0


@dataclass(frozen=True)
class LayerPlan:
    """Decisions made for a layer's linears before it is quantised; all may be empty.

    bits: linear -> [N] width of every row. hessians: linear -> [K, K] second moment to round on, in place of the
    inputs' own. damage: linear -> bits -> expected squared change of the action with all its rows at that width.
    """

    bits: Mapping[str, Tensor] = field(default_factory=dict)
    hessians: Mapping[str, Tensor] = field(default_factory=dict)
    damage: Mapping[str, Mapping[int, float]] = field(default_factory=dict)


NO_PLAN = LayerPlan()


@dataclass
class LayerWork:
    """One decoder layer in float32, its calibration inputs, and the results that steps hand to each other.

    hidden: the layer's inputs, [1, S, D] float32 each, one per observation; empty without calibration.
    row_clips: linear -> [N] share of every row's range that is kept, from an equalisation that learned it.
    """

    layer: LlamaDecoderLayer
    settings: Settings
    hidden: Sequence[Tensor] = ()
    rotary: Rotary | None = None
    plan: LayerPlan = NO_PLAN
    row_clips: dict[str, Tensor] = field(default_factory=dict)

    def run(self) -> list[Tensor]:
        """Return the layer's outputs [1, S, D] for the calibration inputs, from its present weights."""
        return self.run_on(self.hidden)

    def run_on(self, hidden: Sequence[Tensor], layer: nn.Module | None = None) -> list[Tensor]:
        """Return the outputs for other inputs, or of another layer in its place."""
        assert self.rotary is not None
        return [(layer or self.layer)(h, position_embeddings=self.rotary(h)) for h in hidden]

    def group_size(self, in_features: int) -> int:
        """Return the input channels per weight scale, 0 for all."""
        return group_size(self.settings, in_features)

    def linears(self, names: Sequence[str]) -> list[nn.Linear]:
        """Return some of the layer's linears."""
        return [COGACT.linear(self.layer, name) for name in names]

    def collect(self, *, hessian: bool = False) -> dict[str, InputStatistics]:
        """Return the statistics of every group's inputs over one run, by the name of the group's first linear."""
        return collect(self.layer, self.run, hessian=hessian)


def collect(
    layer: LlamaDecoderLayer, run: Callable[[], object], *, hessian: bool = False
) -> dict[str, InputStatistics]:
    """Return the statistics of every group's inputs while `run` runs, by the name of the group's first linear."""
    gathered: dict[str, InputStatistics] = {}
    with ExitStack() as stack:
        for group in COGACT.groups:
            linear = COGACT.linear(layer, group.first)
            gathered[group.first] = InputStatistics(linear.in_features, hessian=hessian)
            stack.callback(_watch(linear, gathered[group.first].add))
        run()
    return gathered


def _watch(linear: nn.Linear, see: Callable[[Tensor], None]) -> Callable[[], None]:
    """Show `see` every input of a linear until the returned function is called."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        see(inputs[0])

    # added after the online rotation's hook, so it sees what the weight is multiplied with
    return linear.register_forward_pre_hook(hook).remove


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the Frobenius norm of the difference over that of `expected`."""
    return ((actual.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-12)).item()


def concatenated(outputs: Sequence[Tensor]) -> Tensor:
    """Join outputs [1, S, D] of several observations to [n, D]."""
    return torch.cat([output[0] for output in outputs])
