"""Measure how far dropping tokens moves the shipped policy's answer, by selector, layer and share.

The expert's observations in the simulator (other layouts than calibration, training and evaluation use), against bf16
with every token, all observations together. Two relative errors: `cog` of the cognition feature, and `eps` of the noise
that the action head predicts from it at five timesteps of the reference's own chunk, which is what the action feels.
A closed loop of 200 episodes cannot tell methods apart that differ by three points; this can, and is what the choices
in `config/recipes/sqap.yaml` and `coverage_w4a8.yaml` rest on.

The rows named `oracle` choose by each image's own sensitivity, the norm of the noise's gradient at every token: no
selector can know it without a backward pass, so they bound what a budget by sensitivity can gain. Rows `in two steps`
drop before two layers, at the cost of dropping everything before the layer between them. Rows `budget by` give half of
the scenes more tokens and half of them fewer at the same mean (SpecPrune-VLA gives them where the arm is slow).

    OMP_NUM_THREADS=1 python benchmarks/selection_error.py [--observations 64] [--only "two steps" "budget by"]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from papers_rows import VARIANTS
from torch import Tensor
from tqdm import tqdm

from sqap_vla_ros.compression.load import checkpoint_digest, load_policy
from sqap_vla_ros.contracts import TRAINED_POLICY, Observation, Reason, SelectedTokens, SelectionContext, TokenSelector
from sqap_vla_ros.policy.cogact import CogACTPolicy
from sqap_vla_ros.policy.decoder import VISUAL_START, Decoder
from sqap_vla_ros.pruning import make_selector
from sqap_vla_ros.pruning.base import Selector
from sqap_vla_ros.pruning.coverage import CoverageSelector
from sqap_vla_ros.pruning.merging import feature_distances, merge_into_kept
from sqap_vla_ros.shipped import SHIPPED
from sqap_vla_ros.simulation.observations import expert_observations

RESULTS = Path(__file__).parent / "results" / "selection_error.json"
SEED = 970_000
RECIPES = ("bf16", "w4a8", "w4a4")
TIMESTEPS = (5, 25, 50, 75, 95)
GRADIENTS = "fp32"  # what is differentiated: linears in oneDNN's order have no gradient
PROBES = 4  # random directions of the noise a gradient is taken of
FEATURES = VARIANTS["features"]
SELECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "sqap, farthest on the grid": ("sqap", {}),
    "sqap, farthest in features": ("sqap", FEATURES),
    "sqap, farthest in features, share 0.25": ("sqap", {"attention_share": 0.25, **FEATURES}),
    "sqap, farthest in features, share 0": ("sqap", {"attention_share": 0.0, **FEATURES}),
    "sqap, farthest in features, no ring": ("sqap", {"ring_radius": None, **FEATURES}),
    "sqap, farthest in features, query instruction": ("sqap", {"query": "instruction", **FEATURES}),
    "sqap, uniform grid for farthest": ("sqap", VARIANTS["no_fps_grid"]),
    "top-k attention": ("sqap", VARIANTS["top_k"]),
    "top-k attention + ring": ("sqap", VARIANTS["ring"]),
    "uniform grid": ("uniform_grid", {}),
    "random": ("random_same_budget", {}),
    "coverage": ("coverage", {}),
    "coverage, dropping instead of merging": ("coverage", {"merge": False}),
    "coverage, no ring": ("coverage", {"ring_radius": None}),
}
ORACLES = {
    "oracle: most sensitive": {"spread": False, "merge": False},
    "oracle: most sensitive, others merged": {"spread": False, "merge": True},
    "oracle: coverage weighted by sensitivity": {"spread": True, "merge": True},
}


BUDGETS = {  # what decides which half of the scenes keeps more tokens
    "coverage, budget by speed, slow arms keep more": "slow",
    "coverage, budget by speed, fast arms keep more": "fast",
    "coverage, budget by the sensitivity of all tokens": "sensitive",
}
TWO_STEPS = "coverage, in two steps"
SPREAD = 0.2  # of the ratio, up and down
Chosen = TokenSelector | list[TokenSelector | None] | None  # a list has one for every scene


@dataclass(frozen=True, kw_only=True)
class LeafSelector(Selector):
    """Keeps every token as a leaf of the graph, appended to `leaves`, so that gradients at the tokens are at hand."""

    name: str = "leaf"
    ratio: float = 0.0
    needs: frozenset[str] = frozenset({"hidden"})
    leaves: list[Tensor] = field(default_factory=list)

    def select(self, context: SelectionContext) -> SelectedTokens:
        assert context.hidden is not None
        leaf = context.hidden.detach().clone().requires_grad_()
        self.leaves.append(leaf)
        indices = torch.arange(leaf.shape[1])[None]
        return SelectedTokens(indices, torch.full_like(indices, int(Reason.ALL), dtype=torch.uint8), leaf)


@dataclass(frozen=True, kw_only=True)
class OracleSelector(Selector):
    """Chooses by the sensitivities [N] that `scores` yields, one image after the other.

    spread: choose greedily what lowers the sum of sensitivity times squared distance to the nearest kept token, instead
        of the largest sensitivities.
    """

    name: str = "oracle"
    needs: frozenset[str] = frozenset({"hidden"})
    scores: Iterator[Tensor]
    spread: bool
    merge: bool

    def select(self, context: SelectionContext) -> SelectedTokens:
        hidden, score = context.hidden, next(self.scores)
        assert hidden is not None
        budget, distances = self.budget(len(score)), feature_distances(hidden)
        if self.spread:
            kept = _weighted_cover(distances[0], score, budget)
        else:
            kept = score.argsort(descending=True)[:budget].sort().values
        indices = kept[None]
        reasons = torch.full_like(indices, int(Reason.DIVERSITY), dtype=torch.uint8)
        return SelectedTokens(indices, reasons, *(merge_into_kept(hidden, distances, indices) if self.merge else ()))


def _weighted_cover(distances: Tensor, weights: Tensor, budget: int) -> Tensor:
    """Return `budget` tokens in ascending order, each the one that lowers the weighted sum of distances most."""
    nearest = torch.full_like(weights, 2.0 * float(distances.max()))
    kept: list[int] = []
    for _ in range(budget):
        gain = ((nearest - distances).clamp_min(0.0) * weights).sum(dim=1)
        gain[kept] = -1.0
        kept.append(int(gain.argmax()))
        nearest = torch.minimum(nearest, distances[kept[-1]])
    return torch.tensor(sorted(kept))


@dataclass(frozen=True, kw_only=True)
class RememberedCoverage(CoverageSelector):
    """`coverage` that keeps its latest answer in `answers`."""

    answers: list[SelectedTokens] = field(default_factory=list)

    def select(self, context: SelectionContext) -> SelectedTokens:
        self.answers[:] = [super().select(context)]
        return self.answers[0]


@contextmanager
def second_step(decoder: Decoder, selector: RememberedCoverage, ratio: float) -> Iterator[None]:
    """Merge more visual tokens by `coverage`'s rule before the final layer, so that `ratio` of all are gone then."""
    layer = decoder._layer
    budget = dataclasses.replace(selector, ratio=ratio).budget

    def wrapped(module: Any, hidden: Tensor, cos: Tensor, sin: Tensor, last: None, **how: Any) -> Any:
        if not how["final"]:
            return layer(module, hidden, cos, sin, last, **how)
        first = selector.answers[0]
        assert first.sizes is not None
        tokens = int(first.sizes.sum())
        visual = slice(VISUAL_START, VISUAL_START + first.indices.shape[1])
        distances = feature_distances(hidden[:, visual])
        kept = selector._grow(distances, first.reasons == int(Reason.RING), budget(tokens))
        indices = kept.nonzero()[:, 1][None]
        group = distances[0][:, indices[0]].argmin(dim=1)
        group[indices[0]] = torch.arange(indices.shape[1])
        sizes = torch.zeros(1, indices.shape[1]).index_add_(1, group, first.sizes)
        total = torch.zeros(indices.shape[1], hidden.shape[2])
        total.index_add_(0, group, hidden[0, visual].float() * first.sizes[0, :, None])
        behind = torch.arange(visual.stop, hidden.shape[1])
        rows = torch.cat((torch.arange(VISUAL_START), VISUAL_START + indices[0], behind))
        hidden, cos, sin = hidden[:, rows], cos[:, rows], sin[:, rows]
        hidden[0, VISUAL_START : VISUAL_START + indices.shape[1]] = (total / sizes[0, :, None]).to(hidden.dtype)
        how["sizes_log"] = F.pad(sizes.log(), (VISUAL_START, len(behind)))
        return layer(module, hidden, cos, sin, last, **how)

    decoder._layer = wrapped  # type: ignore[method-assign]
    try:
        yield
    finally:
        del decoder._layer


