"""LeRobot datasets: damaged files, descriptions that say something else, and tables with other columns and cells."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fuzzing.mutation import HOSTILE, damage_file, fresh
from PIL import Image as Picture
from tiny_datasets.factory import CAMERA, LENGTHS, TASKS, edit_info, picture, write_dataset

from sqap_vla_ros.recordings.lerobot.dataset import DatasetFrames
from sqap_vla_ros.recordings.lerobot.spec import DatasetSpec

_KINDS = ("film", "pictures", "pictures", "v2.1", "v2.1")  # decoding a film takes the longest
_NUMBERS = (0, -1, 1, 7, 2**31, 2**62, -(2**62), 0.5, 1e30, float("nan"), float("-inf"), True)


def fuzz_lerobot(folder: Path, seed: int) -> None:
    """Damage a dataset in one or two places and read it as `replay` and as calibration do."""
    rng = Random(f"lerobot {seed}")
    copy = fresh(folder / "lerobot") / "set"
    shutil.copytree(_dataset(folder / "good_lerobot", rng.choice(_KINDS)), copy)
    for _ in range(rng.choice((1, 1, 1, 2))):
        path = rng.choice(sorted(path for path in copy.rglob("*") if path.is_file()))
        what = rng.random()
        if what < 0.05:
            path.unlink()
        elif path.suffix == ".parquet" and what < 0.8:
            _alter(rng, path)
        else:
            damage_file(rng, path)
    spec = DatasetSpec(instruction=rng.choice(("", "", "pick")), stride=rng.choice((1, 1, 3)))
    frames = DatasetFrames(copy, spec)
    for number, _ in enumerate(frames):
        if number > 20:
            break
    assert str(frames.sources)
    frames.sample(3)


@cache
def _dataset(folder: Path, kind: str) -> Path:
    """Write a good dataset: v3.0 with a film or with pictures in its table, or v2.1 with pictures."""
    root = write_dataset(folder / kind)
    if kind == "film":
        return root
    shutil.rmtree(root / "videos")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][CAMERA] |= {"dtype": "image", "info": None}
    data = root / "data/chunk-000/file-000.parquet"
    cells = [{"bytes": _png(episode, frame), "path": None} for episode, n in enumerate(LENGTHS) for frame in range(n)]
    table = pq.read_table(data).append_column(CAMERA, pa.array(cells))
    pq.write_table(table, data)
    edit_info(root, features=info["features"])
    if kind == "v2.1":
        _as_v2(root, table)
    return root


def _as_v2(root: Path, table: pa.Table) -> None:
    shutil.rmtree(root / "data")
    shutil.rmtree(root / "meta/episodes")
    (root / "meta/tasks.parquet").unlink()
    (root / "data/chunk-000").mkdir(parents=True)
    edit_info(
        root,
        codebase_version="v2.1",
        data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        video_path=None,
    )
    for episode, (first, length) in enumerate(zip((0, LENGTHS[0]), LENGTHS, strict=True)):
        pq.write_table(table.slice(first, length), root / f"data/chunk-000/episode_{episode:06d}.parquet")
    rows = [{"episode_index": n, "tasks": [TASKS[n]], "length": length} for n, length in enumerate(LENGTHS)]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"task_index": number, "task": task} for number, task in enumerate(TASKS)]
    (root / "meta/tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _png(episode: int, frame: int) -> bytes:
    file = io.BytesIO()
    Picture.fromarray(picture(episode, frame)).save(file, "png")
    return file.getvalue()


def _alter(rng: Random, path: Path) -> None:
    """Write a table anew with one or two of its columns, cells or rows changed."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError):  # damaged already
        return
    for _ in range(rng.choice((1, 1, 2))):
        if not table.num_columns or not table.num_rows:
            break
        table = _altered(rng, table)
    with contextlib.suppress(pa.ArrowNotImplementedError):  # cells that parquet has no type for
        pq.write_table(table, path)


def _altered(rng: Random, table: pa.Table) -> pa.Table:
    at = rng.randrange(table.num_columns)
    name, cells = table.column_names[at], table.column(at).to_pylist()
    what = rng.randrange(8)
    if what == 0:
        return table.remove_column(at)
    if what == 1:
        names = [
            rng.choice(("x", "", name + "s", table.column_names[0])) if n == name else n for n in table.column_names
        ]
        return table.rename_columns(names)
    if what == 2:
        order = rng.choice((list(range(table.num_rows))[::-1], [0], [0, *range(table.num_rows)], []))
        return table.take(pa.array(order, pa.int64()))
    if what == 3:
        return table.set_column(at, name, pa.array([str(cell) for cell in cells]))
    if what == 4:
        return table.set_column(at, name, _array([[cell] for cell in cells]))
    if what == 5:
        return table.set_column(at, name, _array([rng.choice((*_NUMBERS, *HOSTILE))] * len(cells)))
    if what == 6:
        cells[rng.randrange(len(cells))] = None
    else:
        cells[rng.randrange(len(cells))] = _cell(rng, rng.choice(cells))
    return table.set_column(at, name, _array(cells))


def _cell(rng: Random, cell: Any) -> Any:
    """Return another value of a cell's type, or nearly."""
    if isinstance(cell, dict):
        return {"bytes": rng.choice((None, b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + bytes(40))), "path": "x.png"}
    if isinstance(cell, list):
        return [rng.choice(_NUMBERS)] * len(cell) if rng.random() < 0.7 else cell[:-1]
    return rng.choice(("", "a" * 3000, "\x00", None)) if isinstance(cell, str) else rng.choice(_NUMBERS)


def _array(cells: list[Any]) -> pa.Array:
    """Return an array of cells; of their texts where they have no type in common."""
    try:
        return pa.array(cells)
    except (pa.ArrowException, OverflowError):
        return pa.array([str(cell) for cell in cells])
