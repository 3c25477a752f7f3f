"""Measure what each pruning method costs on the published decoder geometry: kept tokens, times, BOPs.

The decoder is Llama-2-7B's, 32 layers of width 4096 in bfloat16. Its layers share the weights of a few, more than the
caches hold, so that timing needs neither the checkpoint nor 13 GB. Times are processor time of this process, which
other work on the machine hardly changes; ratios are taken against the same code without pruning, interleaved in one
run, and the median is printed. A uniform grid and a random subset of SQAP's size cost what SQAP costs. Weights are
random: which tokens are kept means nothing here, how many does. Only VLA-Cache's time depends on the input: it sees two
consecutive frames of `--video`.
Towers and action head are not timed; the BOPs count them.

    OMP_NUM_THREADS=1 python benchmarks/pruning_table.py --video bridge_real_1.mp4
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import torch
from processor import processor
from torch import nn

from sqap_vla_ros.compression.accelerators.tome import Tome
from sqap_vla_ros.compression.accelerators.vla_cache import (
    CachingDecoder,
    VlaCache,
    patchify,
    static_patches,
)
from sqap_vla_ros.compression.bops import Definition, Workload, relative_bops
from sqap_vla_ros.compression.recipe import QuantizationSpec
from sqap_vla_ros.contracts import SelectedTokens, SelectionContext, TokenSelector
from sqap_vla_ros.policy.config import COGACT_BASE
from sqap_vla_ros.policy.decoder import Decoder
from sqap_vla_ros.policy.preprocessing import ImageTransform
from sqap_vla_ros.pruning import make_selector
from sqap_vla_ros.pruning.base import Selector

RESULTS = Path(__file__).parent / "results" / "pruning_table.json"
TEXT, VISUAL, DISTINCT_LAYERS = 21, 256, 2
PAPER_BOPS = {"random_drop": 58.5, "fastv, layer 3": 42.0, "vla_cache": 80.1, "efficient_vla": 45.1, "sqap, W4A4": 26.3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timed(Selector):
    """Lets another selector choose and appends the processor time of each choice, in milliseconds, to `spent_ms`."""

    inner: TokenSelector
    spent_ms: list[float] = dataclasses.field(default_factory=list)

    @property
    def needs(self) -> frozenset[str]:
        return self.inner.needs

    def budget(self, tokens: int) -> int:
        return self.inner.budget(tokens)

    def select(self, context: SelectionContext) -> SelectedTokens:
        started = time.process_time()
        chosen = self.inner.select(context)
        self.spent_ms.append((time.process_time() - started) * 1e3)
        return chosen


def timed_selector(inner: TokenSelector) -> Timed:
    """Wrap a selector."""
    return Timed(inner=inner, name=inner.name, prune_layer=inner.prune_layer, query=inner.query)


def decoder_of(depth: int, parts: list[nn.Module], norm: nn.Module) -> Decoder:
    """A decoder of `depth` layers made of shared ones."""
    small = dataclasses.replace(COGACT_BASE.decoder, depth=1, vocabulary=8, mlp_width=2, width=64)
    decoder = Decoder(small)
    decoder.config = COGACT_BASE.decoder
    decoder.layers = nn.ModuleList(parts[index % len(parts)] for index in range(depth))
    decoder.norm = norm
    return decoder


def distinct_layers() -> tuple[list[nn.Module], nn.Module]:
    """Layers of the published width and the final norm, bfloat16, random weights."""
    torch.set_default_dtype(torch.bfloat16)
    made = Decoder(dataclasses.replace(COGACT_BASE.decoder, depth=DISTINCT_LAYERS, vocabulary=8))
    torch.set_default_dtype(torch.float32)
    return list(made.layers), made.norm


def main() -> None:
    """Measures, prints and stores the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    data = Path(os.environ.get("SQAP_VLA_DATA", "../shared/data"))
    parser.add_argument("--video", type=Path, default=data / "real2sim" / "bridge_real_1.mp4")
    args = parser.parse_args()
    torch.manual_seed(0)
    parts, norm = distinct_layers()
    full = decoder_of(32, parts, norm)
    embeddings = torch.randn(1, VISUAL + TEXT, COGACT_BASE.decoder.width).bfloat16()
    context = SelectionContext((16, 16), [(6, 9)], saliency=torch.rand(1, VISUAL))

    selectors: dict[str, Any] = {
        name: make_selector(name) for name in ("random_drop", "fastv", "divprune", "fastervlm", "visionzip")
    }
    selectors["fastv, layer 3"] = make_selector("fastv", prune_layer=3)
    for ratio in (0.4, 0.6):
        selectors[f"sqap {ratio}"] = make_selector("sqap", ratio=ratio)
    efficient = make_selector("relevance_diversity")
    shallow = decoder_of(28, parts, norm)

    work = {"none": Workload(COGACT_BASE, TEXT)}
    run: dict[str, Callable[[], Any]] = {"none": lambda: full(embeddings)}
    timed: dict[str, Timed] = {}
    for name, selector in selectors.items():
        work[name] = Workload(COGACT_BASE, TEXT, selector)
        timed[name] = timed_selector(selector)
        run[name] = lambda chosen=timed[name]: full(embeddings, selector=chosen, context=context)
    # merging leaves 154 tokens: in the decoder it is the same as any other choice of 154 before layer 0
    work["tome"] = Workload(COGACT_BASE, TEXT, Tome().savings.selector)
    run["tome"], timed["tome"] = run["fastervlm"], timed["fastervlm"]
    work["efficient_vla"] = Workload(COGACT_BASE, TEXT, efficient, layers=range(28), head_interval=5)
    timed["efficient_vla"] = timed_selector(efficient)
    run["efficient_vla"] = lambda: shallow(embeddings, selector=timed["efficient_vla"], context=context)
    caching, warm_up = vla_cache(full, args.video)
    run["vla_cache"] = lambda: caching(embeddings)

    times: dict[str, list[float]] = {name: [] for name in run}
    selection: dict[str, list[float]] = {name: [] for name in run}
    with torch.inference_mode():
        full(embeddings)
        for _ in range(args.rounds):
            for name, forward in run.items():
                if name == "vla_cache":
                    candidates = warm_up(embeddings)
                    caching.candidates = candidates
                started = time.process_time()
                forward()
                times[name].append(time.process_time() - started)
                selection[name].append(timed[name].spent_ms[-1] if name in timed else 0.0)
    work["vla_cache"] = Workload(COGACT_BASE, TEXT, reused=caching.reused_from)

    w4a4 = QuantizationSpec(weight_bits=4, activation_bits=4)
    rows = []
    for name in run:
        chosen = work[name].selector
        ratios = [base / mine for base, mine in zip(times["none"], times[name], strict=True)]
        rows.append(
            {
                "method": name,
                "kept": VISUAL if chosen is None else chosen.budget(VISUAL),
                "before_layer": None if chosen is None else chosen.prune_layer,
                "selection_cpu_ms": round(float(np.median(selection[name])), 3),
                "decoder_cpu_s": round(float(np.median(times[name])), 3),
                "decoder_speedup": round(float(np.median(ratios)), 3),
                "bops_percent": round(100 * relative_bops(work[name]), 2),
                "paper_percent": PAPER_BOPS.get(name),
            }
        )
    for definition in Definition:
        rows.append(
            {
                "method": "sqap, W4A4" + ("" if definition is Definition.PAPER else ", bit product"),
                "kept": 154,
                "before_layer": 3,
                "bops_percent": round(100 * relative_bops(work["sqap 0.4"], w4a4, definition), 2),
                "paper_percent": PAPER_BOPS["sqap, W4A4"] if definition is Definition.PAPER else None,
            }
        )
    report(rows)
    details = {
        "machine": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rounds": args.rounds,
        "distinct_layers": DISTINCT_LAYERS,
        "vla_cache_reused_from": caching.reused_from,
        "rows": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(details, indent=2) + "\n")


