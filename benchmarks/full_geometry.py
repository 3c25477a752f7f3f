"""The whole 7B-geometry policy with random weights: bf16 against w4a4 against sqap, end to end, by stage, with memory.

Every variant runs the package's own prediction (preprocessing to un-normalised chunk) in a process of its own, so that
peak resident memory is its own; the processes take turns (`--rounds`), so that a busy machine slows all of them. Random
weights cost exactly what trained ones do. With one thread the clock is CPU time, which other processes hardly
change; with more it is the wall clock. Raw results go to benchmarks/results/full_geometry_cpu_N_threads.json.

    python benchmarks/full_geometry.py [--rounds 2] [--predictions 5] [--threads N]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from sqap_vla_ros.compression.accelerators import with_pruning
from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.recipe import load_recipe
from sqap_vla_ros.compression.skeleton import empty_model, put, quantize_structure
from sqap_vla_ros.policy.actions import ActionStatistics
from sqap_vla_ros.policy.cogact import CogACT, CogACTPolicy
from sqap_vla_ros.policy.config import named_config
from sqap_vla_ros.quantization.linear import PackedLinear, QuantizedLinear, use_backend

RESULTS = Path(__file__).parent / "results"
VARIANTS = ("bf16", "bf16_pruned", "w4a4", "sqap")
# the ids of "pick up the can" under the published prompt and tokenizer: 20 of text after BOS, S = 277
PROMPT = [
    1,
    512,
    29901,
    1724,
    3158,
    881,
    278,
    19964,
    2125,
    304,
    5839,
    701,
    278,
    508,
    29973,
    13,
    3744,
    29901,
    13,
    29871,
    2,
]


def fill(model: CogACT) -> Iterator[str]:
    """Random weights of plausible size, module by module; yields after each so that it can be handed to its backend."""
    generator = torch.Generator().manual_seed(0)
    tile = torch.randn(1 << 22, generator=generator)
    bytes_tile = torch.randint(0, 256, (1 << 22,), dtype=torch.uint8, generator=generator)

    def repeated(source: torch.Tensor, count: int) -> torch.Tensor:
        result = torch.empty(count, dtype=source.dtype)
        for start in range(0, count, source.numel()):
            part = result[start : start + source.numel()]
            part.copy_(source[: part.numel()])
        return result

    for name, module in list(model.named_modules()):
        for leaf, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if not tensor.is_meta:
                continue
            full = f"{name}.{leaf}"
            if tensor.dtype == torch.uint8:
                values = repeated(bytes_tile, tensor.numel()).view(tensor.shape)
            elif leaf == "weight_scale":
                values = torch.full(tensor.shape, 0.2 / module.in_features**0.5)
            elif tensor.dim() == 1 and "norm" in full and leaf == "weight":
                values = torch.ones(tensor.shape)
            elif tensor.dim() == 1:
                values = torch.zeros(tensor.shape)
            else:
                dtype = torch.float32 if name.startswith("action_head") else torch.bfloat16
                spread = tensor[0].numel() ** -0.5
                values = repeated((tile * spread).to(dtype), tensor.numel()).view(tensor.shape)
            if values.dtype == torch.float32 and not name.startswith("action_head") and leaf != "weight_scale":
                values = values.bfloat16()
            put(model, full, values)
        if isinstance(module, PackedLinear):
            yield name


def build(recipe_name: str) -> CogACTPolicy:
    """The published geometry (base head) under a recipe."""
    recipe = load_recipe("bf16" if recipe_name == "bf16_pruned" else recipe_name)
    model = empty_model(named_config("cogact-base"))
    model.action_head.float()
    if recipe.quantization is not None:
        quantize_structure(model, recipe.quantization, {})
        for layer in model.modules():
            if isinstance(layer, QuantizedLinear):
                layer.activation.clip = 0.9  # what calibration finds; 1.0 would skip an operation
    for name in fill(model):
        module = model.get_submodule(name)
        if isinstance(module, QuantizedLinear):
            use_backend(module)
    gc.collect()
    bound = np.array([0.02] * 3 + [0.1] * 3 + [1.0])
    statistics_ = ActionStatistics(-bound, bound, np.array([True] * 6 + [False]), dt_s=0.2)
    policy = CogACTPolicy(model, lambda _: PROMPT, {"random": statistics_})
    with_pruning(policy, load_recipe("sqap" if recipe_name == "bf16_pruned" else recipe_name).pruning)
    return policy


def run_variant(recipe: str, predictions: int, threads: int) -> dict[str, object]:
    """Build, warm up, predict; milliseconds by stage of every prediction, and peak resident memory."""
    torch.set_num_threads(threads)
    if threads == 1:  # the policy's stage timers then count CPU time, which other processes hardly change
        time.perf_counter = time.process_time
    start = time.perf_counter()
    policy = build(recipe)
    build_s = time.perf_counter() - start
    observations = synthetic_observations(predictions + 2)
    timings, chunk = [], None
    for index, observation in enumerate(observations):
        chunk = policy.predict(observation)
        if index >= 2:
            timings.append(dict(chunk.timings_ms))
    assert chunk is not None
    assert np.isfinite(chunk.normalized).all(), "random weights gave a non-finite chunk"
    return {
        "variant": recipe,
        "timings_ms": timings,
        "tokens_kept": 0 if chunk.selection is None else len(chunk.selection.indices),
        "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "build_s": build_s,
        "load_average": os.getloadavg()[0],
    }


def summary(results: list[dict[str, object]]) -> dict[str, object]:
    """Median milliseconds by stage and variant, and ratios to bf16."""
    table: dict[str, dict[str, float]] = {}
    for variant in VARIANTS:
        runs = [r for r in results if r["variant"] == variant]
        timings = [t for r in runs for t in r["timings_ms"]]  # type: ignore[attr-defined]
        table[variant] = {stage: statistics.median(t[stage] for t in timings) for stage in timings[0]}
        table[variant]["peak_rss_gib"] = max(r["peak_rss_gib"] for r in runs)  # type: ignore[type-var]
    base = table["bf16"]
    ratios = {
        variant: {
            "speed_up": base["total"] / row["total"],
            "decoder_speed_up": base["decoder"] / (row["decoder"] + row["selection"]),
            "memory": row["peak_rss_gib"] / base["peak_rss_gib"],
        }
        for variant, row in table.items()
    }
    return {"median_ms": table, "against_bf16": ratios}


def show(results: dict[str, object]) -> None:
    """The table."""
    table, ratios = results["median_ms"], results["against_bf16"]
    stages = list(table["bf16"])  # type: ignore[index]
    print("ms".ljust(14) + "".join(stage.rjust(13) for stage in stages) + "speed-up".rjust(10) + "memory".rjust(8))
    for variant, row in table.items():  # type: ignore[attr-defined]
        ratio = ratios[variant]  # type: ignore[index]
        cells = "".join(f"{row[stage]:13.1f}" for stage in stages)
        print(variant.ljust(14) + cells + f"{ratio['speed_up']:10.2f}{ratio['memory']:8.2f}")


def main() -> None:
    """Run the variants in turn, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--predictions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--variant", choices=VARIANTS, help="run this one alone and print its raw result")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.variant:
        print(json.dumps(run_variant(args.variant, args.predictions, args.threads)))
        return
    results = []
    for _ in range(args.rounds):
        for variant in VARIANTS:
            command = [sys.executable, __file__, "--variant", variant, "--predictions", str(args.predictions)]
            done = subprocess.run(
                [*command, "--threads", str(args.threads)], check=True, stdout=subprocess.PIPE, text=True
            )
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{variant}: {statistics.median(t['total'] for t in results[-1]['timings_ms']):.0f} ms", flush=True)
    report = {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "threads": args.threads,
            "torch": torch.__version__,
        },
        "tokens": len(PROMPT) + 256,
        **summary(results),
        "runs": results,
    }
    show(report)
    out = args.out or RESULTS / f"full_geometry_cpu_{args.threads}_threads.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
