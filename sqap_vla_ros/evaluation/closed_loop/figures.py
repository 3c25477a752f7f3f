"""Pictures of closed-loop results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from sqap_vla_ros.evaluation.closed_loop.deviation import cumulative_curve
from sqap_vla_ros.evaluation.closed_loop.statistics import Interval
from sqap_vla_ros.evaluation.closed_loop.tables import MethodResult
from sqap_vla_ros.policy.checkpoints.writing import written_aside

_DPI = 120
_COLOURS = 10  # the default cycle has as many before it repeats


def success_figure(
    path: Path, rows: Sequence[MethodResult], title: str, words: Mapping[str, str] | None = None
) -> None:
    """Draw success by method with its interval; that of the first row, the reference, spans the whole height."""
    names = [(words or {}).get(row.method, row.method) for row in rows]
    width = 4.5 + 0.07 * max(map(len, names), default=0)  # names to the left of the axes, however long
    figure, axes = plt.subplots(figsize=(width, 0.9 + 0.3 * len(rows)), layout="constrained")
    places = np.arange(len(rows))[::-1]
    values = np.array([100 * row.success.value for row in rows])
    axes.errorbar(
        values, places, xerr=_limits([row.success for row in rows], values), fmt="o", capsize=3, color="tab:blue"
    )
    axes.axvspan(100 * rows[0].success.low, 100 * rows[0].success.high, color="0.92", zorder=0)
    axes.axvline(values[0], color="0.6", linewidth=1, zorder=0)
    axes.set_yticks(places, names, fontsize=9)
    axes.set_xlim(0, 100)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlabel("success, % (95 % Wilson interval)")
    figure.suptitle(title, fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    with written_aside(path) as partial:
        figure.savefig(partial, dpi=_DPI, format=path.suffix[1:])
    plt.close(figure)


def sweep_figure(
    path: Path,
    curves: Mapping[str, Sequence[tuple[float, MethodResult]]],
    title: str,
    x_label: str,
    lines: Mapping[str, MethodResult] | None = None,
) -> None:
    """Draw success along a parameter, one curve a method. lines: methods without the parameter, drawn across."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for number, (label, points) in enumerate(curves.items()):
        if not points:
            continue
        x = np.array([value for value, _ in points])
        y = np.array([100 * row.success.value for _, row in points])
        limits = _limits([row.success for _, row in points], y)
        spread = (
            (number - (len(curves) - 1) / 2) * 0.006 * float(np.ptp(x) or 1.0)
        )  # so that bars do not hide each other
        axes.errorbar(x + spread, y, yerr=limits, fmt="o-", capsize=3, markersize=4, label=label)
    for style, (label, row) in zip(("--", ":", "-."), (lines or {}).items(), strict=False):
        axes.axhline(100 * row.success.value, color="0.4", linestyle=style, linewidth=1, label=label)
    axes.set_ylim(0, 100)
    axes.set_xlabel(x_label)
    axes.set_ylabel("success, %")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with written_aside(path) as partial:
        figure.savefig(partial, dpi=_DPI, format=path.suffix[1:])
    plt.close(figure)


def deviation_figure(path: Path, deviations: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> None:
    """Draw the cumulative action deviation over the chunks of an episode (QVLA, Figure 3)."""
    figure, axes = plt.subplots(figsize=(9.5, 4.6), layout="constrained")
    ends = {}
    for number, (label, episodes) in enumerate(deviations.items()):
        curve = cumulative_curve([episode["distances"] for episode in episodes])
        if curve.size:
            style = "-" if number < _COLOURS else "--"
            axes.plot(np.arange(1, curve.size + 1), curve, style, marker="o", markersize=3, label=label)
            ends[label] = curve[-1]
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: -ends[labels[i]])  # as the curves lie
    beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "fontsize": 8}
    axes.legend([handles[i] for i in order], [labels[i] for i in order], **beside)
    axes.set_xlabel("chunk of the reference's episode")
    axes.set_ylabel("sum of ||A' − A*|| so far, mean over episodes")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    with written_aside(path) as partial:
        figure.savefig(partial, dpi=_DPI, format=path.suffix[1:])
    plt.close(figure)


def _limits(intervals: Sequence[Interval], values: np.ndarray) -> np.ndarray:
    """Return the lengths [2, n] of the bars below and above, percent."""
    low = np.array([100 * interval.low for interval in intervals])
    high = np.array([100 * interval.high for interval in intervals])
    return np.maximum(0.0, np.stack([values - low, high - values]))
