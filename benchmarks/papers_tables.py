"""The tables of the papers on the embedded benchmark: every method here in closed loop, on the same episodes.

    python benchmarks/papers_tables.py run [--jobs 2] [--minutes 40] [--only main sweep] [--scale 0.2]
    python benchmarks/papers_tables.py tables      # prints and writes the tables from what has been measured

`run` goes through SECTIONS in the order of their importance and may be interrupted: the same command goes on.
Raw results, one line an episode: benchmarks/results/closed_loop/episodes/; tables.md, CSV and pictures beside them.
Recipes are the shipped ones where they fit a decoder of four layers, else made here. methods.json says which one each
row was; the recipe files that the runs read are written anew, beside the compressed policies.
docs/benchmark.md says what is measured and what came out.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from sqap_vla_ros.compression.files.job import compress_to_file
from sqap_vla_ros.compression.load import checkpoint_digest, load_uncompressed
from sqap_vla_ros.compression.recipe import Recipe, load_recipe
from sqap_vla_ros.contracts import TRAINED_POLICY
from sqap_vla_ros.evaluation.closed_loop.episodes import Execution
from sqap_vla_ros.evaluation.closed_loop.figures import deviation_figure, success_figure, sweep_figure
from sqap_vla_ros.evaluation.closed_loop.study import Method, Store, Unit, run_units
from sqap_vla_ros.evaluation.closed_loop.tables import MethodResult, markdown, method_results, write_csv
from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
from sqap_vla_ros.shipped import SHIPPED

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "closed_loop"
WORK = ROOT / "out" / "papers_tables"  # compressed policies and recipe files; made anew when missing
VM, VA = "visual_matching", "variant_aggregation"
LAYER = 1  # of 4: tokens are dropped before it, by the attention of the layer before
RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LOUD_CHANNELS, LOUDNESS = (7, 23, 64, 101), 30.0
_COMPRESSED: dict[tuple[str, str], Path] = {}


@dataclass(frozen=True)
class Entry:
    """A row: what it is called in the table, and how it is made.

    quantization: name of a shipped recipe whose scheme is used, or a scheme; None for none. pruning: selector and
    parameters. accelerator: likewise, in place of a selector. outliers: on the policy with injected outlier channels.
    """

    name: str
    words: str
    quantization: str | dict[str, Any] | None = None
    pruning: tuple[str, dict[str, Any]] | None = None
    accelerator: tuple[str, dict[str, Any]] | None = None
    dtype: str = "bfloat16"
    execution: Execution = dataclasses.field(default_factory=Execution)
    outliers: bool = False

    def recipe(self) -> Recipe:
        """Return the recipe that the row describes."""
        scheme, head_dtype = self.quantization, "float32"
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
    """A table. episodes: of each family. deviations: taught episodes a family. reference: the row compared with."""

    key: str
    title: str
    entries: tuple[Entry, ...]
    suite: str = VM
    episodes: int = 34
    deviations: int = 0
    reference: str = "fp32"


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


def weighted(bits: int) -> Entry:
    """One width for all rows, eight-bit activations, GPTQ on the Hessian weighted by the action's gradient."""
    scheme = load_recipe("w4a8").to_dict()["quantization"] | {"weight_bits": bits, "hessian": "weighted"}
    return Entry(f"w{bits}a8_weighted", f"W{bits}A8, every row alike, GPTQ on QVLA's Hessian", scheme)


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
ROW_BITS = (  # rows of mixed widths, and one width for all rows rounded on the same weighted Hessians
    shipped("coverage_qvla", "QVLA W4A8, dropped tokens merged, recipe `coverage_qvla`"),
    shipped("sqap_qvla", "QVLA W4A8, SQAP, recipe `sqap_qvla`"),
    shipped("qvla_w4a8", "QVLA W4A8"),
    weighted(4),
    shipped("qvla_w3a8", "QVLA W3A8"),
    weighted(3),
    shipped("qvla_w2.5a8", "QVLA W2.5A8"),
    weighted(2),
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
SECTIONS = (
    Section("main", "Table 1: methods", MAIN, deviations=3),
    Section("main_va", "Table 2: methods", MAIN, VA),
    Section("headline", "SQAP-VLA against full precision", HEADLINE, episodes=200),
    Section("headline_va", "SQAP-VLA against full precision", HEADLINE, VA, episodes=200),
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
    Section("row_bits", "QVLA: bits by row", (FP32, shipped("w4a8", "W4A8 (rotated, GPTQ)"), *ROW_BITS), episodes=40),
    Section(
        "row_bits_va", "QVLA: bits by row", (FP32, shipped("w4a8", "W4A8 (rotated, GPTQ)"), *ROW_BITS), VA, episodes=40
    ),
    Section("searched", "Table 1, continued: scales that are searched for minutes", SEARCHED),
    Section("searched_va", "Table 2, continued: scales that are searched for minutes", SEARCHED, VA),
)


# -- making what is measured ------------------------------------------------------------------------------------------


def methods(section: Section, checkpoint: str, rows: Sequence[str] | None = None) -> Iterator[Method]:
    """The section's rows, or some of them, as methods, their files made where they are missing."""
    for entry in section.entries:
        if rows is not None and entry.name not in rows:
            continue
        recipe = entry.recipe()
        path = WORK / "recipes" / f"{entry.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {key: value for key, value in recipe.to_dict().items() if value is not None and key != "name"}
        path.write_text(yaml.safe_dump(_plain(content), sort_keys=False, width=120))
        source = outlier_checkpoint(checkpoint) if entry.outliers else checkpoint
        if recipe.quantization is not None:
            source = compressed(source, recipe, "outliers" if entry.outliers else "plain")
        yield Method(entry.name, _short(path), source, entry.execution)


def compressed(checkpoint: str, recipe: Recipe, kind: str) -> str:
    """The checkpoint quantised as the recipe says, compressed once for all rows that prune it differently."""
    plain = dataclasses.replace(recipe, pruning=None)
    path = WORK / f"{kind}_{_sha(checkpoint)}_{plain.digest[:8]}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        needs = plain.quantization is not None and plain.quantization.needs_calibration
        policy = load_uncompressed(checkpoint, plain, shipped=SHIPPED)
        started = time.monotonic()
        compress_to_file(policy, plain, calibration() if needs else [], path, calibration={"source": "simulator"})
        print(f"compressed {recipe.name} ({kind}) in {time.monotonic() - started:.0f} s", flush=True)
    return _short(path)


def calibration(cached: list[Any] = []) -> list[Any]:  # noqa: B006 made once
    """The simulator's observations that `load_policy` calibrates on too."""
    if not cached:
        cached += SHIPPED[TRAINED_POLICY].observations(SHIPPED[TRAINED_POLICY].calibration_count)
    return cached


@torch.no_grad()
def outlier_checkpoint(checkpoint: str) -> str:
    """The same function with loud channels: behind every norm some are LOUDNESS times louder, undone in the weights."""
    path = WORK / f"outliers_{_sha(checkpoint)}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        policy = load_uncompressed(checkpoint, load_recipe("fp32"), shipped=SHIPPED)
        channels = list(LOUD_CHANNELS)
        layers: Sequence[Any] = list(policy.model.decoder.layers)
        for layer in layers:
            attention, mlp = layer.self_attn, layer.mlp
            for norm, readers in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                norm.weight[channels] *= LOUDNESS
                for linear in readers:
                    linear.weight[:, channels] /= LOUDNESS
        save_checkpoint(policy, path)
    return _short(path)


def _sha(checkpoint: str) -> str:
    """A few digits that change with the weights."""
    return checkpoint_digest(checkpoint, SHIPPED)[:8]


def _short(path: Path) -> str:
    """Without the folders of this machine where it can be."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _plain(value: Any) -> Any:
    """Containers that YAML writes without tags."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


# -- what came out ----------------------------------------------------------------------------------------------------


def write_tables(store: Store) -> str:
    """All tables as Markdown, also written to OUT with CSV and pictures."""
    text, every = [], []
    for section in SECTIONS:
        words = {entry.name: entry.words for entry in section.entries}
        rows = method_results(store, list(words), section.suite, section.reference)
        if {row.method for row in rows} <= {"fp32", "w4a4"} and len(section.entries) > 1:
            continue  # nothing of its own was measured yet
        heading = f"{section.title}, {section.suite.replace('_', ' ')}"
        text.append(f"## {heading}\n\n{markdown(rows, words)}")
        every += [row for row in rows if (row.method, row.suite) not in {(r.method, r.suite) for r in every}]
        if len(rows) > 1:
            success_figure(OUT / f"{section.key}.png", rows, heading, words)
    write_csv(OUT / "tables.csv", every)
    _pictures(store)
    content = "\n".join(text)
    (OUT / "tables.md").write_text(content)
    return content


def _pictures(store: Store) -> None:
    names = [at(s, r).name for s in DRAWN for r in RATIOS]
    found: dict[str, MethodResult] = {row.method: row for row in method_results(store, ["fp32", "w4a4", *names], VM)}
    curves = {SELECTOR_WORDS[s]: [(r, found[at(s, r).name]) for r in RATIOS if at(s, r).name in found] for s in DRAWN}
    across = {
        words: found[name] for name, words in (("fp32", "fp32"), ("w4a4", "W4A4, nothing dropped")) if name in found
    }
    if any(curves.values()):
        title = f"W4A4, tokens dropped before layer {LAYER} of 4, visual matching"
        sweep_figure(OUT / "ratio_sweep.png", curves, title, "share of visual tokens dropped", across)
    deviations = {e.words: [d for d in store.deviations(e.name) if d["suite"] == VM] for e in MAIN[1:]}
    deviations = {words: episodes for words, episodes in deviations.items() if episodes}
    if deviations:
        deviation_figure(OUT / "deviation.png", deviations, "Cumulative action deviation from fp32 (teacher-forced)")


def main() -> int:
    """Measure or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "tables"))
    parser.add_argument("--checkpoint", default=TRAINED_POLICY)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float, help="stop then; the same command goes on")
    parser.add_argument("--only", nargs="+", choices=[section.key for section in SECTIONS], help="these sections alone")
    parser.add_argument("--rows", nargs="+", help="these rows of the sections alone, by the names in tables.csv")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of episodes")
    parser.add_argument("--out", type=Path, help="another folder of results")
    args = parser.parse_args()
    global OUT, WORK
    if args.out is not None:
        OUT, WORK = args.out.resolve(), args.out.resolve() / "compressed"
    OUT.mkdir(parents=True, exist_ok=True)
    if args.what == "tables":
        print(write_tables(Store(OUT)))
        return 0
    scaled: Callable[[int], int] = lambda episodes: max(1, round(args.scale * episodes))  # noqa: E731
    units: list[Unit] = []
    for section in SECTIONS:
        if args.only and section.key not in args.only:
            continue
        for method in methods(section, args.checkpoint, args.rows):
            units.append(Unit(method, section.suite, scaled(section.episodes), deviations=section.deviations))
    reference = Method("fp32", "fp32", args.checkpoint)
    deadline_s = None if args.minutes is None else 60 * args.minutes
    problems = run_units(units, OUT, reference=reference, jobs=args.jobs, deadline_s=deadline_s)
    print(write_tables(Store(OUT)))
    for name, problem in problems.items():
        print(f"error: {name}: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
