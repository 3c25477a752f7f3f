"""Compression in memory: the decoder of a policy becomes integer, layer by layer, and the parts beside it if asked.

One layer is in float32 at a time; everything else keeps its dtype, so the peak is the policy itself and a few GB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sqap_vla_ros.compression.layer_work import NO_PLAN, OnProgress, rotary_of
from sqap_vla_ros.compression.layers import LinearReport, compress_layer
from sqap_vla_ros.compression.parts import AFTER_DECODER, BEFORE_DECODER, quantize_parts
from sqap_vla_ros.compression.recipe import QuantizationSpec, Recipe, RecipeError
from sqap_vla_ros.compression.recipe_sections.errors import errors_name
from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.policy.cogact import CogACTPolicy
from sqap_vla_ros.policy.config import DecoderConfig
from sqap_vla_ros.policy.decoder import Decoder

if TYPE_CHECKING:
    from sqap_vla_ros.compression.sensitivity.plan import RowPlan
    from sqap_vla_ros.compression.sensitivity.unfinished import ScoringStore


LEAST_OBSERVATIONS = 4  # of a recipe that looks at the action: half of them fit the rounding, half judge it
ADVISABLE = 24, 48  # observations of such a recipe: fewer leave chance in it, more change little


@dataclass(frozen=True)
class CompressedLayer:
    """A finished decoder layer: a report for each of its linears, and the next layer's calibration inputs."""

    index: int
    linears: list[LinearReport]
    outputs: list[Tensor] | None


class _Reached(Exception):
    """Ends a prediction at a module whose input was all that was wanted."""


def decoder_inputs(policy: CogACTPolicy, observations: Sequence[Observation]) -> list[Tensor]:
    """Return the decoder's input for each observation, [1, S, D] float32, from towers, projector and embeddings."""
    return [tensor.float() for tensor in _inputs_of(policy, policy.model.decoder, observations)]


def _inputs_of(policy: CogACTPolicy, module: nn.Module, observations: Sequence[Observation]) -> list[Tensor]:
    """Return what a module of the policy is given for each observation."""
    captured: list[Tensor] = []

    def stop(_: object, arguments: tuple[Tensor, ...]) -> None:
        captured.append(arguments[0])
        raise _Reached

    handle = module.register_forward_pre_hook(stop)
    try:
        for observation in observations:
            try:
                policy.predict(observation)
            except _Reached:
                continue
    finally:
        handle.remove()
    return [tensor.clone() for tensor in captured]  # cloned: out of inference mode


def require_calibration(recipe: Recipe, observations: Sequence[Observation] | None) -> None:
    """Raise `RecipeError` when the recipe looks at observations and there are none, or too few."""
    spec = recipe.quantization
    if spec is None:
        return
    if spec.needs_calibration and not observations:
        raise RecipeError(
            f"recipe {recipe.name!r} needs calibration observations: give --calibration, a folder of images or a bag"
        )
    count = len(observations or ())
    if spec.looks_at_the_action and count < LEAST_OBSERVATIONS:
        raise RecipeError(
            f"recipe {recipe.name!r} looks at the action of at least {LEAST_OBSERVATIONS} calibration observations, "
            f"got {count}; {advisable_observations()}"
        )


def advisable_observations() -> str:
    """Return in words how many observations a recipe that looks at the action should have."""
    least, enough = ADVISABLE
    return f"{least} to {enough} are enough"


def observations_in_words(spec: QuantizationSpec, count: int) -> str:
    """Return what a recipe does with `count` calibration observations."""
    if spec.row_bits is None:
        return f"{count} observations calibrate"
    return f"{count} observations calibrate: {count - count // 2} fit the rounding, {count // 2} judge the rows' widths"


def require_plannable(recipe: Recipe, decoder: DecoderConfig) -> None:
    """Raise `RecipeError` for row widths that contradict the recipe's other keys, or that no scores make possible."""
    spec = recipe.quantization
    if spec is None or spec.row_bits is None:
        return
    from sqap_vla_ros.compression.sensitivity.allocation import AllocationError, require_reachable

    narrow, wide = decoder.width, decoder.mlp_width
    every = [(index, name) for index in range(decoder.depth) for name in COGACT.linears]
    rows = {linear: wide if linear[1] in ("gate_proj", "up_proj") else narrow for linear in every}
    columns = {linear: wide if linear[1] == "down_proj" else narrow for linear in every}
    ties, head_width = spec.row_bits.ties, decoder.width // decoder.heads
    with errors_name(recipe.name):
        spec.require_no_contradiction()
        try:
            require_reachable(rows, columns, spec.row_bits.limits, ties=ties, head_width=head_width)
        except AllocationError as error:
            raise RecipeError(f"quantization.row_bits: {error}") from error


