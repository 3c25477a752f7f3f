"""Camera calibrations from files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml


def read_camera_info(path: Path) -> SimpleNamespace:
    """Read a calibration file into an object with the fields of sensor_msgs/CameraInfo. Raises ValueError.

    The file is what `ros2 topic echo --once` prints (k, d, r, p) or camera_calibration writes (camera_matrix, ...).
    """
    try:
        # `ros2 topic echo` ends each message with a document mark
        raw = next(iter(yaml.safe_load_all(path.read_text())), None)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is neither YAML nor JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold the fields of a CameraInfo, got {type(raw).__name__}")
    names = {"width": "image_width", "height": "image_height", "distortion_model": "distortion_model"}
    names |= {"k": "camera_matrix", "d": "distortion_coefficients", "r": "rectification_matrix"}
    names |= {"p": "projection_matrix"}
    values: dict[str, Any] = {}
    for name, calibration_name in names.items():
        value = raw.get(name, raw.get(calibration_name))
        values[name] = value["data"] if isinstance(value, dict) else value
    if values["k"] is None or values["width"] is None or values["height"] is None:
        lacking = [name for name in ("width", "height", "k") if values[name] is None]
        raise ValueError(f"{path} lacks {', '.join(lacking)}: it is not a camera calibration")
    k = values["k"]
    defaults = {
        "distortion_model": "plumb_bob",
        "d": [],
        "r": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        "p": [*k[0:3], 0.0, *k[3:6], 0.0, *k[6:9], 0.0],
    }
    for name, default in defaults.items():
        values[name] = default if values[name] is None else values[name]
    region = {"x_offset": 0, "y_offset": 0, "width": 0, "height": 0, "do_rectify": False} | (raw.get("roi") or {})
    return SimpleNamespace(
        **values,
        binning_x=raw.get("binning_x", 0),
        binning_y=raw.get("binning_y", 0),
        roi=SimpleNamespace(**region),
    )
