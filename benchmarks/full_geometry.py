"""The whole 7B-geometry policy with random weights: bf16 against w4a4 against sqap(_text8), by stage, with memory.

Every variant runs the package's own prediction (preprocessing to un-normalised chunk). Random weights cost exactly
what trained ones do. Two measurements:

* memory: each variant with all its 32 layers in a process of its own, one prediction, peak resident memory. Most of it
  are the weights (the decoder's linears in four bits, or in eight where oneDNN computes; the rest stays bf16). Holes
  that the C library keeps after rearranging weights, and a copy of the towers that lived too long, can add a GiB;
* time: bf16 and integer policies side by side in one process, predictions taking turns, so that a busy machine slows
  all of them. Both at full size do not fit into 24 GB, so `--distinct` decoder layers hold weights of their own and are
  passed through several times (8 layers are 3.2 GB in bf16, far more than any cache). `--distinct 32` undoes that.

`bf16` is the policy as the public code runs it: action head in float32, torch's own linears. The others are as
`load_policy` makes them; `bf16_prepared` tells what that alone gives. With one thread the clock is CPU time, which
other processes hardly change; with more it is the wall clock. Raw results go to results/full_geometry_*.json.

    python benchmarks/full_geometry.py [--rounds 5] [--threads N] [--distinct 8]
    python benchmarks/full_geometry.py --device cuda [--rounds 20]

On a GPU every variant has all its layers and a process of its own: eager bf16 as the public code runs it, and the
others captured as a CUDA graph, with the peak of the memory PyTorch holds. No result of that is here: it has not
been run on a GPU yet.

What made the difference on the CPU (two threads of a Xeon with AMX): a product of our own (backends/x86/kernels.cpp) in
place of oneDNN's, which takes nearly twice as long (benchmarks/linear.py has both); one pass that finds a token's
range, applies the RMSNorm and rounds; gate, up and the SiLU between them in one call; reordered weights in towers and
action head, the head in bf16. What remains of sqap is the vision and the head, which pruning and four bits do not
touch.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.cuda_graphs import CapturedPolicy, GraphedCall
from sqap_vla_ros.compression.files.skeleton import empty_model, put, quantize_structure
from sqap_vla_ros.compression.load import equip
from sqap_vla_ros.compression.recipe import load_recipe
from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.policy.actions import ActionStatistics
from sqap_vla_ros.policy.cogact import CogACT, CogACTPolicy
from sqap_vla_ros.policy.config import named_config
from sqap_vla_ros.quantization.layer_fusion import prepare_inference
from sqap_vla_ros.quantization.linear import PackedLinear, QuantizedLinear, use_backend
from sqap_vla_ros.quantization.reordered_weights import give_back_freed_memory, reorder_weights

RESULTS = Path(__file__).parent / "results"
# variant -> (recipe of the weights, whether weights are reordered, whether tokens are pruned)
VARIANTS = {
    "bf16": ("bf16", False, False),
    "bf16_prepared": ("bf16", True, False),
    "bf16_pruned": ("bf16", True, True),
    "w4a4": ("w4a4", True, False),
    "sqap": ("w4a4", True, True),
    "sqap_text8": ("w4a4_text8", True, True),
}
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


def build(recipe_name: str, distinct: int, prepared: bool, device: str = "cpu") -> CogACTPolicy:
    """The published geometry (base head) under a recipe's quantisation; `distinct` decoder layers make up all 32.

    prepared: as `load_policy` would, weights reordered; the bf16 policy then gets the bf16 action head of `w4a4` as
        well.
    """
    recipe = load_recipe(recipe_name)
    model = empty_model(named_config("cogact-base"))
    depth = len(model.decoder.layers)
    model.decoder.layers = model.decoder.layers[:distinct]
    if recipe.quantization is not None:
        quantize_structure(model, recipe.quantization, {})
        for layer in model.modules():
            if isinstance(layer, QuantizedLinear):
                layer.activation.clip = 0.9  # what calibration finds; 1.0 would skip an operation
    for name in fill(model):
        module = model.get_submodule(name)
        if isinstance(module, QuantizedLinear) and device == "cpu":
            use_backend(module)
            give_back_freed_memory()
    model.to(device)
    if prepared:
        model.action_head.to(getattr(torch, load_recipe("w4a4").head_dtype))
        prepare_inference(model)
        reorder_weights(model)
    model.decoder.layers = nn.ModuleList(model.decoder.layers[i % distinct] for i in range(depth))
    gc.collect()
    bound = np.array([0.02] * 3 + [0.1] * 3 + [1.0])
    statistics_ = ActionStatistics(-bound, bound, np.array([True] * 6 + [False]), dt_s=0.2)
    return CogACTPolicy(model, lambda _: PROMPT, {"random": statistics_})


def predict(policy: CogACTPolicy, variant: str, observation: Observation) -> dict[str, float]:
    """One prediction of a variant; milliseconds by stage."""
    equip(policy, load_recipe("sqap" if VARIANTS[variant][2] else "bf16"))
    chunk = policy.predict(observation)
    if not np.isfinite(chunk.normalized).all():
        raise RuntimeError(f"{variant}: random weights gave a non-finite chunk")
    return dict(chunk.timings_ms)


def measure_memory(variant: str) -> dict[str, float]:
    """All layers resident, one prediction; this process's peak resident memory in GiB."""
    start = time.perf_counter()
    policy = build(VARIANTS[variant][0], 32, VARIANTS[variant][1])
    build_s = time.perf_counter() - start
    timings = predict(policy, variant, synthetic_observations(1)[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"peak_rss_gib": peak, "build_s": build_s, "first_prediction_ms": timings["total"]}


def measure_cuda(variant: str, rounds: int, device: str = "cuda") -> dict[str, Any]:
    """One variant on a GPU: milliseconds of every prediction, median by stage, peak memory."""
    recipe, prepared, pruned = VARIANTS[variant]
    policy = build(recipe, 32, prepared, device)
    equip(policy, load_recipe("sqap" if pruned else "bf16"))
    observations = synthetic_observations(rounds + 3)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if not prepared:
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


def run_cuda(child: Callable[[str], Any], out: Path) -> None:
    """All variants on the GPU, one process after the other; table and raw results."""
    results = {variant: child(f"cuda:{variant}") for variant in VARIANTS}
    medians = {variant: statistics.median(result["total_ms"]) for variant, result in results.items()}
    for variant, result in results.items():
        print(
            f"{variant:14s}{medians[variant]:8.2f} ms, {medians['bf16'] / medians[variant]:.2f}x over eager bf16, "
            f"{medians['bf16_prepared'] / medians[variant]:.2f}x over captured bf16, "
            f"peak {result['peak_gib']:.1f} GiB, "
            + ", ".join(f"{stage} {ms:.2f}" for stage, ms in result["stages_ms"].items())
        )
    machine = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    out.write_text(json.dumps({"machine": machine, "tokens": len(PROMPT) + 256, "variants": results}, indent=1) + "\n")


def measure_time(rounds: int, distinct: int) -> dict[str, list[dict[str, float]]]:
    """Variant -> milliseconds by stage, one entry for every round; variants take turns."""
    kinds = dict.fromkeys((recipe, prepared) for recipe, prepared, _ in VARIANTS.values())
    policies = {(recipe, prepared): build(recipe, distinct, prepared) for recipe, prepared in kinds}
    timings: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    for number, observation in enumerate(synthetic_observations(rounds + 1)):
        for variant in VARIANTS:
            taken = predict(policies[VARIANTS[variant][:2]], variant, observation)
            if number:  # the first round warms up
                timings[variant].append(taken)
        print(
            f"round {number}: " + ", ".join(f"{v} {t[-1]['total']:.0f} ms" for v, t in timings.items() if t),
            file=sys.stderr,
        )
    return timings


def summary(timings: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Median milliseconds by stage, and median ratios to the bf16 prediction of the same round."""
    table = {v: {stage: statistics.median(t[stage] for t in runs) for stage in runs[0]} for v, runs in timings.items()}

    def ratio(variant: str, stages: tuple[str, ...]) -> float:
        pairs = zip(timings["bf16"], timings[variant], strict=True)
        return statistics.median(sum(b[s] for s in stages) / sum(t[s] for s in stages) for b, t in pairs)

    ratios = {v: {"end_to_end": ratio(v, ("total",)), "decoder": ratio(v, ("decoder", "selection"))} for v in VARIANTS}
    return {"median_ms": table, "speed_up": ratios}


def show(table: dict[str, dict[str, dict[str, float]]], memory: dict[str, dict[str, float]]) -> None:
    """The table."""
    stages = list(table["median_ms"]["bf16"])
    print("ms".ljust(13) + "".join(stage.rjust(12) for stage in stages) + "end to end".rjust(12) + "decoder".rjust(9))
    for variant, row in table["median_ms"].items():
        ratio = table["speed_up"][variant]
        cells = "".join(f"{row[stage]:12.1f}" for stage in stages)
        print(variant.ljust(13) + cells + f"{ratio['end_to_end']:11.2f}x{ratio['decoder']:8.2f}x")
    for variant, row in memory.items():
        share = row["peak_rss_gib"] / memory["bf16"]["peak_rss_gib"]
        print(f"peak memory of {variant}: {row['peak_rss_gib']:.1f} GiB ({share:.0%} of bf16)")


def main() -> None:
    """Measure in fresh processes, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--distinct", type=int, default=8, choices=range(1, 33), metavar="1..32")
    parser.add_argument(
        "--memory", nargs="*", default=["bf16", "w4a4", "sqap"], choices=VARIANTS, help="peaks to measure"
    )
    parser.add_argument("--only", help=argparse.SUPPRESS)  # what a child process does
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.threads == 1:  # the policy's stage timers then count CPU time
        time.perf_counter = time.process_time
    if args.only:
        kind, _, variant = args.only.partition(":")
        if kind == "time":
            result: Any = measure_time(args.rounds, args.distinct)
        else:
            result = measure_cuda(variant, args.rounds) if kind == "cuda" else measure_memory(variant)
        print(json.dumps(result))
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device here")

    def child(what: str) -> Any:
        options = {"--only": what, "--rounds": args.rounds, "--threads": args.threads, "--distinct": args.distinct}
        command = [sys.executable, __file__, *(str(part) for option in options.items() for part in option)]
        return json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        )

    if args.device == "cuda":
        run_cuda(child, args.out or RESULTS / "full_geometry_cuda.json")
        return
    memory = {variant: child(f"memory:{variant}") for variant in args.memory}
    load_before = os.getloadavg()[0]
    timings = child("time")
    table = summary(timings)
    show(table, memory)
    report = {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "threads": args.threads,
            "clock": "process time" if args.threads == 1 else "wall",
            "load_average": [load_before, os.getloadavg()[0]],
            "torch": torch.__version__,
        },
        "tokens": len(PROMPT) + 256,
        "distinct_layers": args.distinct,
        **table,
        "memory": memory,
        "timings_ms": timings,
    }
    out = args.out or RESULTS / f"full_geometry_cpu_{args.threads}_threads.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
