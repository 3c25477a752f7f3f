"""Results of closed-loop runs as rows of numbers, Markdown and CSV. docs/benchmark.md explains the columns."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sqap_vla_ros.evaluation.closed_loop.statistics import Interval, PairedOutcomes, wilson
from sqap_vla_ros.evaluation.closed_loop.study import Store
from sqap_vla_ros.policy.checkpoints.writing import write_text, written_aside
from sqap_vla_ros.simulation.vocabulary import TaskFamily

FAMILY_WORDS = {
    TaskFamily.PICK: "Pick",
    TaskFamily.MOVE_NEAR: "Move near",
    TaskFamily.OPEN_DRAWER: "Open drawer",
    TaskFamily.CLOSE_DRAWER: "Close drawer",
    TaskFamily.PLACE_IN_DRAWER: "Place in drawer",
    TaskFamily.PLACE_IN_BOWL: "Place in bowl",
}


@dataclass(frozen=True)
class CostColumn:
    """A number of `compression.costs` in a table: its name there, its words, and how it is written."""

    name: str
    words: str
    text: Callable[[float], str]


COSTS = (
    CostColumn("bops_paper", "BOPs, paper", lambda share: f"{share:.1%}"),
    CostColumn("bops_bit_product", "BOPs, product", lambda share: f"{share:.1%}"),
    CostColumn("bits_per_parameter", "bits a weight", lambda bits: f"{bits:.2f}"),
    CostColumn("bits_per_channel", "a row", lambda bits: f"{bits:.2f}"),
    CostColumn("weight_bytes", "weights, MiB", lambda size: f"{size / 2**20:.2f}"),
)
COSTS_7B = (
    "bops_paper_7b",
    "bops_bit_product_7b",
)  # of the recipe on the published geometry, mixed rows at their average; in the CSV and JSON alone


@dataclass(frozen=True)
class MethodResult:
    """The results of one method on one suite: a row of the report.

    success: over all episodes. families: by family, None without episodes. against: success minus the reference's on
    the episodes both did, with its interval; p_value: exact McNemar. Means are over episodes: path_m and steps over
    successful ones only, since a failed episode lasts until its time is over. deviation: of a whole taught episode.
    costs: by the names in `COSTS` and `COSTS_7B`, without those that are not known.
    """

    method: str
    suite: str
    episodes: int
    success: Interval
    families: Mapping[str, Interval | None]
    against: Interval | None
    p_value: float | None
    pairs: int
    steps: float | None
    path_m: float | None
    jerk_m_s3: float | None
    deviation: float | None
    inference_ms: float
    costs: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return one flat line, rates in percent."""
        line: dict[str, Any] = {"method": self.method, "suite": self.suite, "episodes": self.episodes}
        line |= _percent("success", self.success)
        for family, interval in self.families.items():
            line |= _percent(family, interval)
        line |= _percent("difference", self.against)
        line |= {"mcnemar_p": None if self.p_value is None else round(self.p_value, 5), "pairs": self.pairs}
        for name, digits in (("steps", 1), ("path_m", 3), ("jerk_m_s3", 2), ("deviation", 3), ("inference_ms", 1)):
            value = getattr(self, name)
            line[name] = None if value is None else round(value, digits)
        line |= {name: self.costs.get(name) for name in (*(column.name for column in COSTS), *COSTS_7B)}
        return line

    def cost_texts(self) -> list[str]:
        """Return the cells of `COSTS`, empty where a number is not known."""
        return [column.text(self.costs[column.name]) if column.name in self.costs else "" for column in COSTS]


