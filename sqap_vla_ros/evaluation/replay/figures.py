"""Pictures and plots of a replay's report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import matplotlib

matplotlib.use("Agg")  # no display on a robot
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from sqap_vla_ros.contracts import NS_PER_S, Reason
from sqap_vla_ros.evaluation.replay.metrics import episodes_of, frame_errors, worst_frames
from sqap_vla_ros.evaluation.replay.run import FrameRecord, RecipeRun, frames_again
from sqap_vla_ros.films import mp4_writer
from sqap_vla_ros.policy.preprocessing import ImageTransform
from sqap_vla_ros.pruning.overlay import COLOURS, draw_overlay
from sqap_vla_ros.recordings.frames import ReplayFrame
from sqap_vla_ros.robot.trajectory import anchor_chunk

if TYPE_CHECKING:
    from sqap_vla_ros.evaluation.replay.sources import RecordingSpec

_STAGE_COLOURS = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]
_VIDEO_WIDTH = 640
_LEGIBLE_WIDTH = 320


def overlay_of(frame: ReplayFrame, record: FrameRecord, run: RecipeRun, *, caption: str = "") -> NDArray[np.uint8]:
    """Draw kept tokens, the gripper's patch and the chunk's path on a frame; return [H, W, 3] uint8.

    Images too small to draw on are enlarged by a whole factor first.
    """
    assert frame.observation is not None
    assert record.selection is not None
    image, gripper, path = frame.observation.image, record.pixel, None
    if record.deltas is not None and record.pose is not None and frame.camera and frame.optical_from_base is not None:
        planned = anchor_chunk(record.deltas, record.pose, record.stamp_ns, record.dt_s)
        origins = np.concatenate([planned.poses[:, :3, 3], np.ones((len(planned), 1))], axis=1)
        projection = frame.camera.project((origins @ frame.optical_from_base.T)[:, :3])
        path = projection.pixels
    factor = max(1, _LEGIBLE_WIDTH // image.shape[1])
    if factor > 1:
        image = np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)
        gripper = None if gripper is None else (factor * gripper[0], factor * gripper[1])
        path = None if path is None else factor * path
    return draw_overlay(
        image,
        record.selection,
        ImageTransform.of(run.info),
        gripper_pixel=gripper,
        path_pixels=path,
        caption=caption,
    )


def worst_pictures(
    bag_path: Path, spec: RecordingSpec, runs: Sequence[RecipeRun], count: int
) -> list[tuple[str, int, float, NDArray[np.uint8]]]:
    """Return (recipe, frame, distance, overlay) of each recipe's `count` frames farthest from the first recipe's."""
    wanted = [(run, index, error) for run in runs[1:] for index, error in worst_frames(run, runs[0], count)]
    by_index = {run.recipe: {record.index: record for record in run.records} for run in runs}
    pictures = {}
    for frame in frames_again(bag_path, spec, {index for _, index, _ in wanted}):
        if frame.observation is None:
            continue
        for run, index, _ in wanted:
            record = by_index[run.recipe][index]
            if index == frame.index and record.selection is not None:
                pictures[run.recipe, index] = _shrink(overlay_of(frame, record, run, caption=record.instruction), 420)
    return [
        (run.recipe, index, error, pictures[run.recipe, index])
        for run, index, error in wanted
        if (run.recipe, index) in pictures
    ]


def write_video(path: Path, bag_path: Path, spec: RecordingSpec, run: RecipeRun, *, show: bool = True) -> bool:
    """Write the overlay of every predicted frame at the recording's pace; return False for fewer than two frames."""
    by_index = {record.index: record for record in run.records if record.selection is not None}
    if len(by_index) < 2:
        return False
    gaps_s = np.diff([record.stamp_ns for record in by_index.values()]) / NS_PER_S
    rate_hz = float(np.clip(1.0 / np.median(gaps_s[gaps_s > 0]), 1.0, 30.0)) if (gaps_s > 0).any() else 10.0
    size: tuple[int, ...] | None = None
    with mp4_writer(path, rate_hz) as append:
        frames = frames_again(bag_path, spec, set(by_index))
        for frame in tqdm(frames, desc="overlay video".rjust(16), total=len(by_index), unit="frame", disable=not show):
            if frame.observation is None:
                continue
            record = by_index[frame.index]
            caption = f"{run.recipe}   {record.instruction}   {record.policy_ms:.0f} ms"
            picture = _even(_shrink(overlay_of(frame, record, run, caption=caption), _VIDEO_WIDTH))
            size = size or picture.shape
            if picture.shape == size:  # a bag whose image size changes goes on in the first size
                append(picture)
    return True


def _shrink(image: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    if image.shape[1] <= width:
        return image
    height = round(image.shape[0] * width / image.shape[1])
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))


