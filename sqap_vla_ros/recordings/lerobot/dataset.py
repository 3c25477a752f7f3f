"""The frames of a LeRobot dataset, as a policy would have observed them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import NS_PER_S, Observation, unreadable
from sqap_vla_ros.recordings.frames import ReplayCounters, ReplayFrame
from sqap_vla_ros.recordings.lerobot.layout import (
    INFO,
    DatasetError,
    Episode,
    Feature,
    read_layout,
    read_table,
    require_columns,
    require_file,
)
from sqap_vla_ros.recordings.lerobot.pictures import pictures
from sqap_vla_ros.recordings.lerobot.spec import NONE, DatasetSpec, choose
from sqap_vla_ros.robot.conventions import compose_delta
from sqap_vla_ros.robot.interchange.action_space import ACTION_SPACES
from sqap_vla_ros.robot.interchange.tool_state import tool_pose

if TYPE_CHECKING:
    import pyarrow as pa

_GAP_NS = 10 * NS_PER_S  # between episodes: they have no common clock
_RATE_TOLERANCE = 0.01  # of the time between two rows, by which it may differ from what fps says
_LATEST_S = 1e9  # of a timestamp within its episode: stamps of ROS have 32 bits for seconds


@dataclass(frozen=True)
class _Rows:
    """The numbers of an episode. times_s: from its beginning.

    states: [n, S], actions: [n, 7] in the package's convention; None where not read.
    """

    times_s: list[float]
    stamps_ns: list[int]
    tasks: list[int]
    states: NDArray[np.float64] | None
    actions: NDArray[np.float64] | None


class DatasetFrames:
    """The frames of a dataset in order; memory does not grow with its length. See `recordings.frames.Recording`.

    Raises DatasetError when made, where features are missing or ambiguous, with what there is to choose from.
    """

    def __init__(self, root: Path, spec: DatasetSpec) -> None:
        self.spec = spec
        self.layout = read_layout(root)
        self.choice = choose(self.layout, spec)
        self.episodes = self._episodes()
        self._require_files()
        self.counters = ReplayCounters()
        self._table: tuple[Path, pa.Table] | None = None
        self._ended_ns = -_GAP_NS  # stamp of the last row of the episode before

    @property
    def path(self) -> Path:
        return self.layout.root

    @property
    def files(self) -> list[Path]:
        """The description, and every episode's rows and films of the camera in use."""
        image = self.choice.image.key
        read = {one.data for one in self.layout.episodes}
        read |= {one.films[image][0] for one in self.layout.episodes if image in one.films}
        described = (file for file in (self.path / "meta").rglob("*") if file.is_file())
        return [self.path, *sorted(described), *sorted(read)]

    @property
    def total(self) -> int:
        return sum(episode.length for episode in self.episodes)

    @property
    def strided(self) -> int:
        return sum(len(range(0, episode.length, self.spec.stride)) for episode in self.episodes)

    @property
    def identity(self) -> list[object]:
        features = sorted(map(str, self.layout.features.values()))
        return [str(self.path.resolve()), self.layout.fps, self.total, features]

    @property
    def sources(self) -> dict[str, str]:
        choice, camera = self.choice, self.spec.camera
        pose = f"{choice.state.key}, as {choice.form}" if choice.state else f"none: {choice.no_pose}"
        action = f"{choice.action}, as {self.spec.action_space}" if choice.action else f"none: {choice.no_action}"
        return {
            "dataset": f"LeRobot {self.layout.version}, {len(self.episodes)} episodes, {self.layout.fps:g} Hz",
            "image": str(choice.image),
            "camera_info": "given, the same for every image" if camera else "none: no gripper pixel, no ring",
            "tool pose": pose,
            "recorded actions": action,
            "instruction": "given" if self.spec.instruction else "the task of each frame",
        }

    def check(self) -> None:
        """Read the numbers of every episode, but no pictures. Raises DatasetError."""
        for order, episode in enumerate(self.episodes):
            if episode.length:
                self._rows(order, episode)

    def __iter__(self) -> Iterator[ReplayFrame]:
        self._ended_ns = -_GAP_NS
        for order, episode in enumerate(self.episodes):
            yield from self._frames(order, episode, range(0, episode.length, self.spec.stride))

    def sample(self, wanted: int) -> list[Observation]:
        """Return up to `wanted` observations spread evenly over the dataset; only their pictures are decoded."""
        starts = np.cumsum([0, *(episode.length for episode in self.episodes)])
        chosen = np.unique(np.linspace(0, self.total - 1, min(wanted, self.total)).astype(int))
        found = []
        self._ended_ns = -_GAP_NS
        for order, episode in enumerate(self.episodes):
            mine = [int(at - starts[order]) for at in chosen if starts[order] <= at < starts[order + 1]]
            found += [frame.observation for frame in self._frames(order, episode, mine) if frame.observation]
        if not found:
            reasons = "; ".join(self.counters.reasons.values()) or "its episodes are empty"
            raise DatasetError(f"{self.path} gave no observation: {reasons}")
        return found

    def _episodes(self) -> tuple[Episode, ...]:
        if not self.spec.episodes:
            return self.layout.episodes
        known = {episode.index: episode for episode in self.layout.episodes}
        if missing := [index for index in self.spec.episodes if index not in known]:
            raise DatasetError(f"{self.path} has no episode {missing[0]}; it has {min(known)} to {max(known)}")
        return tuple(known[index] for index in self.spec.episodes)

    def _require_files(self) -> None:
        """Raise DatasetError for files of the episodes that are not whole: before a policy is loaded."""
        image = self.choice.image.key
        found = {one.data for one in self.episodes}
        found |= {one.films[image][0] for one in self.episodes if image in one.films}
        for file in sorted(found):
            require_file(file)
        if self.choice.image.dtype == "image":
            for file in sorted({one.data for one in self.episodes}):
                require_columns(file, [image])

    def _frames(self, order: int, episode: Episode, wanted: Sequence[int]) -> Iterator[ReplayFrame]:
        """Yield frames of an episode, counted from 0 within it."""
        if not wanted:
            return
        self.counters.images += episode.length
        rows = self._rows(order, episode)
        commanded = None if rows.actions is None else _composed(rows.actions)
        before = ""
        times_s = [rows.times_s[number] for number in wanted]
        found = pictures(episode, self.choice.image, wanted, times_s, self.layout.fps)
        for number, image in zip(wanted, found, strict=True):
            self.counters.used += 1
            self.counters.paired += self.spec.camera is not None
            frame = self._observe(episode, rows, number, image)
            if (observation := frame.observation) is not None:
                frame = replace(frame, new_episode=observation.instruction != before)
                before = observation.instruction
                self.counters.observed += 1
            if commanded is not None and rows.actions is not None:
                frame = replace(frame, commanded=commanded[number], opening=float(rows.actions[number, 6]))
            yield frame

    def _observe(self, episode: Episode, rows: _Rows, number: int, image: NDArray[np.uint8]) -> ReplayFrame:
        stamp_ns = rows.stamps_ns[number]
        frame = ReplayFrame(episode.first + number, stamp_ns, 0.0, None)
        task = self.layout.tasks.get(rows.tasks[number], episode.tasks[0] if episode.tasks else "")
        instruction = self.spec.instruction or task.strip()
        if problem := unreadable(instruction):
            self.counters.count_problem("no instruction", problem)
            return replace(frame, problem=problem)
        pose, pixel, note = None, None, f"no pose of the tool: {self.choice.no_pose}"
        if rows.states is not None:
            try:
                pose = tool_pose(rows.states[number], self.choice.form)
            except ValueError as error:
                self.counters.count_problem("unusable input", str(error))
                return replace(frame, problem=str(error))
            note, camera = "no camera was given: the gripper cannot be projected", self.spec.camera
            if camera is not None:
                pixel = camera.pixel(pose, *image.shape[:2])
                note = "" if pixel else "the tool is not in view"
                if image.shape[:2] == (camera.model.height, camera.model.width) and not camera.mirrored:
                    frame = replace(frame, camera=camera.model, optical_from_base=camera.optical_from_base)
        observation = Observation(image, stamp_ns, instruction, pixel, pose)
        return replace(frame, observation=observation, note=note)

    def _rows(self, order: int, episode: Episode) -> _Rows:
        """Read an episode's numbers. Raises DatasetError where rows are missing."""
        import pyarrow as pa

        keys = [feature.key for feature in (self.choice.state, self.choice.action) if feature]
        columns = ["index", "timestamp", "task_index", *keys]
        if self._table is None or self._table[0] != episode.data:
            table = read_table(episode.data, columns)
            if absent := [name for name in columns if name not in table.column_names]:
                raise DatasetError(f"{episode.data} has no column {absent[0]}")
            self._table = episode.data, table
        table = self._table[1]
        if not pa.types.is_integer(table.schema.field("index").type):
            raise DatasetError(f"{episode.data}: index must be a whole number in every row")
        index = np.asarray(table["index"])
        mine = np.flatnonzero((index >= episode.first) & (index < episode.first + episode.length))
        if len(mine) != episode.length:
            raise DatasetError(f"{episode.data} has {len(mine)} rows of episode {episode.index}, not {episode.length}")
        rows = table.take(mine)
        since_s = _times_s(rows, episode, self.layout.fps)
        start_ns = max(NS_PER_S + self._start_ns(order), self._ended_ns + _GAP_NS)  # later where rows have gaps
        stamps_ns = [start_ns + round(second * NS_PER_S) for second in since_s]
        self._ended_ns = stamps_ns[-1]
        states = self._numbers(rows, episode, self.choice.state, "--state-key")
        actions = self._numbers(rows, episode, self.choice.action, "--action-key")
        return _Rows(
            since_s.tolist(),
            stamps_ns,
            _column(rows, "task_index", episode).astype(int).tolist(),
            states,
            None if actions is None else ACTION_SPACES[self.spec.action_space].deltas(actions),
        )

    def _start_ns(self, order: int) -> int:
        """Return the time at which an episode begins in the replay, one after the other with pauses between them."""
        before = self.episodes[:order]
        return sum(round(each.length / self.layout.fps * NS_PER_S) + _GAP_NS for each in before)

    def _numbers(
        self, rows: pa.Table, episode: Episode, feature: Feature | None, option: str
    ) -> NDArray[np.float64] | None:
        """Return a feature's numbers, one row a frame. option: that chooses the feature. Raises DatasetError."""
        if feature is None:
            return None
        cells = rows[feature.key].to_pylist()
        if not _fault(cells, (len(cells), *feature.shape)):
            return np.array(cells, dtype=np.float64)
        faults = (_fault(cell, feature.shape) for cell in cells)
        number, fault = next((number, fault) for number, fault in enumerate(faults) if fault)
        shape = "x".join(map(str, feature.shape))
        raise DatasetError(
            f"{self.path}: {feature.key} must be {shape} finite numbers a frame, as {INFO} says, and frame {number} of "
            f"episode {episode.index} (index {episode.first + number}) has {fault}: correct it, leave the episode out "
            f"with --episodes, or read none with {option} {NONE}"
        )


