"""One decoder layer is rotated or equalised, calibrated, rounded, and given integer linears."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from sqap_vla_ros.compression.layer_work import NO_PLAN, LayerPlan, LayerWork, Rotary, concatenated, relative_error
from sqap_vla_ros.compression.recipe import QuantizationSpec
from sqap_vla_ros.compression.schemes.execution import EXECUTIONS, SharedInput
from sqap_vla_ros.policy.architecture import COGACT, LinearGroup
from sqap_vla_ros.policy.config import DecoderConfig
from sqap_vla_ros.quantization.input_statistics import InputStatistics
from sqap_vla_ros.quantization.linear import use_backend
from sqap_vla_ros.quantization.mixed import MixedWeight, PackedMixedWeight, quantize_mixed
from sqap_vla_ros.quantization.packing import PackedWeight
from sqap_vla_ros.quantization.quantizers import QuantizedWeight, search_activation_clip
from sqap_vla_ros.quantization.rotations import OrthogonalMix
from sqap_vla_ros.text_rows import text_rows

if TYPE_CHECKING:
    from sqap_vla_ros.compression.schemes.execution import CompressedLinear


@dataclass(frozen=True)
class LinearReport:
    """The result of quantising one linear.

    weight_error: relative Frobenius error of the stored weight. output_error: relative error of the layer's output on
    the calibration inputs, everything in the layer quantised (the same number for all linears of a layer; None without
    calibration). weight_bits: the rows' mean where their widths differ, and row_counts then says how many rows have
    which. damage: bits -> expected squared change of the action with all rows at that width, where it was scored.
    shape: output and input channels, of what is not in the decoder.
    """

    name: str
    weight_bits: float
    activation_bits: int
    activation_clip: float
    weight_error: float
    output_error: float | None
    stored_bytes: int
    row_counts: dict[str, int] | None = None
    damage: dict[str, float] | None = None
    shape: tuple[int, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, as stored in a compressed file."""
        content = dataclasses.asdict(self)
        return {k: v for k, v in content.items() if k not in ("row_counts", "damage", "shape") or v is not None}


def build_group(
    spec: QuantizationSpec,
    names: Sequence[str],
    weights: Sequence[PackedWeight | PackedMixedWeight],
    biases: Sequence[Tensor | None],
    clip: float,
    rotation: OrthogonalMix | None,
) -> list[CompressedLinear]:
    """Make the modules that replace a group of linears; those with the same activation bits share one quantiser."""
    modules: dict[str, CompressedLinear] = {}
    by_bits: dict[int, list[int]] = {}
    for index, name in enumerate(names):
        by_bits.setdefault(spec.bits(name)[1], []).append(index)
    for bits, members in by_bits.items():
        built = EXECUTIONS[bits].build(
            spec, SharedInput(bits, clip, rotation), [weights[i] for i in members], [biases[i] for i in members]
        )
        modules |= {names[i]: module for i, module in zip(members, built, strict=True)}
    return [modules[name] for name in names]


def compress_layer(
    layer: LlamaDecoderLayer,
    spec: QuantizationSpec,
    config: DecoderConfig,
    *,
    hidden: Sequence[Tensor] | None = None,
    rotary: Rotary | None = None,
    plan: LayerPlan = NO_PLAN,
    prefix: str = "",
) -> tuple[list[LinearReport], list[Tensor] | None]:
    """Quantise a decoder layer in place.

    hidden: inputs of the layer, [1, S, D] each, one per calibration observation; may be None when the recipe does not
        need calibration.
    rotary: their position tables.
    plan: decisions from `sensitivity.plan`, for recipes that look at the action.
    Returns a report for each linear, and the quantised layer's outputs for `hidden` (the next layer's inputs).
    Raises ValueError where the recipe needs calibration and there is none.
    """
    dtype = layer.self_attn.q_proj.weight.dtype
    layer.float()
    spec.rotation_scheme.turn_layer(layer, config.heads)
    work = LayerWork(layer, spec, [h.float() for h in hidden or ()], rotary, plan)
    calibrated = hidden is not None and rotary is not None
    statistics: dict[str, InputStatistics] = {}
    expected: list[Tensor] = []
    if calibrated:
        expected = work.run()
        spec.equalization_scheme.balance(work)
        statistics = work.collect(hessian=spec.needs_hessian)
    elif spec.needs_calibration:
        raise ValueError(f"{prefix}: this recipe needs calibration observations and got none")

    reports = [
        report
        for group in COGACT.groups
        for report in _quantize_group(work, spec, config, group, statistics.get(group.first), prefix)
    ]
    outputs, output_error = None, None
    if calibrated:
        runnable = copy.deepcopy(layer)  # a fast backend lets go of the packed weights, which are still to be stored
        use_backend(runnable)
        with text_rows(0):  # the next layer is calibrated on what the visual tokens' bits give for every row
            outputs = work.run_on(work.hidden, runnable)
        output_error = relative_error(concatenated(outputs), concatenated(expected))
    layer.input_layernorm.to(dtype)
    layer.post_attention_layernorm.to(dtype)
    return [dataclasses.replace(report, output_error=output_error) for report in reports], outputs


