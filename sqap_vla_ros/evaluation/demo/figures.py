"""Plots of a run's report."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")  # no display on a robot
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.spatial.transform import Rotation

from sqap_vla_ros.nodes.recorder.recording import Recording
from sqap_vla_ros.pruning.overlay import COLOURS

_STAGE_COLOURS = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]
_MEASURED, _PLANNED, _GREY, _DONE = "#0072b2", "#d55e00", "0.6", "#009e73"


def run_figure(recording: Recording) -> Figure:
    """One page: latency by stage, kept tokens, planned against measured tool motion, and how the joints followed."""
    figure = plt.figure(figsize=(13.0, 11.0), layout="constrained")
    grid = figure.add_gridspec(4, 4, height_ratios=[1.0, 1.0, 1.0, 1.0])
    _latency(figure.add_subplot(grid[0, :2]), recording)
    _tokens(figure.add_subplot(grid[0, 2:]), recording)
    axes = [figure.add_subplot(grid[1 + i // 4, i % 4]) for i in range(7)]
    _motion(axes, recording)
    _timeline(figure.add_subplot(grid[2, 3]), recording)
    _joints(figure.add_subplot(grid[3, :2]), figure.add_subplot(grid[3, 2:]), recording)
    return figure


def _latency(axis: Axes, recording: Recording) -> None:
    """Stacked milliseconds of every chunk by stage, and the time from image to published chunk."""
    times = recording.seconds([chunk.chunk.stamp_ns for chunk in recording.chunks])
    names = recording.stage_names()
    overhead = [chunk.overhead_ms for chunk in recording.chunks]
    stages = np.nan_to_num([*(recording.stages(name) for name in names), overhead])  # [stages + 1, chunks]
    labels = [*names, "the node's own"]
    axis.stackplot(times, stages, labels=labels, colors=_STAGE_COLOURS[: len(labels)], linewidth=0)
    ages = np.array([chunk.age_s * 1e3 for chunk in recording.chunks])
    axis.plot(times, ages, color="black", linewidth=0.8, label="since the image's stamp")
    axis.set_ylim(0, 1.45 * np.nanpercentile(ages, 99) if np.isfinite(ages).any() else None)  # room for the legend
    axis.set(title="Latency by stage", ylabel="ms", xlabel="s", xlim=(0, float(recording.seconds(recording.end_ns))))
    axis.legend(fontsize=7, ncols=4, loc="upper center", framealpha=0.9)


def _tokens(axis: Axes, recording: Recording) -> None:
    """Kept visual tokens of every chunk by reason."""
    times = recording.seconds([chunk.chunk.stamp_ns for chunk in recording.chunks])
    kept = recording.kept_by_reason()
    colours = [tuple(channel / 255 for channel in COLOURS[reason]) for reason in kept]
    axis.stackplot(times, list(kept.values()), labels=[r.name.lower() for r in kept], colors=colours, step="post")
    total = next((int(np.prod(c.selection.grid)) for c in recording.chunks if c.selection), 0)
    axis.axhline(total, color="black", linestyle="--", linewidth=0.8)
    axis.text(0.0, total, f" {total} in the image", va="bottom", fontsize=8)
    axis.set_ylim(0, 1.3 * total)
    end = float(recording.seconds(recording.end_ns))
    axis.set(title="Visual tokens kept by the decoder, by reason", ylabel="tokens", xlabel="s", xlim=(0, end))
    axis.legend(fontsize=7, ncols=4, loc="upper right", framealpha=0.9)


def _motion(axes: list[Axes], recording: Recording) -> None:
    """x y z, roll pitch yaw and the gripper: every fourth chunk as it was planned, and what TF measured."""
    names = ["x, m", "y, m", "z, m", "roll, deg", "pitch, deg", "yaw, deg"]
    times = recording.seconds(recording.tool_times_ns)
    measured = _unwrapped(recording.tool_poses) if len(times) else np.zeros((0, 6))
    for chunk in recording.chunks[::4]:
        planned_times = recording.seconds(chunk.trajectory.times_ns)
        planned = _unwrapped(chunk.trajectory.poses)
        nearest = int(np.argmin(np.abs(times - planned_times[0]))) if len(times) else 0
        for column, axis in enumerate(axes[:6]):
            values = planned[:, column]
            if column >= 3 and len(times):  # the turn that is nearest to what was measured then
                values = values + 360.0 * np.round((measured[nearest, column] - values[0]) / 360.0)
            axis.plot(planned_times, values, color=_PLANNED, linewidth=0.6, alpha=0.45)
    for column, axis in enumerate(axes[:6]):
        axis.plot(times, measured[:, column], color=_MEASURED, linewidth=1.6)
        axis.set_title(names[column], fontsize=9)
    axes[0].plot([], [], color=_PLANNED, label="planned chunks")
    axes[0].plot([], [], color=_MEASURED, label="measured (TF)")
    if any(episode.done_ns is not None for episode in recording.episodes):
        axes[0].plot([], [], color=_DONE, label="task done")
    axes[0].legend(fontsize=7)
    gripper = axes[6]
    for chunk in recording.chunks[::4]:
        gripper.plot(recording.seconds(chunk.trajectory.times_ns), chunk.trajectory.gripper, color=_PLANNED, lw=0.5)
    for name, positions in zip(recording.joint_names, recording.joint_positions.T, strict=False):
        if "finger" in name and positions.max() > 0:
            gripper.plot(recording.seconds(recording.joint_times_ns), positions / 0.04, color=_MEASURED, linewidth=1.2)
            break
    gripper.set_title("gripper, 1 open (finger / 40 mm)", fontsize=9)
    gripper.set_ylim(-0.1, 1.1)
    end = float(recording.seconds(recording.end_ns))
    for axis in axes:
        _episodes(axis, recording)
        axis.set_xlim(0, end)
        axis.tick_params(labelsize=7)


def _episodes(axis: Axes, recording: Recording) -> None:
    """A dotted line where an episode after the first begins, a green one where a task was done."""
    for number, episode in enumerate(recording.episodes):
        if number:
            axis.axvline(float(recording.seconds(episode.start_ns)), color=_GREY, linestyle=":", linewidth=1.0)
        if episode.done_ns is not None:
            axis.axvline(float(recording.seconds(episode.done_ns)), color=_DONE, linewidth=1.0)


def _unwrapped(poses: np.ndarray) -> np.ndarray:
    """[T, 4, 4] as x y z (m) and roll pitch yaw (degrees) without jumps of a turn: [T, 6]."""
    angles = np.unwrap(Rotation.from_matrix(poses[:, :3, :3]).as_euler("xyz"), axis=0)
    return np.concatenate([poses[:, :3, 3], np.degrees(angles)], axis=1)


def _timeline(axis: Axes, recording: Recording) -> None:
    """The policy node's state over the run."""
    order = ["DISABLED", "WAITING", "RUNNING", "HOLDING", "STOPPED", "FAULT"]
    moments = [float(recording.seconds(when)) for when, _, _ in recording.states]
    levels = [order.index(state) for _, state, _ in recording.states]
    end = float(recording.seconds(recording.end_ns))
    axis.step([*moments, end], [*levels, *levels[-1:]], where="post", color="black", linewidth=1.2)
    axis.set_yticks(range(len(order)), order, fontsize=7)
    axis.set_xlim(0, end)
    _episodes(axis, recording)
    axis.set_title("state of policy_node; green: task done", fontsize=9)
    axis.tick_params(labelsize=7)


