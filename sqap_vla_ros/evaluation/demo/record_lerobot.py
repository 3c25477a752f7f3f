"""A LeRobot dataset of the simulated arm doing tasks: camera, tool, gripper, and the expert's actions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sqap_vla_ros.robot.conventions import split_pose

if TYPE_CHECKING:
    from sqap_vla_ros.recordings.lerobot.writing import DatasetWriter
    from sqap_vla_ros.simulation.environment import TabletopEnv

CAMERA = "observation.images.scene"
STATE = ("x", "y", "z", "qx", "qy", "qz", "qw", "gripper")
ACTION = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
CAMERA_FILE = "simulator_camera.json"  # for --simulator-camera
_CAMERA_AXES = np.diag([1.0, -1.0, -1.0])  # MuJoCo's cameras look along -z with y up


def record_dataset(
    out: Path, *, family: str | None = None, seed: int = 0, episodes: int = 1, width: int = 640, height: int = 480
) -> list[bool]:
    """Write the dataset and return whether the expert succeeded in each episode.

    Raises FileExistsError where `out` exists, DatasetError without pyarrow, ValueError for an odd size or an unknown
    family, OSError where it cannot be written, and then nothing of it stays.
    """
    from tqdm import tqdm

    from sqap_vla_ros.recordings.lerobot.writing import DatasetWriter
    from sqap_vla_ros.simulation.environment import CONTROL_DT_S, TabletopEnv

    if width % 2 or height % 2:
        raise ValueError(f"films of a dataset need even sides, got {width}x{height}")
    outcomes = []
    writer = DatasetWriter(
        out,
        fps=round(1.0 / CONTROL_DT_S),
        camera=CAMERA,
        numbers={"observation.state": STATE, "action": ACTION},
        robot_type="sqap_vla_tabletop",
    )
    with TabletopEnv(width=width, height=height) as env, writer:
        for episode in tqdm(range(seed, seed + episodes), desc="recording", unit="episode"):
            env.reset(episode, family)
            _record_episode(writer, env)
            writer.end_episode(env.task.instruction)
            outcomes.append(env.succeeded)
        (writer.folder / CAMERA_FILE).write_text(json.dumps(_camera(env, width, height), indent=1))
    return outcomes


def _record_episode(writer: DatasetWriter, env: TabletopEnv) -> None:
    """Let the expert act until the episode ends; each frame holds what was seen and what was then commanded."""
    from sqap_vla_ros.simulation.experts import expert
    from sqap_vla_ros.simulation.scene import FINGER_RANGE_M

    done = False
    while not done:
        xyz, quat = split_pose(env.world.base_from_tool)
        opening = float(env.world.finger_position.mean()) / FINGER_RANGE_M[1]
        action = expert(env.task, env.state)
        writer.add(env.render(), {"observation.state": [*xyz, *quat, opening], "action": action})
        step = env.step(action)
        done = step.terminated or step.truncated


def _camera(env: TabletopEnv, width: int, height: int) -> dict[str, object]:
    pose = env.world.base_from_optical
    return {
        "position": pose[:3, 3].tolist(),
        "rotation": (pose[:3, :3] @ _CAMERA_AXES).ravel().tolist(),
        "fovy_deg": math.degrees(env.world.camera_fovy_rad),
        "width": width,
        "height": height,
    }
