"""The plan of a compression that looks at the action before it rounds: row widths, and gradient-weighted Hessians.

Half of the observations calibrate the rounding whose damage is scored on the other half: rounding looks better on
inputs that it was fitted to.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from sqap_vla_ros.compression.layer_work import LayerPlan, OnProgress, rotary_of
from sqap_vla_ros.compression.recipe import QuantizationSpec, RecipeError, RowBits
from sqap_vla_ros.compression.sensitivity.allocation import VISION, AllocationError, Linear, allocate
from sqap_vla_ros.compression.sensitivity.backward import (
    FloatDecoder,
    layer_moments,
    make_cotangents,
    make_references,
)
from sqap_vla_ros.compression.sensitivity.measured import harmful_zeros
from sqap_vla_ros.compression.sensitivity.objectives import OBJECTIVES, FrozenHead
from sqap_vla_ros.compression.sensitivity.rounding import rounding_changes, rounding_hessian
from sqap_vla_ros.compression.sensitivity.scores import METRICS, RowScores
from sqap_vla_ros.compression.sensitivity.soundness import (
    about,
    require_damage,
    require_finite,
    require_gradient,
)
from sqap_vla_ros.compression.sensitivity.towers import score_towers
from sqap_vla_ros.compression.sensitivity.unfinished import KeptInMemory, Scoring, ScoringStore
from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.policy.cogact import CogACTPolicy
from sqap_vla_ros.policy.decoder import Decoder
from sqap_vla_ros.quantization.reordered_weights import give_back_freed_memory

WEIGHTED_PROBES = 4  # random directions an observation, where only Hessians are weighted


class TurnedLayers(Sequence[LlamaDecoderLayer]):
    """A decoder's layers as the recipe's rotation leaves them, in float32; each access copies one."""

    def __init__(self, decoder: Decoder, spec: QuantizationSpec) -> None:
        self._decoder, self._spec = decoder, spec

    def __len__(self) -> int:
        return len(self._decoder.layers)

    def _turned(self, index: int) -> LlamaDecoderLayer:
        layer = self._decoder.layer_in_memory(index)
        if layer is self._decoder.layers[index]:
            layer = copy.deepcopy(layer)
        layer = layer.float().requires_grad_(False)
        self._spec.rotation_scheme.turn_layer(layer, self._decoder.config.heads)
        return layer

    @overload
    def __getitem__(self, index: int) -> LlamaDecoderLayer: ...

    @overload
    def __getitem__(self, index: slice) -> list[LlamaDecoderLayer]: ...

    def __getitem__(self, index: int | slice) -> LlamaDecoderLayer | list[LlamaDecoderLayer]:
        if isinstance(index, slice):
            return [self._turned(each) for each in range(len(self))[index]]
        return self._turned(range(len(self))[index])

    def __iter__(self) -> Iterator[LlamaDecoderLayer]:
        return (self._turned(index) for index in range(len(self)))


@dataclass(frozen=True)
class RowPlan:
    """Decisions by linear; bits and hessians are empty where the recipe has none.

    scores: damage of every row by width. damage: its sum over all rows at one width; kept where the scores are not.
    """

    bits: Mapping[Linear, Tensor]
    hessians: Mapping[Linear, Tensor]
    damage: Mapping[Linear, Mapping[int, float]] = field(default_factory=dict)
    scores: Mapping[Linear, RowScores] = field(default_factory=dict)

    def layer(self, index: int) -> LayerPlan:
        """Return the part of one decoder layer."""
        return LayerPlan(*(_of_layer(every, index) for every in (self.bits, self.hessians, self.damage)))

    @property
    def vision(self) -> LayerPlan:
        """Return the part of the vision towers, by the paths of their linears."""
        return self.layer(VISION)


def probes_of(spec: QuantizationSpec) -> int:
    """Return the random directions that an observation's action is differentiated in."""
    return WEIGHTED_PROBES if spec.row_bits is None else spec.row_bits.probes


def _of_layer(every: Mapping[Linear, Any], index: int) -> dict[str, Any]:
    return {linear[1]: every[linear] for linear in every if linear[0] == index}


def _usable(scoring: Scoring | None, rows: RowBits | None) -> Scoring | None:
    """Keep of an earlier run's scores those of the widths that are wanted; None where some are not among them."""
    if scoring is None or rows is None:
        return scoring
    wanted = [bits for bits in rows.widths if bits in rows.scored_widths]
    if not all({*wanted} <= {*by_bits} for by_bits in scoring.scores.values()):
        return None
    scoring.scores = {linear: {bits: each[bits] for bits in wanted} for linear, each in scoring.scores.items()}
    return scoring


