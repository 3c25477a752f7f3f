"""Plots of a run's report."""

from __future__ import annotations

from itertools import cycle

import matplotlib

matplotlib.use("Agg")  # no display on a robot
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.spatial.transform import Rotation

from sqap_vla_ros.contracts import Reason
from sqap_vla_ros.evaluation.demo.film import Film
from sqap_vla_ros.nodes.recorder.recording import RecordedChunk, Recording
from sqap_vla_ros.pruning.overlay import COLOURS
from sqap_vla_ros.simulation.scene import FINGER_RANGE_M

_STAGE_COLOURS = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]
_MEASURED, _PLANNED, _GREY, _DONE = "#0072b2", "#d55e00", "0.6", "#009e73"
MOST_PLANS = 40
SMALLEST_SPAN = (0.05, 0.05, 0.05, 5.0, 5.0, 5.0)  # m and degrees: smaller motion is drawn small


def run_figure(film: Film) -> Figure:
    """Return one page: latency, kept tokens, planned against measured tool motion, and how the joints followed."""
    recording = film.recording
    figure = plt.figure(figsize=(14.0, 11.5), layout="constrained")
    above, middle, below = figure.subfigures(3, 1, height_ratios=[1.0, 2.1, 1.0])
    latency, tokens = above.subplots(1, 2)
    _latency(latency, recording)
    _tokens(tokens, film)
    *motion, timeline = middle.subplots(2, 4).flat
    _motion(motion, recording)
    middle.legend(handles=_motion_handles(recording), fontsize=7, loc="outside upper left", ncols=4, frameon=False)
    _timeline(timeline, recording)
    positions, errors = below.subplots(1, 2)
    _joints(positions, errors, recording)
    return figure


def _latency(axis: Axes, recording: Recording) -> None:
    """Draw a point for every chunk and stage, on a logarithmic axis because stages differ a hundredfold."""
    times = recording.seconds([chunk.chunk.stamp_ns for chunk in recording.chunks])
    rows = {name: recording.stages(name) for name in recording.stage_names()}
    rows["the node's own"] = np.array([chunk.overhead_ms for chunk in recording.chunks])
    for (name, values), colour in zip(rows.items(), cycle(_STAGE_COLOURS), strict=False):
        if (values > 0).any():
            shown = np.where(values > 0, values, np.nan)  # a stage that took no time has no place on the axis
            axis.plot(times, shown, "o", color=colour, markersize=4, label=name)
    ages = np.array([chunk.age_s * 1e3 for chunk in recording.chunks])
    axis.plot(times, ages, "D", color="black", markersize=5, label="image to chunk")
    axis.set(yscale="log", ylabel="ms", xlabel="s", xlim=_span(recording))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(axis="y", color="0.9")
    _title_and_legend(axis, "Latency of each chunk, by stage")


def _tokens(axis: Axes, film: Film) -> None:
    """Stack the kept visual tokens by reason: of every image that has a selection."""
    recording = film.recording
    of_chunks = {chunk.chunk.stamp_ns: chunk.selection for chunk in recording.chunks if chunk.selection is not None}
    selections = dict(sorted({**of_chunks, **film.selections}.items()))
    times = recording.seconds(list(selections))
    counts = np.array([np.bincount(s.reasons, minlength=len(Reason)) for s in selections.values()])
    kept = {reason: counts[:, reason] for reason in Reason if len(counts) and counts[:, reason].any()}
    end_s = float(recording.seconds(recording.end_ns))
    axis.stackplot(
        [*times, end_s],
        [[*values, values[-1]] for values in kept.values()],
        labels=[reason.name.lower() for reason in kept],
        colors=[tuple(channel / 255 for channel in COLOURS[reason]) for reason in kept],
        step="post",
    )
    total = next((int(np.prod(selection.grid)) for selection in selections.values()), 0)
    axis.axhline(total, color="black", linestyle="--", linewidth=0.8)
    axis.text(0.0, total, f" {total} in the image", va="bottom", fontsize=8)
    axis.set_ylim(0, max(1.0, 1.15 * total))
    axis.set(ylabel="tokens", xlabel="s", xlim=_span(recording))
    _title_and_legend(axis, "Visual tokens kept by the decoder, by reason")


