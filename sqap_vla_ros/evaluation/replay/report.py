"""The report of a replay: one HTML file that needs nothing else, its numbers as JSON and CSV, and an overlay video."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imageio.v3 as iio
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sqap_vla_ros.compression.load import MICRO
from sqap_vla_ros.evaluation.replay.figures import (
    difference_figure,
    error_figure,
    latency_figure,
    motion_figure,
    tokens_figure,
    worst_pictures,
    write_video,
)
from sqap_vla_ros.evaluation.replay.run import RecipeRun
from sqap_vla_ros.evaluation.replay.tables import GROUPS, busy_warning, write_frames_csv, write_recipes_csv
from sqap_vla_ros.policy.checkpoints.writing import write_text

if TYPE_CHECKING:
    from sqap_vla_ros.evaluation.replay.sources import RecordingSpec

OPEN_LOOP = (
    "Open loop: the recorded camera went on whatever the policy would have done. Differences between recipes say what "
    "compression did to the actions on this recording; they are not task success."
)
RANDOM_WEIGHTS = (
    "The policy is the built-in one with random weights: its actions mean nothing, neither do their distances from the "
    "recorded motion. Give --checkpoint for a trained one."
)
OVERLAY = (
    "Tinted: kept tokens, by reason. Dark: dropped ones. The white square is the gripper's patch, the line the chunk's "
    "path as the camera would see it (both where the bag tells where the gripper is)."
)
VIDEO = "overlay.mp4"


def write_report(
    out: Path,
    bag_path: Path,
    spec: RecordingSpec,
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
    write_text(out / "report.json", json.dumps(document, indent=1))
    write_recipes_csv(out / "recipes.csv", summaries)
    write_frames_csv(out / "frames.csv", runs)
    figures = [("Latency by stage", latency_figure(summaries, control_rate_hz))]
    if any(summary["kept"] for summary in summaries):
        figures.append(("Kept tokens by reason", tokens_figure(summaries)))
    if others:
        figures.append((f"Distance from {reference.recipe} over the recording", error_figure(runs)))
        figures.append((f"Single actions against {reference.recipe}", difference_figure(summaries[1:])))
    if any(summary["recorded_motion"] for summary in summaries):
        figures.append(("Planned against recorded motion", motion_figure(summaries, reference.records)))
    pictures = worst_pictures(bag_path, spec, runs, worst)
    note = ""
    if video and write_video(out / VIDEO, bag_path, spec, runs[-1], show=show):
        note = f"<p>{VIDEO}, beside this page, shows every frame under <b>{html.escape(runs[-1].recipe)}</b>.</p>"
    page = _page(bag_path, sources, runs, summaries, figures, pictures, control_rate_hz, spec.max_age_s, note)
    write_text(out / "report.html", page)
    return out / "report.html"


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
    max_age_s: float,
    video: str,
) -> str:
    title = html.escape(f"Replay of {bag_path.name}: {', '.join(run.recipe for run in runs)}")
    plots = "".join(
        f'<h2>{html.escape(name)}</h2><img alt="{html.escape(name)}" src="data:image/png;base64,{_png(figure)}">'
        for name, figure in figures
    )
    random = f"<p class=note>{RANDOM_WEIGHTS}</p>" if runs[0].info.checkpoint.startswith(MICRO) else ""
    busy = f"<p class=note>{html.escape(warning)}</p>" if (warning := busy_warning(summaries)) else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; font-size: 14px; margin: 1rem 0; display: block; overflow-x: auto }}
th, td {{ border-bottom: 1px solid #ddd; padding: .25rem .7rem; text-align: right; font-weight: normal }}
th:first-child, td:first-child {{ text-align: left; position: sticky; left: 0; background: #fff }}
thead th, th.group {{ font-weight: bold }} th.group {{ padding-top: .9rem }}
table.text th, table.text td {{ text-align: left; vertical-align: top }}
img {{ max-width: 100% }}
.row {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: .8rem }}
figure {{ margin: 0 }} figcaption {{ font-size: 13px }}
p.note {{ background: #fff6dd; border-left: 4px solid #e0a100; padding: .6rem 1rem }}
</style></head><body>
<h1>{title}</h1>
<p class=note>{html.escape(OPEN_LOOP)}</p>{random}{busy}
{_measures_table(runs, summaries)}
<p>A deadline is one period of {control_rate_hz:g} Hz, {1e3 / control_rate_hz:.0f} ms. The reference is
<b>{html.escape(runs[0].recipe)}</b>, given the same frames and the same noise. Distances of QVLA's Eq. 4 and 5 are
between normalised chunks, clipped as they are executed. Jumps are between chunks of successive frames, unblended.</p>
{plots}
{_latency_table(summaries)}
{_worst(runs, pictures)}{video}
<h2>What was compressed, and how</h2>{_recipes_table(summaries)}
<h2>What was read</h2>{_inputs_table(sources, summaries[0], max_age_s)}
</body></html>
"""


