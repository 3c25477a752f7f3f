"""The options that say which topics of a bag are read and what its frames are called."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqap_vla_ros.commands.ignored import ignored
from sqap_vla_ros.commands.options import UsageError, number

if TYPE_CHECKING:
    from sqap_vla_ros.nodes.bags.spec import ReplaySpec

BAG_OPTIONS = (  # those that `add_bag_topics` and `add_bag_frames` add, `--camera-info` aside, which datasets have too
    *("--image-topic", "--camera-info-topic", "--rectified", "--pose-topic", "--joint-topic", "--urdf"),
    *("--instruction-topic", "--segments", "--base-frame", "--tool-frame", "--static-transform"),
)
_LARGEST_URDF = 2**24  # bytes


def add_bag_topics(group: Any) -> None:
    """Add the options about topics, `--instruction` aside, whose meaning is the command's; see `bag_spec`."""
    group.add_argument("--image-topic", help="Image or CompressedImage")
    group.add_argument("--camera-info-topic", help="CameraInfo; the one beside the image unless given")
    group.add_argument(
        "--camera-info",
        default="",
        metavar="FILE|nearest:S",
        help="a calibration file for every image, or `nearest:0.02`: the nearest camera_info within so many seconds",
    )
    group.add_argument("--rectified", action="store_true", help="the image topic is rectified")
    group.add_argument("--pose-topic", help="PoseStamped of the tool in the base frame, instead of TF")
    group.add_argument("--joint-topic", help="JointState, with --urdf, instead of TF")
    group.add_argument("--urdf", type=Path, help="robot description for --joint-topic")
    group.add_argument("--instruction-topic", help="String")
    group.add_argument("--segments", type=Path, help="YAML list of {from_s: seconds, instruction: text}")


def add_bag_frames(group: Any) -> None:
    """Add the options about frames; see `bag_spec`."""
    group.add_argument("--base-frame", default="base_link", help="frame that actions are expressed in")
    group.add_argument("--tool-frame", default="tool0", help="frame that actions move")
    group.add_argument(
        "--static-transform",
        nargs=9,
        action="append",
        default=[],
        metavar=("PARENT", "CHILD", "X", "Y", "Z", "QX", "QY", "QZ", "QW"),
        help="a transform the bag lacks, such as the camera's mounting; may be repeated",
    )


def ignored_bag_options(args: argparse.Namespace) -> list[str]:
    """Return a sentence for each option about bags that another one makes useless."""
    fixed = args.camera_info and not args.camera_info.startswith("nearest")
    return ignored(
        args,
        (("--urdf",), args.pose_topic, "--pose-topic gives the tool's pose"),
        (("--joint-topic",), args.pose_topic, "--pose-topic gives the tool's pose"),
        (("--joint-topic",), not args.pose_topic and not args.urdf, "it needs --urdf"),
        (("--camera-info-topic",), fixed, "--camera-info names a file"),
        (("--segments",), args.instruction_topic, "--instruction-topic says what to do"),
    )


def bag_spec(args: argparse.Namespace, *, stride: int = 1) -> ReplaySpec:
    """Return what the options say about topics and frames. Raises ValueError."""
    from sqap_vla_ros.nodes.bags.spec import (
        ReplaySpec,
        parse_static_transform,
        read_camera_info_message,
        read_segments,
        require_frame,
    )

    kind, _, seconds = args.camera_info.partition(":")
    nearest = kind == "nearest"
    fixed = args.camera_info and not nearest
    return ReplaySpec(
        base_frame=require_frame("--base-frame", args.base_frame),
        tool_frame=require_frame("--tool-frame", args.tool_frame),
        image_topic=args.image_topic,
        camera_info_topic=args.camera_info_topic,
        instruction_topic=args.instruction_topic,
        pose_topic=args.pose_topic,
        joint_topic=args.joint_topic,
        urdf=_robot_description(args.urdf) if args.urdf else "",
        instruction=args.instruction or "",
        segments=read_segments(args.segments) if args.segments else (),
        static_transforms=tuple(map(parse_static_transform, args.static_transform)),
        camera_info=read_camera_info_message(Path(args.camera_info)) if fixed else None,
        camera_info_nearest_s=_nearest_s(seconds) if nearest else 0.0,
        rectified=args.rectified,
        stride=stride,
    )


def _robot_description(path: Path) -> str:
    with path.open("rb") as file:
        text = file.read(_LARGEST_URDF + 1)
    if not text.strip():
        raise UsageError(f"--urdf {path}: empty")
    if len(text) > _LARGEST_URDF:
        raise UsageError(f"--urdf {path}: larger than {_LARGEST_URDF >> 20} MiB: not a URDF")
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"--urdf {path}: no text file: {error}") from error


def _nearest_s(text: str) -> float:
    from sqap_vla_ros.nodes.bags.pairing import LARGEST_NEAREST_S

    if not text:
        raise UsageError("--camera-info nearest: needs a number of seconds, such as nearest:0.02")
    try:
        return number(0.0, LARGEST_NEAREST_S, above=True)(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--camera-info nearest: {error}") from error