def _motion(axes: list[Axes], recording: Recording) -> None:
    """Draw x y z, roll pitch yaw and the gripper: chunks as they were planned, what was commanded, what TF measured."""
    names = ["x, m", "y, m", "z, m", "roll, deg", "pitch, deg", "yaw, deg"]
    times = recording.seconds(recording.tool_times_ns)
    measured = _unwrapped(recording.tool_poses) if len(times) else np.zeros((0, 6))
    drawn = _thinned(recording.chunks)
    width = 1.2 if len(drawn) < MOST_PLANS // 2 else 0.6
    for chunk in drawn:
        planned_times = recording.seconds(chunk.trajectory.times_ns)
        planned = _unwrapped(chunk.trajectory.poses)
        nearest = int(np.argmin(np.abs(times - planned_times[0]))) if len(times) else 0
        for column, axis in enumerate(axes[:6]):
            values = planned[:, column]
            if column >= 3 and len(times):  # the turn that is nearest to what was measured then
                values = values + 360.0 * np.round((measured[nearest, column] - values[0]) / 360.0)
            axis.plot(planned_times, values, color=_PLANNED, linewidth=width, alpha=0.7)
        axes[6].plot(planned_times, chunk.trajectory.gripper, color=_PLANNED, linewidth=width, alpha=0.7)
    commanded = recording.commanded_tool_positions(recording.tool_times_ns)
    for column, axis in enumerate(axes[:6]):
        axis.plot(times, measured[:, column], color=_MEASURED, linewidth=1.6)
        if column < 3:
            axis.plot(times, commanded[:, column], color="black", linewidth=1.0, linestyle=":")
        axis.set_title(names[column], fontsize=9)
        _at_least(axis, SMALLEST_SPAN[column])
    gripper, opened_m = axes[6], FINGER_RANGE_M[1]
    for name, positions in zip(recording.joint_names, recording.joint_positions.T, strict=False):
        if "finger" in name and positions.max() > 0:
            gripper.plot(
                recording.seconds(recording.joint_times_ns), positions / opened_m, color=_MEASURED, linewidth=1.2
            )
            break
    gripper.set_title(f"gripper, 1 open (finger / {1e3 * opened_m:.0f} mm)", fontsize=9)
    gripper.set_ylim(-0.1, 1.1)
    for axis in axes:
        _episodes(axis, recording)
        axis.set_xlim(_span(recording))
        axis.tick_params(labelsize=7)


def _motion_handles(recording: Recording) -> list[Line2D]:
    drawn = len(_thinned(recording.chunks))
    count = f"all {drawn} chunks" if drawn == len(recording.chunks) else f"{drawn} of {len(recording.chunks)} chunks"
    handles = [
        Line2D([], [], color=_PLANNED, label=f"planned: {count}"),
        Line2D([], [], color="black", linestyle=":", label="commanded"),
        Line2D([], [], color=_MEASURED, label="measured (TF)"),
    ]
    if any(episode.done_ns is not None for episode in recording.episodes):
        handles.append(Line2D([], [], color=_DONE, label="task done"))
    return handles