def _fault(cell: object, shape: tuple[int, ...]) -> str:
    """Return what is wrong with the numbers of a frame, or of several, "" where nothing is."""
    try:
        values = np.array(cell, dtype=np.float64)
    except (TypeError, ValueError):  # texts, or lists of several lengths
        return "something else"
    if values.shape != shape:
        return f"{values.size} of them" if cell is not None else "none"
    if np.isfinite(values).all():
        return ""
    at = int(np.argmax(~np.isfinite(values)))
    return f"{values.flat[at]:g} as number {at}"


def _column(rows: pa.Table, name: str, episode: Episode) -> NDArray[np.float64]:
    """Return a column of an episode's numbers, one a row. Raises DatasetError for anything else."""
    try:
        values = np.array(rows[name].to_pylist(), dtype=np.float64).reshape(rows.num_rows)
    except (TypeError, ValueError):
        values = np.full(1, np.nan)
    if not (finite := np.isfinite(values)).all():
        raise DatasetError(
            f"{episode.data}: {name} of episode {episode.index} must be a finite number in every row, and is none in "
            f"that of frame {np.argmin(finite)}"
        )
    return values


def _times_s(rows: pa.Table, episode: Episode, fps: float) -> NDArray[np.float64]:
    """Return the times of an episode's rows, seconds from its beginning.

    Raises DatasetError unless they increase, and mostly by 1 / fps, as lerobot writes them.
    """
    times_s = _column(rows, "timestamp", episode)
    where = f"{episode.data}: timestamp of episode {episode.index}"
    if np.any(times_s < 0) or np.any(times_s > _LATEST_S):
        got = f"{times_s.min():g} to {times_s.max():g}"
        raise DatasetError(f"{where} must lie between 0 and {_LATEST_S:g} s, got {got}")
    if np.any(bad := np.diff(times_s) <= 0):
        row = int(np.argmax(bad))
        raise DatasetError(f"{where} must increase: row {row + 1} has {times_s[row + 1]:g} s after {times_s[row]:g} s")
    if len(times_s) > 1:
        step_s = float(np.median(np.diff(times_s)))
        rounding_s = 2.0 * float(np.spacing(np.float32(times_s[-1])))  # they are stored as float32
        if abs(step_s - 1.0 / fps) > _RATE_TOLERANCE / fps + rounding_s:
            raise DatasetError(
                f"{where} has {1.0 / step_s:.4g} rows a second, and {INFO} says fps {fps:g}: set fps there to "
                f"{1.0 / step_s:.4g}, or correct the timestamps"
            )
    return times_s


def _composed(actions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [n, 4, 4]: the actions before each frame, composed from the identity."""
    poses = [np.eye(4)]
    for action in actions[:-1]:
        poses.append(compose_delta(poses[-1], action))
    return np.stack(poses)
