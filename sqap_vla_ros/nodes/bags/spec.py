"""The specification of a replay: topics, frames, instructions, and their forms in options and files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, RegionOfInterest

from sqap_vla_ros.contracts import unreadable
from sqap_vla_ros.robot.calibration_file import read_camera_info
from sqap_vla_ros.robot.conventions import pose_matrix
from sqap_vla_ros.yaml_files import read_yaml

Segments = tuple[tuple[float, str], ...]
StaticTransform = tuple[str, str, NDArray[np.float64]]


@dataclass(frozen=True)
class ReplaySpec:
    """The topics to read and the names of frames. None for a topic: the only one of its type, where there is one.

    base_frame, tool_frame: as the policy node's parameters. instruction: used where the bag has no instruction topic.
    segments: (seconds since the bag's start, instruction), ascending; goes before `instruction`.
    pose_topic: PoseStamped of the tool in the base frame, instead of TF. joint_topic with urdf: forward kinematics
    instead of TF. static_transforms: (parent, child, [4, 4]) that the bag lacks, such as the camera's mounting.
    camera_info: one calibration for every image, instead of a topic. camera_info_nearest_s: where positive, the nearest
    camera_info up to so many seconds away serves an image without one of its own stamp.
    rectified: the image topic is rectified. stride: use every n-th image. tf_timeout_s: how far the recording may go on
    before an image's transforms are given up. max_age_s: images recorded later than this after their stamp are stale.
    """

    base_frame: str = "base_link"
    tool_frame: str = "tool0"
    image_topic: str | None = None
    camera_info_topic: str | None = None
    instruction_topic: str | None = None
    pose_topic: str | None = None
    joint_topic: str | None = None
    urdf: str = ""
    instruction: str = ""
    segments: Segments = ()
    static_transforms: tuple[StaticTransform, ...] = ()
    camera_info: CameraInfo | None = None
    camera_info_nearest_s: float = 0.0
    rectified: bool = False
    stride: int = 1
    tf_timeout_s: float = 0.5
    max_age_s: float = 0.5

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1, got {self.stride}")
        for name in ("tf_timeout_s", "max_age_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.camera_info_nearest_s < 0:
            raise ValueError(f"camera_info_nearest_s must not be negative, got {self.camera_info_nearest_s}")
        if [start for start, _ in self.segments] != sorted(start for start, _ in self.segments):
            starts = ", ".join(f"{start:g}" for start, _ in self.segments)
            raise ValueError(f"segments must be in order of time, got from_s {starts}")


def read_segments(path: Path) -> Segments:
    """Read a YAML list of {from_s: seconds since the bag's start, instruction: text}. Raises ValueError."""
    entries = read_yaml(path)
    for entry in entries if isinstance(entries, list) and entries else [entries]:
        start_s, text = (entry.get("from_s"), entry.get("instruction")) if isinstance(entry, dict) else (None, None)
        is_time = isinstance(start_s, (int, float)) and not isinstance(start_s, bool) and math.isfinite(start_s)
        if not is_time or not isinstance(text, str):
            raise ValueError(
                f"{path} must be a YAML list of {{from_s: seconds, instruction: text}}, got {str(entry)[:80]}"
            )
        if problem := unreadable(text):
            raise ValueError(f"{path}: {problem}")
    return tuple((float(entry["from_s"]), entry["instruction"].strip()) for entry in entries)


def parse_static_transform(fields: Sequence[str]) -> StaticTransform:
    """Read parent, child and seven numbers (translation in metres, quaternion x y z w). Raises ValueError."""
    parent, child = (require_frame("--static-transform", name) for name in fields[:2])
    if parent == child:
        raise ValueError(f"--static-transform {parent} {child}: parent and child must be two frames")
    try:
        numbers = [float(text) for text in fields[2:]]
        return parent, child, pose_matrix(numbers[:3], numbers[3:])
    except ValueError as error:
        raise ValueError(f"--static-transform {parent} {child}: needs seven numbers: {error}") from error


def require_frame(option: str, text: str) -> str:
    """Return the name of a frame without ROS 1's leading slash. Raises ValueError where it can name none."""
    name = text.removeprefix("/")
    if not name or not name.isprintable() or name != name.strip():
        raise ValueError(f"{option}: {text!r} is no name of a frame")
    return name


def read_camera_info_message(path: Path) -> CameraInfo:
    """Read a calibration file (see `read_camera_info`) as a message. Raises ValueError."""
    found = vars(read_camera_info(path))
    roi = RegionOfInterest(**vars(found.pop("roi")))
    return CameraInfo(**found, roi=roi)