def _measures_table(runs: Sequence[RecipeRun], summaries: Sequence[dict[str, Any]]) -> str:
    """Return the table of measures (down) by recipes (across); rows without any value are left out."""
    rows = [_row("th", ["", *(run.recipe for run in runs)])]
    for group, measures in GROUPS.items():
        known = [measure for measure in measures if any(measure.read(summary) is not None for summary in summaries)]
        if known:
            rows.append(f'<tr><th class=group colspan="{len(runs) + 1}">{html.escape(group)}</th></tr>')
            rows += [_row("td", [each.words, *(each.text(summary) for summary in summaries)]) for each in known]
    return f"<table><thead>{rows[0]}</thead><tbody>{''.join(rows[1:])}</tbody></table>"


def _latency_table(summaries: Sequence[dict[str, Any]]) -> str:
    """Return the table of milliseconds by stage; the stages are those of any recipe, in order of execution."""
    stages = list(dict.fromkeys(stage for summary in summaries for stage in summary["latency_ms"]))
    if not stages:
        return ""
    stages = [*(stage for stage in stages if stage != "total"), "total"]
    head = _row("th", ["p50 / p95 / p99 / max, ms", *(summary["recipe"] for summary in summaries)])
    body = ""
    for stage in stages:
        cells = [summary["latency_ms"].get(stage) for summary in summaries]
        texts = [" / ".join(f"{ms:.3g}" for ms in cell.values()) if cell else "–" for cell in cells]
        body += _row("td", [stage, *texts])
    return f"<h2>Latency by stage, in numbers</h2><table><thead>{head}</thead><tbody>{body}</tbody></table>"


def _worst(runs: Sequence[RecipeRun], pictures: Sequence[tuple[str, int, float, NDArray[np.uint8]]]) -> str:
    """Return the pictures, a row a recipe."""
    sections = []
    for run in runs[1:]:
        figures = "".join(
            f'<figure><img alt="frame {index}" src="data:image/jpeg;base64,{_jpeg(picture)}">'
            f"<figcaption>frame {index}: distance {error:.3g}</figcaption></figure>"
            for recipe, index, error, picture in pictures
            if recipe == run.recipe
        )
        if figures:
            sections.append(f"<h3>{html.escape(run.recipe)}</h3><div class=row>{figures}</div>")
    if not sections:
        return ""
    return f"<h2>Frames farthest from {html.escape(runs[0].recipe)}</h2><p>{OVERLAY}</p>{''.join(sections)}"


def _recipes_table(summaries: Sequence[dict[str, Any]]) -> str:
    head = _row("th", ["recipe", "what it does", "calibrated on", "parameters", "kept tokens by reason, mean"])
    body = ""
    for summary in summaries:
        compression = summary["compression"]
        kept = ", ".join(f"{reason} {count:.3g}" for reason, count in summary["kept"].items() if reason != "total")
        million = f"{summary['parameters'] / 1e6:.1f} M"
        body += _row("td", [summary["recipe"], compression["description"], compression["calibration"], million, kept])
    return f"<table class=text><thead>{head}</thead><tbody>{body}</tbody></table>"


def _inputs_table(sources: dict[str, str], summary: dict[str, Any], max_age_s: float) -> str:
    """Return the table of inputs: where each came from, and what was missing or late."""
    inputs = summary["inputs"]
    hidden = summary["ring"]["not_in_view"]
    facts = {
        **sources,
        "images": f"{inputs['images']} in the recording, {inputs['used']} used, {inputs['observed']} observed",
        "images without camera_info": inputs["without_camera_info"],
        "images recorded too late": f"{inputs['stale']} (more than {max_age_s:g} s after their stamp)",
        "images that could not be observed": _counts(inputs["problems"]) or "none",
        "times that stamps went back": inputs["restarts"],
        "gripper not in view": _counts(hidden) or "never",
    }
    return f"<table class=text><tbody>{''.join(_row('td', [k, str(v)]) for k, v in facts.items())}</tbody></table>"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{text}: {count}" for text, count in counts.items())


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
