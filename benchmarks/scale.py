#!/usr/bin/env python3
"""Say what a prediction of the 7B geometry costs: time and memory over tokens, layers, batch and threads, and a model.

The model is a roofline with one rate for each kind of work. A linear takes the longer of operations / rate and bytes of
its weights / bandwidth; attention its operations / rate; everything else in a layer (norms, rotations, rounding, SiLU)
the bytes that it reads and writes / bandwidth, `PASSES` times over the activations. Rates and bandwidth are measured in
the same run: the rate of a product is that of the package's own linears at 1,024 tokens. Nothing is fitted to the times
that the model is compared with.

    python benchmarks/scale.py measure        one minute on one core; writes results/scale.json
    python benchmarks/scale.py                picture and tables, beside results/full_geometry_*.json

The clock of the sweeps is the process's CPU time with one thread, which other processes hardly change. Jetson Orin and
Thor are rows of `BOARDS`: the same model with a data sheet's numbers, times the share of them that is reached
(assumptions below). Nothing was measured on either.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from processor import processor

from sqap_vla_ros.compression.bops import Workload, macs
from sqap_vla_ros.policy.config import COGACT_BASE

RESULTS = Path(__file__).parent / "results"
TOKENS = (50, 100, 175, 277, 400, 600, 1000)
BATCHES = (1, 2, 4)
LAYERS, WIDTH, MLP_WIDTH, HEADS = 32, 4096, 11008, 32
LAYER_WEIGHTS = 4 * WIDTH**2 + 3 * WIDTH * MLP_WIDTH
PASSES = {"bf16": 40, "w4a4": 30}  # times WIDTH values of two bytes a token: what a layer's other steps read and write
TEXT = 21
KEPT = 154  # visual tokens behind layer 3 under `sqap`
PRUNE_LAYER = 3
HEAD_STEPS = 10
HEAD_BYTES = 2.0 * 12 * COGACT_BASE.head.depth * COGACT_BASE.head.width**2
GIB = 2**30
LINE_GIB = 0.75  # height of a line of small letters in the picture of the memory


@dataclass(frozen=True)
class Machine:
    """A computer as the model sees it. Rates in operations/s (a multiply-accumulate is two), bandwidth in bytes/s.

    integer, half: of products of eight-bit integers and of bfloat16. attention: of the two attention products.
    head: of the action head's small products. packed_bytes: of a four-bit weight where it is multiplied.
    """

    name: str
    integer: float
    half: float
    attention: float
    bandwidth: float
    packed_bytes: float = 0.5

    def linear_s(self, kind: str, weights: float, tokens: int) -> float:
        """Return the seconds of linears with so many weights."""
        rate, size = (self.integer, self.packed_bytes) if kind == "w4a4" else (self.half, 2.0)
        return max(2.0 * weights * tokens / rate, size * weights / self.bandwidth)

    def bounds_s(self, recipe: str) -> dict[str, tuple[float, float]]:
        """Return for each stage the seconds that its products' operations take, and that reading its weights takes.

        The longer is the stage's roof.
        """
        kind, _, towers = RECIPES[recipe]
        counts = macs(Workload(COGACT_BASE, TEXT, as_published=False))
        vision = counts["vision.dino"] + counts["vision.siglip"] + counts["projector"]
        sizes = {"w4a4": (self.integer, self.packed_bytes), "int8": (self.integer, 1.0), "bf16": (self.half, 2.0)}
        rate, size = sizes[kind]
        tower_rate, tower_size = sizes[towers]
        return {
            "vision": (2.0 * vision / tower_rate, tower_size * (1.28 + 0.13) / 2 * GIB / self.bandwidth),
            "decoder": (
                LAYERS * 2.0 * LAYER_WEIGHTS * (256 + TEXT) / rate,
                LAYERS * size * LAYER_WEIGHTS / self.bandwidth,
            ),
            "head": (2.0 * counts["action_head"] / self.half, HEAD_STEPS * HEAD_BYTES / self.bandwidth),
        }

    def parts_s(self, kind: str, tokens: int, batch: int = 1) -> dict[str, float]:
        """Return the seconds of a decoder layer: linears, attention, all else."""
        return {
            "linears": self.linear_s(kind, LAYER_WEIGHTS, batch * tokens),
            "attention": batch * 4.0 * tokens**2 * WIDTH / self.attention,
            "the rest": PASSES[kind] * 2.0 * WIDTH * batch * tokens / self.bandwidth,
        }

    def layer_s(self, kind: str, tokens: int, batch: int = 1) -> float:
        """Return the seconds of a decoder layer."""
        return sum(self.parts_s(kind, tokens, batch).values())

    def prediction_s(self, recipe: str) -> dict[str, float]:
        """Return the seconds of a prediction by stage. recipe: a key of `RECIPES`."""
        kind, pruned, _ = RECIPES[recipe]
        long, short = 256 + TEXT, KEPT + TEXT
        early = PRUNE_LAYER if pruned else LAYERS
        roofs = self.bounds_s(recipe)
        return {
            "vision": max(roofs["vision"]),
            "decoder": early * self.layer_s(kind, long) + (LAYERS - early) * self.layer_s(kind, short),
            "head": max(roofs["head"]),
        }


RECIPES = {  # recipe -> kind of the decoder's linears, whether tokens are dropped, kind of the towers
    "bf16_prepared": ("bf16", False, "bf16"),
    "bf16_pruned": ("bf16", True, "bf16"),
    "w4a4": ("w4a4", False, "bf16"),
    "sqap": ("w4a4", True, "bf16"),
    "sqap_w4a8_full": ("w4a4", True, "int8"),
}
# What is reached of a data sheet's dense peak by products of a few hundred tokens, and of its bandwidth. The first is
# what a published figure implies: a 7B with eight-bit weights and activations and 1,032 tokens in 274 ms on an AGX Orin
# (FlashRT) are 51 of 85 T operations/s. Attention, written with bfloat16 products, reaches half of that.
REACHED, READ = 0.6, 0.8


def board(name: str, integer: float, half: float, bandwidth: float) -> Machine:
    """Return a board of which the data sheet says dense operations/s and bytes/s."""
    return Machine(name, REACHED * integer, REACHED * half, REACHED * half / 2, READ * bandwidth)


BOARDS = (
    board("Jetson AGX Orin 64 GB", 85e12, 42.5e12, 204.8e9),  # GPU alone: 170 sparse int8, so 85 dense; no DLA
    board("Jetson AGX Thor", 517e12, 258e12, 273e9),  # int8 at the rate of fp8, 1,035 sparse
)


def measure(repeats: int, threads: int) -> dict[str, Any]:
    """Return limits and sweeps of this machine; CPU time for one thread, wall time for more."""
    import torch
    from linear import random_w4a4
    from peer_layers.stack import rotary
    from peer_layers.stack import tokens as token_array
    from peer_layers.this_package import CONFIG, compressed_layers, contender, plain_decoder
    from torch import nn

    from sqap_vla_ros.policy.decoder import Decoder
    from sqap_vla_ros.quantization.block_fusion import causal_attention
    from sqap_vla_ros.quantization.layer_fusion import prepare_inference
    from sqap_vla_ros.quantization.reordered_weights import reorder_weights

    torch.set_num_threads(threads)
    load_before = os.getloadavg()[0]
    clock = time.process_time if threads == 1 else time.perf_counter

    def seconds(run: Callable[[], object]) -> float:
        taken = []
        for _ in range(repeats + 1):
            started = clock()
            run()
            taken.append(clock() - started)
        return statistics.median(taken[1:])

    with torch.inference_mode():
        wide = torch.randn(1, 1024, WIDTH).bfloat16()
        integer = random_w4a4(WIDTH, MLP_WIDTH, None)
        values = integer.activation(wide)
        half = nn.Sequential(nn.Linear(WIDTH, MLP_WIDTH, bias=False).bfloat16())
        reorder_weights(half)
        product = 2.0 * 1024 * WIDTH * MLP_WIDTH
        block = torch.ones(1 << 28, dtype=torch.uint8)
        target = torch.empty_like(block)
        limits = {
            "integer": product / seconds(lambda: integer.product(*values)),
            "half": product / seconds(lambda: half(wide)),
            "bandwidth": 2.0 * block.numel() / seconds(lambda: target.copy_(block)),
        }
        decoders = {"bf16": plain_decoder()}
        reorder_weights(decoders["bf16"])
        with torch.device("meta"):
            decoders["w4a4"] = Decoder(CONFIG)
        decoders["w4a4"].layers = compressed_layers(4)
        prepare_inference(decoders["w4a4"])
        attend = decoders["w4a4"].attend = causal_attention(decoders["w4a4"])
        if attend is not None:
            q = torch.randn(1, HEADS, 1024, WIDTH // HEADS).bfloat16()
            limits["attention"] = 4.0 * 1024**2 * WIDTH / seconds(lambda: attend(q, q, q, None))
        else:
            limits["attention"] = limits["half"] / 2
        cos, sin = (torch.from_numpy(table)[None, :277].bfloat16() for table in rotary())
        sweeps: dict[str, Any] = {}
        for kind, decoder in decoders.items():
            loaded = contender(decoder, lambda x: x, lambda y: y)
            layers = len(decoder.layers)
            sweeps[kind] = {
                "tokens": {n: seconds(loaded.bind(token_array(n))) / layers for n in TOKENS},
                "batch": {},
            }
            for batch in BATCHES:
                hidden = torch.randn(batch, 277, WIDTH).bfloat16()

                def run(decoder: Any = decoder, hidden: Any = hidden) -> None:
                    for layer in decoder.layers:
                        decoder._layer(layer, hidden, cos, sin, None, final=False, query_start=None)

                sweeps[kind]["batch"][batch] = seconds(run) / layers
    return {
        "machine": {
            "cpu": processor(),
            "load_average": [load_before, os.getloadavg()[0]],  # two threads among other work are no two cores
            "torch": torch.__version__,
        },
        "threads": threads,
        "clock": clock.__name__,
        "backend": integer.backend,
        "limits": limits,
        "layer_s": sweeps,
    }


def machine_of(run: Mapping[str, Any]) -> Machine:
    """Return this machine as it was measured; a four-bit weight is half a byte where the kernel unpacks it."""
    limits = run["limits"]
    return Machine("this machine", limits["integer"], limits["half"], limits["attention"], limits["bandwidth"])


def weights_gib(recipe: str) -> float:
    """Return the memory of the weights."""
    kind, _, towers = RECIPES[recipe]
    decoder = LAYERS * LAYER_WEIGHTS * (0.5 if kind == "w4a4" else 2.0) / GIB
    return decoder + (1.28 + 0.13) * (0.5 if towers == "int8" else 1.0) + 0.24 + 0.17


def show(report: Mapping[str, Any], full: Mapping[str, Any] | None) -> None:
    """Print the model beside what was measured, and the boards."""
    for run in report["runs"]:
        machine = machine_of(run)
        limits = ", ".join(f"{name} {value / 1e12:.3f} T/s" for name, value in run["limits"].items())
        where = run.get("machine")  # results of before it was recorded have none
        said = "machine and load not recorded"
        if where is not None:
            said = f"{where['cpu']}, load {' to '.join(f'{load:.1f}' for load in where['load_average'])}"
        print(f"{run['threads']} threads ({run['clock']}), {said}: {limits}")
        print("| a layer, ms: measured (model) | " + " | ".join(f"{n} tokens" for n in TOKENS) + " |")
        print("|---|" + "---|" * len(TOKENS))
        for kind, sweep in run["layer_s"].items():
            cells = [
                f"{1e3 * float(taken):.0f} ({1e3 * machine.layer_s(kind, int(n)):.0f})"
                for n, taken in sweep["tokens"].items()
            ]
            print(f"| {kind} | " + " | ".join(cells) + " |")
            cells = [
                f"batch {n}: {1e3 * float(taken):.0f} ({1e3 * machine.layer_s(kind, 277, int(n)):.0f})"
                for n, taken in sweep["batch"].items()
            ]
            print(f"{kind}, 277 tokens: " + ", ".join(cells))
    two = next((machine_of(run) for run in report["runs"] if run["threads"] == 2), None)
    if full is not None and two is not None:
        print("\n| two threads, ms: measured (model) | vision | decoder | head | all |\n|---|---|---|---|---|")
        for recipe in RECIPES:
            if recipe in full["median_ms"]:
                got, want = full["median_ms"][recipe], two.prediction_s(recipe)
                measured = {
                    "vision": got["vision"] + got["projector"],
                    "decoder": got["decoder"],
                    "head": got["action_head"],
                }
                cells = [f"{measured[stage]:.0f} ({1e3 * want[stage]:.0f})" for stage in want]
                total = f"{got['total']:.0f} ({1e3 * sum(want.values()):.0f})"
                print(f"| {recipe} | " + " | ".join(cells) + f" | {total} |")
    print("\n| roofs, ms: operations, bytes | recipe | vision | decoder | head |\n|---|---|---|---|---|")
    for machine in (*([two] if two is not None else []), *BOARDS):
        for recipe in ("bf16_prepared", "w4a4"):
            roofs = [f"{1e3 * a:.0f}, {1e3 * b:.0f}" for a, b in machine.bounds_s(recipe).values()]
            print(f"| {machine.name} | {recipe} | " + " | ".join(roofs) + " |")
    print(
        "\n| by the model, ms | recipe | vision | decoder | head | all | weights, GiB |\n|---|---|---|---|---|---|---|"
    )
    for machine in BOARDS:
        for recipe in ("bf16_prepared", "w4a4", "sqap", "sqap_w4a8_full"):
            want = machine.prediction_s(recipe)
            cells = " | ".join(f"{1e3 * value:.0f}" for value in want.values())
            total = 1e3 * sum(want.values())
            print(f"| {machine.name} | {recipe} | {cells} | {total:.0f} | {weights_gib(recipe):.1f} |")


def figure(report: Mapping[str, Any], full: Mapping[str, Any] | None, path: Path) -> None:
    """Draw what was measured as points and the model as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = {"bf16": "#7f7f7f", "w4a4": "#0072b2"}
    panels, grid = plt.subplots(2, 2, figsize=(9.5, 6.6), constrained_layout=True)
    (tokens, layers), (batch, memory) = grid
    one = report["runs"][0]
    machine = machine_of(one)
    n = np.linspace(20, 1000, 99).astype(int)
    for kind, colour in colours.items():
        sweep = one["layer_s"][kind]
        tokens.plot(n, [1e3 * machine.layer_s(kind, int(k)) for k in n], color=colour)
        tokens.plot(
            [int(k) for k in sweep["tokens"]],
            [1e3 * v for v in sweep["tokens"].values()],
            "o",
            color=colour,
            label=kind,
        )
        batches = np.arange(1, max(BATCHES) + 1)
        batch.plot(batches, [1e3 * machine.layer_s(kind, 277, int(k)) / k for k in batches], color=colour)
        batch.plot(
            [int(k) for k in sweep["batch"]],
            [1e3 * v / int(k) for k, v in sweep["batch"].items()],
            "o",
            color=colour,
            label=kind,
        )
    parts = [machine.parts_s("w4a4", int(k)) for k in n]
    floor = np.zeros(len(n))
    for part, shade in zip(("linears", "attention", "the rest"), (0.15, 0.3, 0.45), strict=True):
        top = floor + np.array([1e3 * each[part] for each in parts])
        tokens.fill_between(n, floor, top, color=colours["w4a4"], alpha=shade, linewidth=0, label=f"w4a4: {part}")
        floor = top
    tokens.set(xlabel="tokens", ylabel="ms a layer, one thread", title="a decoder layer", ylim=(0, None))
    tokens.legend(fontsize=8, frameon=False)
    batch.set(xlabel="images in a batch", ylabel="ms a layer and image", title="277 tokens, one thread", ylim=(0, None))
    batch.set_xticks(BATCHES)
    depth = np.array([0, LAYERS])
    for run in report["runs"]:
        for kind, recipe in (("bf16", "bf16_prepared"), ("w4a4", "w4a4")):
            made = machine_of(run)
            fixed = made.prediction_s(recipe)
            rest = fixed["vision"] + fixed["head"]
            style = "-" if run["threads"] == 2 else ":"
            layers.plot(
                depth,
                rest + depth * made.layer_s(kind, 277),
                style,
                color=colours[kind],
                label=f"{kind}, {run['threads']} thread{'s' if run['threads'] > 1 else ''}",
            )
    if full is not None:
        for kind, recipe in (("bf16", "bf16_prepared"), ("w4a4", "w4a4")):
            layers.plot(LAYERS, full["median_ms"][recipe]["total"] / 1e3, "o", color=colours[kind])
    layers.set(xlabel="decoder layers", ylabel="s a prediction", title="a prediction, 277 tokens", ylim=(0, None))
    layers.legend(fontsize=8, frameon=False)
    for kind, recipe in (("bf16", "bf16_prepared"), ("w4a4", "w4a4")):
        size = 2.0 if kind == "bf16" else 0.5
        rest = weights_gib(recipe) - LAYERS * LAYER_WEIGHTS * size / GIB
        memory.plot(depth, rest + depth * LAYER_WEIGHTS * size / GIB, color=colours[kind], label=f"{kind}: weights")
    if full is not None:
        below = 0.0
        for recipe, peak in sorted(full["memory"].items(), key=lambda item: item[1]["peak_rss_gib"]):
            gib, kind = peak["peak_rss_gib"], "bf16" if recipe.startswith("bf16") else "w4a4"
            memory.plot(LAYERS, gib, "o", color=colours[kind])
            below = max(gib, below + LINE_GIB)  # of names of points that lie together
            memory.annotate(
                f"{recipe} {gib:.1f}",
                (LAYERS, gib),
                (LAYERS + 1.5, below),
                va="center",
                fontsize=7,
                arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": colours[kind]},
            )
        memory.set_xlim(-1.6, LAYERS + 18)
        memory.set_xticks(range(0, LAYERS + 1, 8))
    memory.set(xlabel="decoder layers", ylabel="GiB", title="memory; points: peak of the process", ylim=(0, None))
    memory.legend(fontsize=8, frameon=False)
    panels.savefig(path, dpi=110)


def main() -> int:
    """Measure, or show what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["show", "measure"], default="show")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="a run for each; others stay")
    parser.add_argument("--out", type=Path, default=RESULTS / "scale.json")
    args = parser.parse_args()
    if args.what == "show" and not args.out.is_file():
        parser.error(f"--out {args.out}: no such file; measure first")
    for threads in args.threads if args.what == "measure" else ():
        run = measure(args.repeats, threads)
        report = json.loads(args.out.read_text()) if args.out.is_file() else {"runs": []}
        runs = [other for other in report["runs"] if other["threads"] != threads]
        runs = sorted([*runs, run], key=lambda one: one["threads"])
        args.out.write_text(json.dumps({"unit": run["backend"], "runs": runs}, indent=1) + "\n")
    report = json.loads(args.out.read_text())
    beside = RESULTS / f"full_geometry_{report['unit']}_2_threads.json"
    full = json.loads(beside.read_text()) if beside.is_file() else None
    show(report, full)
    figure(report, full, args.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
