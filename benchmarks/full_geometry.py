"""The whole 7B-geometry policy with random weights: bf16 against compressed recipes, by stage, with memory and size.

Every variant runs the package's own prediction (preprocessing to un-normalised chunk). Random weights cost exactly
what trained ones do. Three measurements:

* size: what a compressed file holds, in GiB, counted from the shapes;
* memory: each variant with all its 32 layers in a process of its own, one prediction, peak resident memory. Most of it
  are the weights. Holes that the C library keeps after rearranging weights, and a copy of the towers that lived too
  long, can add a GiB;
* time: bf16 and integer policies side by side in one process, predictions taking turns, so that a busy machine slows
  all of them. All at full size do not fit into 24 GB, so `--distinct` decoder layers hold weights of their own and are
  passed through several times (4 layers are 1.6 GB in bf16, far more than any cache; with 8 all variants need 23 GB),
  and variants share what is the same in them. `--distinct 32` undoes the first.

`bf16` is the policy as the public code runs it: action head in float32, torch's own linears. The others are as
`load_policy` makes them; `bf16_prepared` tells what that alone gives, and `bf16_pruned` adds SQAP's pruning. The rest
are recipes by their names. Rows of mixed widths take 2, 4 or 8 bits in the shares that QVLA chose for the shipped
policy (`ROW_SHARES`). With one thread the clock is CPU time, which other processes hardly change; with more it is the
wall clock. Raw results go to results/full_geometry_BACKEND_N_threads.json.

    python benchmarks/full_geometry.py [--rounds 5] [--threads N] [--distinct 4] [--variants bf16 sqap ...]
    python benchmarks/full_geometry.py --device cuda [--rounds 20]

On a GPU every variant has all its layers and a process of its own: eager bf16 as the public code runs it, and the
others captured as a CUDA graph, with the peak of the memory PyTorch holds. Each variant's result is written as soon as
it is there. No result of that is here: it has not been run on a GPU yet.

What made the difference on the CPU: products of our own (backends/cpu) in place of oneDNN's, whose weights stay packed;
one pass that finds a token's range, applies the norm and rounds; bias, GELU, scales and residual applied where a
product is written; gate, up and the SiLU between them in one call; reordered weights in what stays bf16.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from processor import processor
from random_geometry import MEMORY, PROMPT, VARIANTS, build, file_gib, pictures

from sqap_vla_ros.compression.cuda_graphs import CapturedPolicy, GraphedCall
from sqap_vla_ros.compression.load import equip
from sqap_vla_ros.compression.recipe import load_recipe
from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.policy.cogact import CogACT, CogACTPolicy
from sqap_vla_ros.policy.devices import device_problem
from sqap_vla_ros.quantization.backends.table import find_backend

RESULTS = Path(__file__).parent / "results"


def predict(policy: CogACTPolicy, variant: str, observation: Observation) -> dict[str, float]:
    """One prediction of a variant; milliseconds by stage."""
    equip(policy, load_recipe(VARIANTS[variant].pruning or VARIANTS[variant].name))
    chunk = policy.predict(observation)
    if not np.isfinite(chunk.normalized).all():
        raise RuntimeError(f"{variant}: random weights gave a non-finite chunk")
    return dict(chunk.timings_ms)


def measure_memory(variant: str) -> dict[str, float]:
    """All layers resident, one prediction; this process's peak resident memory in GiB."""
    start = time.perf_counter()
    policy = build(VARIANTS[variant], 32)
    build_s = time.perf_counter() - start
    timings = predict(policy, variant, pictures(1)[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"peak_rss_gib": peak, "build_s": build_s, "first_prediction_ms": timings["total"]}


def measure_cuda(variant: str, rounds: int, device: str = "cuda", layers: int = 32) -> dict[str, Any]:
    """One variant on a GPU: milliseconds of every prediction, median by stage, peak memory."""
    chosen = VARIANTS[variant]
    policy = build(chosen, layers, device)
    equip(policy, load_recipe(chosen.pruning or chosen.name))
    observations = pictures(rounds + 3)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if not chosen.prepared:
        timings = [dict(policy.predict(observation).timings_ms) for observation in observations][3:]
        stages = {stage: statistics.median(t[stage] for t in timings) for stage in timings[0]}
    else:
        captured = CapturedPolicy(policy)
        timings = [dict(captured.predict(observation).timings_ms) for observation in observations][3:]
        stages = captured_stages(captured, observations[0], rounds)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    return {"total_ms": [t["total"] for t in timings], "stages_ms": stages, "peak_gib": peak}


@torch.inference_mode()
def captured_stages(policy: CapturedPolicy, observation: Observation, rounds: int) -> dict[str, float]:
    """Median milliseconds of the stages, each captured by itself."""
    image, token_ids, _ = policy._inputs([observation])
    gripper = torch.full((1, 2), 8, dtype=torch.int32, device=image.device)
    visual = policy.vision_body(image)
    cognition = policy.decode_body(visual, token_ids, gripper)[0]
    noise = torch.randn(1, policy.model.config.head.horizon, policy.model.config.head.channels).to(image.device)
    stages = {
        "vision and projector": (lambda image: (policy.vision_body(image),), (image,)),
        "decoder and selection": (policy.decode_body, (visual, token_ids, gripper)),
        "action head": (lambda feature, noise: (policy.head_body(feature, noise),), (cognition, noise)),
    }
    medians = {}
    for name, (body, arguments) in stages.items():
        call, times = GraphedCall(body, arguments), []
        for _ in range(rounds):
            start = time.perf_counter()
            call(*arguments)
            if image.is_cuda:
                torch.cuda.synchronize()
            times.append((time.perf_counter() - start) * 1e3)
        medians[name] = statistics.median(times)
    return medians


def run_cuda(child: Callable[[str], Any], out: Path, variants: Sequence[str]) -> None:
    """The variants on the GPU, one process after the other; table and raw results, written after each."""
    machine = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    results: dict[str, Any] = {}
    for variant in variants:
        try:
            results[variant] = child(f"cuda:{variant}")
        except (subprocess.SubprocessError, ValueError, IndexError) as error:
            results[variant] = {"error": str(error)}
        out.parent.mkdir(parents=True, exist_ok=True)
        report = {"machine": machine, "tokens": len(PROMPT) + 256, "variants": results}
        whole = out.with_name(f"{out.name}.new")  # whoever ends this meanwhile leaves the results before
        whole.write_text(json.dumps(report, indent=1) + "\n")
        whole.replace(out)
        print(cuda_row(variant, results), flush=True)


def cuda_row(variant: str, results: Mapping[str, Any]) -> str:
    """One line of the table: milliseconds, ratios to eager and to captured bf16, peak memory, stages."""
    result = results[variant]
    if "error" in result:
        return f"{variant:20s} failed: {result['error']}"
    mine = statistics.median(result["total_ms"])
    line = f"{variant:20s}{mine:8.2f} ms"
    for other, words in (("bf16", "eager bf16"), ("bf16_prepared", "captured bf16")):
        if "total_ms" in results.get(other, {}):
            line += f", {statistics.median(results[other]['total_ms']) / mine:.2f}x over {words}"
    stages = ", ".join(f"{stage} {ms:.2f}" for stage, ms in result["stages_ms"].items())
    return f"{line}, peak {result['peak_gib']:.1f} GiB, {stages}"


def measure_time(rounds: int, distinct: int, variants: Sequence[str]) -> dict[str, list[dict[str, float]]]:
    """Variant -> milliseconds by stage, one entry for every round; variants take turns."""
    shared: CogACT | None = None
    policies: dict[tuple[str, bool], CogACTPolicy] = {}
    for variant in map(VARIANTS.__getitem__, variants):
        if variant.weights not in policies:
            policies[variant.weights] = build(variant, distinct, beside=shared if variant.prepared else None)
            if variant.prepared and variant.keeps_parts:
                shared = policies[variant.weights].model
    timings: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for number, observation in enumerate(pictures(rounds + 1)):
        for name in variants:
            taken = predict(policies[VARIANTS[name].weights], name, observation)
            if number:  # the first round warms up
                timings[name].append(taken)
        print(
            f"round {number}: " + ", ".join(f"{v} {t[-1]['total']:.0f} ms" for v, t in timings.items() if t),
            file=sys.stderr,
        )
    return timings


def summary(timings: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Median milliseconds by stage, and median ratios to the first variant's prediction of the same round."""
    first = next(iter(timings))
    table = {v: {stage: statistics.median(t[stage] for t in runs) for stage in runs[0]} for v, runs in timings.items()}

    def ratio(variant: str, stages: tuple[str, ...]) -> float:
        pairs = zip(timings[first], timings[variant], strict=True)
        return statistics.median(sum(b[s] for s in stages) / sum(t[s] for s in stages) for b, t in pairs)

    ratios = {v: {"end_to_end": ratio(v, ("total",)), "decoder": ratio(v, ("decoder", "selection"))} for v in timings}
    return {"median_ms": table, "speed_up": ratios}


def show(
    table: dict[str, dict[str, dict[str, float]]],
    memory: dict[str, dict[str, float]],
    sizes: dict[str, dict[str, float]],
) -> None:
    """The tables."""
    stages = list(next(iter(table["median_ms"].values())))
    print("ms".ljust(20) + "".join(stage.rjust(12) for stage in stages) + "end to end".rjust(12) + "decoder".rjust(9))
    for variant, row in table["median_ms"].items():
        ratio = table["speed_up"][variant]
        cells = "".join(f"{row[stage]:12.1f}" for stage in stages)
        print(variant.ljust(20) + cells + f"{ratio['end_to_end']:11.2f}x{ratio['decoder']:8.2f}x")
    for variant, row in memory.items():
        print(f"peak memory of {variant}: {row['peak_rss_gib']:.2f} GiB")
    show_sizes(sizes)


def show_sizes(sizes: Mapping[str, Mapping[str, float]]) -> None:
    """Print the size of every variant's file, by part."""
    for variant, parts in sizes.items():
        print(f"file of {variant}: " + ", ".join(f"{part} {gib:.2f}" for part, gib in parts.items()) + " GiB")


def main() -> None:
    """Measure in fresh processes, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--distinct", type=int, default=4, choices=range(1, 33), metavar="1..32")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, help="to be timed")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for a variant on a GPU")
    parser.add_argument("--memory", nargs="*", default=MEMORY, choices=VARIANTS, help="peaks to measure")
    parser.add_argument("--sizes", action="store_true", help="count the sizes of files, and nothing else")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # what a child process does
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sizes = {name: file_gib(variant.recipe) for name, variant in VARIANTS.items() if not args.only}
    if args.sizes:
        show_sizes(sizes)
        return
    if args.threads == 1:  # the policy's stage timers then count CPU time
        time.perf_counter = time.process_time
    if args.only:
        kind, _, variant = args.only.partition(":")
        if kind == "time":
            result: Any = measure_time(args.rounds, args.distinct, args.variants)
        else:
            result = measure_cuda(variant, args.rounds) if kind == "cuda" else measure_memory(variant)
        print(json.dumps(result))
        return
    if problem := device_problem(args.device):
        parser.error(f"--device {args.device}: {problem}")

    def child(what: str, limit_s: float | None = None) -> Any:
        options = {"--only": what, "--rounds": args.rounds, "--threads": args.threads, "--distinct": args.distinct}
        command = [sys.executable, __file__, *(str(part) for option in options.items() for part in option)]
        command += ["--variants", *args.variants]
        return json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=limit_s).stdout.splitlines()[
                -1
            ]
        )

    if args.device == "cuda":
        run_cuda(lambda what: child(what, args.limit), args.out or RESULTS / "full_geometry_cuda.json", args.variants)
        return
    memory = {}
    for variant in args.memory:
        memory[variant] = child(f"memory:{variant}")
        print(f"peak memory of {variant}: {memory[variant]['peak_rss_gib']:.2f} GiB", file=sys.stderr, flush=True)
    load_before = os.getloadavg()[0]
    timings = child("time")
    table = summary(timings)
    show(table, memory, sizes)
    report = {
        "machine": {
            "cpu": processor(),
            "threads": args.threads,
            "clock": "process time" if args.threads == 1 else "wall",
            "load_average": [load_before, os.getloadavg()[0]],
            "torch": torch.__version__,
        },
        "tokens": len(PROMPT) + 256,
        "distinct_layers": args.distinct,
        **table,
        "memory": memory,
        "file_gib": sizes,
        "timings_ms": timings,
    }
    backend = find_backend("auto", torch.device("cpu")).name
    out = args.out or RESULTS / f"full_geometry_{backend}_{args.threads}_threads.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
