"""Measure how far each recipe moves the answers of the two shipped policies, of the simulator and of LIBERO.

The two errors of `selection_error.py` (`cog` and `eps`, against bf16 with every token), each policy on 24 pictures of
its own world. Recipes that quantise are calibrated on 24 others, for LIBERO the other half of the pictures that ship.
Beside W4A4 stand its parts: its weights alone, and its activations on weights of eight bits.

    OMP_NUM_THREADS=1 python benchmarks/libero_error.py
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import yaml
from error_parts import scheme_of
from selection_error import SEED, Scenes

from sqap_vla_ros.compression.calibration import folder_observations
from sqap_vla_ros.compression.load import checkpoint_digest, load_policy
from sqap_vla_ros.compression.recipe import QuantizationSpec, Recipe, load_recipe
from sqap_vla_ros.contracts import TRAINED_POLICY, Observation
from sqap_vla_ros.policy.cogact import CogACTPolicy
from sqap_vla_ros.pruning import make_selector
from sqap_vla_ros.shipped import LIBERO_OBJECT, LIBERO_PICTURES, SHIPPED
from sqap_vla_ros.simulation.observations import expert_observations

RESULTS = Path(__file__).parent / "results" / "libero_error.json"
RECIPES = ("w4a8", "coverage_w4a8", "qvla_w4a8", "w4a4", "sqap", "random_drop", "fastv")
REFERENCE = "bf16"
COUNT = 24  # pictures to calibrate on, and to judge by


def observations(checkpoint: str) -> tuple[Sequence[Observation], Sequence[Observation]]:
    """Return pictures of the policy's world to calibrate on, and others to judge by."""
    if checkpoint == TRAINED_POLICY:
        return SHIPPED[checkpoint].observations(COUNT), expert_observations(COUNT, seed=SEED)
    pictures = folder_observations(LIBERO_PICTURES, 2 * COUNT)
    return pictures[::2], pictures[1::2]


def rows() -> dict[str, Recipe]:
    """Return what is measured: the parts of W4A4, and the recipes."""
    w4a4 = load_recipe("w4a4")
    parts = {
        f"w4a4: {part}": dataclasses.replace(w4a4, quantization=scheme_of(w4a4, part))
        for part in ("weights", "activations")
    }
    return parts | {name: load_recipe(name) for name in RECIPES}


def errors(checkpoint: str) -> dict[str, dict[str, float]]:
    """Return `cog` and `eps` of each row for one policy."""
    calibration, judged = observations(checkpoint)
    shipped = {checkpoint: dataclasses.replace(SHIPPED[checkpoint], observations=lambda count: list(calibration))}

    def load(spec: QuantizationSpec | None) -> CogACTPolicy:
        recipe = Recipe("part", dtype="bfloat16", head_dtype="float32", quantization=spec)
        content = {key: value for key, value in recipe.to_dict().items() if value is not None}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "part.yaml")
            path.write_text(yaml.safe_dump(json.loads(json.dumps(content))))
            return cast(CogACTPolicy, load_policy(checkpoint, str(path), shipped=shipped))

    wanted = rows()
    schemes = {repr(recipe.quantization): recipe.quantization for recipe in wanted.values()}
    policies = {REFERENCE: load(None), **{name: load(spec) for name, spec in schemes.items() if spec is not None}}
    scenes, found = Scenes(policies, judged), {}
    for name, recipe in wanted.items():
        pruning = recipe.pruning
        selector = None if pruning is None else make_selector(pruning.selector, **pruning.parameters)
        policy = REFERENCE if recipe.quantization is None else repr(recipe.quantization)
        found[name] = {key.split()[-1]: value for key, value in scenes.errors(policy, selector).items()}
    return found


def main() -> None:
    """Measure, print, store."""
    policies = {checkpoint: errors(checkpoint) for checkpoint in (TRAINED_POLICY, LIBERO_OBJECT)}
    print(f"{'':20s}" + "".join(f"{f'{name} eps':>20s}{f'{name} cog':>20s}" for name in policies))
    for row in rows():
        each = (f"{found[row]['eps']:20.4f}{found[row]['cog']:20.4f}" for found in policies.values())
        print(f"{row:20s}" + "".join(each))
    weights = {checkpoint: checkpoint_digest(checkpoint, SHIPPED) for checkpoint in policies}
    content = {"observations": COUNT, "seed": SEED, "weights_sha256": weights, "errors": policies}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