def _thinned(chunks: list[RecordedChunk]) -> list[RecordedChunk]:
    """Return every chunk while they can be told apart in a plot, else every second, third ..."""
    return chunks[:: max(1, -(-len(chunks) // MOST_PLANS))]


def _at_least(axis: Axes, span: float) -> None:
    """Widen the vertical axis to a span below which nothing is worth seeing."""
    low, high = axis.get_ylim()
    if (missing := span - (high - low)) > 0:
        axis.set_ylim(low - missing / 2, high + missing / 2)


def _span(recording: Recording) -> tuple[float, float]:
    """Return the run's time axis in seconds; a first image may be a little older than the run."""
    first_ns = min([recording.start_ns, *(chunk.chunk.stamp_ns for chunk in recording.chunks)])
    first_s, end_s = float(recording.seconds(first_ns)), float(recording.seconds(recording.end_ns))
    return first_s - 0.02 * (end_s - first_s), end_s


def _title_and_legend(axis: Axes, title: str) -> None:
    """Put the title above the axis and the legend in a row between the two, where it hides nothing."""
    axis.set_title(title, pad=18)
    axis.legend(
        fontsize=7,
        handlelength=1.2,
        handletextpad=0.4,
        columnspacing=1.0,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=9,
        frameon=False,
        borderaxespad=0.2,
    )


def _episodes(axis: Axes, recording: Recording) -> None:
    """Draw a dotted line where an episode after the first begins, a green one where a task was done."""
    for number, episode in enumerate(recording.episodes):
        if number:
            axis.axvline(float(recording.seconds(episode.start_ns)), color=_GREY, linestyle=":", linewidth=1.0)
        if episode.done_ns is not None:
            axis.axvline(float(recording.seconds(episode.done_ns)), color=_DONE, linewidth=1.0)


def _unwrapped(poses: np.ndarray) -> np.ndarray:
    """Return poses [T, 4, 4] as x y z (m) and roll pitch yaw (degrees) without jumps of a turn: [T, 6]."""
    angles = np.unwrap(Rotation.from_matrix(poses[:, :3, :3]).as_euler("xyz"), axis=0)
    return np.concatenate([poses[:, :3, 3], np.degrees(angles)], axis=1)


def _timeline(axis: Axes, recording: Recording) -> None:
    """Draw the policy node's state over the run."""
    order = ["DISABLED", "WAITING", "RUNNING", "HOLDING", "STOPPED", "FAULT"]
    moments = [float(recording.seconds(when)) for when, _, _ in recording.states]
    levels = [order.index(state) for _, state, _ in recording.states]
    end = float(recording.seconds(recording.end_ns))
    axis.step([*moments, end], [*levels, *levels[-1:]], where="post", color="black", linewidth=1.2)
    axis.set_yticks(range(len(order)), order, fontsize=7)
    axis.set_xlim(_span(recording))
    _episodes(axis, recording)
    axis.set_title("state of policy_node", fontsize=9)
    axis.tick_params(labelsize=7)


def _joints(positions_axis: Axes, error_axis: Axes, recording: Recording) -> None:
    """Draw the measured joints over the commanded ones, and the difference."""
    times = recording.seconds(recording.joint_times_ns)
    wanted = recording.commanded_positions(recording.joint_times_ns)
    for column, name in enumerate(recording.joint_names):
        if not np.isfinite(wanted[:, column]).any():
            continue  # fingers: they have a command of their own
        colour = _STAGE_COLOURS[column % len(_STAGE_COLOURS)]
        positions_axis.plot(times, recording.joint_positions[:, column], color=colour, linewidth=1.0, label=name)
        positions_axis.plot(times, wanted[:, column], color=colour, linewidth=1.0, linestyle=":")
        error_axis.plot(times, 1e3 * (wanted - recording.joint_positions)[:, column], color=colour, linewidth=0.8)
    span = _span(recording)
    positions_axis.set(ylabel="rad", xlabel="s", xlim=span)
    error_axis.set(ylabel="mrad", xlabel="s", xlim=span)
    error_axis.set_title("Commanded minus measured", pad=18)
    if positions_axis.lines:
        _title_and_legend(positions_axis, "Joints: measured (solid), commanded (dotted)")
    else:
        positions_axis.text(0.5, 0.5, "no joint was commanded", ha="center", transform=positions_axis.transAxes)