def _even(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Crop to even sides, which H.264 needs."""
    return image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]


def latency_figure(summaries: Sequence[dict[str, Any]], control_rate_hz: float) -> Figure:
    """Draw median milliseconds by stage for each recipe, its p95, and the control period."""
    figure, axis = plt.subplots(figsize=(7.5, 0.6 + 0.45 * len(summaries)), layout="constrained")
    names = [summary["recipe"] for summary in summaries]
    stages = [stage for stage in summaries[0]["latency_ms"] if stage != "total"]
    left = np.zeros(len(names))
    for stage, colour in zip(stages, _STAGE_COLOURS, strict=False):
        widths = [summary["latency_ms"].get(stage, {}).get("p50", 0.0) for summary in summaries]
        axis.barh(names, widths, left=left, color=colour, label=stage)
        left += widths
    p95 = [summary["latency_ms"].get("total", {}).get("p95", np.nan) for summary in summaries]
    # A disturbed machine has a p95 far from the bars: it is written beside them rather than stretching the axis.
    right = min(1.15 * np.nanmax([*p95, *left]), 3.0 * left.max() or 1.0)
    axis.plot(p95, names, "k|", markersize=12, label="p95 of the whole")
    for row, value in enumerate(p95):
        if value > right:
            axis.text(right, row, f"p95 {value:.0f} →", ha="right", va="center", fontsize=7)
    axis.set_xlim(0.0, right)
    period_ms = 1e3 / control_rate_hz
    if period_ms < right:
        axis.axvline(period_ms, color="crimson", linestyle="--", linewidth=1, label=f"period at {control_rate_hz:g} Hz")
    axis.invert_yaxis()
    axis.set_xlabel("milliseconds (bars: medians by stage)")
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def tokens_figure(summaries: Sequence[dict[str, Any]]) -> Figure:
    """Draw mean kept tokens by reason for each recipe."""
    figure, axis = plt.subplots(figsize=(7.5, 0.6 + 0.45 * len(summaries)), layout="constrained")
    names = [summary["recipe"] for summary in summaries]
    left = np.zeros(len(names))
    for reason in Reason:
        widths = np.array([summary["kept"].get(reason.name.lower(), 0.0) for summary in summaries])
        if widths.any():
            colour = tuple(channel / 255 for channel in COLOURS[reason])
            axis.barh(names, widths, left=left, color=colour, edgecolor="0.4", linewidth=0.5, label=reason.name.lower())
            left += widths
    axis.invert_yaxis()
    axis.set_xlabel("visual tokens, mean over frames")
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def error_figure(runs: Sequence[RecipeRun]) -> Figure:
    """Draw the distance from the reference frame by frame, and summed over each episode (QVLA, Figure 3)."""
    figure, (single, cumulative) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    reference = {record.index: record for record in runs[0].records if record.deltas is not None}
    start_ns = min(record.stamp_ns for record in runs[0].records)
    for run in runs[1:]:
        label: str | None = run.recipe
        colour = single._get_lines.get_next_color()  # type: ignore[attr-defined]
        for episode in episodes_of(run.records):
            pairs = [(ours, reference[ours.index]) for ours in episode if ours.index in reference and not ours.problem]
            if not pairs:
                continue
            seconds = [(ours.stamp_ns - start_ns) / NS_PER_S for ours, _ in pairs]
            errors = frame_errors(pairs)
            single.plot(seconds, errors, color=colour, label=label, linewidth=1)
            cumulative.plot(seconds, np.cumsum(errors), color=colour, label=label, linewidth=1)
            label = None
    single.set(xlabel="seconds", ylabel="||A' - A*|| of a chunk", ylim=(0, None))
    cumulative.set(xlabel="seconds", ylabel="sum over the episode", ylim=(0, None))
    single.legend(fontsize=7)
    return figure


def difference_figure(summaries: Sequence[dict[str, Any]]) -> Figure:
    """Draw millimetres and degrees between single actions and the reference's."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.8 + 0.4 * len(summaries)), layout="constrained", sharey=True)
    known = [summary for summary in summaries if summary["action_difference"]]
    names = [summary["recipe"] for summary in known]
    for axis, key, label in zip(axes, ("translation_mm", "rotation_deg"), ("millimetres", "degrees"), strict=True):
        quantiles = [summary["action_difference"][key] for summary in known]
        axis.barh(names, [q["mean"] for q in quantiles], color="0.6", label="mean")
        axis.plot([q["p95"] for q in quantiles], names, "k|", markersize=12, label="p95")
        axis.plot([q["max"] for q in quantiles], names, "kx", markersize=5, label="max")
        axis.set_xlabel(f"{label} per action")
    axes[0].invert_yaxis()
    axes[1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def motion_figure(summaries: Sequence[dict[str, Any]], records: Sequence[FrameRecord]) -> Figure:
    """Draw millimetres from where the recorded tool went, by time after the image."""
    figure, axis = plt.subplots(figsize=(7.5, 3), layout="constrained")
    dt_s = next((record.dt_s for record in records if record.dt_s > 0), 1.0)
    for summary in summaries:
        if motion := summary["recorded_motion"]:
            steps = np.arange(1, len(motion["by_step_mm"]) + 1) * dt_s
            # Wider lines below, so that recipes that agree are all seen.
            width = 1.0 + 1.5 * (len(summaries) - summaries.index(summary) - 1)
            axis.plot(steps, _with_gaps(motion["by_step_mm"]), linewidth=width, label=summary["recipe"])
    still = next(summary["recorded_motion"]["still_mm"] for summary in summaries if summary["recorded_motion"])
    axis.plot(np.arange(1, len(still) + 1) * dt_s, _with_gaps(still), "k--", linewidth=1, label="not moving at all")
    axis.set(xlabel="seconds after the image", ylabel="mm from the recorded tool", ylim=(0, None))
    axis.legend(fontsize=7)
    return figure


def _with_gaps(values: Sequence[float | None]) -> list[float]:
    return [np.nan if value is None else value for value in values]
