"""Time of one token selection, for every selector, at 256 tokens of the published width, and of drawing one overlay.

Prints the best, the median and the 95th percentile of interleaved rounds of ten runs and stores them. With
--device cuda the selectors' tensor path is measured, each call up to the end of its work on the GPU.

    OMP_NUM_THREADS=1 python benchmarks/token_selection.py
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
import torch
from processor import processor

from sqap_vla_ros.contracts import SelectionContext, TokenSelection
from sqap_vla_ros.policy.preprocessing import ImageTransform
from sqap_vla_ros.pruning import SELECTORS, make_selector
from sqap_vla_ros.pruning.overlay import draw_overlay

RESULTS = Path(__file__).parent / "results" / "token_selection.json"
GRID, WIDTH = (16, 16), 4096


def main() -> None:
    """Measures, prints and stores the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    tokens = GRID[0] * GRID[1]
    generator = torch.Generator().manual_seed(0)
    context = SelectionContext(
        GRID,
        [(6, 9)],
        attention=torch.rand(1, tokens, generator=generator).to(args.device),
        hidden=torch.randn(1, tokens, WIDTH, generator=generator).to(args.device, torch.bfloat16),
        saliency=torch.rand(1, tokens, generator=generator).to(args.device),
    )
    selectors = {name: make_selector(name) for name in sorted(SELECTORS)}
    selectors["sqap, ties lowest"] = make_selector("sqap", ties="lowest")
    selectors["sqap, farthest in features"] = make_selector("sqap", metric="cosine")
    times: dict[str, list[float]] = {name: [] for name in selectors}
    with torch.inference_mode():
        for step, (name, selector) in itertools.product(range(args.rounds + 1), selectors.items()):
            for _ in range(10):
                started = time.perf_counter()
                selector.select(context)
                if args.device != "cpu":
                    torch.cuda.synchronize()
                if step:  # the first round warms up
                    times[name].append((time.perf_counter() - started) * 1e3)
    rows: dict[str, dict[str, float]] = {
        name: {
            "kept": selectors[name].budget(tokens),
            "best_ms": round(min(values), 4),
            "median_ms": round(float(np.median(values)), 4),
            "p95_ms": round(float(np.percentile(values, 95)), 4),
        }
        for name, values in times.items()
    }
    print(f"{'selector':30s}{'kept':>6s}{'best ms':>10s}{'median ms':>12s}{'p95 ms':>10s}")
    for name, row in rows.items():
        print(f"{name:30s}{row['kept']:6d}{row['best_ms']:10.3f}{row['median_ms']:12.3f}{row['p95_ms']:10.3f}")
    overlays = {f"{width}x{height}": overlay_ms(width, height) for width, height in ((640, 480), (224, 224))}
    for size, median in overlays.items():
        print(f"overlay at {size}: median {median:.3f} ms")
    machine = {"machine": processor(), "device": args.device, "torch": torch.__version__}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps({**machine, "threads": torch.get_num_threads(), "selectors": rows, "overlay_ms": overlays}, indent=2)
        + "\n"
    )


def overlay_ms(width: int, height: int, runs: int = 200) -> float:
    """Median time of one overlay with everything in it, milliseconds."""
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    pixel = (0.6 * width, 0.4 * height)
    attention = torch.rand(1, GRID[0] * GRID[1], generator=torch.Generator().manual_seed(0))
    chosen = make_selector("sqap").select(SelectionContext(GRID, [(6, 9)], attention=attention))
    indices, reasons = chosen.indices[0].numpy().astype(np.int32), chosen.reasons[0].numpy()
    selection = TokenSelection(indices, reasons, GRID, "sqap", 3, (6, 9))
    path = np.linspace(pixel, (0.3 * width, 0.7 * height), 16)
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        draw_overlay(image, selection, ImageTransform(), gripper_pixel=pixel, path_pixels=path, caption="sqap")
        times.append((time.perf_counter() - started) * 1e3)
    return round(float(np.median(times)), 3)


if __name__ == "__main__":
    main()
