"""Tiny LeRobot datasets with closed-form contents."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FPS, SIDE = 5, 32
TASKS = ("pick up the red can", "put the cup on the plate")
LENGTHS = (6, 5)
CAMERA = "observation.images.top"
STATE = ("x", "y", "z", "qx", "qy", "qz", "qw", "gripper")
ACTION = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")


def picture(episode: int, frame: int) -> np.ndarray:
    """One grey level a frame, which survives a film's coding."""
    return np.full((SIDE, SIDE, 3), 40 + 100 * episode + 15 * frame, np.uint8)


def state(episode: int, frame: int) -> np.ndarray:
    """The tool goes 1 cm a frame along x, turned half round about x."""
    return np.array([0.3 + 0.01 * frame, 0.1 * episode, 0.2, 1.0, 0.0, 0.0, 0.0, 0.5])


def action(frame: int) -> np.ndarray:
    """1 cm along x, and the gripper closes after three frames."""
    return np.array([0.01, 0.0, 0.0, 0.0, 0.0, 0.0, float(frame < 3)])


def write_dataset(root: Path) -> Path:
    """Write two episodes with the package's own writer."""
    from sqap_vla_ros.recordings.lerobot.writing import DatasetWriter

    numbers = {"observation.state": STATE, "action": ACTION}
    with DatasetWriter(root, fps=FPS, camera=CAMERA, numbers=numbers, robot_type="none") as writer:
        for episode, (task, length) in enumerate(zip(TASKS, LENGTHS, strict=True)):
            for frame in range(length):
                writer.add(
                    picture(episode, frame), {"observation.state": state(episode, frame), "action": action(frame)}
                )
            writer.end_episode(task)
    return root


def edit_info(root: Path, **changes: object) -> None:
    """Change top-level values of a dataset's description."""
    path = root / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_rows(root: Path, column: str, change: Callable[[list[Any]], object]) -> None:
    """Change the values of a column of the rows, given as a list."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    values = table[column].to_pylist()
    change(values)
    at = table.schema.names.index(column)
    pq.write_table(table.set_column(at, column, pa.array(values)), file)