def method_results(
    store: Store, methods: Sequence[str], suite: str, reference: str | None = None
) -> list[MethodResult]:
    """Return a row for every method that has episodes.

    reference: whom the others are compared with; the first of `methods` unless given.
    """
    if not methods:
        return []
    reference = reference or methods[0]
    described = store.methods()
    theirs = {_key(r): bool(r["success"]) for r in _of(store.episodes(reference), suite)}
    rows = []
    for method in methods:
        episodes = _of(store.episodes(method), suite)
        if not episodes:
            continue
        known = described.get(method, {})
        paired = [r for r in episodes if _key(r) in theirs] if method != reference else []
        outcomes = PairedOutcomes.of([bool(r["success"]) for r in paired], [theirs[_key(r)] for r in paired])
        done = [r for r in episodes if r["success"]]
        distances = [sum(r["distances"]) for r in _of(store.deviations(method), suite)]
        rows.append(
            MethodResult(
                method=method,
                suite=suite,
                episodes=len(episodes),
                success=wilson(len(done), len(episodes)),
                families={
                    str(family): _rate([r for r in episodes if r["family"] == str(family)]) for family in TaskFamily
                },
                against=outcomes.difference() if paired else None,
                p_value=outcomes.mcnemar() if paired else None,
                pairs=len(paired),
                steps=_mean([r["steps"] for r in done]),
                path_m=_mean([r["path_m"] for r in done]),
                jerk_m_s3=_mean([r["jerk_m_s3"] for r in episodes if r["jerk_m_s3"] is not None]),
                deviation=_mean(distances),
                inference_ms=_mean([r["inference_ms"] for r in episodes]) or 0.0,
                costs=_costs(known),
            )
        )
    return rows


def _costs(known: Mapping[str, Any]) -> dict[str, float]:
    """Return a method's costs; studies of earlier versions have the paper's count of operations alone."""
    before = {"bops_paper": known.get("bops"), "bops_paper_7b": known.get("bops_7b")}
    return {name: value for name, value in before.items() if value is not None} | known.get("costs", {})


def markdown(rows: Sequence[MethodResult], words: Mapping[str, str] | None = None) -> str:
    """Return the rows as a Markdown table. words: method -> its name in the table."""
    columns = [
        "method",
        "n",
        *FAMILY_WORDS.values(),
        "**success** [95 %]",
        "− reference [95 %]",
        "p",
        "jerk",
        "deviation",
    ]
    columns += [column.words for column in COSTS]
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    for row in rows:
        cells = [(words or {}).get(row.method, row.method), str(row.episodes)]
        cells += [_short(row.families[family]) for family in FAMILY_WORDS]
        success = row.success
        cells.append(f"**{100 * success.value:.1f}** [{100 * success.low:.1f}, {100 * success.high:.1f}]")
        against = row.against
        cells.append(
            ""
            if against is None
            else f"{100 * against.value:+.1f} [{100 * against.low:+.1f}, {100 * against.high:+.1f}]"
        )
        cells.append("" if row.p_value is None else "< 0.001" if row.p_value < 0.001 else f"{row.p_value:.3f}")
        cells.append("" if row.jerk_m_s3 is None else f"{row.jerk_m_s3:.2f}")
        cells.append("" if row.deviation is None else f"{row.deviation:.2f}")
        cells += row.cost_texts()
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_csv(path: Path, rows: Sequence[MethodResult]) -> None:
    """Write one line a row, with every number that there is."""
    with written_aside(path) as partial, partial.open("w", newline="") as file:
        lines = [row.to_dict() for row in rows]
        writer = csv.DictWriter(file, list(lines[0]) if lines else ["method"])
        writer.writeheader()
        writer.writerows(lines)


def write_json(path: Path, rows: Sequence[MethodResult]) -> None:
    """Write the same numbers as `write_csv` as a list of mappings."""
    write_text(path, json.dumps([row.to_dict() for row in rows], indent=1) + "\n")


def _of(records: Sequence[dict[str, Any]], suite: str) -> list[dict[str, Any]]:
    return [record for record in records if record["suite"] == suite]


def _key(record: Mapping[str, Any]) -> tuple[str, int]:
    return record["family"], record["seed"]


def _rate(records: Sequence[Mapping[str, Any]]) -> Interval | None:
    return wilson(sum(bool(r["success"]) for r in records), len(records)) if records else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _short(interval: Interval | None) -> str:
    return "" if interval is None else f"{100 * interval.value:.0f}"


def _percent(name: str, interval: Interval | None) -> dict[str, float | None]:
    names = (name, f"{name}_low", f"{name}_high")
    if interval is None:
        return dict.fromkeys(names)
    return dict(zip(names, (round(100 * v, 2) for v in (interval.value, interval.low, interval.high)), strict=True))