class Scenes:
    """Observations whose visual tokens are computed once for each policy, and the reference's answers to them."""

    def __init__(self, policies: dict[str, CogACTPolicy], observations: Sequence[Observation]) -> None:
        self.policies = policies
        self._prompts = {}
        with torch.inference_mode():
            for name, policy in policies.items():
                prompts = []
                for observation in observations:
                    image, ids, _ = policy._inputs([observation])
                    visual = policy.model.projector(policy.model.vision(image)[0])
                    prompts.append((visual, ids, policy._gripper_patch(observation)))
                self._prompts[name] = prompts
        self._reference = policies["bf16"]
        generator = torch.Generator().manual_seed(SEED)
        head = self._reference.model.config.head
        self._noise, start = (
            torch.randn(len(observations), head.horizon, head.channels, generator=generator) for _ in range(2)
        )
        self.whole = self.features("bf16", None)
        with torch.inference_mode():
            self._chunks = self._reference.model.sample(self.whole, start, [], self._reference.sampler)
        self.predicted = self.noise(self.whole)

    def features(self, name: str, selector: Chosen, *, gradients: bool = False) -> Tensor:
        """Return the cognition features [n, D] of one policy, fp32."""
        model, found = self.policies[name].model, []
        selectors = selector if isinstance(selector, list) else [selector] * len(self._prompts[name])
        with torch.inference_mode(not gradients):
            for (visual, ids, patch), selector in zip(self._prompts[name], selectors, strict=True):
                context = SelectionContext(model.config.vision.grid, [patch])
                found.append(model.decode(visual.clone(), ids, None, selector=selector, context=context).cognition)
        return torch.cat(found).float()

    def noise(self, features: Tensor, name: str = "bf16") -> Tensor:
        """Return the noise [timesteps, n, T, 7] that a policy's head sees in the reference's noised chunks."""
        head = self.policies[name].model.action_head
        found = []
        for timestep in TIMESTEPS:
            step = torch.full((len(features),), timestep)
            noised = self._reference.sampler.add_noise(self._chunks, step, self._noise)
            found.append(head(noised, step, features.to(head.positional_embedding.dtype)).float())
        return torch.stack(found)

    def errors(self, name: str, selector: Chosen, *, own_head: bool = False) -> dict[str, float]:
        """Return `cog` and `eps` of one policy with one selector; own_head: the noise is its own head's prediction."""
        features = self.features(name, selector)
        with torch.inference_mode():
            predicted = self.noise(features, name if own_head else "bf16")
        return {f"{name} cog": _relative(features, self.whole), f"{name} eps": _relative(predicted, self.predicted)}

    def speeds(self) -> Tensor:
        """Return the mean normalised translation of the first eight actions that the reference answers, [n]."""
        return self._chunks[:, :8, :3].norm(dim=2).mean(dim=1)

    def sensitivities(self, layer: int) -> list[Tensor]:
        """Return for each observation the squared norm of the noise's gradient at every visual token, [N]."""
        selector = LeafSelector(prune_layer=layer)
        predicted = self.noise(self.features(GRADIENTS, selector, gradients=True), GRADIENTS)
        generator = torch.Generator().manual_seed(SEED)
        total = [torch.zeros(leaf.shape[1]) for leaf in selector.leaves]
        for _ in range(PROBES):
            direction = torch.randn(predicted.shape, generator=generator)
            found = torch.autograd.grad((predicted * direction).sum(), selector.leaves, retain_graph=True)
            for row, gradient in zip(total, found, strict=True):
                row += gradient[0].float().square().sum(dim=1)
        return total


