"""The files of a LeRobot dataset: features, episodes, and the place of each episode's rows and films.

Version 3.0 keeps many episodes in a file (`data/chunk-000/file-000.parquet`, `videos/KEY/chunk-000/file-000.mp4`) and a
table of episodes that says where each lies; version 2.1 has a file for each episode. Both become an `Episode` here.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqap_vla_ros.git_lfs import is_pointer

if TYPE_CHECKING:
    import pyarrow as pa

INFO = "meta/info.json"
VERSIONS = ("v3.0", "v2.1", "v2.0")
_LARGEST_JSON = 2**26  # bytes
_EPISODES, _TABLES = "meta/episodes", "chunk-*/file-*.parquet"  # of v3.0
_FPS = (0.01, 1000.0)
_MOST_ROWS = 10**15
_WIDTH = re.compile(r"(0?\d{1,2}d?|d)?")  # of a number in a template: 03d


class DatasetError(ValueError):
    """A dataset that cannot be used; the message names it and says what to change."""


@dataclass(frozen=True)
class Feature:
    """One column. dtype: "video", "image", or that of numbers. names: of its elements, where the dataset says.

    depth: its pictures are depth maps.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    depth: bool = False

    @property
    def is_picture(self) -> bool:
        """True for the colour pictures of a camera, in films or in the table."""
        return self.dtype in ("video", "image") and not self.depth

    def __str__(self) -> str:
        if self.depth:
            return f"{self.key} [depth maps]"
        names = f": {', '.join(self.names)}" if self.names and not self.is_picture else ""
        return f"{self.key} [{self.dtype} {'x'.join(map(str, self.shape))}{names}]"


@dataclass(frozen=True)
class Episode:
    """One episode. first: index of its first frame in the dataset. data: the parquet file with its rows.

    tasks: its instructions. films: key -> (file, seconds at which the episode begins in it).
    """

    index: int
    first: int
    length: int
    tasks: tuple[str, ...]
    data: Path
    films: Mapping[str, tuple[Path, float]]


@dataclass(frozen=True)
class Layout:
    """A dataset's description. tasks: task_index -> instruction, "" where the dataset has none."""

    root: Path
    version: str
    fps: float
    features: Mapping[str, Feature]
    tasks: Mapping[int, str]
    episodes: tuple[Episode, ...]


def is_dataset(path: Path) -> bool:
    """Return True for the folder of a LeRobot dataset."""
    return (path / INFO).is_file()


def dataset_problem(path: Path) -> str | None:
    """Say which dataset a path is a part of, or what a dataset's folder lacks; None where it is no part of one."""
    if around := next((parent for parent in list(path.absolute().parents)[:4] if is_dataset(parent)), None):
        return f"{path} is a part of the LeRobot dataset {around}: give that folder"
    if (path / "meta").is_dir() and (path / "data").is_dir() and not is_dataset(path):
        return f"{path} looks like a LeRobot dataset without {INFO}: was it copied whole?"
    return None