def _joints(positions_axis: Axes, error_axis: Axes, recording: Recording) -> None:
    """Measured joints over the commanded ones, and the difference."""
    times = recording.seconds(recording.joint_times_ns)
    wanted = recording.commanded_positions(recording.joint_times_ns)
    for column, name in enumerate(recording.joint_names):
        if not np.isfinite(wanted[:, column]).any():
            continue  # fingers: they have a command of their own
        colour = _STAGE_COLOURS[column % len(_STAGE_COLOURS)]
        positions_axis.plot(times, recording.joint_positions[:, column], color=colour, linewidth=1.0, label=name)
        positions_axis.plot(times, wanted[:, column], color=colour, linewidth=1.0, linestyle=":")
        error_axis.plot(times, 1e3 * (wanted - recording.joint_positions)[:, column], color=colour, linewidth=0.8)
    end = float(recording.seconds(recording.end_ns))
    positions_axis.set(title="Joints: measured (solid), commanded (dotted)", ylabel="rad", xlabel="s", xlim=(0, end))
    error_axis.set(title="Commanded minus measured", ylabel="mrad", xlabel="s", xlim=(0, end))
    if positions_axis.lines:
        positions_axis.legend(fontsize=7, ncols=4, loc="best")
    else:
        positions_axis.text(0.5, 0.5, "no joint was commanded", ha="center", transform=positions_axis.transAxes)
