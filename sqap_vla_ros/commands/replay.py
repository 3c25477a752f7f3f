"""`sqap-vla replay`: its options and what they become."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqap_vla_ros.evaluation.replay.jobs import ReplayJob
    from sqap_vla_ros.nodes.bags.observations import ReplaySpec

_DESCRIPTION = """\
Replays recordings through a policy, offline and deterministically, and reports what each recipe does to latency,
memory, kept tokens and actions. Reads rosbag2 (MCAP, SQLite) and ROS 1 bags. An interrupted replay goes on where it
stopped."""


def register(subparsers: Any) -> None:
    """Add the `replay` sub-command."""
    parser = subparsers.add_parser(
        "replay", help="measure recipes on recorded bags", description=_DESCRIPTION, formatter_class=_Formatter
    )
    parser.add_argument("bags", nargs="+", type=Path, metavar="BAG", help="rosbag2 folder or ROS 1 .bag file")
    parser.add_argument("--out", type=Path, default=Path("out/replay"), help="folder for the reports")
    policy = parser.add_argument_group("policy")
    policy.add_argument("--checkpoint", default="micro", help="checkpoint folder, compressed file, or micro")
    policy.add_argument("--recipes", default="fp32,w4a4,sqap", help="comma-separated; the first is the reference")
    policy.add_argument("--unnorm-key", default="", help="dataset whose statistics un-normalise the actions")
    policy.add_argument("--device", default="cpu")
    policy.add_argument("--dtype", default="", help="overrides the recipes' dtype")
    policy.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's default")
    policy.add_argument("--seed", type=int, default=0, help="seed of the diffusion noise, the same for every frame")
    topics = parser.add_argument_group("topics (the only one of its type is found by itself)")
    topics.add_argument("--image-topic", help="Image or CompressedImage")
    topics.add_argument("--camera-info-topic", help="CameraInfo; the one beside the image unless given")
    topics.add_argument("--rectified", action="store_true", help="the image topic is rectified")
    topics.add_argument("--pose-topic", help="PoseStamped of the tool in the base frame, instead of TF")
    topics.add_argument("--joint-topic", help="JointState, with --urdf, instead of TF")
    topics.add_argument("--urdf", type=Path, help="robot description for --joint-topic")
    topics.add_argument("--instruction-topic", help="String")
    topics.add_argument("--instruction", default="", help="what to do, where the bag has no such topic")
    topics.add_argument("--segments", type=Path, help="YAML list of {from_s: seconds, instruction: text}")
    frames = parser.add_argument_group("frames")
    frames.add_argument("--base-frame", default="base_link")
    frames.add_argument("--tool-frame", default="tool0")
    frames.add_argument(
        "--static-transform",
        nargs=9,
        action="append",
        default=[],
        metavar=("PARENT", "CHILD", "X", "Y", "Z", "QX", "QY", "QZ", "QW"),
        help="a transform the bag lacks, such as the camera's mounting; may be repeated",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--stride", type=int, default=1, help="use every n-th image")
    how.add_argument("--control-rate", type=float, default=5.0, help="Hz; slower predictions miss their deadline")
    how.add_argument("--jobs", type=int, default=1, help="bags at a time, in processes of this machine")
    how.add_argument("--ray", metavar="ADDRESS", help="bags over a Ray cluster: auto, local or host:port")
    how.add_argument("--no-video", action="store_true", help="leave out the overlay video")
    parser.set_defaults(run=run)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def make_spec(args: argparse.Namespace) -> ReplaySpec:
    """The options about topics and frames as a ReplaySpec. Raises ValueError."""
    from sqap_vla_ros.nodes.bags.observations import ReplaySpec
    from sqap_vla_ros.robot.conventions import pose_matrix

    transforms = []
    for parent, child, *numbers in args.static_transform:
        try:
            values = [float(number) for number in numbers]
        except ValueError as error:
            raise ValueError(f"--static-transform {parent} {child}: needs seven numbers: {error}") from error
        transforms.append((parent, child, pose_matrix(values[:3], values[3:])))
    return ReplaySpec(
        base_frame=args.base_frame,
        tool_frame=args.tool_frame,
        image_topic=args.image_topic,
        camera_info_topic=args.camera_info_topic,
        instruction_topic=args.instruction_topic,
        pose_topic=args.pose_topic,
        joint_topic=args.joint_topic,
        urdf=args.urdf.read_text() if args.urdf else "",
        instruction=args.instruction.strip(),
        segments=_segments(args.segments) if args.segments else (),
        static_transforms=tuple(transforms),
        rectified=args.rectified,
        stride=args.stride,
    )


def make_jobs(args: argparse.Namespace) -> list[ReplayJob]:
    """One job a bag, each with its own folder under --out. Raises ValueError."""
    from sqap_vla_ros.compression.recipe import load_recipe
    from sqap_vla_ros.evaluation.replay.jobs import ReplayJob
    from sqap_vla_ros.serving.worker import WorkerConfig

    recipes = tuple(name.strip() for name in args.recipes.split(",") if name.strip())
    for name in recipes:
        load_recipe(name)  # a wrong name is told before an hour of work, not after
    if args.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {args.jobs}")
    path = Path(args.checkpoint).expanduser()
    worker = WorkerConfig(
        str(path.resolve()) if path.exists() else args.checkpoint,
        device=args.device,
        dtype=args.dtype,
        unnorm_key=args.unnorm_key,
        seed=args.seed,
        threads=args.threads,
    )
    spec = make_spec(args)
    names = [bag.expanduser().resolve().stem for bag in args.bags]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"several bags are called {', '.join(twice)}: rename them or replay them into different --out")
    folders = [args.out] if len(names) == 1 else [args.out / name for name in names]
    return [
        ReplayJob(bag, spec, recipes, worker, folder, args.control_rate, video=not args.no_video)
        for bag, folder in zip(args.bags, folders, strict=True)
    ]


def _segments(path: Path) -> tuple[tuple[float, str], ...]:
    import yaml

    try:
        entries = yaml.safe_load(path.read_text())
        return tuple((float(entry["from_s"]), str(entry["instruction"]).strip()) for entry in entries)
    except (yaml.YAMLError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} must be a YAML list of {{from_s: seconds, instruction: text}}: {error!r}") from error


def run(args: argparse.Namespace) -> int:
    """Replay the bags and print the comparison; 1 where one of them failed."""
    from sqap_vla_ros.evaluation.replay.jobs import run_jobs
    from sqap_vla_ros.evaluation.replay.report import OPEN_LOOP
    from sqap_vla_ros.evaluation.replay.tables import print_table

    try:
        results = run_jobs(make_jobs(args), processes=args.jobs, ray_address=args.ray)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        raise
    for result in results:
        if result.error:
            print(f"error: {result.error}")
        else:
            print_table(result.job.bag, result.summaries)
            print(f"report: {result.job.out / 'report.html'}")
    print(OPEN_LOOP)
    return 1 if any(result.error for result in results) else 0
