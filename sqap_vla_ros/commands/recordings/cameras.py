"""The options that say where a camera is that does not move."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqap_vla_ros.commands.ignored import Case
from sqap_vla_ros.commands.options import UsageError, number

if TYPE_CHECKING:
    from sqap_vla_ros.robot.interchange.fixed_camera import FixedCamera


def add_fixed_camera(group: Any) -> None:
    """Add the options that say where a camera is that does not move; `--camera-info` is the command's own."""
    group.add_argument(
        "--camera-pose",
        type=number(-math.inf),
        nargs=7,
        metavar=("X", "Y", "Z", "QX", "QY", "QZ", "QW"),
        help="the camera's optical frame in the base frame; needs --camera-info",
    )
    group.add_argument(
        "--simulator-camera", type=Path, help="instead of the two: pose and field of view of MuJoCo's camera as JSON"
    )
    group.add_argument("--mirrored", action="store_true", help="images are mirrored left to right")


def mirrored_without_camera(args: argparse.Namespace) -> Case:
    """Return the case that images are said to be mirrored and there is no camera that could see it."""
    camera = args.camera_pose is not None or args.simulator_camera is not None
    return (("--mirrored",), not camera, "without a camera no tool is projected")


def fixed_camera(args: argparse.Namespace, camera_info: Path | None) -> FixedCamera | None:
    """Return the camera of the options, None where there is none. Raises ValueError."""
    from sqap_vla_ros.robot.calibration_file import read_camera_info
    from sqap_vla_ros.robot.camera import CameraModel
    from sqap_vla_ros.robot.conventions import invert_pose, pose_matrix
    from sqap_vla_ros.robot.interchange.fixed_camera import FixedCamera
    from sqap_vla_ros.robot.interchange.simulator_camera import read_simulator_camera

    if args.simulator_camera is not None:
        if camera_info is not None or args.camera_pose is not None:
            raise UsageError("--simulator-camera replaces --camera-info and --camera-pose: give it alone")
        return read_simulator_camera(args.simulator_camera, mirrored=args.mirrored)
    if camera_info is None and args.camera_pose is None:
        return None
    if camera_info is None or args.camera_pose is None:
        raise UsageError("--camera-info and --camera-pose belong together: give both")
    base_from_optical = pose_matrix(args.camera_pose[:3], args.camera_pose[3:])
    model = CameraModel.from_camera_info(read_camera_info(camera_info))
    return FixedCamera(model, invert_pose(base_from_optical), args.mirrored)