def require_loadable(recipe: Recipe, depth: int | None = None) -> None:
    """Raise `RecipeError` when the recipe's selector or accelerator cannot be put on a decoder of `depth` layers.

    Better before minutes of loading and compression than after. depth: None where it is not known yet.
    """
    from sqap_vla_ros.compression.accelerators.base import Savings
    from sqap_vla_ros.compression.accelerators.table import make_accelerator
    from sqap_vla_ros.pruning import make_selector

    savings = Savings()
    try:
        if recipe.accelerator is not None:
            accelerator = make_accelerator(recipe.accelerator.name, **recipe.accelerator.parameters)
            savings = accelerator.savings
            if depth is not None and (problem := accelerator.depth_problem(depth)):
                raise ValueError(problem)
        elif recipe.pruning is not None:
            savings = Savings(make_selector(recipe.pruning.selector, **recipe.pruning.parameters))
    except ValueError as error:
        raise RecipeError(f"recipe {recipe.name!r}: {error}") from error
    if depth is None:
        return
    left = depth - savings.removed_layers
    if left < 1:
        raise RecipeError(f"recipe {recipe.name!r} takes {savings.removed_layers} layers out of a decoder of {depth}")
    if savings.selector is not None and savings.selector.prune_layer >= left:
        raise RecipeError(
            f"recipe {recipe.name!r} drops tokens before decoder layer {savings.selector.prune_layer}; this model has "
            f"layers 0 to {left - 1}"
        )


def compress(
    policy: CogACTPolicy,
    recipe: Recipe,
    observations: Sequence[Observation] = (),
    *,
    progress: OnProgress | None = None,
    finished: Callable[[CompressedLayer], None] | None = None,
) -> list[LinearReport]:
    """Quantise a policy in place, as the recipe says.

    observations: calibration; may be empty for recipes that do not look at data.
    progress: called as (stage, done, total).
    finished: called with every layer while its weights are still packed; the place to store it.
    Returns what happened to every linear. The weights stay packed, on the reference backend: switch with
    `quantization.layer_fusion.prepare_inference`.
    """
    spec = recipe.quantization
    if spec is None:
        return []
    require_calibration(recipe, observations)
    decoder = policy.model.decoder
    require_loadable(recipe, len(decoder.layers))
    require_plannable(recipe, decoder.config)
    hidden, reports = prepare_stream(policy, spec, observations)
    with errors_name(recipe.name):
        plan = make_plan(policy, spec, hidden, observations, progress=progress)
    towers, hidden = quantize_towers(policy, spec, hidden, observations, plan)
    reports += towers
    for layer in compress_layers(decoder, spec, hidden, plan=plan, progress=progress):
        reports += layer.linears
        if finished is not None:
            finished(layer)
    return reports + quantize_parts(policy.model, spec, AFTER_DECODER)


def prepare_stream(
    policy: CogACTPolicy, spec: QuantizationSpec, observations: Sequence[Observation]
) -> tuple[list[Tensor] | None, list[LinearReport]]:
    """Turn both ends of the residual stream and quantise what comes before the decoder, if the recipe says so.

    Returns the first layer's calibration inputs, and a report for every linear that was quantised.
    """
    spec.rotation_scheme.turn_stream_ends(policy.model.decoder, policy.model.projector)
    reports = [] if spec.vision_by_row else quantize_parts(policy.model, spec, BEFORE_DECODER)
    return (decoder_inputs(policy, observations) if observations else None), reports


def make_plan(
    policy: CogACTPolicy,
    spec: QuantizationSpec,
    hidden: list[Tensor] | None,
    observations: Sequence[Observation] = (),
    *,
    store: ScoringStore | None = None,
    progress: OnProgress | None = None,
) -> RowPlan | None:
    """Plan widths and Hessians where the recipe looks at the action; None where it does not. See `plan_rows`."""
    if not spec.looks_at_the_action:
        return None
    from sqap_vla_ros.compression.sensitivity.plan import plan_rows

    images = _inputs_of(policy, policy.model.vision, observations) if spec.vision_by_row else []
    return plan_rows(policy, spec, hidden or [], images, store=store, progress=progress)


def quantize_towers(
    policy: CogACTPolicy,
    spec: QuantizationSpec,
    hidden: list[Tensor] | None,
    observations: Sequence[Observation],
    plan: RowPlan | None,
) -> tuple[list[LinearReport], list[Tensor] | None]:
    """Quantise what comes before the decoder where that had to wait for the plan.

    Returns a report for every linear, and the first layer's calibration inputs as they then are.
    """
    if not spec.vision_by_row or plan is None:
        return [], hidden
    reports = quantize_parts(policy.model, spec, BEFORE_DECODER, plan.vision)
    return reports, decoder_inputs(policy, observations)


def compress_layers(
    decoder: Decoder,
    spec: QuantizationSpec,
    hidden: list[Tensor] | None,
    *,
    start: int = 0,
    plan: RowPlan | None = None,
    progress: OnProgress | None = None,
) -> Iterator[CompressedLayer]:
    """Quantise the layers from `start` on, one per iteration.

    hidden: the calibration inputs of layer `start`.
    plan: for recipes that look at the action, see `make_plan`.
    """
    depth, rotary = len(decoder.layers), rotary_of(decoder)
    for index in range(start, depth):
        if progress is not None:
            progress("quantising decoder layers", index, depth)
        layer = decoder.layers[index] = decoder.layer_in_memory(index)
        with torch.no_grad():
            linears, hidden = compress_layer(
                layer,
                spec,
                decoder.config,
                hidden=hidden,
                rotary=rotary,
                plan=NO_PLAN if plan is None else plan.layer(index),
                prefix=f"decoder.layers.{index}",
            )
        yield CompressedLayer(index, linears, hidden)
    if progress is not None:
        progress("quantising decoder layers", depth, depth)
