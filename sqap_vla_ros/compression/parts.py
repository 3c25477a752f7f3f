"""The linears beside the decoder become integer: vision towers, projector and action head, at eight-bit activations.

They are rounded to nearest, each row with its own scale, and need no calibration, except where the rows of the vision
towers take widths of their own. Attention, softmax and norms stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sqap_vla_ros.compression.layer_work import NO_PLAN, LayerPlan, relative_error
from sqap_vla_ros.compression.layers import LinearReport
from sqap_vla_ros.compression.recipe import PART_ACTIVATION_BITS, WEIGHT_BITS, QuantizationSpec
from sqap_vla_ros.policy.architecture import COGACT, BlockLayout
from sqap_vla_ros.policy.cogact import CogACT
from sqap_vla_ros.quantization.block_fusion import BlockParts, causal_attention, fuse_block
from sqap_vla_ros.quantization.linear import ActivationQuantizer, IntegerLinear, QuantizedLinear
from sqap_vla_ros.quantization.mixed import MixedLinear, PackedMixedWeight, quantize_mixed
from sqap_vla_ros.quantization.packing import PackedWeight, packed_columns
from sqap_vla_ros.quantization.quantizers import quantize_weight

BEFORE_DECODER = ("vision", "projector")
AFTER_DECODER = ("action_head",)


def quantize_parts(
    model: CogACT, spec: QuantizationSpec, names: Sequence[str], plan: LayerPlan = NO_PLAN
) -> list[LinearReport]:
    """Quantise the linears of some parts in place, where the recipe has them; return a report for each.

    plan: widths and Hessians by path, where rows take widths (see `sensitivity.towers`).
    """
    reports = []

    def rounded(path: str, linear: nn.Linear, bits: float) -> PackedWeight | PackedMixedWeight:
        weight = linear.weight.detach().float()
        shape = (linear.out_features, linear.in_features)
        if path in plan.bits:
            widths, hessian = plan.bits[path], plan.hessians.get(path)
            by_row = quantize_mixed(weight, widths, hessian=hessian, clip_search=spec.weight_clip)
            error, rows = relative_error(by_row.dequantize(), weight), PackedMixedWeight.of(by_row)
            counts = {str(width): int((widths == width).sum()) for width in widths.unique().tolist()}
            damage = {str(width): value for width, value in plan.damage[path].items()}
            mean, stored = float(widths.float().mean()), rows.packed.numel() + 2 * rows.wide.numel() + 5 * len(widths)
            made = LinearReport(path, mean, PART_ACTIVATION_BITS, 1.0, error, None, stored, counts, damage, shape)
            reports.append(made)
            return rows
        found = quantize_weight(weight, int(bits), clip_search=spec.weight_clip)
        error = relative_error(found.dequantize(), weight)
        packed = PackedWeight.of(found)
        stored = packed.packed.numel() + 4 * packed.scale.numel()
        reports.append(LinearReport(path, int(bits), PART_ACTIVATION_BITS, 1.0, error, None, stored, shape=shape))
        return packed

    _replace(model, spec, names, rounded)
    return reports


def part_structure(model: CogACT, spec: QuantizationSpec, row_counts: Mapping[str, Mapping[int, int]] = {}) -> None:
    """Put empty quantised modules on the meta device in the parts that the recipe quantises.

    row_counts: path of a linear with rows of mixed widths -> how many rows have which.
    """

    def empty(path: str, linear: nn.Linear, bits: float) -> PackedWeight | PackedMixedWeight:
        if path in row_counts:
            return PackedMixedWeight.with_counts(row_counts[path], linear.in_features)
        width = min((each for each in WEIGHT_BITS if each >= bits), default=WEIGHT_BITS[-1])
        values = torch.empty(linear.out_features, packed_columns(linear.in_features, width), dtype=torch.uint8)
        scale = torch.empty(linear.out_features, 1)
        return PackedWeight(values.to("meta"), scale.to("meta"), None, width, linear.in_features)

    _replace(model, spec, COGACT.parts, empty)


def _replace(
    model: CogACT,
    spec: QuantizationSpec,
    names: Iterable[str],
    weight_of: Callable[[str, nn.Linear, float], PackedWeight | PackedMixedWeight],
) -> None:
    for name in names:
        if name not in spec.part_bits:
            continue
        for group in COGACT.parts[name].groups(model):
            shared = ActivationQuantizer(PART_ACTIVATION_BITS, consumers=len(group))
            for path in group:
                linear: Any = model.get_submodule(path)
                weight = weight_of(path, linear, spec.part_bits[name])
                if isinstance(weight, PackedMixedWeight):
                    made: IntegerLinear = MixedLinear(weight, shared, linear.bias)
                else:
                    made = QuantizedLinear(weight, shared, linear.bias)
                holder, _, leaf = path.rpartition(".")
                setattr(model.get_submodule(holder), leaf, made)


def fuse_parts(model: CogACT) -> int:
    """Join the steps of the parts' blocks where their linears are integer and the backend can; return how many.

    The decoder's attention is computed by that backend as well.
    """
    fused = 0
    model.decoder.attend = causal_attention(model.decoder)
    for part in COGACT.parts.values():
        for layout in part.layouts:
            for block in model.get_submodule(layout.blocks).children():
                fused += fuse_block(block, _parts_of(block, layout, model))
    return fused


def _parts_of(block: nn.Module, layout: BlockLayout, model: CogACT) -> BlockParts:
    find = block.get_submodule
    norms: Any = tuple(find(name) for name in layout.norms)
    scales: Any = None if layout.scales is None else tuple(block.get_parameter(name) for name in layout.scales)
    return BlockParts(
        norms=norms,
        inputs=tuple(find(name) for name in layout.inputs),
        out=find(layout.out),
        inner=find(layout.inner),
        outer=find(layout.outer),
        heads=layout.heads(model.config),
        gelu=layout.gelu,
        scales=scales,
    )
