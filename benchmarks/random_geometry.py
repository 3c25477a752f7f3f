"""Policies of the published 7B geometry with random weights, under any recipe, for `full_geometry.py`."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from sqap_vla_ros.compression.files.skeleton import empty_model, put, quantize_structure
from sqap_vla_ros.compression.parts import fuse_parts
from sqap_vla_ros.compression.recipe import Recipe, load_recipe
from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.policy.actions import ActionStatistics
from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.policy.cogact import CogACT, CogACTPolicy
from sqap_vla_ros.policy.config import named_config
from sqap_vla_ros.quantization.layer_fusion import prepare_inference
from sqap_vla_ros.quantization.linear import IntegerLinear, PackedLinear, QuantizedLinear, use_backend
from sqap_vla_ros.quantization.reordered_weights import give_back_freed_memory, reorder_weights


def pictures(count: int) -> list[Observation]:
    """Coarse random pictures of the model's size: a machine with a GPU may lack what draws better ones."""
    generator = np.random.default_rng(0)
    made = []
    for index in range(count):
        coarse = generator.integers(0, 256, (14, 14, 3), dtype=np.uint8)
        image = np.repeat(np.repeat(coarse, 16, axis=0), 16, axis=1)
        made.append(Observation(image, index, "pick up the can", gripper_pixel=(112.0, 112.0)))
    return made


@dataclass(frozen=True)
class Variant:
    """A row of the tables.

    name: of a recipe: its quantisation, and its pruning unless another recipe's is named. parts: eight bits for these,
    beside what the recipe says. prepared: as `load_policy` makes it.
    """

    name: str
    pruning: str = ""
    parts: tuple[str, ...] = ()
    prepared: bool = True

    @property
    def recipe(self) -> Recipe:
        recipe = load_recipe(self.name)
        if not self.parts:
            return recipe
        assert recipe.quantization is not None
        spec = dataclasses.replace(recipe.quantization, parts=dict.fromkeys(self.parts, 8))
        return dataclasses.replace(recipe, quantization=spec)

    @property
    def weights(self) -> tuple[str, bool]:
        """Return what policies with the same weights have in common."""
        return repr(self.recipe.quantization), self.prepared

    @property
    def keeps_parts(self) -> bool:
        """Return whether everything beside the decoder is bf16."""
        spec = self.recipe.quantization
        return spec is None or not spec.part_bits


RECIPES = (
    "w4a4",
    "sqap",
    "w4a8",
    "sqap_w4a8",
    "coverage_w4a8",
    "qvla_w4a8",
    "sqap_qvla",
    "qvla_w3a8",
    "w4a8_full",
    "sqap_w4a8_full",
    "coverage_w4a8_full",
)
EVERY_PART = ("vision", "projector", "action_head")
VARIANTS = {
    "bf16": Variant("bf16", prepared=False),
    "bf16_prepared": Variant("bf16"),
    "bf16_pruned": Variant("bf16", "sqap"),
    **{name: Variant(name) for name in RECIPES},
    "coverage_w4a8_head8": Variant("coverage_w4a8", parts=EVERY_PART),
    "qvla_w3a8_head8": Variant("qvla_w3a8", parts=EVERY_PART),
    "qvla_w3a8_vision": Variant("qvla_w3a8_vision"),
    "qvla_w3a8_vision_head8": Variant("qvla_w3a8_vision", parts=EVERY_PART[1:]),
}
MEMORY = ["bf16", "w4a4", "sqap_qvla", "coverage_w4a8", "coverage_w4a8_full", "qvla_w3a8_head8"]
# linear -> shares of its rows at 2 and 4 bits, the rest at 8: by average, as QVLA chose them for the shipped policy
ROW_SHARES = {
    4.0: {
        "q_proj": (0.353, 0.544),
        "k_proj": (0.273, 0.536),
        "v_proj": (0.053, 0.608),
        "o_proj": (0.016, 0.716),
        "gate_proj": (0.387, 0.557),
        "up_proj": (0.415, 0.541),
        "down_proj": (0.007, 0.897),
    },
    3.0: {
        "q_proj": (0.625, 0.352),
        "k_proj": (0.509, 0.444),
        "v_proj": (0.260, 0.680),
        "o_proj": (0.108, 0.879),
        "gate_proj": (0.687, 0.305),
        "up_proj": (0.766, 0.227),
        "down_proj": (0.374, 0.626),
    },
}
VISION_ROW_SHARES = {4.0: (0.163, 0.749)}  # likewise, of all rows of the vision towers
# the ids of "pick up the can" under the published prompt and tokenizer: 20 of text after BOS, S = 277
PROMPT = [
    1,
    512,
    29901,
    1724,
    3158,
    881,
    278,
    19964,
    2125,
    304,
    5839,
    701,
    278,
    508,
    29973,
    13,
    3744,
    29901,
    13,
    29871,
    2,
]


