"""Quantising one decoder layer: rotate or equalise it, look at its inputs, round it, put integer linears in place."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from sqap_vla_ros.compression.folding import online_rotation, rotate_layer, turn_input_online
from sqap_vla_ros.compression.recipe import LINEARS, QuantizationSpec
from sqap_vla_ros.quantization.equalization import (
    awq_clipped_weight,
    awq_scale,
    clipped_grid,
    move_scale,
    smoothing_scale,
)
from sqap_vla_ros.quantization.gptq import gptq
from sqap_vla_ros.quantization.input_statistics import InputStatistics
from sqap_vla_ros.quantization.linear import ActivationQuantizer, QuantizedLinear, WeightOnlyLinear, use_backend
from sqap_vla_ros.quantization.omniquant import learn_layer
from sqap_vla_ros.quantization.packing import PackedWeight
from sqap_vla_ros.quantization.quantizers import QuantizedWeight, quantize_weight, search_activation_clip
from sqap_vla_ros.quantization.rotations import OrthogonalMix
from sqap_vla_ros.text_rows import text_rows

# linears that read the same tensor
GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
LEARNED_FROM = 8  # observations that OmniQuant learns from, spread over all: it computes them many times
Rotary = Callable[[Tensor], tuple[Tensor, Tensor]]  # hidden [1, S, D] -> cos, sin [1, S, head width]


@dataclass(frozen=True)
class LinearReport:
    """What happened to one linear.

    weight_error: relative Frobenius error of the stored weight. output_error: relative error of the layer's output on
    the calibration inputs, everything in the layer quantised (the same number for all linears of a layer; None without
    calibration).
    """

    name: str
    weight_bits: int
    activation_bits: int
    activation_clip: float
    weight_error: float
    output_error: float | None
    stored_bytes: int


def owner_of(layer: LlamaDecoderLayer, linear: str) -> nn.Module:
    """The module that holds one of `LINEARS`."""
    return layer.self_attn if linear in ("q_proj", "k_proj", "v_proj", "o_proj") else layer.mlp


def get_linear(layer: LlamaDecoderLayer, name: str) -> nn.Linear:
    """One of `LINEARS` of a decoder layer."""
    linear = getattr(owner_of(layer, name), name)
    assert isinstance(linear, nn.Linear)
    return linear


def weight_group(spec: QuantizationSpec, in_features: int) -> int:
    """Input channels per weight scale, 0 for all of them; shrunk to a divisor of the width where it is not one."""
    return math.gcd(spec.weight_group, in_features) if spec.weight_group else 0


def layer_rotation(spec: QuantizationSpec, linear: str, width: int, mlp_width: int, heads: int) -> OrthogonalMix | None:
    """What is applied to a linear's input at run time under `spec`."""
    if spec.rotation == "hadamard":
        return online_rotation(linear, heads, width // heads, mlp_width)
    if spec.rotation == "query_key" and linear in GROUPS[0]:
        return OrthogonalMix(width)
    return None


def build_group(
    spec: QuantizationSpec,
    names: Sequence[str],
    weights: Sequence[PackedWeight],
    biases: Sequence[Tensor | None],
    clip: float,
    rotation: OrthogonalMix | None,
) -> list[QuantizedLinear | WeightOnlyLinear]:
    """The modules that replace a group of linears; those with the same activation bits share one quantiser."""
    widths = [spec.bits(name)[1] for name in names]
    shared = {
        bits: ActivationQuantizer(
            bits,
            clip=clip,
            granularity=spec.activation_granularity,
            rotation=rotation,
            consumers=widths.count(bits),
            text_bits=None if spec.text_activation_bits is None else max(bits, spec.text_activation_bits),
        )
        for bits in set(widths) - {16}
    }
    return [
        WeightOnlyLinear(weight, bias, rotation) if bits == 16 else QuantizedLinear(weight, shared[bits], bias)
        for bits, weight, bias in zip(widths, weights, biases, strict=True)
    ]


def compress_layer(
    layer: LlamaDecoderLayer,
    spec: QuantizationSpec,
    heads: int,
    *,
    hidden: Sequence[Tensor] | None = None,
    rotary: Rotary | None = None,
    prefix: str = "",
) -> tuple[list[LinearReport], list[Tensor] | None]:
    """Quantise a decoder layer in place.

    hidden: inputs of the layer, [1, S, D] each, one per calibration observation; may be None when the recipe does not
        need calibration.
    rotary: their position tables.
    Returns what happened to each linear and the quantised layer's outputs for `hidden` (the next layer's inputs).
    """
    dtype = layer.self_attn.q_proj.weight.dtype
    layer.float()
    width, mlp_width = layer.self_attn.q_proj.in_features, layer.mlp.down_proj.in_features
    if spec.rotation == "hadamard":
        rotate_layer(layer, width // heads)
    elif spec.rotation == "query_key":
        for name in GROUPS[0]:
            turn_input_online(get_linear(layer, name), OrthogonalMix(width))

    run: Callable[[], list[Tensor]] | None = None
    if hidden is not None and rotary is not None:
        run = partial(_outputs, layer, [h.float() for h in hidden], rotary)
    statistics: dict[str, InputStatistics] = {}
    expected: list[Tensor] | None = None
    row_clips: dict[str, Tensor] = {}
    if run is not None and hidden is not None and rotary is not None:
        expected = run()
        if spec.equalization in ("smoothquant", "awq"):
            _equalize(layer, spec, run)
        elif spec.equalization == "omniquant":
            few = [h.float() for h in hidden[:: max(1, len(hidden) // LEARNED_FROM)]][:LEARNED_FROM]
            learn = partial(_outputs, layer, few, rotary)
            row_clips = learn_layer(layer, learn, learn(), spec.bits, GROUPS, spec.smooth_alpha)
        hessians = spec.rounding == "gptq" or spec.weight_clip or spec.equalization == "awq"
        statistics = collect(layer, run, hessian=hessians)
    elif spec.needs_calibration:
        raise ValueError(f"{prefix}: this recipe needs calibration observations and got none")

    pending: list[tuple[str, int, int, float, float, int]] = []
    for group in GROUPS:
        stats = statistics.get(group[0])
        rotation = layer_rotation(spec, group[0], width, mlp_width, heads)
        clip = _activation_clip(spec, layer, group, stats)
        quantized = [_round(get_linear(layer, name).weight.data, name, spec, stats, row_clips) for name in group]
        errors = [
            _relative(q.dequantize(), get_linear(layer, name).weight) for name, q in zip(group, quantized, strict=True)
        ]
        biases = [get_linear(layer, name).bias for name in group]
        modules = build_group(spec, group, [PackedWeight.of(q) for q in quantized], biases, clip, rotation)
        for name, module, error in zip(group, modules, errors, strict=True):
            setattr(owner_of(layer, name), name, module)
            pending.append((f"{prefix}.{name}", *spec.bits(name), clip, error, module.stored_bytes))

    outputs, output_error = None, None
    if run is not None and expected is not None and hidden is not None and rotary is not None:
        runnable = copy.deepcopy(layer)  # a fast backend lets go of the packed weights, which are still to be stored
        use_backend(runnable)
        with text_rows(0):  # the next layer is calibrated on what the visual tokens' bits give for every row
            outputs = _outputs(runnable, [h.float() for h in hidden], rotary)
        output_error = _relative(torch.cat([o[0] for o in outputs]), torch.cat([e[0] for e in expected]))
    layer.input_layernorm.to(dtype)
    layer.post_attention_layernorm.to(dtype)
    reports = [
        LinearReport(name, bits, activation_bits, clip, error, output_error, size)
        for name, bits, activation_bits, clip, error, size in pending
    ]
    return reports, outputs


def _outputs(layer: LlamaDecoderLayer, hidden: Sequence[Tensor], rotary: Rotary) -> list[Tensor]:
    return [layer(h, position_embeddings=rotary(h)) for h in hidden]


def _relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-12)).item()


def _watch(linear: nn.Linear, see: Callable[[Tensor], None]) -> Callable[[], None]:
    """Show `see` every input of a linear; returns what ends it."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        see(inputs[0])

    # added after the online rotation's hook, so it sees what the weight is multiplied with
    return linear.register_forward_pre_hook(hook).remove


def collect(
    layer: LlamaDecoderLayer, run: Callable[[], object], *, hessian: bool = False
) -> dict[str, InputStatistics]:
    """Statistics of every group's inputs over one run, under the name of the group's first linear."""
    gathered: dict[str, InputStatistics] = {}
    with ExitStack() as stack:
        for first, *_ in GROUPS:
            linear = get_linear(layer, first)
            gathered[first] = InputStatistics(linear.in_features, hessian=hessian)
            stack.callback(_watch(linear, gathered[first].add))
        run()
    return gathered


def _equalize(layer: LlamaDecoderLayer, spec: QuantizationSpec, run: Callable[[], list[Tensor]]) -> None:
    """SmoothQuant moves scales into the two norms; AWQ searches them, and for v -> o and up -> down as well."""
    attention_in = [get_linear(layer, name) for name in GROUPS[0]]
    mlp_in = [get_linear(layer, name) for name in GROUPS[2]]
    if spec.equalization == "smoothquant":
        stats = collect(layer, run)
        for norm, linears, first in (
            (layer.input_layernorm, attention_in, "q_proj"),
            (layer.post_attention_layernorm, mlp_in, "gate_proj"),
        ):
            move_scale(smoothing_scale(stats[first].absmax, linears, spec.smooth_alpha), norm, linears)
        return
    attention, mlp = layer.self_attn, layer.mlp
    steps: tuple[tuple[nn.Module, list[nn.Linear]], ...] = (
        (layer.input_layernorm, attention_in),
        (attention.v_proj, [attention.o_proj]),
        (layer.post_attention_layernorm, mlp_in),
        (mlp.up_proj, [mlp.down_proj]),
    )
    for (source, linears), group in zip(steps, GROUPS, strict=True):
        mean_abs = collect(layer, run)[group[0]].mean_abs

        def block() -> Tensor:
            return torch.cat([output[0] for output in run()])

        scale = awq_scale(
            mean_abs,
            linears,
            block,
            spec.bits(group[0])[0],
            group=weight_group(spec, linears[0].in_features),
            symmetric=spec.weight_symmetric,
        )
        move_scale(scale, source, linears)


def _round(
    weight: Tensor, name: str, spec: QuantizationSpec, stats: InputStatistics | None, row_clips: dict[str, Tensor]
) -> QuantizedWeight:
    bits = spec.bits(name)[0]
    group, symmetric = weight_group(spec, weight.shape[1]), spec.weight_symmetric
    if name in row_clips:
        return clipped_grid(weight, row_clips[name], bits)
    hessian = None if stats is None or stats.hessian is None else stats.hessian.matrix
    # AWQ leaves the range of q and k alone: clipping them costs more than it saves
    if spec.equalization == "awq" and hessian is not None and name not in ("q_proj", "k_proj"):
        return awq_clipped_weight(weight, hessian, bits, group=group, symmetric=symmetric)
    if spec.rounding == "gptq" and hessian is not None:
        return gptq(weight, hessian, bits, clip_search=spec.weight_clip, group=group, symmetric=symmetric)
    importance = None if hessian is None else hessian.diagonal()
    return quantize_weight(
        weight, bits, clip_search=spec.weight_clip, importance=importance, group=group, symmetric=symmetric
    )


def _activation_clip(
    spec: QuantizationSpec, layer: LlamaDecoderLayer, group: Sequence[str], stats: InputStatistics | None
) -> float:
    bits = {spec.bits(name)[1] for name in group} - {16}
    if spec.activation_clip is not None or not bits or stats is None:
        return 1.0 if spec.activation_clip is None else spec.activation_clip
    weights = torch.cat([get_linear(layer, name).weight.data for name in group])
    importance = weights.float().square().sum(0)  # how much the linears care for each channel
    return search_activation_clip(
        stats.samples, min(bits), granularity=spec.activation_granularity, importance=importance
    )


assert {name for group in GROUPS for name in group} == set(LINEARS)
