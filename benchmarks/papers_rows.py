"""Rows of the papers' tables on the embedded benchmark: every method with its recipe, and the sections they stand in.

`papers_tables.py` measures them. A row is an `Entry`; a table is a `Section`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqap_vla_ros.compression.recipe import Recipe, load_recipe
from sqap_vla_ros.evaluation.closed_loop.episodes import Execution

VM, VA = "visual_matching", "variant_aggregation"
LAYER = 1  # of 4: tokens are dropped before it, by the attention of the layer before
RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Entry:
    """A row: what it is called in the table, and how it is made.

    quantization: name of a shipped recipe whose scheme is used, or a scheme; None for none. pruning: selector and
    parameters. accelerator: likewise, in place of a selector. head_dtype: beside a scheme; a shipped recipe has its
    own. outliers: on the policy with injected outlier channels.

    A shipped recipe brings its action head's dtype, bfloat16 for most; rows of a scheme have float32 unless they say
    otherwise, as they were measured. So the tables' weights compare unlike heads (1.28 MiB of the shipped policy's
    weights are the difference; docs/benchmark.md has the packed linears alone). Whoever measures these rows anew should
    give all one dtype.
    """

    name: str
    words: str
    quantization: str | dict[str, Any] | None = None
    pruning: tuple[str, dict[str, Any]] | None = None
    accelerator: tuple[str, dict[str, Any]] | None = None
    dtype: str = "bfloat16"
    head_dtype: str = "float32"
    execution: Execution = dataclasses.field(default_factory=Execution)
    outliers: bool = False

    def recipe(self) -> Recipe:
        """Return the recipe that the row describes."""
        scheme, head_dtype = self.quantization, self.head_dtype
        if isinstance(scheme, str):
            shipped = load_recipe(scheme).to_dict()
            scheme, head_dtype = shipped["quantization"], shipped["head_dtype"]
        pruning = None if self.pruning is None else {"selector": self.pruning[0], "parameters": self.pruning[1]}
        content = {"name": self.name, "description": self.words, "dtype": self.dtype, "head_dtype": head_dtype}
        if self.accelerator is not None:
            content["accelerator"] = {"name": self.accelerator[0], "parameters": self.accelerator[1]}
        return Recipe.from_dict({**content, "pruning": pruning, "quantization": scheme})


@dataclass(frozen=True)
class Section:
    """A table.

    episodes: of each family. other_counts: of the rows that have more or fewer, by name. deviations: taught episodes a
    family. reference: the row compared with.
    """

    key: str
    title: str
    entries: tuple[Entry, ...]
    suite: str = VM
    episodes: int = 34
    deviations: int = 0
    reference: str = "fp32"
    other_counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def episodes_of(self, name: str) -> int:
        """Return how many episodes of each family the row has."""
        return self.other_counts.get(name, self.episodes)


FP32 = Entry("fp32", "CogACT, fp32", dtype="float32")
W4A4 = Entry("w4a4", "W4A4 (rotated, GPTQ)", "w4a4")


def pruned(name: str, words: str, selector: str, quantization: str | None = None, **parameters: Any) -> Entry:
    """A row that drops tokens before layer LAYER unless told otherwise."""
    return Entry(name, words, quantization, (selector, {"prune_layer": LAYER, **parameters}))


def at(selector: str, ratio: float, layer: int = LAYER, quantization: str | None = "w4a4") -> Entry:
    """A row of a sweep; the same name wherever it appears, so that it is measured once."""
    chosen = "sqap" if selector in VARIANTS else selector
    parameters = {"ratio": ratio, "prune_layer": layer, **VARIANTS.get(selector, {})}
    name = f"{quantization or 'bf16'}_{selector}_{ratio:g}" + ("" if layer == LAYER else f"_layer{layer}")
    deep = "" if layer == LAYER else f", layer {layer}"
    kind = {None: "bf16", "w4a4": "W4A4", "w4a4_text8": "W4A4, text at 8 bits"}[quantization]
    words = f"{kind}, {SELECTOR_WORDS[selector]}, {100 * ratio:.0f} % dropped{deep}"
    return Entry(name, words, quantization, (chosen, parameters))


VARIANTS: dict[str, dict[str, Any]] = {  # of SQAP's selector
    "features": {"metric": "cosine"},
    "top_k": {"attention_share": 1.0, "ring_radius": None, "fill": "attention"},
    "ring": {"fill": "attention"},
    "no_fps_grid": {"fill": "grid"},
    "no_fps_random": {"fill": "random"},
}
SELECTOR_WORDS = {
    "sqap": "top-k + ring + FPS (SQAP)",
    "features": "top-k + ring + FPS in feature space",
    "top_k": "top-k attention",
    "ring": "top-k + ring",
    "no_fps_grid": "top-k + ring + uniform grid",
    "no_fps_random": "top-k + ring + random",
    "random_same_budget": "random",
    "uniform_grid": "uniform grid",
}


def shipped(name: str, words: str) -> Entry:
    """A recipe of `config/recipes` that quantises and prunes, as it is."""
    pruning = load_recipe(name).pruning
    return Entry(name, words, name, None if pruning is None else (pruning.selector, dict(pruning.parameters)))


def eight_bit_head(name: str, words: str) -> Entry:
    """`coverage_w4a8_full` as it was first, with the action head in eight bits too."""
    entry = shipped("coverage_w4a8_full", words)
    scheme = load_recipe("coverage_w4a8_full").to_dict()["quantization"]
    scheme |= {"parts": {"vision": 8, "projector": 8, "action_head": 8}}
    return dataclasses.replace(entry, name=name, quantization=scheme, head_dtype="bfloat16")


def weighted(bits: int) -> Entry:
    """One width for all rows, eight-bit activations, GPTQ on the Hessian weighted by the action's gradient."""
    scheme = load_recipe("w4a8").to_dict()["quantization"] | {"weight_bits": bits, "hessian": "weighted"}
    return Entry(f"w{bits}a8_weighted", f"W{bits}A8, every row alike, GPTQ on QVLA's Hessian", scheme)