def full_name(linear: str) -> str:
    """Return a linear's path: "decoder.layers.0.self_attn.q_proj" of "decoder.layers.0.q_proj"; others are paths."""
    if not linear.startswith("decoder."):
        return linear
    layer, _, name = linear.rpartition(".")
    (holder,) = (group.holder for group in COGACT.groups if name in group.names)
    return f"{layer}.{holder}.{name}"


def shuffled(counts: Mapping[int, int]) -> torch.Tensor:
    """Return widths in random order, [N] uint8."""
    widths = torch.cat([torch.full((count,), width, dtype=torch.uint8) for width, count in counts.items()])
    return widths[torch.randperm(len(widths), generator=torch.Generator().manual_seed(0))]


def row_counts(recipe: Recipe, model: CogACT) -> dict[str, dict[int, int]]:
    """Return how many rows of each linear have which width; empty for a recipe without mixed widths."""
    rows = None if recipe.quantization is None else recipe.quantization.row_bits
    if rows is None:
        return {}
    counts = {}
    for index, layer in enumerate(model.decoder.layers):
        for name, (two, four) in ROW_SHARES[rows.average].items():
            outputs = COGACT.linear(layer, name).out_features
            low, middle = round(two * outputs), round(four * outputs)
            counts[f"decoder.layers.{index}.{name}"] = {2: low, 4: middle, 8: outputs - low - middle}
    for group in COGACT.parts["vision"].groups(model) if rows.vision is not None else ():
        for path in group:
            outputs = model.get_submodule(path).out_features
            low, middle = (round(share * outputs) for share in VISION_ROW_SHARES[rows.vision])
            counts[path] = {2: low, 4: middle, 8: outputs - low - middle}
    return counts


def structure(recipe: Recipe, layers: int) -> CogACT:
    """Return the published geometry (base head) under a recipe's quantisation, without numbers."""
    model = empty_model(named_config("cogact-base"))
    model.decoder.layers = model.decoder.layers[:layers]
    if recipe.quantization is not None:
        quantize_structure(model, recipe.quantization, {}, row_counts(recipe, model))
    return model


def file_gib(recipe: Recipe) -> dict[str, float]:
    """Return the size of a compressed file by part: scales and widths count, headers do not."""
    sizes: dict[str, float] = {}
    for name, tensor in structure(recipe, 32).state_dict().items():
        part = "decoder linears" if name.startswith("decoder.layers.") else name.partition(".")[0]
        part = "embeddings" if part == "decoder" else part
        wide = tensor.dtype == torch.float32 and not name.endswith("weight_scale")
        kept = getattr(torch, recipe.head_dtype if part == "action_head" else recipe.dtype).itemsize
        sizes[part] = sizes.get(part, 0.0) + tensor.numel() * (kept if wide else tensor.itemsize) / 2**30
    return {**sizes, "all": sum(sizes.values())}


