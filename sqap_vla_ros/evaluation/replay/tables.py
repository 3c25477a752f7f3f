"""The numbers of a replay as tables: rows of the report, columns of recipes.csv and frames.csv, the terminal's table.

docs/replay.md says what every one means.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sqap_vla_ros import processes
from sqap_vla_ros.evaluation.replay.metrics import frame_errors
from sqap_vla_ros.evaluation.replay.run import RecipeRun
from sqap_vla_ros.policy.checkpoints.writing import written_aside
from sqap_vla_ros.recordings.frames import some_unobserved


@dataclass(frozen=True)
class Measure:
    """One number of a recipe: its name in recipes.csv, its words in the report, and where a summary has it.

    share: a fraction of one, shown in percent. terminal: also in the table that the command prints.
    """

    name: str
    words: str
    path: tuple[str, ...]
    share: bool = False
    terminal: str = ""

    def read(self, summary: dict[str, Any]) -> Any:
        """Return the plain number; None where there was nothing to measure."""
        value: Any = summary
        for key in self.path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def text(self, summary: dict[str, Any]) -> str:
        """Return the number as text."""
        value = self.read(summary)
        if value is None:
            return "–"
        if self.share:
            return f"{100 * value:.1f} %"
        return str(value) if isinstance(value, int) else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


GROUPS: dict[str, tuple[Measure, ...]] = {
    "Latency and memory": (
        Measure("p50_ms", "prediction, median, ms", ("latency_ms", "total", "p50"), terminal="p50 ms"),
        Measure("p95_ms", "prediction, p95, ms", ("latency_ms", "total", "p95"), terminal="p95 ms"),
        Measure("p99_ms", "prediction, p99, ms", ("latency_ms", "total", "p99")),
        Measure("max_ms", "prediction, longest, ms", ("latency_ms", "total", "max")),
        Measure("deadline_misses", "deadline missed", ("deadline_misses",), share=True),
        Measure("peak_memory_mb", "peak memory of the policy's process, MB", ("peak_memory_mb",), terminal="peak MB"),
    ),
    "Size and operations": (
        Measure("weight_bytes", "weights, bytes", ("costs", "weight_bytes")),
        Measure(
            "bits_per_parameter", "mean bits of the decoder's weights", ("costs", "bits_per_parameter"), terminal="bits"
        ),
        Measure("bits_per_channel", "mean bits of its rows", ("costs", "bits_per_channel")),
        Measure("bops_paper", "operations, the paper's count", ("costs", "bops_paper"), share=True, terminal="BOPs"),
        Measure("bops_bit_product", "operations, products of widths", ("costs", "bops_bit_product"), share=True),
    ),
    "Visual tokens": (
        Measure("kept_tokens", "kept tokens, mean", ("kept", "total"), terminal="tokens"),
        Measure("gripper_in_view", "gripper in view", ("ring", "in_view"), share=True),
    ),
    "Actions against the reference": (
        Measure(
            "action_mm_mean",
            "translation of one action, mean, mm",
            ("action_difference", "translation_mm", "mean"),
            terminal="action mm",
        ),
        Measure("action_mm_p95", "translation of one action, p95, mm", ("action_difference", "translation_mm", "p95")),
        Measure(
            "action_deg_mean",
            "rotation of one action, mean, degrees",
            ("action_difference", "rotation_deg", "mean"),
            terminal="action deg",
        ),
        Measure("action_deg_p95", "rotation of one action, p95, degrees", ("action_difference", "rotation_deg", "p95")),
        Measure("chunk_end_mm", "end of the chunk, mean, mm", ("action_difference", "end_translation_mm", "mean")),
        Measure("chunk_end_deg", "end of the chunk, mean, degrees", ("action_difference", "end_rotation_deg", "mean")),
        Measure("gripper_disagreement", "gripper disagrees", ("action_difference", "gripper_disagreement"), share=True),
        Measure("qvla_eq4", "squared distance of chunks, mean (QVLA Eq. 4)", ("action_difference", "squared")),
        Measure("qvla_eq5", "distance summed over an episode, mean (QVLA Eq. 5)", ("action_difference", "cumulative")),
    ),
    "Actions against the recorded motion": (
        Measure("recorded_first_mm", "after the first action, mean, mm", ("recorded_motion", "first_mm")),
        Measure("recorded_mean_mm", "over all actions, mean, mm", ("recorded_motion", "mean_mm")),
        Measure("still_mean_mm", "the same if the tool never moved, mm", ("recorded_motion", "still_mean_mm")),
    ),
    "Actions against the recorded actions": (
        Measure("commands_first_mm", "after the first action, mean, mm", ("recorded_actions", "first_mm")),
        Measure("commands_mean_mm", "over all actions, mean, mm", ("recorded_actions", "mean_mm")),
        Measure("commands_still_mm", "the same if no action moved, mm", ("recorded_actions", "still_mean_mm")),
        Measure("commands_gripper", "gripper disagrees", ("recorded_actions", "gripper_disagreement"), share=True),
    ),
    "Smoothness": (
        Measure("seam_mm", "jump between chunks, mean, mm", ("seams", "translation_mm", "mean")),
        Measure("seam_deg", "jump between chunks, mean, degrees", ("seams", "rotation_deg", "mean")),
        Measure(
            "late_clock_mm",
            "jump where a late chunk is entered by the clock, mean, mm",
            ("late_seams", "clock", "mean"),
        ),
        Measure("late_path_mm", "the same, entered by pose, mm", ("late_seams", "path", "mean")),
        Measure("jerk_m_s3", "jerk within a chunk, rms, m/s³", ("jerk_m_s3", "mean")),
    ),
    "Frames": (
        Measure("frames_predicted", "predicted", ("predicted",)),
        Measure("failed_predictions", "failed predictions", ("failed",)),
    ),
}
MEASURES = tuple(measure for group in GROUPS.values() for measure in group)
FRAME_COLUMNS = (
    *("recipe", "frame", "stamp_ns", "age_s", "policy_ms", "kept_tokens"),
    *("gripper_u", "gripper_v", "distance", "problem", "gripper_note"),
)


def busy_warning(summaries: Sequence[dict[str, Any]]) -> str:
    """Return a warning where the machine had other work to do while latencies were measured, else ""."""
    busiest = max((summary["inputs"].get("machine_busy", 0.0) for summary in summaries), default=0.0)
    if not (warning := processes.busy_warning(busiest)):
        return ""
    return (
        f"{warning[0].upper()}{warning[1:]} when a recipe began: the latencies are longer than on an idle machine. "
        "Replay again on one for latencies to trust."
    )


def print_table(bag_path: Path, summaries: Sequence[dict[str, Any]]) -> None:
    """Print the most important measures."""
    shown = [measure for measure in MEASURES if measure.terminal]
    table = Table("recipe", title=f"Replay of {bag_path.name}")
    for measure in shown:
        table.add_column(measure.terminal, justify="right")
    for summary in summaries:
        table.add_row(summary["recipe"], *(measure.text(summary) for measure in shown))
    Console().print(table)
    read = summaries[0]["inputs"]  # the same for every recipe
    if lost := some_unobserved(read["used"], read["problems"], read.get("reasons", {})):
        print(f"{bag_path.name}: {lost}; every image has a line in frames.csv")
    if warning := busy_warning(summaries):
        print(warning)


def write_recipes_csv(path: Path, summaries: Sequence[dict[str, Any]]) -> None:
    """Write one line a recipe."""
    with written_aside(path) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["recipe", *(measure.name for measure in MEASURES)])
        writer.writerows([[each["recipe"], *(measure.read(each) for measure in MEASURES)] for each in summaries])


def write_frames_csv(path: Path, runs: Sequence[RecipeRun]) -> None:
    """Write one line a recipe and frame."""
    reference = {record.index: record for record in runs[0].records if record.deltas is not None}
    with written_aside(path) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FRAME_COLUMNS)
        for run in runs:
            for record in run.records:
                distance = None
                if record.deltas is not None and record.index in reference:
                    distance = float(frame_errors([(record, reference[record.index])])[0])
                kept = len(record.selection.indices) if record.selection is not None else None
                u, v = record.pixel if record.pixel is not None else (None, None)
                place = (run.recipe, record.index, record.stamp_ns, record.age_s)
                writer.writerow([*place, record.policy_ms or None, kept, u, v, distance, record.problem, record.note])