def row_bits(name: str, words: str, **changes: Any) -> Entry:
    """QVLA with eight-bit activations and another allocation."""
    scheme = load_recipe("qvla_w4a8").to_dict()["quantization"]
    return Entry(name, f"QVLA {words}", scheme | {"row_bits": scheme["row_bits"] | changes})


def by_layer(average: float) -> Entry:
    """QVLA with one width for all rows of a linear."""
    widths = [4, 8, 16] if average == 8 else [2, 4, 8]
    return row_bits(
        f"qvla_w{average:g}a8_layers",
        f"W{average:g}A8, one width a linear",
        average=average,
        widths=widths,
        ties="linear",
    )


SQAP = shipped("sqap", "SQAP-VLA, recipe `sqap` as shipped")
TEXT8 = (
    shipped("w4a4_text8", "W4A4 (rotated, GPTQ), text at 8 bits"),
    shipped("sqap_text8", "SQAP-VLA, recipe `sqap_text8` as shipped"),
)
ACTIVATIONS8 = (
    shipped("w4a8", "W4A8 (rotated, GPTQ)"),
    shipped("sqap_w4a8", "SQAP-VLA, recipe `sqap_w4a8` as shipped"),
    shipped("coverage_w4a8", "W4A8, dropped tokens merged, recipe `coverage_w4a8`"),
)
W4A8 = shipped("w4a8", "W4A8 (rotated, GPTQ)")
INTEGER_TOWERS = (
    FP32,
    *ACTIVATIONS8,
    shipped("coverage_w4a8_full", "W4A8, dropped tokens merged, towers in eight bits, recipe `coverage_w4a8_full`"),
    eight_bit_head("coverage_w4a8_head8", "W4A8, dropped tokens merged, towers and action head in eight bits"),
)
ROW_BITS = (  # rows of mixed widths, and one width for all rows rounded on the same weighted Hessians
    FP32,
    W4A8,
    shipped("coverage_qvla", "QVLA W4A8, dropped tokens merged, recipe `coverage_qvla`"),
    shipped("sqap_qvla", "QVLA W4A8, SQAP, recipe `sqap_qvla`"),
    shipped("qvla_w4a8", "QVLA W4A8"),
    weighted(4),
    shipped("qvla_w3a8", "QVLA W3A8"),
    shipped("qvla_w3a8_vision", "QVLA W3A8, the towers' rows at 4 bits too"),
    weighted(3),
    shipped("qvla_w2.5a8", "QVLA W2.5A8"),
    weighted(2),
)
ROW_COUNTS = {"coverage_qvla": 200, "sqap_qvla": 200}
WEIGHTS_ACTIVATIONS = (
    FP32,
    shipped("w8a8_smoothquant", "SmoothQuant W8A8"),
    shipped("w8a8_omniquant", "OmniQuant W8A8"),
    shipped("qvla_w8a8", "QVLA W8A8"),
    Entry("w4a4_smoothquant", "SmoothQuant W4A4", "w4a4_smoothquant"),
    Entry("w4a4_omniquant", "OmniQuant W4A4", "w4a4_omniquant"),
    W4A4,
    shipped("qvla_w4a4", "QVLA W4A4"),
)
WEIGHTS = (
    FP32,
    shipped("w8a16_awq", "AWQ W8A16"),
    shipped("qvla_w8a16", "QVLA W8A16"),
    Entry("w4a16_awq", "AWQ W4A16", "w4a16_awq"),
    shipped("qvla_w4a16", "QVLA W4A16"),
)
GRANULARITY = (
    FP32,
    by_layer(8.0),
    shipped("qvla_w8a8", "QVLA W8A8"),
    by_layer(4.0),
    shipped("qvla_w4a8", "QVLA W4A8"),
    by_layer(3.0),
    shipped("qvla_w3a8", "QVLA W3A8"),
    by_layer(2.5),
    shipped("qvla_w2.5a8", "QVLA W2.5A8"),
)
ZEROS = (  # at most a twentieth of the rows may be zero
    FP32,
    row_bits("qvla_w8a8_2_16", "W8A8, rows of 2 to 16 bits", average=8.0, widths=[2, 4, 8, 16]),
    row_bits("qvla_w8a8_0_16", "W8A8, rows of 0 to 16 bits", average=8.0, widths=[0, 2, 4, 8, 16], zero_share=0.05),
    weighted(8),
    row_bits("qvla_w7.7a8_0_8", "W7.7A8, rows of 0 or 8 bits", average=7.7, widths=[0, 8], zero_share=0.05),
    row_bits("qvla_w3a8_0_8", "W3A8, rows of 0 to 8 bits", average=3.0, widths=[0, 2, 4, 8], zero_share=0.05),
    shipped("qvla_w3a8", "W3A8, rows of 2 to 8 bits"),
    weighted(3),
)
MAIN = (
    FP32,
    Entry("bf16", "CogACT, bf16"),
    pruned("random_drop", "Random dropping, 112 kept", "random_drop"),
    pruned("fastv", "FastV, 56 kept", "fastv"),
    Entry("vla_cache", "VLA-Cache", accelerator=("vla_cache", {"layers": (1, 2, 3), "relevance_layer": 1})),
    Entry("efficient_vla", "EfficientVLA, 1 of 4 layers out, 112 kept", accelerator=("efficient_vla", {"remove": 1})),
    Entry("rtn_w4a4", "W4A4, round to nearest", "rtn_w4a4"),
    W4A4,
    Entry("sqap_paper", "SQAP-VLA as in the paper", "sqap_paper", ("sqap", {"ratio": 0.4, "prune_layer": LAYER})),
    at("sqap", 0.4),
    at("features", 0.4),
    SQAP,
    *TEXT8,
    at("features", 0.4, quantization="w4a4_text8"),
    at("top_k", 0.4),
    at("random_same_budget", 0.4),
    Entry("w4a4_smoothquant", "SmoothQuant W4A4", "w4a4_smoothquant"),
    at("sqap", 0.4, quantization=None),
    Entry("divprune", "DivPrune, 40 % dropped", pruning=("divprune", {})),
    Entry("visionzip", "VisionZip, 40 % dropped", pruning=("visionzip", {})),
    Entry("tome", "ToMe, 40 % merged", accelerator=("tome", {})),
)
DOUBLED = {"fp32": 400, "coverage_w4a8": 400, "w4a8": 40}  # the first two were extended, see docs/benchmark.md
HEADLINE = (FP32, W4A4, SQAP, *TEXT8, *ACTIVATIONS8, at("sqap", 0.4, 3))
EARLY = (FP32, at("features", 0.4), at("sqap", 0.4))
DRAWN = ("features", "sqap", "top_k", "random_same_budget", "uniform_grid")  # in the picture of the sweep
ABLATION = ("top_k", "ring", "sqap", "features", "no_fps_grid", "no_fps_random", "uniform_grid", "random_same_budget")
DEPTH = ("features", "sqap", "top_k", "random_same_budget")