def read_layout(root: Path) -> Layout:
    """Read a dataset's description; no rows and no pictures. Raises DatasetError."""
    root = root.expanduser()
    if not is_dataset(root):
        raise DatasetError(f"{root} is no LeRobot dataset: it has no {INFO}")
    info = _read_json(root / INFO)
    version = str(info.get("codebase_version", "none"))
    if version not in VERSIONS:
        raise DatasetError(
            f"{root} has LeRobot's format {version}; {', '.join(VERSIONS)} are read: convert it with lerobot's own "
            "scripts"
        )
    try:
        fps = float(info["fps"])
        features = {key: _feature(key, value) for key, value in _object("features", info["features"]).items()}
        if not _FPS[0] <= fps <= _FPS[1]:
            raise ValueError(f"fps must lie between {_FPS[0]:g} and {_FPS[1]:g}, got {fps}")
        find = _episodes_v3 if version == "v3.0" else _episodes_v2
        tasks, episodes = find(root, info, [key for key, one in features.items() if one.dtype == "video"])
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, IndexError) as error:
        if isinstance(error, DatasetError):
            raise
        fault = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DatasetError(f"{root}: the description is damaged: {fault}") from error
    if not episodes:
        raise DatasetError(f"{root} has no episodes")
    known: set[int] = set()
    for episode in episodes:
        if episode.index in known:
            raise DatasetError(f"{root}: the description is damaged: episode {episode.index} occurs twice")
        known.add(episode.index)
    return Layout(root, version, fps, features, tasks, tuple(episodes))


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a parquet file whole. Raises DatasetError, also where pyarrow is not installed."""
    parquet = require_parquet()
    import pyarrow as pa

    try:
        require_file(path)
        require_columns(path, columns or [])
        with path.open("rb") as file:
            return parquet.read_table(file, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise damaged_table(path, error) from error


def require_columns(path: Path, columns: list[str]) -> None:
    """Raise DatasetError where a parquet file lacks columns; no rows are read."""
    read_table_schema = require_parquet().read_schema
    import pyarrow as pa

    try:
        names = read_table_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise damaged_table(path, error) from error
    if lacking := [name for name in columns if name not in names]:
        raise DatasetError(f"{path} has no column {lacking[0]}, which {INFO} speaks of")


def damaged_table(path: Path, error: Exception) -> DatasetError:
    """Return the error of a parquet file that cannot be read. error: of pyarrow or of the system."""
    system = error.strerror if isinstance(error, OSError) else None
    return DatasetError(f"{path} cannot be read: {system or 'it is cut off or no parquet file: copy it again'}")


def require_file(path: Path) -> None:
    """Raise DatasetError for a file of a dataset that is not there, is empty, or was left behind by Git LFS."""
    if not path.is_file():
        raise DatasetError(f"{path} is missing: was the dataset copied whole?")
    if not path.stat().st_size:
        raise DatasetError(f"{path} is empty: was the dataset copied whole?")
    if is_pointer(path):
        raise DatasetError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository")


def require_parquet() -> Any:
    """Return `pyarrow.parquet`. Raises DatasetError with what to install."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DatasetError(
            "LeRobot datasets need pyarrow: pip install '.[lerobot]' in the checkout of sqap-vla-ros"
        ) from error
    return parquet


