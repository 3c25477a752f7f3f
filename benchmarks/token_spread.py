"""Measure how evenly SQAP's third strategy covers the image, against its two honesty baselines at the same budget.

Attention and gripper are drawn at random; what fills the rest of the quota is compared by three numbers: the share of
it in the upper half of the image (0.5 is even), the fewest tokens kept in any 4 x 4 block of patches, and the mean
distance of a dropped patch to the nearest kept one. Prints the means over the draws and stores them.

    python benchmarks/token_spread.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from sqap_vla_ros.contracts import Reason, SelectionContext
from sqap_vla_ros.pruning import make_selector
from sqap_vla_ros.pruning.grid import squared_distances

RESULTS = Path(__file__).parent / "results" / "token_spread.json"
GRID = (16, 16)
FILLS = {
    "farthest, ties uniform": {"ties": "uniform"},
    "farthest, ties lowest": {"ties": "lowest"},
    "grid": {"fill": "grid"},
    "random": {"fill": "random"},
    "attention (no third strategy)": {"fill": "attention"},
}


def main() -> None:
    """Measures, prints and stores the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    args = parser.parse_args()
    rows = []
    print(f"{'ratio':>6s}  {'fill':32s}{'upper half':>11s}{'fewest per block':>18s}{'distance of dropped':>21s}")
    for ratio in (0.3, 0.4, 0.5, 0.6):
        for name, parameters in FILLS.items():
            numbers = np.asarray([spread(ratio, parameters, seed) for seed in range(args.draws)]).mean(axis=0)
            rows.append(
                {"ratio": ratio, "fill": name, "upper_half": numbers[0], "fewest": numbers[1], "gap": numbers[2]}
            )
            print(f"{ratio:6.1f}  {name:32s}{numbers[0]:11.2f}{numbers[1]:18.2f}{numbers[2]:21.3f}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"draws": args.draws, "rows": rows}, indent=2) + "\n")


def spread(ratio: float, parameters: dict[str, str], seed: int) -> tuple[float, float, float]:
    """The three numbers for one draw of attention and gripper."""
    generator = np.random.default_rng(seed)
    attention = torch.from_numpy(generator.random((1, 256), dtype=np.float32))
    row, col = generator.integers(0, 16, 2)
    selector = make_selector("sqap", ratio=ratio, **parameters)
    chosen = selector.select(SelectionContext(GRID, [(int(row), int(col))], attention=attention, seed=seed))
    indices, reasons = chosen.indices[0].numpy(), chosen.reasons[0].numpy()
    top = np.argsort(-attention[0].numpy(), kind="stable")[: selector.top_k(256)]
    filled = indices[(reasons != Reason.RING) & ~np.isin(indices, top)]
    kept = np.zeros(256, dtype=bool)
    kept[indices] = True
    blocks = kept.reshape(4, 4, 4, 4).sum(axis=(1, 3))
    gap = np.sqrt(squared_distances(GRID)[~kept][:, kept].min(axis=1)).mean()
    return float((filled < 128).mean()), float(blocks.min()), float(gap)


if __name__ == "__main__":
    main()
