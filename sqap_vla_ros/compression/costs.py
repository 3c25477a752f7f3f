"""The costs of a policy: its weights as stored, the widths of its decoder, and the operations of a prediction.

Every report takes these numbers from here. They are plain numbers by name, as `PolicyInfo.costs` carries them:

* `weight_bytes`: all weights as a file stores them, scales included; backends may hold them in another form.
* `bits_per_parameter`, `bits_per_channel`: mean width of the weights, and of the output rows, of the decoder's linears.
* `bops_paper`, `bops_bit_product`: the operations as a share of the uncompressed policy's, pruning included, in both
  counts of `bops.Definition`. Of a policy and of a file they are counted with the widths that the rows have.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from sqap_vla_ros.compression.accelerators.table import make_accelerator
from sqap_vla_ros.compression.bits import LinearWidths, averages, known_widths, linear_widths, weights_by_module
from sqap_vla_ros.compression.bops import NOT_KNOWN, QUANTIZABLE_MODULES, KnownWidths, operation_shares
from sqap_vla_ros.compression.files.skeleton import empty_model, quantize_structure
from sqap_vla_ros.compression.recipe import Recipe
from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.policy.cogact import CogACT
from sqap_vla_ros.policy.config import PolicyConfig
from sqap_vla_ros.quantization.linear import PackedLinear, UniformLinear
from sqap_vla_ros.quantization.mixed import MixedRowsLinear

if TYPE_CHECKING:
    from sqap_vla_ros.compression.files.storage import CompressedFile

Costs = dict[str, float]
_LAYERS = "decoder.layers."
_FP32 = 4


def costs_of_model(model: CogACT, recipe: Recipe) -> Costs:
    """Return the costs of a policy's model as it is in memory, whatever backend has its weights."""
    stored = sum(weight_bytes(model).values())
    return _costs(stored, model_widths(model), recipe, model.config, _part_widths(model))


def costs_of_file(file: CompressedFile, recipe: Recipe | None = None) -> Costs:
    """Return the costs of the policy in a compressed file, from its header alone.

    recipe: one that quantises as the file does and prunes otherwise; None for the file's own.
    """
    header = file.header
    widths = linear_widths(header.report, header.config)
    return _costs(file.weight_bytes, widths, recipe or header.recipe, header.config, weights_by_module(header.report))


def expected_costs(recipe: Recipe, config: PolicyConfig) -> Costs:
    """Return what a recipe will cost on a geometry, from shapes alone.

    Where rows take widths, the average that they keep to is known, and that over rows only if it is the one meant.
    The paper's count of operations then is the least that this average allows (see `bops.only_a_bound`).
    """
    kept = _without_removed_layers(recipe, config)
    stored, _ = expected_bytes(recipe, kept)
    spec = recipe.quantization
    if spec is None or spec.row_bits is None:
        model = empty_model(kept).to(getattr(torch, recipe.dtype))
        if spec is not None:
            quantize_structure(model, spec, {})
        return _costs(stored, model_widths(model), recipe, config)
    name = "bits_per_parameter" if spec.row_bits.by_parameters else "bits_per_channel"
    return {"weight_bytes": stored, name: spec.row_bits.average} | _operations(recipe, config)


def _without_removed_layers(recipe: Recipe, config: PolicyConfig) -> PolicyConfig:
    if recipe.accelerator is None:
        return config
    removed = make_accelerator(recipe.accelerator.name, **recipe.accelerator.parameters).savings.removed_layers
    return config.replace(decoder=dataclasses.replace(config.decoder, depth=config.decoder.depth - removed))


def _costs(
    stored: int,
    widths: list[LinearWidths],
    recipe: Recipe,
    config: PolicyConfig,
    parts: Mapping[str, Mapping[int, int]] = {},
) -> Costs:
    by_weight, by_row = averages(widths) if widths else (_dtype_bits(recipe), _dtype_bits(recipe))
    found = {"weight_bytes": float(stored), "bits_per_parameter": by_weight, "bits_per_channel": by_row}
    return found | _operations(recipe, config, known_widths(widths, parts))


def _operations(recipe: Recipe, config: PolicyConfig, known: KnownWidths = NOT_KNOWN) -> Costs:
    return {f"bops_{name}": share for name, share in operation_shares(recipe, config, known=known).items()}