def vla_cache(full: Decoder, video: Path) -> tuple[CachingDecoder, Callable[[torch.Tensor], np.ndarray]]:
    """The caching decoder, and what fills it with one frame and names the static patches of the next."""
    settings = VlaCache()
    caching = CachingDecoder(full, settings, VISUAL)
    frames = [ImageTransform().apply(frame) for frame in imageio.imread(video)[10:12]]
    before, after = (patchify(frame, 14) for frame in frames)
    static = static_patches(after, before, settings.similarity, settings.static)

    def warm_up(embeddings: torch.Tensor) -> np.ndarray:
        caching.forget()
        caching.candidates = np.empty(0, dtype=np.int64)
        caching(embeddings)
        return static

    return caching, warm_up


def report(rows: list[dict[str, Any]]) -> None:
    """Prints the table."""
    heads = (("method", -26), ("kept", 6), ("layer", 7), ("select ms", 11), ("CPU s", 11), ("speed-up", 10))
    print("".join(f"{h:<{-w}}" if w < 0 else f"{h:>{w}}" for h, w in (*heads, ("BOPs %", 9), ("paper", 8))))
    for row in rows:
        cells = [row.get(key) for key in ("before_layer", "selection_cpu_ms", "decoder_cpu_s", "decoder_speedup")]
        before, *timings = ["-" if cell is None else f"{cell:g}" for cell in cells]
        paper = "" if row["paper_percent"] is None else f"{row['paper_percent']:.1f}"
        print(
            f"{row['method']:26s}{row['kept']:6d}{before:>7s}{timings[0]:>11s}{timings[1]:>11s}{timings[2]:>10s}"
            f"{row['bops_percent']:9.1f}{paper:>8s}"
        )


if __name__ == "__main__":
    main()
