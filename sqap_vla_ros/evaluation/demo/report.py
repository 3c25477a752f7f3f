"""The report of a run: one HTML file that needs nothing else, the same page as PNG, and the numbers as JSON."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from PIL import Image

from sqap_vla_ros.evaluation.demo.figures import run_figure
from sqap_vla_ros.evaluation.demo.film import Film
from sqap_vla_ros.nodes.recorder.recording import RecordedImage
from sqap_vla_ros.policy.checkpoints.writing import write_text, written_aside
from sqap_vla_ros.policy.costs import costs_in_words

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em; } table { border-collapse: collapse; } td, th { padding: .15em .9em .15em 0; text-align: right; }
td:first-child, th:first-child { text-align: left; } img { max-width: 100%; } .side { display: flex; gap: 2em;
flex-wrap: wrap; } pre { white-space: pre-wrap; } td:first-child { white-space: nowrap; } .muted { color: #666; }
"""


def write_report(film: Film, folder: Path) -> dict[str, Any]:
    """Write report.html, report.png and report.json into `folder`; return the summary."""
    recording = film.recording
    summary = recording.summary()
    write_text(folder / "report.json", json.dumps(summary, indent=1))
    figure = run_figure(film)
    with written_aside(folder / "report.png") as partial:
        figure.savefig(partial, dpi=110, format="png")
    plt.close(figure)
    write_text(folder / "report.html", _page(film, summary, (folder / "report.png").read_bytes()))
    return summary


def summary_text(summary: dict[str, Any]) -> str:
    """Return a few lines for the terminal."""
    model, counters, latency = summary["model"], summary["counters"], summary["latency_ms"]
    joint_error = summary["joint_error_rad"]
    stages = ", ".join(f"{name} {values['p50']:.1f}" for name, values in latency.items() if values and name != "total")
    kept = ", ".join(f"{name} {number:.0f}" for name, number in summary["kept_mean"].items())
    aimless = " (the motion means nothing)" if "random weights" in str(model.get("checkpoint")) else ""
    lines = [
        *_outcomes(summary["episodes"]),
        f"policy        {model.get('checkpoint')}, recipe {model.get('recipe')}{aimless}",
        *(f"{name:<14}{words}" for name, words in costs_in_words(model.get("costs", {})).items()),
        f"chunks        {counters.get('chunks_published', summary['chunks'])} published, "
        f"{counters.get('chunks_rejected', 0)} rejected for safety, in {summary['duration_s']:.1f} s",
        f"latency       {_pair(summary['image_to_chunk_ms'])} ms from the image's stamp to the chunk (median, p95)",
        f"stages        {stages} ms (medians)",
        f"overhead      {_pair(summary['overhead_ms'])} ms (median, p95): image to chunk without the policy's own time",
        f"tokens        {summary['tokens_kept']} of {summary['tokens_total']} kept: {kept}",
        f"motion        the tool travelled {summary['tool_travel_m']:.2f} m",
    ]
    if joint_error["rms"] is not None:
        lines.append(
            f"following     commanded minus measured joints: {1e3 * joint_error['rms']:.1f} mrad rms, "
            f"{1e3 * joint_error['max']:.1f} at most"
        )
    return "\n".join(lines)


def _outcomes(episodes: list[dict[str, Any]]) -> list[str]:
    """Return each task and what became of it, and the sum where there are several."""
    lines = []
    for episode in episodes:
        done_s = episode["done_s"]
        outcome = f"not done in {episode['duration_s']:.1f} s" if done_s is None else f"done in {done_s:.1f} s"
        lines.append(f"task          {episode['instruction']}: {outcome}")
    if len(episodes) > 1:
        done = sum(episode["done_s"] is not None for episode in episodes)
        lines.append(f"success       {done} of {len(episodes)}")
    return lines


def _pair(percentiles: dict[str, float]) -> str:
    return f"{percentiles['p50']:.1f}, {percentiles['p95']:.1f}" if percentiles else "unknown"


def _page(film: Film, summary: dict[str, Any], png: bytes) -> str:
    recording = film.recording
    model = summary["model"]
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td>{values[q]:.1f}</td>" if values else "<td></td>" for q in ("p50", "p95", "p99"))
        + "</tr>"
        for name, values in {
            **summary["latency_ms"],
            "overhead of the node": summary["overhead_ms"],
            "image stamp to chunk": summary["image_to_chunk_ms"],
        }.items()
    )
    states = "".join(
        f"<tr><td>{state['at_s']:.1f} s</td><td>{state['state']}</td><td style='text-align:left'>"
        f"{html.escape(state['reason'])}</td></tr>"
        for state in summary["states"][-12:]
    )
    middle = recording.images[len(recording.images) // 2]
    facts = html.escape(summary_text(summary))
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<title>Run: {html.escape(recording.instruction)}</title><style>{_STYLE}</style>
<h1>{html.escape(recording.instruction)}</h1>
<p class="muted">{html.escape(str(model.get("checkpoint")))}, recipe {html.escape(str(model.get("recipe")))},
{model.get("parameters", 0):,} parameters</p>
<div class="side"><div><img width="520" src="data:image/png;base64,{_picture(film, middle)}" alt="overlay">
<p class="muted">The camera image in the middle of the run: kept tokens by reason, the gripper's patch, and where<br>
the tool is commanded to go. The whole run is in demo.mp4. Between two chunks the same policy looked at<br>
the images after the run, so that each shows its own tokens; the arm followed the chunks alone.</p></div>
<table><tr><th>ms</th><th>median</th><th>p95</th><th>p99</th></tr>{rows}</table></div>
<pre>{facts}</pre>
<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="plots of the run">
<h2>States of policy_node</h2><table>{states}</table></html>
"""


def _picture(film: Film, image: RecordedImage) -> str:
    buffer = io.BytesIO()
    Image.fromarray(film.picture(image)).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()