def budgets(order: Tensor, ratio: float, layer: int) -> list[TokenSelector | None]:
    """Return `coverage` for every scene, which drops more of those in the lower half of `order` [n]."""
    many, few = (make_selector("coverage", ratio=ratio + change, prune_layer=layer) for change in (SPREAD, -SPREAD))
    return [many if rank < len(order) // 2 else few for rank in order.argsort().argsort()]


def _relative(found: Tensor, expected: Tensor) -> float:
    return round(float((found - expected).norm() / expected.norm()), 5)


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--observations", type=int, default=64)
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose names have one of these; the others stay")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES, help="what the tokens are dropped in")
    args = parser.parse_args()
    recipes = [name for name in RECIPES if name == "bf16" or name in args.recipes]  # bf16 is the reference
    observations = expert_observations(args.observations, seed=SEED)
    policies = {
        name: cast(CogACTPolicy, load_policy(TRAINED_POLICY, name, shipped=SHIPPED)) for name in (*recipes, GRADIENTS)
    }
    for policy in policies.values():
        policy.model.requires_grad_(False)
    scenes = Scenes(policies, observations)
    rows: list[dict[str, Any]] = [{"selector": "none"}]
    for name in recipes:
        rows[0] |= scenes.errors(name, None)
    depth = len(policies["bf16"].model.decoder.layers)

    def wanted(name: str) -> bool:
        return any(part in name for part in args.only)

    for layer in tqdm(range(1, depth)):
        sensitivities = scenes.sensitivities(layer)
        for ratio in (0.4, 0.7):
            chosen: dict[str, Chosen] = {
                name: make_selector(selector, ratio=ratio, prune_layer=layer, **parameters)
                for name, (selector, parameters) in SELECTORS.items()
            }
            for name in ORACLES:
                chosen[name] = OracleSelector(ratio=ratio, prune_layer=layer, scores=iter(()), **ORACLES[name])
            orders = {"slow": -scenes.speeds(), "fast": scenes.speeds()}
            orders["sensitive"] = torch.stack([each.sum() for each in sensitivities])
            chosen |= {name: budgets(orders[order], ratio, layer) for name, order in BUDGETS.items()}
            if layer == depth - 2:  # two steps around this layer cost what one before it does
                chosen[TWO_STEPS] = RememberedCoverage(ratio=ratio / 2, prune_layer=layer - 1)
            for name, selector in chosen.items():
                if not wanted(name):
                    continue
                row: dict[str, Any] = {"selector": name, "dropped": ratio, "before_layer": layer}
                for recipe in recipes:
                    if isinstance(selector, OracleSelector):
                        selector = dataclasses.replace(selector, scores=iter(sensitivities))
                    if isinstance(selector, RememberedCoverage):
                        with second_step(policies[recipe].model.decoder, selector, ratio):
                            row |= scenes.errors(recipe, selector)
                    else:
                        row |= scenes.errors(recipe, selector)
                rows.append(row)
    partly = args.only != [""] or len(recipes) < len(RECIPES)
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in (*(json.loads(RESULTS.read_text())["rows"] if partly else ()), *rows):
        key = row["selector"], row.get("dropped"), row.get("before_layer")
        merged[key] = merged.get(key, {}) | row
    rows = list(merged.values())
    columns = [f"{name} {error}" for name in RECIPES for error in ("cog", "eps")]
    print(f"{'selector':48s}{'dropped':>8s}{'layer':>6s}" + "".join(f"{column:>10s}" for column in columns))
    for row in rows:
        place = f"{row.get('dropped', 0):8.1f}{row.get('before_layer', '-'):>6}"
        print(f"{row['selector']:48s}{place}" + "".join(f"{row.get(column, math.nan):10.4f}" for column in columns))
    weights = checkpoint_digest(TRAINED_POLICY, SHIPPED)
    content = {"observations": len(observations), "seed": SEED, "weights_sha256": weights, "rows": rows}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
