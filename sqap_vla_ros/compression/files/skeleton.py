"""A CogACT model is made without numbers and filled tensor by tensor, so that nothing is in memory twice."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from sqap_vla_ros.compression.layer_work import group_size
from sqap_vla_ros.compression.layers import build_group
from sqap_vla_ros.compression.parts import part_structure
from sqap_vla_ros.compression.recipe import QuantizationSpec
from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.policy.cogact import CogACT
from sqap_vla_ros.policy.config import PolicyConfig
from sqap_vla_ros.quantization.mixed import PackedMixedWeight
from sqap_vla_ros.quantization.packing import PackedWeight, packed_columns


def empty_model(config: PolicyConfig) -> CogACT:
    """Make the model on the meta device; buffers that no checkpoint stores hold their values."""
    with torch.device("meta"):
        model = CogACT(config)
    stored = model.state_dict()
    for name, buffer in list(model.named_buffers()):
        if name in stored:
            continue
        owner, _, leaf = name.rpartition(".")
        if leaf != "position_ids":
            raise RuntimeError(f"{name} is stored in no checkpoint and its values are not known here")
        model.get_submodule(owner).register_buffer(leaf, torch.arange(buffer.shape[-1])[None], persistent=False)
    return model


def quantize_structure(
    model: CogACT,
    spec: QuantizationSpec,
    clips: Mapping[str, float],
    row_counts: Mapping[str, Mapping[int, int]] = {},
) -> None:
    """Put empty quantised modules on the meta device where `spec` has them, with their shapes and shared inputs.

    clips: full name of a group's first linear -> clip of its activations.
    row_counts: full name of a linear with rows of mixed widths -> how many rows have which.
    """
    decoder = model.decoder
    part_structure(model, spec, row_counts)
    spec.rotation_scheme.replace_norm(decoder)
    for index, layer in enumerate(decoder.layers):
        for group in COGACT.groups:
            linears = [COGACT.linear(layer, name) for name in group.names]
            weights = [
                _empty_weight(linear, spec, name, row_counts.get(f"decoder.layers.{index}.{name}"))
                for name, linear in zip(group.names, linears, strict=True)
            ]
            online = spec.rotation_scheme.online(group.first, decoder.config)
            clip = clips.get(f"decoder.layers.{index}.{group.first}", 1.0)
            modules = build_group(spec, group.names, weights, [linear.bias for linear in linears], clip, online)
            for name, module in zip(group.names, modules, strict=True):
                setattr(COGACT.holder(layer, name), name, module)


def _empty_weight(
    linear: nn.Linear, spec: QuantizationSpec, name: str, counts: Mapping[int, int] | None
) -> PackedWeight | PackedMixedWeight:
    bits = spec.bits(name)[0]
    rows, columns = linear.out_features, linear.in_features
    if counts is not None:
        return PackedMixedWeight.with_counts(counts, columns)
    group = group_size(spec, columns)
    scale = torch.empty(rows, columns // group if group else 1, device="meta")
    values = torch.empty(rows, packed_columns(columns, bits), dtype=torch.uint8, device="meta")
    return PackedWeight(values, scale, None if spec.weight_symmetric else torch.empty_like(scale), bits, columns)


def put(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Give a parameter or buffer of the model its values. Raises ValueError for another name or shape."""
    owner_name, _, leaf = name.rpartition(".")
    try:
        owner = model.get_submodule(owner_name)
        present = getattr(owner, leaf)
    except AttributeError:
        raise ValueError(f"the model has no tensor {name}") from None
    if not isinstance(present, torch.Tensor) or present.shape != tensor.shape:
        shape = tuple(present.shape) if isinstance(present, torch.Tensor) else None
        raise ValueError(f"{name} should have shape {shape}, got {tuple(tensor.shape)}")
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor
