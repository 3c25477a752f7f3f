"""Error of every quantisation recipe: weights, cognition feature, predicted noise, attention, actions.

Each recipe compresses the same policies with the same calibration observations and is judged on held-out ones, against
the unquantised policy; tokens are not pruned. Two kinds of policy: `plain` (as it is) and `outliers` (four channels of
the residual stream thirty times louder, as large trained decoders have; a trained policy does its task no more then,
but its own actions are still what it is compared with).

* `micro`: random weights, three of them. Frames of real robots where the data is at hand ($SQAP_VLA_DATA,
  ../shared/data), made-up scenes elsewhere.
* `tabletop`: the trained policy that ships, calibrated on 48 observations of the simulator and judged on 24 of others.
  With `--seeds 5` each recipe is calibrated on five such sets, so that what differs by chance is seen.

Raw results go to benchmarks/results/quantization_error[_tabletop].json, where rows that are measured anew replace the
old ones.

    python benchmarks/quantization_error.py [--checkpoint tabletop] [--seeds 3] [--recipes rtn_w4a4 w4a4 ...]
    python benchmarks/quantization_error.py --checkpoint tabletop --kinds plain --seeds 5 --recipes \
        qvla_w3a8_by_{epsilon,action}
    python benchmarks/quantization_error.py --checkpoint tabletop --kinds plain --seeds 5 --recipes \
        w4a8_weighted qvla_w4a8 w3a8_weighted qvla_w3a8 qvla_w3a8_stages \
        --out benchmarks/results/quantization_error_five_sets.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from papers_rows import SECTIONS, row_bits

from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.compress import compress
from sqap_vla_ros.compression.load import checkpoint_digest, load_uncompressed
from sqap_vla_ros.compression.parts import fuse_parts
from sqap_vla_ros.compression.recipe import Recipe, load_recipe
from sqap_vla_ros.compression.report import attention_overlap, probe
from sqap_vla_ros.compression.sensitivity.measured import held_out_errors
from sqap_vla_ros.compression.sensitivity.scores import METRICS
from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.policy.cogact import CogACTPolicy
from sqap_vla_ros.quantization.layer_fusion import prepare_inference
from sqap_vla_ros.shipped import SHIPPED
from sqap_vla_ros.simulation.observations import CALIBRATION_SEED, HELD_OUT_SEED, expert_observations

RESULTS = Path(__file__).parent / "results"
KINDS = ("plain", "outliers")
RECIPES = (
    "rtn_w8a8",
    "w8a8_smoothquant",
    "w8a8_omniquant",
    "rtn_w4a4",
    "sqap_paper",
    "w4a4_smoothquant",
    "w4a4_omniquant",
    "w4a4_rotated",
    "w4a4",
    "w4a4_text8",
    "w4a4_down8",
    "rtn_w3a3",
    "w3a3",
    "rtn_w8a16",
    "w8a16_awq",
    "rtn_w4a16",
    "w4a16_awq",
    "w2a16",
    "w4a8",
    "qvla_w8a8",
    "qvla_w4a8",
    "qvla_w4a4",
    "qvla_w3a8",
    "qvla_w3a8_vision",
    "qvla_w2.5a8",
    "qvla_w8a16",
    "qvla_w4a16",
)
ROWS = {  # of QVLA's tables, those that are no shipped recipes
    entry.name: entry
    for section in SECTIONS
    if section.key in ("row_bits", "granularity", "zeros")
    for entry in section.entries
    if isinstance(entry.quantization, dict)
}
METRIC_ROWS = {  # qvla_w3a8, with widths and Hessians by another metric of the damage
    name: row_bits(name, f"W3A8, widths by {metric}", average=3.0, metric=metric)
    for metric in METRICS
    for name in (f"qvla_w3a8_by_{metric}",)
}
STAGES = {  # widths lowered in the paper's stages in place of one heap; at 4 bits that gives every row four
    name: row_bits(name, "W3A8, in stages", average=3.0, method="stages") for name in ("qvla_w3a8_stages",)
}
CLIPS = {"bridge_real_1.mp4": "pick up the carrot", "rt1_real_standing_coke_can_1.mp4": "pick up the can"}
LOUD_CHANNELS, LOUDNESS = (7, 23, 64, 101), 30.0


def real_frames() -> list[Observation]:
    """Frames of two real robots, empty where the data is absent."""
    folder = Path(os.environ.get("SQAP_VLA_DATA", Path(__file__).parents[2] / "shared" / "data")) / "real2sim"
    found = []
    for name, instruction in CLIPS.items():
        if (folder / name).is_file():
            import imageio.v3 as imageio

            frames = imageio.imread(folder / name, plugin="FFMPEG")
            found += [Observation(np.ascontiguousarray(f), i, instruction) for i, f in enumerate(frames)]
    return found


def make_policy(checkpoint: str, kind: str, seed: int) -> CogACTPolicy:
    """`plain` or `outliers`, see the module's docstring."""
    policy = load_uncompressed(checkpoint, load_recipe("fp32"), shipped=SHIPPED, seed=seed)
    if kind == "outliers":
        with torch.no_grad():
            channels = list(LOUD_CHANNELS)
            policy.model.decoder.embed_tokens.weight[:, channels] *= LOUDNESS
            last = [m for m in policy.model.projector.modules() if isinstance(m, torch.nn.Linear)][-1]
            last.weight[channels] *= LOUDNESS
            last.bias[channels] *= LOUDNESS
    return policy


def recipe_of(name: str) -> Recipe:
    """A shipped recipe, that of a row of QVLA's tables, of `METRIC_ROWS` or of `STAGES`."""
    rows = ROWS | METRIC_ROWS | STAGES
    return rows[name].recipe() if name in rows else load_recipe(name)


def errors(
    checkpoint: str, kind: str, recipe: str, seed: int, calibration: list[Observation], held_out: list[Observation]
) -> Any:
    """The numbers of one recipe on one policy."""
    original, policy = (make_policy(checkpoint, kind, seed) for _ in range(2))
    report = compress(policy, recipe_of(recipe), calibration)
    prepare_inference(policy.model)
    fuse_parts(policy.model)
    before, after = probe(original, held_out), probe(policy, held_out)
    moved = held_out_errors(original, policy, held_out)
    return {
        "packed_bytes": float(sum(r.stored_bytes for r in report)),
        "weight": statistics.mean(r.weight_error for r in report),
        "cognition": moved["cognition"],
        "epsilon": moved["epsilon"],
        "noise": moved["noise"],
        "action": float(np.sqrt(np.square(after.chunks - before.chunks).mean() / np.square(before.chunks).mean())),
        "attention_top_30": attention_overlap(before, after, round(0.3 * before.attention.size)),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", choices=["micro", "tabletop"], default="micro")
    parser.add_argument(
        "--seeds", type=int, help="random policies of each kind (micro: 3), or sets to calibrate on (tabletop: 1)"
    )
    parser.add_argument("--recipes", nargs="+", help="default: all; on `tabletop` the rows of QVLA's tables too")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="kinds of policies")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    trained = args.checkpoint == "tabletop"
    seeds = args.seeds or (1 if trained else 3)
    recipes = args.recipes or (*RECIPES, *(ROWS if trained else ()))
    if trained:
        source, held_out = "simulator", expert_observations(24, seed=HELD_OUT_SEED)
        sets = [expert_observations(48, seed=CALIBRATION_SEED + 1000 * seed) for seed in range(seeds)]
    else:
        frames = real_frames()
        source = "real frames" if frames else "synthetic"
        frames = frames or synthetic_observations(32)
        sets, held_out = [frames[0::4][:10]] * seeds, frames[2::4][:10]
    of_each = f"{seeds} {'sets' if trained else 'policies of each kind'}"
    print(f"{source}: {len(sets[0])} to calibrate, {len(held_out)} held out, {of_each}")
    out = args.out or RESULTS / f"quantization_error{'_tabletop' if trained else ''}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    sha256 = checkpoint_digest(args.checkpoint, SHIPPED) if trained else None
    stored = json.loads(out.read_text())["rows"] if out.is_file() else []
    rows = {(row["policy"], row["recipe"]): row for row in stored}
    for kind in args.kinds:
        for recipe in recipes:
            runs = [errors(args.checkpoint, kind, recipe, seed, sets[seed], held_out) for seed in range(seeds)]
            medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            rows[kind, recipe] = {"policy": kind, "recipe": recipe, "median": medians, "runs": runs}
            print(f"{kind:9s}{recipe:24s}" + "  ".join(f"{k} {v:.4f}" for k, v in medians.items()), flush=True)
            content = {"observations": source, "weights_sha256": sha256, "rows": list(rows.values())}
            out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
