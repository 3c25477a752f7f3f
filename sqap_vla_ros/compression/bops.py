"""Multiply-accumulates and bit operations of a CogACT prediction, by module, for any geometry and recipe.

Counted from the shapes alone: matrix products, convolutions and attention products; norms, activations and look-ups are
left out, as the papers do. Nothing is allocated, so the 7-billion-parameter geometry is counted in microseconds.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqap_vla_ros.compression.recipe import PART_ACTIVATION_BITS, QuantizationSpec, Recipe
from sqap_vla_ros.contracts import TokenSelector
from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.policy.config import ActionHeadConfig, PolicyConfig, TowerConfig, VisionConfig

TEXT_TOKENS = 21  # BOS, "In: What action should the robot take to pick coke can?\nOut:" and the two appended ids
FULL_BITS = 16
_Widths = Mapping[int, int] | Mapping[float, int]  # bits -> how many rows or weights


class Definition(enum.Enum):
    """A way to weigh a multiply-accumulate of w-bit weights and a-bit activations against a 16-bit one.

    PAPER: max(w, a) / 16 for every product of the decoder, attention products at the activations' width. It reproduces
        the BOPs of SQAP-VLA's Table 1 (W4A4 counts a quarter).
    BIT_PRODUCT: w * a / 256, the usual definition; attention products are 16-bit, as they are executed.

    Where rows have widths of their own, a linear counts with the mean over its rows.
    """

    PAPER = "paper"
    BIT_PRODUCT = "bit_product"

    def weight(self, weight_bits: float, activation_bits: float) -> float:
        """Return what one multiply-accumulate counts."""
        if self is Definition.PAPER:
            return max(weight_bits, activation_bits) / FULL_BITS
        return weight_bits * activation_bits / FULL_BITS**2


@dataclass(frozen=True)
class KnownWidths:
    """The widths that the rows of quantised linears have come out with.

    decoder: (layer, linear) -> bits -> how many rows; where an accelerator removes layers, the first are those left.
    parts: module of `macs` -> bits -> how many weights.
    """

    decoder: Mapping[tuple[int, str], Mapping[int, int]] = field(default_factory=dict)
    parts: Mapping[str, Mapping[int, int]] = field(default_factory=dict)


NOT_KNOWN = KnownWidths()
QUANTIZABLE_MODULES = ("vision.dino", "vision.siglip", "projector", "action_head")  # of `macs`, beside the decoder


@dataclass(frozen=True)
class Workload:
    """The amount of computation in one prediction.

    text_tokens: all that is not image: BOS, prompt and appended ids.
    layers: decoder layers that are computed; None for all (EfficientVLA leaves some out).
    reused: decoder layer -> visual tokens from that layer on whose keys and values come from a cache (VLA-Cache).
    head_interval: the action head's blocks are computed every so many denoising steps (EfficientVLA's cache).
    as_published: counts what the public code computes, the last block of each tower (never used) and all rows of the
        last decoder layer included; False counts what this package executes.
    """

    config: PolicyConfig
    text_tokens: int = TEXT_TOKENS
    selector: TokenSelector | None = None
    layers: Sequence[int] | None = None
    reused: Mapping[int, int] | None = None
    head_interval: int = 1
    as_published: bool = True

    def __post_init__(self) -> None:
        depth = self.config.decoder.depth
        for name, given in (("layers", self.layers or ()), ("reused", self.reused or {})):
            for layer in given:
                if not 0 <= layer < depth:
                    raise ValueError(f"{name} names decoder layer {layer}; the model has layers 0 to {depth - 1}")
        if self.text_tokens < 1 or self.head_interval < 1:
            raise ValueError(
                f"text_tokens and head_interval must be at least 1, got {self.text_tokens} and {self.head_interval}"
            )


def workload_of(recipe: Recipe, config: PolicyConfig, text_tokens: int = TEXT_TOKENS) -> Workload:
    """Return the workload of one prediction under `recipe`, computed as published.

    An accelerator counts with what it saves in every scene: VLA-Cache, whose reuse depends on the scene, with nothing.
    """
    if recipe.accelerator is not None:
        from sqap_vla_ros.compression.accelerators.table import make_accelerator

        savings = make_accelerator(recipe.accelerator.name, **recipe.accelerator.parameters).savings
        layers = range(config.decoder.depth - savings.removed_layers)
        return Workload(config, text_tokens, savings.selector, layers=layers, head_interval=savings.head_interval)
    if recipe.pruning is None:
        return Workload(config, text_tokens)
    from sqap_vla_ros.pruning import make_selector

    return Workload(config, text_tokens, make_selector(recipe.pruning.selector, **recipe.pruning.parameters))


def macs(work: Workload) -> dict[str, int]:
    """Count multiply-accumulates by module: `vision.*`, `projector`, `decoder.*` and `action_head`."""
    config, vision = work.config, work.config.vision
    blocks_left_out = 0 if work.as_published else 1
    counts = {
        "vision.dino": _tower(vision.dino, vision, 1 + vision.dino.registers, blocks_left_out),
        "vision.siglip": _tower(vision.siglip, vision, 0, blocks_left_out),
        "projector": vision.tokens
        * (
            vision.width * config.projector_width
            + config.projector_width * config.decoder.width
            + config.decoder.width**2
        ),
    }
    counts |= _decoder(work)
    counts["action_head"] = _action_head(config, work.head_interval)
    return counts


def bops(
    work: Workload,
    quantization: QuantizationSpec | None = None,
    definition: Definition = Definition.PAPER,
    known: KnownWidths = NOT_KNOWN,
) -> dict[str, float]:
    """Count 16-bit-equivalent multiply-accumulates by module; what is not quantised counts one for one.

    known: widths that rows came out with. Without them each row counts with the average, which is the least that the
    paper's count can be (see `only_a_bound`).
    """
    counts: dict[str, float] = dict(macs(work))
    if quantization is None:
        return counts
    layers, of_text = _decoder_layers(work), _decoder_layers(work, text_alone=True)
    text_bits = quantization.text_activation_bits or 0

    def weighed(module: str, layer: int, widths: _Widths, activation_bits: int) -> float:
        image, behind = (
            _mean_weight(definition, widths, bits) for bits in (activation_bits, max(activation_bits, text_bits))
        )
        all_rows, text_rows = layers[layer][module], of_text[layer][module]
        return (all_rows - text_rows) * image + text_rows * behind

    for linear in COGACT.linears:
        average: _Widths = {quantization.mean_weight_bits(linear): 1}
        activation_bits = quantization.bits(linear)[1]
        counts[f"decoder.{linear}"] = sum(
            weighed(f"decoder.{linear}", layer, known.decoder.get((layer, linear), average), activation_bits)
            for layer in layers
        )
    for name, (part, linears) in _linears_of_parts(work).items():
        if part in quantization.part_bits:
            widths: _Widths = known.parts.get(name, {quantization.part_bits[part]: 1})
            counts[name] -= linears * (1 - _mean_weight(definition, widths, PART_ACTIVATION_BITS))
    if definition is Definition.PAPER:
        counts["decoder.attention"] = sum(
            weighed("decoder.attention", layer, {0: 1}, quantization.activation_bits) for layer in layers
        )
    return counts


def _mean_weight(definition: Definition, widths: _Widths, activation_bits: int) -> float:
    """Return what a multiply-accumulate counts on average. widths: bits -> how many rows or weights."""
    counted = sum(many * definition.weight(bits, activation_bits) for bits, many in widths.items())
    return counted / sum(widths.values())


def only_a_bound(quantization: QuantizationSpec | None) -> bool:
    """Return whether the paper's count is the least it can be, as long as the rows' widths are not chosen.

    The mean of max(w, a) over rows is at least max(mean w, a), and more where some rows are wider than the activations
    and others are not.
    """
    if quantization is None or quantization.row_bits is None:
        return False
    rows = quantization.row_bits
    activations = {quantization.bits(linear)[1] for linear in COGACT.linears}
    activations |= {quantization.text_activation_bits or min(activations)}
    activations |= set() if rows.vision is None else {PART_ACTIVATION_BITS}
    return any(min(rows.widths) < bits < max(rows.widths) for bits in activations)


def relative_bops(
    work: Workload,
    quantization: QuantizationSpec | None = None,
    definition: Definition = Definition.PAPER,
    known: KnownWidths = NOT_KNOWN,
) -> float:
    """Return the bit operations over those of the same geometry, uncompressed at 16 bits and computed as published."""
    baseline = macs(Workload(work.config, work.text_tokens))
    return sum(bops(work, quantization, definition, known).values()) / sum(baseline.values())


def operation_shares(
    recipe: Recipe, config: PolicyConfig, text_tokens: int = TEXT_TOKENS, known: KnownWidths = NOT_KNOWN
) -> dict[str, float]:
    """Return, by the name of the definition, the operations of a recipe over those of the uncompressed policy."""
    work = workload_of(recipe, config, text_tokens)
    return {each.value: relative_bops(work, recipe.quantization, each, known) for each in Definition}


def _tower(tower: TowerConfig, vision: VisionConfig, prefix: int, blocks_left_out: int) -> int:
    tokens = vision.tokens + prefix
    block = tokens * (4 * tower.width**2 + 2 * tower.width * tower.mlp_width) + 2 * tokens**2 * tower.width
    return (tower.depth - blocks_left_out) * block + vision.tokens * 3 * vision.patch_size**2 * tower.width


def _linears_of_parts(work: Workload) -> dict[str, tuple[str, int]]:
    """Return, by module, the part it belongs to and the multiply-accumulates of the linears that a recipe quantises."""
    vision, head = work.config.vision, work.config.head
    counts = {}
    for name, tower, prefix in (("dino", vision.dino, 1 + vision.dino.registers), ("siglip", vision.siglip, 0)):
        blocks = tower.depth - (0 if work.as_published else 1)
        per_token = blocks * (4 * tower.width**2 + 2 * tower.width * tower.mlp_width)
        counts[f"vision.{name}"] = ("vision", (vision.tokens + prefix) * per_token)
    counts["projector"] = ("projector", macs(work)["projector"])
    rows = 2 if work.config.diffusion.guidance > 1.0 else 1
    refreshed = -(-work.config.diffusion.steps // work.head_interval)
    tokens = rows * refreshed * (head.horizon + 1)
    counts["action_head"] = ("action_head", tokens * head.depth * 12 * head.width**2)
    return counts


def _decoder(work: Workload) -> dict[str, int]:
    """Count the decoder's products over all layers."""
    counts = dict.fromkeys((*(f"decoder.{linear}" for linear in COGACT.linears), "decoder.attention"), 0)
    for layer in _decoder_layers(work).values():
        for name, count in layer.items():
            counts[name] += count
    return counts