def _object(what: str, raw: Any) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError for anything else."""
    if not isinstance(raw, dict):
        raise ValueError(f"{what} must be a JSON object, got {json.dumps(raw)[:40]}")
    return raw


def _feature(key: str, raw: Any) -> Feature:
    raw = _object(f"feature {key}", raw)
    names = raw.get("names") or ()
    parts = names.values() if isinstance(names, Mapping) else names  # also {"motors": ["x", "y"]} and [["x", "y"]]
    names = [name for part in parts for name in (part if isinstance(part, list) else [part])]
    film = raw.get("info") or raw.get("video_info") or {}
    depth = isinstance(film, Mapping) and bool(film.get("video.is_depth_map") or film.get("is_depth_map"))
    return Feature(key, str(raw["dtype"]), tuple(int(n) for n in raw["shape"]), tuple(map(str, names)), depth)


def _whole(row: Mapping[str, Any], name: str) -> int:
    """Return a whole number of a row. Raises ValueError for anything else, KeyError where it is missing."""
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _MOST_ROWS or value % 1:
        raise ValueError(f"{name} must be a whole number from 0 to {_MOST_ROWS:.0e}, got {value!r}")
    return int(value)


def _begin_s(row: Mapping[str, Any], name: str) -> float:
    value = row[name]
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} of episode {row['episode_index']} must be seconds from 0, got {value!r}")
    return float(value)


def _text_of(value: Any) -> str:
    """Return the text of a task; "" for one that has none."""
    return "" if value is None else str(value)


def _episodes_v3(root: Path, info: Mapping[str, Any], films: list[str]) -> tuple[dict[int, str], list[Episode]]:
    file = root / "meta/tasks.parquet"
    table = read_table(file)
    require_columns(file, ["task_index"])
    text = next((name for name in table.column_names if name != "task_index"), None)  # pandas' index: task, or unnamed
    if text is None:
        raise DatasetError(f"{file} has no column with the tasks' texts: was it written by lerobot?")
    tasks = {_whole(row, "task_index"): _text_of(row[text]) for row in table.select(["task_index", text]).to_pylist()}
    data = str(info.get("data_path") or "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet")
    video = str(info.get("video_path") or "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4")
    columns = ["episode_index", "tasks", "length", "dataset_from_index", "data/chunk_index", "data/file_index"]
    columns += [f"videos/{key}/{part}" for key in films for part in ("chunk_index", "file_index", "from_timestamp")]
    episodes = []
    described = sorted((root / _EPISODES).glob(_TABLES))
    if not described and info.get("total_episodes") != 0:
        raise DatasetError(f"{root / _EPISODES / _TABLES} is missing: was the dataset copied whole?")
    for path in described:
        for row in read_table(path, columns).to_pylist():
            place = {"chunk_index": _whole(row, "data/chunk_index"), "file_index": _whole(row, "data/file_index")}
            found = {}
            for key in films:
                at = f"videos/{key}/"
                film = {"chunk_index": _whole(row, f"{at}chunk_index"), "file_index": _whole(row, f"{at}file_index")}
                found[key] = _inside(root, video, video_key=key, **film), _begin_s(row, f"{at}from_timestamp")
            told = tuple(map(_text_of, row["tasks"] or ()))
            index, first, length = (_whole(row, name) for name in ("episode_index", "dataset_from_index", "length"))
            episodes.append(Episode(index, first, length, told, _inside(root, data, **place), found))
    return tasks, sorted(episodes, key=lambda episode: episode.index)


def _episodes_v2(root: Path, info: Mapping[str, Any], films: list[str]) -> tuple[dict[int, str], list[Episode]]:
    tasks = {_whole(row, "task_index"): _text_of(row["task"]) for row in _read_json_lines(root / "meta/tasks.jsonl")}
    data, video, chunk = str(info["data_path"]), str(info.get("video_path") or ""), _whole(info, "chunks_size")
    if not chunk:
        raise ValueError("chunks_size must be at least 1, got 0")
    episodes, first = [], 0
    for row in _read_json_lines(root / "meta/episodes.jsonl"):
        index, length = _whole(row, "episode_index"), _whole(row, "length")
        place = {"episode_index": index, "episode_chunk": index // chunk}
        found = {key: (_inside(root, video, video_key=key, **place), 0.0) for key in films}
        told = tuple(map(_text_of, row["tasks"] or ()))
        episodes.append(Episode(index, first, length, told, _inside(root, data, **place), found))
        first += length
    return tasks, episodes


def _inside(root: Path, template: str, **values: Any) -> Path:
    """Return the file that a template of the dataset names. Raises DatasetError where it lies elsewhere."""
    try:
        for _, name, width, conversion in string.Formatter().parse(template):  # attributes and wide gaps never
            if name is not None and (name not in values or conversion or not _WIDTH.fullmatch(width or "")):
                raise ValueError(name)
        path = root / template.format(**values)
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError) as error:
        needs = ", ".join(f"{{{name}}}" for name in values)
        raise DatasetError(
            f"{root / INFO}: the template {template[:200]!r} cannot be filled in with {needs}"
        ) from error
    if not inside:
        raise DatasetError(f"{root / INFO} names a file outside of the dataset: {template}")
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return _object(str(path), _parsed(path, _text(path)))
    except ValueError as error:
        raise error if isinstance(error, DatasetError) else DatasetError(str(error)) from error


def _read_json_lines(path: Path) -> list[dict[str, Any]]:
    return [_object(f"a line of {path}", _parsed(path, line)) for line in _text(path).splitlines() if line.strip()]


def _text(path: Path) -> str:
    require_file(path)
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise DatasetError(f"{path} is larger than {_LARGEST_JSON >> 20} MiB: not a description")
        return path.read_text("utf-8-sig")  # Windows' editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is no text") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is no JSON: {error}") from error
