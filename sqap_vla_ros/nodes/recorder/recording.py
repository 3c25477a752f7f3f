"""The recording of a live run as plain data without ROS, from which the video and the report are made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import NS_PER_S, ActionChunk, Reason, TokenSelection
from sqap_vla_ros.robot.camera import CameraModel, ToolProjection
from sqap_vla_ros.robot.trajectory import PoseTrajectory


@dataclass(frozen=True)
class RecordedImage:
    """A camera image, compressed, with where the tool was. optical_from_base: [4, 4]; None where TF did not say."""

    stamp_ns: int
    jpeg: bytes
    optical_from_base: NDArray[np.float64] | None
    tool: ToolProjection

    def rgb(self) -> NDArray[np.uint8]:
        """Return the image, [H, W, 3] uint8."""
        bgr = cv2.imdecode(np.frombuffer(self.jpeg, np.uint8), cv2.IMREAD_COLOR)
        return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))


@dataclass(frozen=True)
class RecordedChunk:
    """A published chunk: its poses in the base frame, the tokens it saw, and the stages of its latency in ms."""

    chunk: ActionChunk
    trajectory: PoseTrajectory
    selection: TokenSelection | None
    stages_ms: Mapping[str, float]
    overhead_ms: float
    age_s: float


@dataclass(frozen=True)
class JointCommand:
    """A joint trajectory that was sent. times_ns: [T] int64, absolute; positions: [T, n].

    tool_positions: [T, 3] where it leads the tool, m in the base frame; None where the arm's description is not known.
    """

    joint_names: tuple[str, ...]
    stamp_ns: int
    times_ns: NDArray[np.int64]
    positions: NDArray[np.float64]
    tool_positions: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class RecordedEpisode:
    """The time from enabling the policy to disabling it. done_ns: when the task was first done, or None."""

    start_ns: int
    end_ns: int
    instruction: str
    done_ns: int | None = None

    @property
    def done_s(self) -> float | None:
        """Seconds that the task took; None when it was not done."""
        return None if self.done_ns is None else (self.done_ns - self.start_ns) / NS_PER_S


@dataclass
class Recording:
    """One run: episodes, one after the other, each a fresh scene. Times are nanoseconds of the nodes' clock.

    images and tool poses are those within the episodes. joint_times_ns: [M]; joint_positions: [M, n] in the order of
    `joint_names`; tool_times_ns: [K]; tool_poses: [K, 4, 4] base_from_tool. states: (time, state, reason) at every
    change of the policy node's state.
    """

    episodes: list[RecordedEpisode]
    model: dict[str, Any]
    camera: CameraModel | None
    images: list[RecordedImage]
    chunks: list[RecordedChunk]
    joint_names: tuple[str, ...]
    joint_times_ns: NDArray[np.int64]
    joint_positions: NDArray[np.float64]
    tool_times_ns: NDArray[np.int64]
    tool_poses: NDArray[np.float64]
    commands: list[JointCommand]
    states: list[tuple[int, str, str]]
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def start_ns(self) -> int:
        return self.episodes[0].start_ns

    @property
    def end_ns(self) -> int:
        return self.episodes[-1].end_ns

    @property
    def instruction(self) -> str:
        """The instructions, each once."""
        return ", then ".join(dict.fromkeys(episode.instruction for episode in self.episodes))

    def episode_of(self, times_ns: Any) -> NDArray[np.intp]:
        """Return the number of the newest episode that has begun at each time; 0 also before the first."""
        starts_ns = np.array([episode.start_ns for episode in self.episodes[1:]], dtype=np.int64)
        return np.searchsorted(starts_ns, np.asarray(times_ns, dtype=np.int64), side="right")

    def seconds(self, times_ns: Any) -> NDArray[np.float64]:
        """Return times relative to `start_ns`."""
        return (np.asarray(times_ns, dtype=np.int64) - self.start_ns) / NS_PER_S

    def stage_names(self) -> list[str]:
        """Return the stages of the latency in order of execution, without the total."""
        names: dict[str, None] = {}
        for chunk in self.chunks:
            names.update(dict.fromkeys(chunk.stages_ms))
        return [name for name in names if name != "total"]

    def stages(self, name: str) -> NDArray[np.float64]:
        """Return milliseconds [chunks] of one stage; NaN where a chunk does not have it."""
        return np.array([chunk.stages_ms.get(name, np.nan) for chunk in self.chunks])

    def kept_by_reason(self) -> dict[Reason, NDArray[np.int64]]:
        """Return reason -> number of kept tokens [chunks]; reasons that never occur are left out."""
        counts = [Counter(chunk.selection.reasons.tolist() if chunk.selection else []) for chunk in self.chunks]
        by_reason = {reason: np.array([count[reason] for count in counts], dtype=np.int64) for reason in Reason}
        return {reason: values for reason, values in by_reason.items() if values.any()}

    def commanded_positions(self, times_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return [N, n] where the newest trajectory of each time wants the joints; NaN before the first."""
        out = np.full((len(times_ns), len(self.joint_names)), np.nan)
        columns_of = {name: column for column, name in enumerate(self.joint_names)}
        for command, since, values in self._followed(times_ns, lambda command: command.positions):
            for source, name in enumerate(command.joint_names):
                if name in columns_of:
                    out[since, columns_of[name]] = values[:, source]
        return out

    def commanded_tool_positions(self, times_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return [N, 3] where the newest trajectory of each time wants the tool, m; NaN before the first."""
        out = np.full((len(times_ns), 3), np.nan)
        for _, since, values in self._followed(times_ns, lambda command: command.tool_positions):
            out[since] = values
        return out

    def _followed(
        self, times_ns: NDArray[np.int64], of_command: Callable[[JointCommand], NDArray[np.float64] | None]
    ) -> Iterator[tuple[JointCommand, NDArray[np.bool_], NDArray[np.float64]]]:
        """Yield each command with the times from which on it is followed (mask [N]) and its values [M, k] there.

        Interpolated linearly; before a trajectory's first point it says nothing yet, after its last it holds until the
        episode ends: the next one begins with the arm somewhere else.
        """
        of_time = self.episode_of(times_ns)
        inside = times_ns <= np.array([episode.end_ns for episode in self.episodes])[of_time]
        for command in self.commands:
            if (points := of_command(command)) is None:
                continue
            same = inside & (of_time == self.episode_of(command.stamp_ns))
            since = same & (times_ns >= max(command.stamp_ns, int(command.times_ns[0])))
            at_s, point_s = self.seconds(times_ns[since]), self.seconds(command.times_ns)
            columns = [np.interp(at_s, point_s, column) for column in points.T]
            yield command, since, np.stack(columns, axis=1)

    def command_at(self, time_ns: int) -> JointCommand | None:
        """Return the newest command of a time's own episode; None before the first."""
        number = self.episode_of(time_ns)
        sent = [c for c in self.commands if c.stamp_ns <= time_ns and self.episode_of(c.stamp_ns) == number]
        return sent[-1] if sent else None

    def summary(self) -> dict[str, Any]:
        """Return the numbers of the run, for JSON. Latencies in ms, lengths in m, angles in rad."""
        overhead, age = (np.array([getattr(chunk, name) for chunk in self.chunks]) for name in ("overhead_ms", "age_s"))
        kept = [len(chunk.selection.indices) for chunk in self.chunks if chunk.selection]
        total = [int(np.prod(chunk.selection.grid)) for chunk in self.chunks if chunk.selection]
        error = self.commanded_positions(self.joint_times_ns) - self.joint_positions
        error = error[np.isfinite(error)]  # without fingers, which have a command of their own
        steps = np.linalg.norm(np.diff(self.tool_poses[:, :3, 3], axis=0), axis=1)
        steps = steps[np.diff(self.episode_of(self.tool_times_ns)) == 0]
        return {
            "instruction": self.instruction,
            "duration_s": sum(episode.end_ns - episode.start_ns for episode in self.episodes) / NS_PER_S,
            "episodes": [
                {
                    "instruction": episode.instruction,
                    "at_s": float(self.seconds(episode.start_ns)),
                    "duration_s": (episode.end_ns - episode.start_ns) / NS_PER_S,
                    "done_s": episode.done_s,
                }
                for episode in self.episodes
            ],
            "model": self.model,
            "images": len(self.images),
            "chunks": len(self.chunks),
            "counters": self.counters,
            "latency_ms": {name: _percentiles(self.stages(name)) for name in [*self.stage_names(), "total"]},
            "overhead_ms": _percentiles(overhead),
            "image_to_chunk_ms": _percentiles(age * 1e3),
            "tokens_kept": kept[-1] if kept else 0,
            "tokens_total": total[-1] if total else 0,
            "kept_mean": {reason.name.lower(): float(n.mean()) for reason, n in self.kept_by_reason().items()},
            "tool_travel_m": float(steps.sum()),
            "joint_error_rad": {
                "rms": float(np.sqrt(np.mean(error**2))) if len(error) else None,
                "max": float(np.abs(error).max()) if len(error) else None,
            },
            "states": [
                {"at_s": (when - self.start_ns) / NS_PER_S, "state": state, "reason": reason}
                for when, state, reason in self.states
            ],
        }


def _percentiles(values: NDArray[np.float64]) -> dict[str, float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return {}
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 95, 99)}