def plan_rows(
    policy: CogACTPolicy,
    spec: QuantizationSpec,
    hidden: Sequence[Tensor],
    images: Sequence[Tensor] = (),
    *,
    store: ScoringStore | None = None,
    progress: OnProgress | None = None,
) -> RowPlan:
    """Score every row of the decoder, and of the vision towers where the recipe has them, at every width, and choose.

    policy: not quantised; the ends of its residual stream turned as the recipe says. Nothing in it is changed.
    hidden: the decoder's inputs [1, S, D] float32, one per calibration observation. Each needs its inputs of all layers
        in memory: 145 MB for the published geometry.
    images: where the vision towers' rows take widths, what the towers are given, [1, 3, H, W] uint8 per observation.
    store: where scored layers go, so that an interruption loses one at most, and the weighted Hessians, 0.9 GB a layer
        of the published geometry; None keeps all in memory.
    Raises RecipeError where too few rows may be zero to keep to the average, and ScoringError where the action of this
    policy cannot tell one width from another: see `soundness`.
    """
    rows = spec.row_bits
    source = policy.model.decoder
    decoder = FloatDecoder(TurnedLayers(source, spec), source.norm, rotary_of(source))
    head, depth = FrozenHead(policy), len(source.layers)
    metric = METRICS["epsilon" if rows is None else rows.metric]
    objective = metric.objective or OBJECTIVES["epsilon"]
    probes = probes_of(spec)
    references = make_references(decoder, hidden, head)
    fitted, judged = (references, []) if rows is None else (references[::2], references[1::2])
    to_fit, to_judge = (
        make_cotangents(decoder, some, head, objective, probes=probes, seed=seed) if some else []
        for seed, some in enumerate((fitted, judged))
    )
    if metric.objective is not None or spec.hessian == "weighted":
        require_gradient([*to_fit, *to_judge], policy)
    store = store or KeptInMemory()
    hessians = store.hessians
    scoring = _usable(store.read(), rows) or Scoring(depth, to_fit, to_judge)
    del to_fit, to_judge  # they are as large as a layer
    scores = scoring.scores
    columns = {
        (index, name): COGACT.linear(layer, name).in_features
        for index, layer in enumerate(source.layers)
        for name in COGACT.linears
    }

    def score_layer(index: int) -> None:
        """Score one layer; what it needs for that (4 GB of the published geometry) is gone before the next begins."""
        layer, final = decoder.layers[index], index == depth - 1
        moments, scoring.to_fit = layer_moments(
            layer, [each.hidden[index] for each in fitted], scoring.to_fit, decoder.rotary, final=final
        )
        found: dict[str, Tensor] = {}
        for name in list(moments):
            with about((index, name), policy):
                found[name] = rounding_hessian(moments.pop(name), spec)
        if spec.hessian == "weighted":
            for name, hessian in found.items():
                hessians[index, name] = hessian
        if rows is None:
            return
        deltas = {}
        for name in COGACT.linears:
            with about((index, name), policy):
                deltas[name] = rounding_changes(COGACT.linear(layer, name).weight.data, found.pop(name), spec)
        judged_moments, scoring.to_judge = layer_moments(
            layer,
            [each.hidden[index] for each in judged],
            scoring.to_judge,
            decoder.rotary,
            final=final,
            deltas=deltas,
            second=metric.second_moments,
        )
        for name, changes in deltas.items():
            with about((index, name), policy):
                scores[index, name] = metric.score(judged_moments[name], changes)
            require_finite((index, name), scores[index, name], policy)

    while scoring.left:
        if progress is not None:
            progress("scoring decoder layers", depth - scoring.left, depth)
        score_layer(scoring.left - 1)
        scoring.left -= 1
        store.write(scoring)
        give_back_freed_memory()  # each pass leaves holes of the size of its activations
    if progress is not None:
        progress("scoring decoder layers", depth, depth)
    if rows is None:
        return RowPlan({}, hessians)
    of_decoder = {linear: scores[linear] for linear in sorted(scores) if linear[0] != VISION}
    require_damage(of_decoder, policy)
    never_zero: set[Linear] = set()
    while True:  # ends: every round but the last forbids zeros in another linear
        try:
            bits = allocate(
                of_decoder,
                columns,
                rows.limits,
                method=rows.method,
                ties=rows.ties,
                head_width=source.config.width // source.config.heads,
                never_zero=never_zero,
            )
        except AllocationError as error:
            raise RecipeError(f"quantization.row_bits: {error}") from error
        harmful = harmful_zeros(bits, scores, decoder, judged, head)
        if not harmful:
            break
        never_zero |= harmful
    if rows.vision_limits is not None:
        if not any(layer == VISION for layer, _ in scores):
            scores |= score_towers(
                policy, spec, metric, (images[::2], scoring.to_fit), (images[1::2], scoring.to_judge), hessians
            )
        towers = {linear: scores[linear] for linear in sorted(scores) if linear[0] == VISION}
        inputs = {linear: policy.model.get_parameter(f"{linear[1]}.weight").shape[1] for linear in towers}
        ties = "linear" if rows.ties == "linear" else "none"
        bits |= allocate(towers, inputs, rows.vision_limits, method=rows.method, ties=ties, head_width=1)
    damage = {
        linear: {width: float(each.sum()) for width, each in by_width.items()} for linear, by_width in scores.items()
    }
    return RowPlan(bits, hessians, damage, scores)
