"""LeRobot datasets (v3.0) written: one table, one film of H.264, and the description."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sqap_vla_ros.films import mp4_writer
from sqap_vla_ros.policy.checkpoints.writing import written_aside
from sqap_vla_ros.recordings.lerobot import statistics
from sqap_vla_ros.recordings.lerobot.layout import INFO, require_parquet

_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_FIRST = {"chunk_index": 0, "file_index": 0}
_COUNTERS = ("frame_index", "episode_index", "index", "task_index")
_BETWEEN_KEY_FRAMES = 2  # as LeRobot encodes: training reads frames in any order
_QUALITY = 8.0


class DatasetWriter:
    """Writes a dataset frame by frame; use it in a `with`. It appears whole or not at all.

    numbers: key -> names of the elements. fps: frames a second, a whole number.
    Raises DatasetError without pyarrow, OSError where nothing can be written.
    """

    def __init__(
        self, root: Path, *, fps: int, camera: str, numbers: Mapping[str, Sequence[str]], robot_type: str
    ) -> None:
        self._parquet = require_parquet()
        self._root, self._fps, self._camera, self._robot_type = root, fps, camera, robot_type
        self._numbers = {key: tuple(names) for key, names in numbers.items()}
        self._stack = ExitStack()
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._all: dict[str, list[NDArray[Any]]] = {}
        self._histograms: list[NDArray[np.int64]] = []
        self._shape: tuple[int, ...] = ()
        self._begin()

    def __enter__(self) -> DatasetWriter:
        if self._root.exists():
            raise FileExistsError(f"{self._root} exists: nothing is overwritten, choose another name")
        self.folder = self._stack.enter_context(written_aside(self._root))
        film, table = (
            self.folder / _VIDEO.format(video_key=self._camera, **_FIRST),
            self.folder / _DATA.format(**_FIRST),
        )
        for path in (film, table, self.folder / INFO):
            path.parent.mkdir(parents=True)
        self._append = self._stack.enter_context(
            mp4_writer(film, self._fps, _QUALITY, between_key_frames=_BETWEEN_KEY_FRAMES)
        )
        self._table = self._stack.enter_context(self._parquet.ParquetWriter(table, self._schema()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            try:
                self._describe()
            except BaseException as late:
                self._stack.__exit__(type(late), late, late.__traceback__)
                raise
        self._stack.__exit__(kind, error, trace)

    def add(self, image: NDArray[np.uint8], numbers: Mapping[str, ArrayLike]) -> None:
        """Append a frame: a picture [H, W, 3] of even sides, and the numbers of each key."""
        self._append(image)
        self._shape = image.shape
        self._pictures.append(statistics.histogram(image))
        for key in self._numbers:
            self._rows[key].append(np.asarray(numbers[key], dtype=np.float32))

    def end_episode(self, task: str) -> None:
        """Write the frames added since the last call as an episode. task: its instruction."""
        import pyarrow as pa

        length, first = len(self._pictures), sum(episode["length"] for episode in self._episodes)
        number = len(self._episodes)
        at = np.arange(length)
        columns: dict[str, NDArray[Any]] = {key: np.stack(rows) for key, rows in self._rows.items()}
        columns["timestamp"] = (at / self._fps).astype(np.float32)
        counters = (at, np.full(length, number), first + at, np.full(length, self._task(task)))
        columns |= dict(zip(_COUNTERS, counters, strict=True))
        arrays = [
            pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1]) if values.ndim == 2 else pa.array(values)
            for values in columns.values()
        ]
        self._table.write_table(pa.Table.from_arrays(arrays, schema=self._schema()))
        stats = {key: statistics.of_numbers(values) for key, values in columns.items()}
        stats[self._camera] = statistics.of_pictures(self._pictures)
        film = f"videos/{self._camera}"
        self._episodes.append(
            {
                "episode_index": number,
                "tasks": [task],
                "length": length,
                "data/chunk_index": 0,
                "data/file_index": 0,
                "dataset_from_index": first,
                "dataset_to_index": first + length,
                f"{film}/chunk_index": 0,
                f"{film}/file_index": 0,
                f"{film}/from_timestamp": first / self._fps,
                f"{film}/to_timestamp": (first + length) / self._fps,
                **{f"stats/{key}/{name}": value for key, one in stats.items() for name, value in one.items()},
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
        )
        for key, values in columns.items():
            self._all.setdefault(key, []).append(values)
        self._histograms += self._pictures
        self._begin()

    def _begin(self) -> None:
        self._rows: dict[str, list[NDArray[np.float32]]] = {key: [] for key in self._numbers}
        self._pictures: list[NDArray[np.int64]] = []

    def _task(self, text: str) -> int:
        return self._tasks.setdefault(text, len(self._tasks))

    def _schema(self) -> Any:
        import pyarrow as pa

        fields = [(key, pa.list_(pa.float32(), len(names))) for key, names in self._numbers.items()]
        return pa.schema([*fields, ("timestamp", pa.float32()), *((name, pa.int64()) for name in _COUNTERS)])

    def _describe(self) -> None:
        """Write the tables of tasks and episodes, the statistics and the description."""
        import pyarrow as pa

        meta = self.folder / "meta"
        # LeRobot reads the tasks with pandas, where they are the index.
        column = {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"}
        index = {"index_columns": ["task"], "column_indexes": [], "columns": [column], "pandas_version": "2.0.0"}
        schema = pa.schema([("task_index", pa.int64()), ("task", pa.string())], {b"pandas": json.dumps(index).encode()})
        tasks = pa.Table.from_pydict({"task_index": list(self._tasks.values()), "task": list(self._tasks)}, schema)
        self._parquet.write_table(tasks, meta / "tasks.parquet")
        episodes = meta / "episodes/chunk-000/file-000.parquet"
        episodes.parent.mkdir(parents=True)
        self._parquet.write_table(pa.Table.from_pylist(self._episodes), episodes)
        stats = {key: statistics.of_numbers(np.concatenate(parts)) for key, parts in self._all.items()}
        stats[self._camera] = statistics.of_pictures(self._histograms)
        (meta / "stats.json").write_text(json.dumps(stats, indent=4))
        (self.folder / INFO).write_text(json.dumps(self._info(), indent=4))

    def _info(self) -> dict[str, Any]:
        height, width, channels = self._shape
        film = {
            "video.height": height,
            "video.width": width,
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "video.fps": self._fps,
            "video.channels": channels,
            "has_audio": False,
        }
        picture = {"dtype": "video", "shape": self._shape, "names": ["height", "width", "channels"], "info": film}
        features: dict[str, Any] = {self._camera: picture}
        for key, names in self._numbers.items():
            features[key] = {"dtype": "float32", "shape": [len(names)], "names": names}
        features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
        features |= {name: {"dtype": "int64", "shape": [1], "names": None} for name in _COUNTERS}
        return {
            "codebase_version": "v3.0",
            "robot_type": self._robot_type,
            "total_episodes": len(self._episodes),
            "total_frames": sum(episode["length"] for episode in self._episodes),
            "total_tasks": len(self._tasks),
            "chunks_size": 1000,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": self._fps,
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": _DATA,
            "video_path": _VIDEO,
            "features": features,
        }
