"""Cameras of MuJoCo simulators, from the pose and field of view that the simulator states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sqap_vla_ros.robot.camera import CameraModel
from sqap_vla_ros.robot.conventions import invert_pose
from sqap_vla_ros.robot.interchange.fixed_camera import FixedCamera

_OPTICAL_FROM_MUJOCO = np.diag(
    [1.0, -1.0, -1.0]
)  # MuJoCo's cameras look along -z with y up; optical frames along z, y down
_FIELDS = {"position": 3, "rotation": 9, "fovy_deg": 1, "width": 1, "height": 1}


def simulator_camera(
    position: ArrayLike, rotation: ArrayLike, fovy_deg: float, width: int, height: int, *, mirrored: bool = False
) -> FixedCamera:
    """Return a camera of MuJoCo, upright as its image is sent.

    position [3] (m), rotation [3, 3] or [9]: `sim.data.cam_xpos` and `cam_xmat`, in the frame that the tool's pose in
        the client's state has too. fovy_deg: vertical field of view; pixels are square.
    mirrored: see `FixedCamera`. LIBERO's clients turn the image by `[::-1, ::-1]`, which leaves it mirrored.
    """
    focal = 0.5 * height / np.tan(np.radians(fovy_deg) / 2.0)
    matrix = np.array([[focal, 0.0, (width - 1) / 2.0], [0.0, focal, (height - 1) / 2.0], [0.0, 0.0, 1.0]])
    model = CameraModel(width, height, matrix, np.zeros(0), False, np.eye(3), np.zeros(3), np.inf)
    world_from_optical = np.eye(4)
    world_from_optical[:3, :3] = np.asarray(rotation, dtype=np.float64).reshape(3, 3) @ _OPTICAL_FROM_MUJOCO
    world_from_optical[:3, 3] = position
    return FixedCamera(model, invert_pose(world_from_optical), mirrored)


def read_simulator_camera(path: Path, *, mirrored: bool = False) -> FixedCamera:
    """Read the camera from a JSON file with position, rotation, fovy_deg, width and height. Raises ValueError."""
    try:
        values = json.loads(path.read_text())
        found = {name: _numbers(values[name], count) for name, count in _FIELDS.items()}
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        needed = ", ".join(f"{name} ({count})" for name, count in _FIELDS.items())
        raise ValueError(
            f"{path} must be a JSON object of numbers: {needed}; {type(error).__name__}: {error}"
        ) from error
    rotation = np.reshape(found["rotation"], (3, 3))
    fovy_deg, width, height = (found[name][0] for name in ("fovy_deg", "width", "height"))
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-4) or np.linalg.det(rotation) < 0.0:
        raise ValueError(f"{path}: rotation must be a rotation matrix, row by row, got {found['rotation']}")
    if not (0.0 < fovy_deg < 180.0 and width >= 1 and height >= 1):
        raise ValueError(f"{path}: fovy_deg must be within 0 and 180, width and height positive, got {values}")
    return simulator_camera(found["position"], rotation, fovy_deg, int(width), int(height), mirrored=mirrored)


def _numbers(value: Any, count: int) -> list[float]:
    numbers = [float(number) for number in (value if isinstance(value, list) else [value])]
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(f"expected {count} finite numbers, got {value}")
    return numbers