def _decoder_layers(work: Workload, text_alone: bool = False) -> dict[int, dict[str, int]]:
    """Count each layer's products; with `text_alone`, those for the rows of the tokens behind the image."""
    decoder, selector = work.config.decoder, work.selector
    layers = {}
    computed = range(decoder.depth) if work.layers is None else sorted(work.layers)
    visual = work.config.vision.tokens
    for layer in computed:
        kept = visual if selector is None or layer < selector.prune_layer else selector.budget(visual)
        reused = max((n for first, n in (work.reused or {}).items() if first <= layer), default=0)
        seen = work.text_tokens + kept  # tokens with a key and a value
        new = seen - reused  # tokens whose key and value are computed
        asked = 1 if not work.as_published and layer == computed[-1] else new
        if text_alone:
            new, asked = (min(rows, work.text_tokens - 1) for rows in (new, asked))  # all but BOS
        counts = {}
        for linear in COGACT.linears:
            rows = new if linear in ("k_proj", "v_proj") else asked
            width = decoder.width if linear.endswith(("q_proj", "k_proj", "v_proj", "o_proj")) else decoder.mlp_width
            counts[f"decoder.{linear}"] = rows * decoder.width * width
        layers[layer] = counts | {"decoder.attention": 2 * asked * seen * decoder.width}
    return layers


def _action_head(config: PolicyConfig, interval: int) -> int:
    head, diffusion = config.head, config.diffusion
    rows = 2 if diffusion.guidance > 1.0 else 1
    tokens = head.horizon + 1
    block = tokens * 12 * head.width**2 + 2 * tokens**2 * head.width
    refreshed = -(-diffusion.steps // interval)
    ends = head.horizon * head.channels * head.width + tokens * head.width * head.channels
    once = rows * config.decoder.width * head.width + diffusion.steps * _time_embedding(head)
    return rows * (refreshed * head.depth * block + diffusion.steps * ends) + once


def _time_embedding(head: ActionHeadConfig) -> int:
    return 256 * head.width + head.width**2
