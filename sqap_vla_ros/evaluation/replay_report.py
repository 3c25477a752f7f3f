"""The report of a replay: one HTML file that needs nothing else, its numbers as JSON and CSV, and an overlay video."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from sqap_vla_ros.evaluation.replay import RecipeRun
from sqap_vla_ros.evaluation.replay_figures import (
    difference_figure,
    error_figure,
    latency_figure,
    motion_figure,
    tokens_figure,
    worst_pictures,
    write_video,
)
from sqap_vla_ros.evaluation.replay_metrics import frame_errors
from sqap_vla_ros.nodes.bag_observations import ReplaySpec

OPEN_LOOP = (
    "Open loop: the recorded camera went on whatever the policy would have done. The differences below say what "
    "compression did to the actions on this recording; they are not task success."
)


def write_report(
    out: Path,
    bag_path: Path,
    spec: ReplaySpec,
    runs: Sequence[RecipeRun],
    summaries: Sequence[dict[str, Any]],
    sources: dict[str, str],
    *,
    control_rate_hz: float,
    worst: int = 4,
    video: bool = True,
    show: bool = True,
) -> Path:
    """Write report.html, report.json, recipes.csv, frames.csv and overlay.mp4 into `out`; returns the HTML's path.

    runs: the reference first. worst: pictures of the frames farthest from the reference, for each other recipe.
    video: of the last recipe. show: progress.
    """
    reference, others = runs[0], runs[1:]
    document = {"bag": str(bag_path), "sources": sources, "reference": reference.recipe, "recipes": list(summaries)}
    (out / "report.json").write_text(json.dumps(document, indent=1))
    _write_recipes_csv(out / "recipes.csv", summaries)
    _write_frames_csv(out / "frames.csv", runs)
    figures = [
        ("Latency by stage", latency_figure(summaries, control_rate_hz)),
        ("Kept tokens by reason", tokens_figure(summaries)),
    ]
    if others:
        figures.append((f"Distance from {reference.recipe} over the recording", error_figure(runs)))
        figures.append((f"Single actions against {reference.recipe}", difference_figure(summaries[1:])))
    if any(summary["recorded_motion"] for summary in summaries):
        figures.append(("Planned against recorded motion", motion_figure(summaries, reference.records)))
    pictures = worst_pictures(bag_path, spec, runs, worst)
    if video:
        write_video(out / "overlay.mp4", bag_path, spec, runs[-1], show=show)
    page = _page(bag_path, sources, runs, summaries, figures, pictures, control_rate_hz)
    (out / "report.html").write_text(page)
    return out / "report.html"


# -- tables and the page ----------------------------------------------------------------------------------------------

_Column = tuple[str, Callable[[dict[str, Any]], Any]]


def _at(*path: str) -> Callable[[dict[str, Any]], Any]:
    def read(summary: dict[str, Any]) -> Any:
        value: Any = summary
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    return read


_COLUMNS: list[_Column] = [
    ("recipe", _at("recipe")),
    ("frames predicted", _at("predicted")),
    ("p50 ms", _at("latency_ms", "total", "p50")),
    ("p95 ms", _at("latency_ms", "total", "p95")),
    ("p99 ms", _at("latency_ms", "total", "p99")),
    ("max ms", _at("latency_ms", "total", "max")),
    ("deadline misses", _at("deadline_misses")),
    ("peak memory MB", _at("peak_memory_mb")),
    ("kept tokens", _at("kept", "total")),
    ("gripper in view", _at("ring", "in_view")),
    ("action mm (mean)", _at("action_difference", "translation_mm", "mean")),
    ("action mm (p95)", _at("action_difference", "translation_mm", "p95")),
    ("action deg (mean)", _at("action_difference", "rotation_deg", "mean")),
    ("chunk end mm", _at("action_difference", "end_translation_mm", "mean")),
    ("chunk end deg", _at("action_difference", "end_rotation_deg", "mean")),
    ("gripper disagrees", _at("action_difference", "gripper_disagreement")),
    ("QVLA Eq. 4", _at("action_difference", "squared")),
    ("QVLA Eq. 5", _at("action_difference", "cumulative")),
    ("seam mm", _at("seams", "translation_mm", "mean")),
    ("jerk m/s3", _at("jerk_m_s3", "mean")),
]
_FRAME_COLUMNS = (
    *("recipe", "frame", "stamp_ns", "age_s", "policy_ms", "kept"),
    *("gripper_u", "gripper_v", "error", "problem", "note"),
)
_TERMINAL = ("recipe", "p50 ms", "p95 ms", "peak memory MB", "kept tokens", "action mm (mean)", "action deg (mean)")
_SHARES = {"deadline misses", "gripper in view", "gripper disagrees"}


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, str | int):
        return str(value)
    return f"{100 * value:.1f} %" if name in _SHARES else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def print_table(bag_path: Path, summaries: Sequence[dict[str, Any]]) -> None:
    """The most important columns, for the terminal."""
    columns = [column for column in _COLUMNS if column[0] in _TERMINAL]
    table = Table(title=f"Replay of {bag_path.name}")
    for name, _ in columns:
        table.add_column(name, justify="left" if name == "recipe" else "right")
    for summary in summaries:
        table.add_row(*(_cell(name, read(summary)) for name, read in columns))
    Console().print(table)


def _write_recipes_csv(path: Path, summaries: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([name for name, _ in _COLUMNS])
        writer.writerows([[read(summary) for _, read in _COLUMNS] for summary in summaries])


def _write_frames_csv(path: Path, runs: Sequence[RecipeRun]) -> None:
    reference = {record.index: record for record in runs[0].records if record.deltas is not None}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_FRAME_COLUMNS)
        for run in runs:
            for record in run.records:
                error = None
                if record.deltas is not None and record.index in reference:
                    error = float(frame_errors([(record, reference[record.index])])[0])
                kept = len(record.selection.indices) if record.selection is not None else None
                u, v = record.pixel if record.pixel is not None else (None, None)
                milliseconds = record.policy_ms or None
                place = (run.recipe, record.index, record.stamp_ns, record.age_s)
                writer.writerow([*place, milliseconds, kept, u, v, error, record.problem, record.note])


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130)
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def _jpeg(image: NDArray[np.uint8]) -> str:
    return base64.b64encode(iio.imwrite("<bytes>", image, extension=".jpg", quality=85)).decode()


def _page(
    bag_path: Path,
    sources: dict[str, str],
    runs: Sequence[RecipeRun],
    summaries: Sequence[dict[str, Any]],
    figures: Sequence[tuple[str, Figure]],
    pictures: Sequence[tuple[str, int, float, NDArray[np.uint8]]],
    control_rate_hz: float,
) -> str:
    heads = "".join(f"<th>{html.escape(name)}</th>" for name, _ in _COLUMNS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell(name, read(summary)))}</td>" for name, read in _COLUMNS) + "</tr>"
        for summary in summaries
    )
    inputs = summaries[0]["inputs"]
    problems = {**inputs["problems"], **summaries[0]["problems"]}
    hidden = summaries[0]["ring"]["not_in_view"]
    facts = {
        **sources,
        "images": f"{inputs['images']}, used {inputs['used']}, observed {inputs['observed']}",
        "without camera_info": inputs["without_camera_info"],
        "stale when recorded": inputs["stale"],
        "time went back": inputs["restarts"],
        "problems": ", ".join(f"{name}: {count}" for name, count in problems.items()) or "none",
        "gripper not in view": ", ".join(f"{why}: {count}" for why, count in hidden.items()) or "never",
        "deadline": f"{1e3 / control_rate_hz:.0f} ms ({control_rate_hz:g} Hz)",
        "policy": f"{runs[0].info.checkpoint}, {runs[0].info.parameters / 1e6:.1f} M parameters in {runs[0].recipe}",
    }
    listing = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items())
    plots = "".join(
        f'<h2>{html.escape(title)}</h2><img alt="{html.escape(title)}" src="data:image/png;base64,{_png(figure)}">'
        for title, figure in figures
    )
    thumbnails = "".join(
        f'<figure><img alt="frame {index}" src="data:image/jpeg;base64,{_jpeg(picture)}">'
        f"<figcaption>{html.escape(recipe)}, frame {index}: ||A' - A*|| = {error:.3g}</figcaption></figure>"
        for recipe, index, error, picture in pictures
    )
    heading = f"<h2>Frames farthest from {html.escape(runs[0].recipe)}</h2>"
    worst = f"{heading}<div class=row>{thumbnails}</div>" if thumbnails else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Replay of {html.escape(bag_path.name)}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; font-size: 13px; margin: 1rem 0; display: block; overflow-x: auto }}
th, td {{ border-bottom: 1px solid #ddd; padding: .3rem .6rem; text-align: right; white-space: nowrap }}
th:first-child, td:first-child {{ text-align: left }}
table.facts th, table.facts td {{ text-align: left; white-space: normal }}
img {{ max-width: 100% }} .row {{ display: flex; flex-wrap: wrap; gap: 1rem }}
figure {{ margin: 0; max-width: 420px }} figcaption {{ font-size: 13px }}
p.note {{ background: #fff6dd; border-left: 4px solid #e0a100; padding: .6rem 1rem }}
</style></head><body>
<h1>Replay of {html.escape(bag_path.name)}</h1>
<p class=note>{html.escape(OPEN_LOOP)}</p>
<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>
<p>Differences are to <b>{html.escape(runs[0].recipe)}</b> on the same frames and noise. QVLA Eq. 4 is the mean squared,
Eq. 5 the summed distance between normalised chunks. Seams are unblended jumps between successive chunks.</p>
{plots}{worst}
<h2>What was read</h2><table class=facts><tbody>{listing}</tbody></table>
</body></html>
"""
