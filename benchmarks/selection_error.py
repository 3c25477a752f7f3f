"""How far dropping tokens moves the cognition feature of the shipped policy, by selector, layer and share.

The expert's observations in the simulator (other layouts than calibration, training and evaluation use); relative
error of the feature against the same policy with every token, all observations together: bf16, and W4A4 against bf16.
A closed loop of 200 episodes cannot tell methods apart that differ by three points; this can, and is what the choices
in `config/recipes/sqap.yaml` rest on. Prints the table and stores it.

    OMP_NUM_THREADS=1 python benchmarks/selection_error.py [--observations 96]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, cast

import torch
from papers_tables import VARIANTS
from quantization_error import cognition
from tqdm import tqdm

from sqap_vla_ros.compression.load import checkpoint_digest, load_policy
from sqap_vla_ros.policy.cogact import CogACTPolicy
from sqap_vla_ros.pruning import make_selector
from sqap_vla_ros.shipped import SHIPPED, TABLETOP
from sqap_vla_ros.simulation.observations import expert_observations

RESULTS = Path(__file__).parent / "results" / "selection_error.json"
SEED = 970_000
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
}


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--observations", type=int, default=96)
    args = parser.parse_args()
    observations = expert_observations(args.observations, seed=SEED)
    policies = {name: cast(CogACTPolicy, load_policy(TABLETOP, name, shipped=SHIPPED)) for name in ("bf16", "w4a4")}
    whole = {name: cognition(policy, observations) for name, policy in policies.items()}

    def error(features: torch.Tensor) -> float:
        return round(float((features - whole["bf16"]).norm() / whole["bf16"].norm()), 5)

    depth = len(policies["bf16"].model.decoder.layers)
    cases = [(ratio, layer, name) for ratio in (0.4, 0.7) for layer in range(1, depth) for name in SELECTORS]
    rows: list[dict[str, Any]] = [{"selector": "none", "bf16": 0.0, "w4a4": error(whole["w4a4"])}]
    for ratio, layer, name in tqdm(cases):
        selector, parameters = SELECTORS[name]
        row: dict[str, Any] = {"selector": name, "dropped": ratio, "before_layer": layer}
        for quantization, policy in policies.items():
            policy.selector = make_selector(selector, ratio=ratio, prune_layer=layer, **parameters)
            row[quantization] = error(cognition(policy, observations))
        rows.append(row)
    print(f"{'selector':48s}{'dropped':>8s}{'layer':>6s}{'bf16':>8s}{'W4A4':>8s}")
    for row in rows:
        place = f"{row.get('dropped', 0):8.1f}{row.get('before_layer', '-'):>6}"
        print(f"{row['selector']:48s}{place}{row['bf16']:8.3f}{row['w4a4']:8.3f}")
    weights = checkpoint_digest(TABLETOP, SHIPPED)
    content = {"observations": len(observations), "seed": SEED, "weights_sha256": weights, "rows": rows}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
