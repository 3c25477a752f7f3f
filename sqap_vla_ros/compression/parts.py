"""The linears beside the decoder become integer: vision towers, projector and action head, at eight-bit activations.

They are rounded to nearest, each row with its own scale, and need no calibration. Attention, softmax and norms stay as
they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from sqap_vla_ros.compression.layer_work import relative_error
from sqap_vla_ros.compression.layers import LinearReport
from sqap_vla_ros.compression.recipe import PART_ACTIVATION_BITS, QuantizationSpec
from sqap_vla_ros.policy.architecture import COGACT, BlockLayout
from sqap_vla_ros.policy.cogact import CogACT
from sqap_vla_ros.quantization.block_fusion import BlockParts, causal_attention, fuse_block
from sqap_vla_ros.quantization.linear import ActivationQuantizer, QuantizedLinear
from sqap_vla_ros.quantization.packing import PackedWeight, packed_columns
from sqap_vla_ros.quantization.quantizers import quantize_weight

BEFORE_DECODER = ("vision", "projector")
AFTER_DECODER = ("action_head",)


def quantize_parts(model: CogACT, spec: QuantizationSpec, names: Sequence[str]) -> list[LinearReport]:
    """Quantise the linears of some parts in place, where the recipe has them; return a report for each."""
    reports = []

    def rounded(path: str, linear: nn.Linear, bits: int) -> PackedWeight:
        weight = linear.weight.detach().float()
        found = quantize_weight(weight, bits, clip_search=spec.weight_clip)
        error = relative_error(found.dequantize(), weight)
        packed = PackedWeight.of(found)
        stored = packed.packed.numel() + 4 * packed.scale.numel()
        reports.append(LinearReport(path, bits, PART_ACTIVATION_BITS, 1.0, error, None, stored))
        return packed

    _replace(model, spec, names, rounded)
    return reports


def part_structure(model: CogACT, spec: QuantizationSpec) -> None:
    """Put empty quantised modules on the meta device in the parts that the recipe quantises."""

    def empty(_: str, linear: nn.Linear, bits: int) -> PackedWeight:
        values = torch.empty(linear.out_features, packed_columns(linear.in_features, bits), dtype=torch.uint8)
        scale = torch.empty(linear.out_features, 1)
        return PackedWeight(values.to("meta"), scale.to("meta"), None, bits, linear.in_features)

    _replace(model, spec, COGACT.parts, empty)


def _replace(
    model: CogACT,
    spec: QuantizationSpec,
    names: Iterable[str],
    weight_of: Callable[[str, nn.Linear, int], PackedWeight],
) -> None:
    for name in names:
        if name not in spec.parts:
            continue
        for group in COGACT.parts[name].groups(model):
            shared = ActivationQuantizer(PART_ACTIVATION_BITS, consumers=len(group))
            for path in group:
                linear: Any = model.get_submodule(path)
                made = QuantizedLinear(weight_of(path, linear, spec.parts[name]), shared, linear.bias)
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
