"""The tables of the papers on the embedded benchmark: every method here in closed loop, on the same episodes.

    python benchmarks/papers_tables.py run [--jobs 2] [--minutes 40] [--only main sweep] [--scale 0.2]
    python benchmarks/papers_tables.py tables      # prints and writes the tables from what has been measured
    python benchmarks/papers_tables.py costs [--rows qvla_w4a4]   # memory, widths and operations of rows without them,
                                                                  # or of these rows anew

`run` goes through SECTIONS in the order of their importance and may be interrupted: the same command goes on.
Raw results, one line an episode: benchmarks/results/closed_loop/episodes/; tables.md, CSV and pictures beside them.
`papers_rows.py` holds the rows. Their recipes are the shipped ones where they fit a decoder of four layers, else made
there. methods.json says which one each row was; the recipe files that the runs read are written anew, beside the
compressed policies.
docs/benchmark.md says what is measured and what came out.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from papers_rows import (
    DRAWN,
    LAYER,
    MAIN,
    RATIOS,
    ROUNDED,
    ROW_BITS,
    SECTIONS,
    SELECTOR_WORDS,
    VM,
    WEIGHTS,
    WEIGHTS_ACTIVATIONS,
    Section,
    at,
)

from sqap_vla_ros.compression.bops import operation_shares
from sqap_vla_ros.compression.costs import costs_of_file, expected_costs
from sqap_vla_ros.compression.files.job import compress_to_file
from sqap_vla_ros.compression.files.storage import CompressedFile
from sqap_vla_ros.compression.load import checkpoint_digest, load_uncompressed
from sqap_vla_ros.compression.recipe import Recipe, load_recipe
from sqap_vla_ros.contracts import TRAINED_POLICY
from sqap_vla_ros.evaluation.closed_loop.figures import deviation_figure, success_figure, sweep_figure
from sqap_vla_ros.evaluation.closed_loop.run_study import run_units
from sqap_vla_ros.evaluation.closed_loop.study import Method, Store, Unit
from sqap_vla_ros.evaluation.closed_loop.tables import MethodResult, markdown, method_results, write_csv
from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
from sqap_vla_ros.policy.config import COGACT_BASE
from sqap_vla_ros.shipped import SHIPPED

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "closed_loop"
WORK = ROOT / "out" / "papers_tables"  # compressed policies and recipe files; made anew when missing
LOUD_CHANNELS, LOUDNESS = (7, 23, 64, 101), 30.0


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


def add_costs(store: Store, checkpoint: str, rows: Sequence[str] = ()) -> None:
    """Add the costs to methods that have none, and count those of `rows` anew.

    Widths by row are chosen anew, for `checkpoint` alone. On the 7B geometry nobody has chosen them: there the paper's
    count is the least that their average allows.
    """
    config = load_uncompressed(checkpoint, load_recipe("fp32"), shipped=SHIPPED).model.config
    described, weights = store.methods(), checkpoint_digest(checkpoint, SHIPPED)
    lacking = {
        name: Recipe.from_dict(known["recipe"])
        for name, known in described.items()
        if "costs" not in known or name in rows
    }
    by_row = {name for name, recipe in lacking.items() if recipe.quantization and recipe.quantization.row_bits}
    for name in sorted(lacking, key=by_row.__contains__):  # these take minutes
        costs = expected_costs(lacking[name], config)
        if name in by_row:
            if described[name]["checkpoint_sha256"] != weights:
                continue
            file = CompressedFile(Path(compressed(checkpoint, lacking[name], "plain")))
            costs = costs_of_file(file, lacking[name])
        shares = operation_shares(lacking[name], COGACT_BASE)
        costs |= {f"bops_{definition}_7b": share for definition, share in shares.items()}
        store.describe(name, {"costs": {key: round(value, 4) for key, value in costs.items()}})


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
    by_bits = (*ROUNDED, *ROW_BITS[1:], *WEIGHTS_ACTIVATIONS[1:], *WEIGHTS[1:])
    for name, entries in (("deviation", MAIN[1:]), ("deviation_bits", by_bits)):
        deviations = {e.words: [d for d in store.deviations(e.name) if d["suite"] == VM] for e in entries}
        deviations = {words: episodes for words, episodes in deviations.items() if episodes}
        if deviations:
            title = "Cumulative action deviation from fp32 (teacher-forced)"
            deviation_figure(OUT / f"{name}.png", deviations, title)


def main() -> int:
    """Measure or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "tables", "costs"))
    parser.add_argument("--checkpoint", default=TRAINED_POLICY)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float, help="stop then; the same command goes on")
    parser.add_argument("--only", nargs="+", choices=[section.key for section in SECTIONS], help="these sections alone")
    parser.add_argument("--rows", nargs="+", help="these rows of the sections alone, by the names in tables.csv")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of episodes")
    parser.add_argument("--ray", metavar="ADDRESS", help="over a Ray cluster: auto, local or host:port")
    parser.add_argument("--out", type=Path, help="another folder of results")
    args = parser.parse_args()
    global OUT, WORK
    if args.out is not None:
        OUT, WORK = args.out.resolve(), args.out.resolve() / "compressed"
    OUT.mkdir(parents=True, exist_ok=True)
    if args.what == "costs":
        add_costs(Store(OUT), args.checkpoint, args.rows or ())
    if args.what != "run":
        print(write_tables(Store(OUT)))
        return 0
    units: list[Unit] = []
    for section in SECTIONS:
        if args.only and section.key not in args.only:
            continue
        for method in methods(section, args.checkpoint, args.rows):
            episodes = max(1, round(args.scale * section.episodes_of(method.name)))
            units.append(Unit(method, section.suite, episodes, deviations=section.deviations))
    reference = Method("fp32", "fp32", args.checkpoint)
    deadline_s = None if args.minutes is None else 60 * args.minutes
    problems = run_units(units, OUT, reference=reference, jobs=args.jobs, deadline_s=deadline_s, ray_address=args.ray)
    print(write_tables(Store(OUT)))
    for name, problem in problems.items():
        print(f"error: {name}: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