def _quantize_group(
    work: LayerWork,
    spec: QuantizationSpec,
    config: DecoderConfig,
    group: LinearGroup,
    statistics: InputStatistics | None,
    prefix: str,
) -> list[LinearReport]:
    """Replace the linears that read one tensor; the output error of the report is not known yet."""
    linears = work.linears(group.names)
    clip = _activation_clip(work, spec, group, statistics)
    hessian = None if statistics is None or statistics.hessian is None else statistics.hessian.matrix
    quantized = [
        _round(work, spec, name, linear.weight.data, hessian) for name, linear in zip(group.names, linears, strict=True)
    ]
    modules = build_group(
        spec,
        group.names,
        [
            PackedMixedWeight.of(weight) if isinstance(weight, MixedWeight) else PackedWeight.of(weight)
            for weight in quantized
        ],
        [linear.bias for linear in linears],
        clip,
        spec.rotation_scheme.online(group.first, config),
    )
    reports = []
    for name, linear, weight, module in zip(group.names, linears, quantized, modules, strict=True):
        setattr(COGACT.holder(work.layer, name), name, module)
        error = relative_error(weight.dequantize(), linear.weight)
        bits, activation_bits = spec.bits(name)
        report = LinearReport(f"{prefix}.{name}", bits, activation_bits, clip, error, None, module.stored_bytes)
        if isinstance(weight, MixedWeight):
            counts = {str(width): int((weight.bits == width).sum()) for width in weight.bits.unique().tolist()}
            damage = {str(width): value for width, value in work.plan.damage.get(name, {}).items()} or None
            mean = float(weight.bits.float().mean())
            report = dataclasses.replace(report, weight_bits=mean, row_counts=counts, damage=damage)
        reports.append(report)
    return reports


def _round(
    work: LayerWork, spec: QuantizationSpec, name: str, weight: Tensor, hessian: Tensor | None
) -> QuantizedWeight | MixedWeight:
    hessian = work.plan.hessians.get(name, hessian)
    if name in work.plan.bits:
        fitted = hessian if spec.rounding_scheme.needs_hessian else None
        return quantize_mixed(weight, work.plan.bits[name], hessian=fitted, clip_search=spec.weight_clip)
    own = spec.equalization_scheme.rounded(work, name, weight, hessian)
    return spec.rounding_scheme.round(work, name, weight, hessian) if own is None else own


def _activation_clip(
    work: LayerWork, spec: QuantizationSpec, group: LinearGroup, statistics: InputStatistics | None
) -> float:
    widths = {spec.bits(name)[1] for name in group.names}
    bits = [width for width in widths if EXECUTIONS[width].quantizes_activations]
    if spec.activation_clip is not None or not bits or statistics is None:
        return 1.0 if spec.activation_clip is None else spec.activation_clip
    weights = torch.cat([linear.weight.data for linear in work.linears(group.names)])
    importance = weights.float().square().sum(0)  # how much the linears care for each channel
    return search_activation_clip(
        statistics.samples, min(bits), granularity=spec.activation_granularity, importance=importance
    )
