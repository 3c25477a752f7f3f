"""`sqap-vla replay`: measure recipes on recorded bags."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqap_vla_ros.commands.options import (
    STATE_HELP,
    UsageError,
    add_checkpoint,
    add_checkpoint_settings,
    add_command,
    add_device,
    add_fixed_camera,
    add_recipes,
    add_sampling,
    add_seed,
    add_threads,
    add_unnorm_key,
    fixed_camera,
    instruction,
    integer,
    number,
    require_device,
    require_policy,
    worker_settings,
)

if TYPE_CHECKING:
    from sqap_vla_ros.evaluation.replay.jobs import ReplayJob
    from sqap_vla_ros.nodes.bags.spec import ReplaySpec
    from sqap_vla_ros.recordings.lerobot.spec import DatasetSpec

_MOST_EPISODES = 10**6
_LARGEST_URDF = 2**24  # bytes
_DESCRIPTION = """\
Replay recordings through a policy, offline and deterministically, and report what each recipe does to latency,
memory, kept tokens and actions. Reads rosbag2 (MCAP, SQLite), ROS 1 bags and LeRobot datasets. An interrupted replay
goes on where it stopped."""


_RECORDING = "rosbag2 folder, ROS 1 .bag file, or folder of a LeRobot dataset"


def register(subparsers: Any) -> None:
    """Add the `replay` sub-command."""
    parser = add_command(
        subparsers, "replay", run, summary="measure recipes on recordings", description=_DESCRIPTION, resumes=True
    )
    parser.add_argument("bags", nargs="+", type=Path, metavar="RECORDING", help=_RECORDING)
    parser.add_argument("--out", type=Path, default=Path("out/replay"), help="folder for the reports")
    policy = parser.add_argument_group("policy")
    add_checkpoint(policy, "micro")
    add_recipes(policy)
    add_unnorm_key(policy)
    add_checkpoint_settings(policy)
    add_sampling(policy)
    add_device(policy)
    policy.add_argument(
        "--dtype", default="", choices=("float32", "bfloat16", "float16"), help="overrides the recipes' dtype"
    )
    add_threads(policy)
    add_seed(policy, "seed of the diffusion noise, the same for every frame")
    topics = parser.add_argument_group("topics (the only one of its type is found by itself)")
    topics.add_argument("--image-topic", help="Image or CompressedImage")
    topics.add_argument("--camera-info-topic", help="CameraInfo; the one beside the image unless given")
    topics.add_argument(
        "--camera-info",
        default="",
        metavar="FILE|nearest:S",
        help="a calibration file for every image, or `nearest:0.02`: the nearest camera_info within so many seconds",
    )
    topics.add_argument("--rectified", action="store_true", help="the image topic is rectified")
    topics.add_argument("--pose-topic", help="PoseStamped of the tool in the base frame, instead of TF")
    topics.add_argument("--joint-topic", help="JointState, with --urdf, instead of TF")
    topics.add_argument("--urdf", type=Path, help="robot description for --joint-topic")
    topics.add_argument("--instruction-topic", help="String")
    topics.add_argument("--instruction", type=instruction, help="what to do, where the bag has no such topic")
    topics.add_argument("--segments", type=Path, help="YAML list of {from_s: seconds, instruction: text}")
    dataset = parser.add_argument_group("LeRobot datasets (their features are found by name)")
    dataset.add_argument("--image-key", help="which camera, where there are several")
    dataset.add_argument("--state-key", help="the tool's pose: x, y, z and rotation first; none: do not use it")
    dataset.add_argument("--state", help=f"{STATE_HELP}; else from the names of its elements")
    dataset.add_argument("--action-key", help="the recorded actions; none: do not compare with them")
    dataset.add_argument("--action-space", default="metric", help="what recorded actions mean, as in `serve`")
    dataset.add_argument("--episodes", type=_episodes, default=(), metavar="LIST", help="such as 0,4,10-19; else all")
    add_fixed_camera(dataset)
    frames = parser.add_argument_group("frames")
    frames.add_argument("--base-frame", default="base_link", help="frame that actions are expressed in")
    frames.add_argument("--tool-frame", default="tool0", help="frame that actions move")
    frames.add_argument(
        "--static-transform",
        nargs=9,
        action="append",
        default=[],
        metavar=("PARENT", "CHILD", "X", "Y", "Z", "QX", "QY", "QZ", "QW"),
        help="a transform the bag lacks, such as the camera's mounting; may be repeated",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--stride", type=integer(1), default=1, help="use every n-th image")
    how.add_argument(
        "--control-rate", type=number(0.0, above=True), default=5.0, help="Hz; slower predictions miss their deadline"
    )
    how.add_argument("--jobs", type=integer(1), default=1, help="bags at a time, in processes of this machine")
    how.add_argument("--ray", metavar="ADDRESS", help="bags over a Ray cluster: auto, local or host:port")
    how.add_argument("--no-video", action="store_true", help="leave out the overlay video")


def spec_of(args: argparse.Namespace) -> ReplaySpec:
    """Return the options about topics and frames of bags. Raises ValueError."""
    from sqap_vla_ros.nodes.bags.spec import (
        ReplaySpec,
        parse_static_transform,
        read_camera_info_message,
        read_segments,
    )

    if args.simulator_camera:
        raise UsageError(
            f"--simulator-camera {args.simulator_camera}: a bag brings its camera in camera_info and TF; the option is "
            "for LeRobot datasets"
        )
    kind, _, seconds = args.camera_info.partition(":")
    nearest = kind == "nearest"
    fixed = args.camera_info and not nearest
    return ReplaySpec(
        base_frame=args.base_frame.removeprefix("/"),
        tool_frame=args.tool_frame.removeprefix("/"),
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
        stride=args.stride,
    )


def dataset_spec_of(args: argparse.Namespace) -> DatasetSpec:
    """Return the options about datasets. Raises ValueError."""
    from sqap_vla_ros.recordings.lerobot.spec import DatasetSpec

    return DatasetSpec(
        *(args.image_key, args.state_key, args.action_key, args.state, args.action_space),
        camera=fixed_camera(args, Path(args.camera_info) if args.camera_info else None),
        instruction=args.instruction or "",
        episodes=args.episodes,
        stride=args.stride,
    )


def _episodes(text: str) -> tuple[int, ...]:
    """Read `0,4,10-19`."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        is_range = first.isdecimal() and (last.isdecimal() or not dash)
        if not is_range or int(last or first) - int(first) > _MOST_EPISODES:
            raise argparse.ArgumentTypeError(f"expected episodes such as 0,4,10-19, got {text!r}")
        found += range(int(first), int(last or first) + 1)
    if not found or len(found) != len(set(found)):
        raise argparse.ArgumentTypeError(f"each episode must be named once, got {text!r}")
    return tuple(found)


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

    try:
        return number(0.0, LARGEST_NEAREST_S, above=True)(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--camera-info nearest: {error}") from error


def jobs_of(args: argparse.Namespace) -> list[ReplayJob]:
    """Return one job a bag, each with its own folder under --out. Raises ValueError."""
    from sqap_vla_ros.evaluation.replay.jobs import make_jobs
    from sqap_vla_ros.recordings.lerobot.layout import is_dataset
    from sqap_vla_ros.serving.worker import WorkerConfig

    require_policy(args.checkpoint)
    path = Path(args.checkpoint).expanduser()
    worker = WorkerConfig(
        str(path.resolve()) if path.exists() else args.checkpoint,
        device=args.device,
        dtype=args.dtype,
        unnorm_key=args.unnorm_key,
        **worker_settings(args),
        seed=args.seed,
        threads=args.threads,
    )
    return make_jobs(
        args.bags,
        args.out,
        [dataset_spec_of(args) if is_dataset(path.expanduser()) else spec_of(args) for path in args.bags],
        args.recipes,
        worker,
        control_rate_hz=args.control_rate,
        video=not args.no_video,
    )


def ignored_options(args: argparse.Namespace) -> list[str]:
    """Return a sentence for each given option that another one makes useless."""
    fixed = args.camera_info and not args.camera_info.startswith("nearest")
    cases = (
        (args.urdf and args.pose_topic, "--urdf", "--pose-topic gives the tool's pose"),
        (args.joint_topic and args.pose_topic, "--joint-topic", "--pose-topic gives the tool's pose"),
        (args.joint_topic and not args.urdf, "--joint-topic", "it needs --urdf"),
        (fixed and args.camera_info_topic, "--camera-info-topic", "--camera-info names a file"),
        (args.jobs > 1 and args.ray, "--jobs", "--ray distributes the bags"),
        (args.jobs > 1 and not args.ray and len(args.bags) == 1, "--jobs", "there is one bag"),
    )
    return [f"{option} is ignored: {reason}" for given, option, reason in cases if given]


def run(args: argparse.Namespace) -> int:
    """Replay the bags and print the comparison; 1 where one of them failed."""
    from sqap_vla_ros.evaluation.replay.jobs import run_jobs
    from sqap_vla_ros.evaluation.replay.report import OPEN_LOOP
    from sqap_vla_ros.evaluation.replay.tables import print_table

    jobs = jobs_of(args)
    require_device(args.device)
    for note in ignored_options(args):
        print(f"note: {note}", file=sys.stderr)
    results = run_jobs(jobs, processes=args.jobs, ray_address=args.ray)
    for result in results:
        if result.error:
            print(f"{result.trace if args.traceback else ''}error: {result.error}", file=sys.stderr)
        else:
            print_table(result.job.bag, result.summaries)
            print(f"report: {result.job.out / 'report.html'}")
    if not all(result.error for result in results):
        print(OPEN_LOOP)
    return 1 if any(result.error for result in results) else 0
