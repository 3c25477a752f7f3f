"""Measure which part of the recipes' error comes from weights, from activations and from the dropped tokens.

Each part alone on the shipped policy, on the pictures and by the two errors of `selection_error.py` (`cog` and `eps`,
against bf16 with every token), and all together:

* weights: the recipe's widths and rounding, activations at 16 bits;
* activations: the recipe's, on weights of eight bits, whose own error is given too;
* tokens: the recipe's selector on bf16;
* towers, head: all together, with vision towers and projector in eight bits as the recipes `*_full` have them, and then
  with the action head in eight bits too.

    OMP_NUM_THREADS=1 python benchmarks/error_parts.py [--observations 32]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import cast

import yaml
from selection_error import SEED, Scenes

from sqap_vla_ros.compression.load import checkpoint_digest
from sqap_vla_ros.compression.recipe import QuantizationSpec, Recipe, load_recipe
from sqap_vla_ros.contracts import TRAINED_POLICY
from sqap_vla_ros.policies import load_policy
from sqap_vla_ros.policy.cogact import CogACTPolicy
from sqap_vla_ros.pruning import make_selector
from sqap_vla_ros.shipped import SHIPPED
from sqap_vla_ros.simulation.observations import expert_observations

RESULTS = Path(__file__).parent / "results" / "error_parts.json"
RECIPES = ("sqap", "sqap_w4a8", "coverage_w4a8", "sqap_qvla", "coverage_qvla")
REFERENCE, EIGHT_BITS = "bf16", "weights of 8 bits"
PARTS = ("weights", "activations", "tokens", "together", "towers", "head")
TOWERS = {"vision": 8, "projector": 8}


def scheme_of(recipe: Recipe, part: str) -> QuantizationSpec:
    """Return the recipe's quantisation with one part of it alone."""
    assert recipe.quantization is not None
    if part == "weights":
        return dataclasses.replace(recipe.quantization, activation_bits=16, activation_clip=1.0)
    if part == "activations":
        return dataclasses.replace(recipe.quantization, weight_bits=8, row_bits=None, hessian="plain")
    if part in ("towers", "head"):
        return dataclasses.replace(recipe.quantization, parts=TOWERS | ({"action_head": 8} if part == "head" else {}))
    return recipe.quantization


def load(spec: QuantizationSpec | None) -> CogACTPolicy:
    """Return the shipped policy quantised so, with every token; it is calibrated once and kept."""
    if spec is None:
        return cast(CogACTPolicy, load_policy(TRAINED_POLICY, REFERENCE))
    content = Recipe("part", dtype="bfloat16", head_dtype="float32", quantization=spec).to_dict()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "part.yaml")
        path.write_text(yaml.safe_dump(json.loads(json.dumps({k: v for k, v in content.items() if v is not None}))))
        return cast(CogACTPolicy, load_policy(TRAINED_POLICY, str(path)))


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--observations", type=int, default=32)
    args = parser.parse_args()
    recipes = {name: load_recipe(name) for name in RECIPES}
    of_eight = dataclasses.replace(scheme_of(recipes["sqap"], "weights"), weight_bits=8)
    schemes: dict[str, QuantizationSpec | None] = {repr(None): None, EIGHT_BITS: of_eight}
    for recipe in recipes.values():
        schemes |= {repr(spec): spec for part in PARTS if (spec := scheme_of(recipe, part))}
    policies = {name: load(spec) for name, spec in schemes.items()}
    scenes = Scenes(
        {REFERENCE: policies.pop(repr(None)), **policies}, expert_observations(args.observations, seed=SEED)
    )
    rows = {EIGHT_BITS: scenes.errors(EIGHT_BITS, None)}
    for name, recipe in recipes.items():
        assert recipe.pruning is not None
        selector = make_selector(recipe.pruning.selector, **recipe.pruning.parameters)
        for part in PARTS:
            policy = REFERENCE if part == "tokens" else repr(scheme_of(recipe, part))
            tokens = None if part in ("weights", "activations") else selector
            rows[f"{name}: {part}"] = scenes.errors(policy, tokens, own_head=part == "head")
    found = {row: {key.split()[-1]: value for key, value in errors.items()} for row, errors in rows.items()}
    for row, errors in found.items():
        print(f"{row:28s}" + "  ".join(f"{error} {value:.4f}" for error, value in errors.items()))
    weights = checkpoint_digest(TRAINED_POLICY, SHIPPED)
    content = {"observations": args.observations, "seed": SEED, "weights_sha256": weights, "rows": found}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
