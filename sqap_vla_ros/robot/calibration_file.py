"""Camera calibrations from files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sqap_vla_ros.yaml_files import read_yaml

# The fields of sensor_msgs/CameraInfo, and what camera_calibration calls them in the files that it writes.
_CALIBRATION_NAMES = {
    "width": "image_width",
    "height": "image_height",
    "k": "camera_matrix",
    "d": "distortion_coefficients",
    "r": "rectification_matrix",
    "p": "projection_matrix",
}
_LENGTHS = {"k": 9, "r": 9, "p": 12}
_IDENTITY = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
_REGION = ("x_offset", "y_offset", "width", "height")
_LARGEST = 2**32 - 1  # of the message's whole numbers
_FARTHEST = 1e300  # not-a-number is not below it either


def read_camera_info(path: Path) -> SimpleNamespace:
    """Read a calibration file into an object with the fields of sensor_msgs/CameraInfo. Raises ValueError.

    The file is what `ros2 topic echo --once` prints (k, d, r, p) or camera_calibration writes (camera_matrix, ...).
    """
    raw = read_yaml(path, first_of_several=True)
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold the fields of a CameraInfo, got {type(raw).__name__}")
    found = {name: _value(raw, name) for name in _CALIBRATION_NAMES}
    if lacking := [name for name in ("width", "height", "k") if found[name] is None]:
        raise ValueError(f"{path} lacks {', '.join(lacking)}: it is not a camera calibration")
    k = _numbers(path, "k", found["k"])
    roi = raw.get("roi") or {}
    if not isinstance(roi, dict):
        raise ValueError(f"{path}: roi must have x_offset, y_offset, width and height, got {roi!r}")
    return SimpleNamespace(
        width=_whole(path, "width", found["width"]),
        height=_whole(path, "height", found["height"]),
        distortion_model=str(raw.get("distortion_model") or "plumb_bob"),
        d=_numbers(path, "d", [] if found["d"] is None else found["d"]),
        k=k,
        r=_numbers(path, "r", _IDENTITY if found["r"] is None else found["r"]),
        p=_numbers(path, "p", [*k[:3], 0.0, *k[3:6], 0.0, *k[6:], 0.0] if found["p"] is None else found["p"]),
        binning_x=_whole(path, "binning_x", raw.get("binning_x", 0)),
        binning_y=_whole(path, "binning_y", raw.get("binning_y", 0)),
        roi=SimpleNamespace(
            **{name: _whole(path, f"roi.{name}", roi.get(name, 0)) for name in _REGION},
            do_rectify=bool(roi.get("do_rectify", False)),
        ),
    )


def _value(raw: Mapping[Any, Any], name: str) -> Any:
    value = raw.get(name, raw.get(_CALIBRATION_NAMES[name]))
    return value.get("data") if isinstance(value, dict) else value


def _numbers(path: Path, name: str, values: Any) -> list[float]:
    length = _LENGTHS.get(name)
    fits = isinstance(values, list) and (length is None or len(values) == length)
    if not fits or not all(_is_number(value) for value in values):
        wanted = f"{length} numbers" if length else "a list of numbers"
        raise ValueError(f"{path}: {name} must be {wanted}, got {str(values)[:80]}")
    return [float(value) for value in values]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _FARTHEST


def _whole(path: Path, name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LARGEST:
        raise ValueError(f"{path}: {name} must be a whole number from 0 to {_LARGEST}, got {str(value)[:80]}")
    return value