def _dtype_bits(recipe: Recipe) -> float:
    return float(torch.finfo(getattr(torch, recipe.dtype)).bits)


def model_widths(model: CogACT) -> list[LinearWidths]:
    """Return the widths of the decoder's linears; those that are not quantised have that of their numbers."""
    found = []
    layers = [module for module in model.decoder.modules() if isinstance(module, LlamaDecoderLayer)]
    for index, layer in enumerate(layers):
        for name in COGACT.linears:
            linear: nn.Module = COGACT.linear(layer, name)
            if isinstance(linear, MixedRowsLinear | UniformLinear):
                rows, columns, stored = _rows_of(linear), linear.in_features, linear.stored_bytes
            else:
                weight = linear.get_parameter("weight")
                rows, columns = {torch.finfo(weight.dtype).bits: weight.shape[0]}, weight.shape[1]
                stored = weight.nbytes
            found.append(LinearWidths(index, name, columns, rows, stored, {}))
    return found


def _rows_of(linear: MixedRowsLinear | UniformLinear) -> dict[int, int]:
    """Return bits -> how many rows of a packed linear have them."""
    if isinstance(linear, UniformLinear):
        return {linear.bits: linear.out_features}
    bits, counts = linear.row_bits.unique(return_counts=True)
    return dict(zip(bits.tolist(), counts.tolist(), strict=True))


def _part_widths(model: CogACT) -> dict[str, Counter[int]]:
    """Return, by module beside the decoder, bits -> how many weights of its packed linears, as `weights_by_module`."""
    found: dict[str, Counter[int]] = {}
    for module in QUANTIZABLE_MODULES:
        for linear in model.get_submodule(module).modules():
            if isinstance(linear, MixedRowsLinear | UniformLinear):
                for bits, many in _rows_of(linear).items():
                    found.setdefault(module, Counter())[bits] += many * linear.in_features
    return found


def weight_bytes(model: nn.Module) -> dict[str, int]:
    """Return the bytes of a model's weights as stored, by part; packed linears apart."""
    sizes: dict[str, int] = {}

    def add(part: str, size: int) -> None:
        sizes[part] = sizes.get(part, 0) + size

    for name, tensor in model.named_parameters():
        add(name.split(".")[0], tensor.nbytes)
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            bias = 0 if module.bias is None else module.bias.nbytes
            add(f"{name.split('.')[0]} linears, packed", module.stored_bytes + bias)
    return sizes


def expected_bytes(recipe: Recipe, config: PolicyConfig) -> tuple[int, int]:
    """Return the bytes of all weights under a recipe as stored, and of those in the decoder's layers, from shapes."""
    spec, model = recipe.quantization, empty_model(config)
    width, head_width = (torch.finfo(getattr(torch, name)).bits // 8 for name in (recipe.dtype, recipe.head_dtype))
    if spec is not None:
        quantize_structure(model, spec, {})
    layers = stored_bytes(model, width, only=_LAYERS)
    beside = stored_bytes(model, width, head_width) - layers
    if spec is not None and spec.row_bits is not None:  # `quantize_structure` took widths that differ as uniform
        linears = [COGACT.linear(layer, name) for layer in model.decoder.layers for name in COGACT.linears]
        weights = sum(linear.in_features * linear.out_features for linear in linears)
        scales_and_widths = 5 * sum(linear.out_features for linear in linears)
        layers = int(weights * spec.row_bits.average / 8) + scales_and_widths
    return beside + layers, layers


def stored_bytes(model: nn.Module, width: int, head_width: int = _FP32, *, only: str = "") -> int:
    """Return the size of a model's tensors, floating-point parameters counted with `width` bytes.

    head_width: of the action head's. only: count the names that begin so.
    """
    parameters = {name for name, _ in model.named_parameters()}
    total = 0
    for name, tensor in model.state_dict().items():
        if name.startswith(only):
            stored = head_width if name.startswith("action_head.") else width
            keeps_dtype = name in parameters or name.endswith(".bias")  # which a packed linear has as a buffer
            total += tensor.numel() * (stored if keeps_dtype else tensor.element_size())
    return total