def fill(
    model: CogACT, counts: Mapping[str, Mapping[int, int]] = {}, head_dtype: torch.dtype = torch.float32
) -> Iterator[str]:
    """Random weights of plausible size, module by module; yields after each so that it can be handed to its backend.

    counts: see `row_counts`.
    """
    widths = {full_name(name): shuffled(each) for name, each in counts.items()}
    generator = torch.Generator().manual_seed(0)
    tile = torch.randn(1 << 22, generator=generator)
    bytes_tile = torch.randint(0, 256, (1 << 22,), dtype=torch.uint8, generator=generator)

    def repeated(source: torch.Tensor, count: int) -> torch.Tensor:
        result = torch.empty(count, dtype=source.dtype)
        for start in range(0, count, source.numel()):
            part = result[start : start + source.numel()]
            part.copy_(source[: part.numel()])
        return result

    for name, module in list(model.named_modules()):
        for leaf, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if not tensor.is_meta:
                continue
            full = f"{name}.{leaf}"
            if leaf == "row_bits":
                values = widths[name]
            elif tensor.dtype == torch.uint8:
                values = repeated(bytes_tile, tensor.numel()).view(tensor.shape)
            elif leaf == "weight_scale":
                values = torch.full(tensor.shape, 0.2 / module.in_features**0.5)
            elif tensor.dim() == 1 and "norm" in full and leaf == "weight":
                values = torch.ones(tensor.shape)
            elif tensor.dim() == 1:
                values = torch.zeros(tensor.shape)
            else:
                dtype = head_dtype if name.startswith("action_head") else torch.bfloat16
                spread = tensor[0].numel() ** -0.5
                values = repeated((tile * spread).to(dtype), tensor.numel()).view(tensor.shape)
            if values.dtype == torch.float32 and not name.startswith("action_head") and leaf != "weight_scale":
                values = values.bfloat16()
            put(model, full, values)
        if isinstance(module, PackedLinear | nn.Linear):
            yield name


def build(variant: Variant, distinct: int, device: str = "cpu", beside: CogACT | None = None) -> CogACTPolicy:
    """The published geometry (base head) under a variant's quantisation; `distinct` decoder layers make up all 32.

    A prepared bf16 policy gets the bf16 action head of `w4a4` as well.

    beside: a prepared model whose embeddings, towers, projector and head are used, where the recipe leaves them alone.
    """
    recipe = variant.recipe
    model = structure(recipe, distinct)
    spec = recipe.quantization
    if beside is not None and variant.keeps_parts:
        model.vision, model.projector, model.action_head = beside.vision, beside.projector, beside.action_head
    if beside is not None:
        model.decoder.embed_tokens = beside.decoder.embed_tokens
    if spec is not None:
        for layer in model.decoder.modules():
            if isinstance(layer, QuantizedLinear):
                layer.activation.clip = 0.9  # what calibration finds; 1.0 would skip an operation
    # a compressed file holds the head as it is used; the public code's is float32
    head_dtype = getattr(torch, load_recipe("w4a4").head_dtype) if variant.prepared else torch.float32
    for name in fill(model, row_counts(recipe, model), head_dtype):
        module = model.get_submodule(name)
        if isinstance(module, IntegerLinear) and device == "cpu":
            use_backend(module)
        give_back_freed_memory()
    model.to(device)
    if variant.prepared:
        model.action_head.to(head_dtype)
        prepare_inference(model)
        reorder_weights(model)
        fuse_parts(model)
    depth = model.config.decoder.depth
    model.decoder.layers = nn.ModuleList(model.decoder.layers[i % distinct] for i in range(depth))
    gc.collect()
    bound = np.array([0.02] * 3 + [0.1] * 3 + [1.0])
    statistics_ = ActionStatistics(-bound, bound, np.array([True] * 6 + [False]), dt_s=0.2)
    return CogACTPolicy(model, lambda _: PROMPT, {"random": statistics_})