def executed(name: str, words: str, **execution: Any) -> Entry:
    """fp32 under another execution."""
    return Entry(name, words, dtype="float32", execution=Execution(**execution))


def loud(name: str, words: str, quantization: str | None = None, **more: Any) -> Entry:
    """Return an entry on the policy with outlier channels."""
    return Entry(f"outliers_{name}", words, quantization, outliers=True, **more)


def bits(weight: int, activation: int, words: str, **scheme: Any) -> Entry:
    """A scheme of other widths."""
    widths = {"weight_bits": weight, "activation_bits": activation}
    return Entry(
        f"w{weight}a{activation}_{words.split()[0].strip(',').lower()}",
        f"W{weight}A{activation}, {words}",
        widths | scheme,
    )


ROTATED = {"rotation": "hadamard", "rounding": "gptq", "weight_clip": True, "activation_clip": None}
GROUPS = {"weight_group": 64, "weight_symmetric": False}
SEARCHED = (
    FP32,
    Entry("w4a4_omniquant", "OmniQuant W4A4", "w4a4_omniquant"),
    Entry("w4a16_awq", "AWQ W4A16", "w4a16_awq"),
    bits(2, 16, "AWQ, groups of 64", equalization="awq", **GROUPS),
)
ROUNDED = tuple(entry for entry in MAIN if entry.name in ("rtn_w4a4", "w4a4_smoothquant", "w4a4", "sqap"))  # four bits
SECTIONS = (
    Section("main", "Table 1: methods", MAIN, deviations=3),
    Section("main_va", "Table 2: methods", MAIN, VA),
    Section("headline", "SQAP-VLA against full precision", HEADLINE, episodes=200, other_counts=DOUBLED),
    Section("headline_va", "SQAP-VLA against full precision", HEADLINE, VA, episodes=200, other_counts=DOUBLED),
    Section("early", "W4A4, dropped before layer 1", EARLY, episodes=100),
    Section("early_va", "W4A4, dropped before layer 1", EARLY, VA, episodes=100),
    Section(
        "sweep",
        "Table 3: share of tokens dropped, W4A4",
        (
            FP32,
            W4A4,
            *(at(s, ratio) for s in ("sqap", "features") for ratio in RATIOS),
            *(at(s, ratio) for ratio in RATIOS[1::2] for s in ("top_k", "random_same_budget", "uniform_grid")),
            *(at(s, RATIOS[-1]) for s in ("top_k", "random_same_budget", "uniform_grid")),
        ),
    ),
    Section("ablation", "Table 4: ablation at 40 %, W4A4", (FP32, W4A4, *(at(s, 0.4) for s in ABLATION))),
    Section(
        "execution",
        "Execution of chunks, fp32",
        (
            FP32,
            *(executed(f"fp32_h{h}", f"{h} actions a chunk", horizon=h) for h in (1, 2, 4, 16)),
            *(
                executed(f"fp32_h{h}_by_time", f"{h}, ensemble by time", horizon=h, ensemble="by_time")
                for h in (1, 4, 8)
            ),
            executed("fp32_h1_original", "1, ensemble as published", horizon=1, ensemble="original"),
        ),
        other_counts={"fp32_h1_by_time": 20, "fp32_h4_by_time": 20, "fp32_h8_by_time": 20, "fp32_h1_original": 20},
    ),
    Section(
        "outliers",
        "Synthetic outlier channels (four channels behind every norm 30 times louder, undone in the next weights)",
        (
            loud("fp32", "fp32", dtype="float32"),
            loud("rtn_w4a4", "W4A4, round to nearest", "rtn_w4a4"),
            loud("smoothquant", "SmoothQuant W4A4", "w4a4_smoothquant"),
            loud("w4a4", "W4A4 (rotated, GPTQ)", "w4a4"),
            loud("sqap_paper", "SQAP-VLA as in the paper", "sqap_paper", pruning=("sqap", {"prune_layer": LAYER})),
            loud(
                "sqap",
                "W4A4, top-k + ring + FPS (SQAP), 40 % dropped",
                "w4a4",
                pruning=("sqap", {"prune_layer": LAYER}),
            ),
        ),
        episodes=20,
        reference="outliers_fp32",
    ),
    Section("ablation80", "Ablation at 80 %, W4A4", (FP32, W4A4, *(at(s, 0.8) for s in ABLATION))),
    Section(
        "depth",
        "Where tokens are dropped, W4A4",
        (W4A4, *(at(s, r, layer) for r in (0.4, 0.7) for layer in (1, 2, 3) for s in DEPTH)),
    ),
    Section(
        "bits",
        "Fewer bits",
        (
            FP32,
            Entry("w3a3", "W3A3, rotated, GPTQ", "w3a3"),
            shipped("sqap_w3a3", "W3A3, SQAP, recipe `sqap_w3a3` as shipped"),
            bits(2, 16, "nearest, groups of 64", **GROUPS),
            bits(2, 4, "rotated, GPTQ", **ROTATED),
            bits(2, 8, "rotated, GPTQ", **ROTATED),
        ),
    ),
    Section("row_bits", "QVLA: bits by row", ROW_BITS, episodes=40, deviations=3, other_counts=ROW_COUNTS),
    Section("row_bits_va", "QVLA: bits by row", ROW_BITS, VA, episodes=40, other_counts=ROW_COUNTS),
    Section("weights_activations", "QVLA's Table 1: weights and activations", WEIGHTS_ACTIVATIONS, deviations=3),
    Section("weights", "QVLA's Table 2: weights alone", WEIGHTS, deviations=3),
    Section("granularity", "QVLA's Table 3: one width a linear, or a row", GRANULARITY),
    Section("zeros", "QVLA's Table 4: rows of no bits, rows of one width", ZEROS),
    Section("full", "Towers in eight bits", INTEGER_TOWERS, episodes=40, other_counts={"coverage_w4a8_full": 80}),
    Section("full_va", "Towers in eight bits", INTEGER_TOWERS, VA, episodes=40),
    Section("searched", "Table 1, continued: scales that are searched for minutes", SEARCHED),
    Section("searched_va", "Table 2, continued: scales that are searched for minutes", SEARCHED, VA),
)
