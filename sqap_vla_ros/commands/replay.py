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
    checkpoint_settings,
    fixed_camera,
    instruction,
    integer,
    number,
    require_device,
    require_policy,
    worker_settings,
)
from sqap_vla_ros.commands.recordings.bags import add_bag_frames, add_bag_topics, bag_spec, ignored_bag_options

if TYPE_CHECKING:
    from sqap_vla_ros.evaluation.replay.jobs import ReplayJob
    from sqap_vla_ros.nodes.bags.spec import ReplaySpec
    from sqap_vla_ros.recordings.lerobot.spec import DatasetSpec

_MOST_EPISODES = 10**6
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
    add_bag_topics(topics)
    topics.add_argument("--instruction", type=instruction, help="what to do, where the bag has no such topic")
    dataset = parser.add_argument_group("LeRobot datasets (their features are found by name)")
    dataset.add_argument("--image-key", help="which camera, where there are several")
    dataset.add_argument("--state-key", help="the tool's pose: x, y, z and rotation first; none: do not use it")
    dataset.add_argument("--state", help=f"{STATE_HELP}; else from the names of its elements")
    dataset.add_argument("--action-key", help="the recorded actions; none: do not compare with them")
    dataset.add_argument("--action-space", default="metric", help="what recorded actions mean, as in `serve`")
    dataset.add_argument("--episodes", type=_episodes, default=(), metavar="LIST", help="such as 0,4,10-19; else all")
    add_fixed_camera(dataset)
    frames = parser.add_argument_group("frames")
    add_bag_frames(frames)
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
    if args.simulator_camera:
        raise UsageError(
            f"--simulator-camera {args.simulator_camera}: a bag brings its camera in camera_info and TF; the option is "
            "for LeRobot datasets"
        )
    return bag_spec(args, stride=args.stride)


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


def jobs_of(args: argparse.Namespace) -> list[ReplayJob]:
    """Return one job a bag, each with its own folder under --out. Raises ValueError."""
    from sqap_vla_ros.evaluation.replay.jobs import make_jobs
    from sqap_vla_ros.recordings.lerobot.layout import is_dataset
    from sqap_vla_ros.serving.worker import WorkerConfig

    require_policy(args.checkpoint, settings=checkpoint_settings(args))
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
    cases = (
        (args.jobs > 1 and args.ray, "--jobs", "--ray distributes the bags"),
        (args.jobs > 1 and not args.ray and len(args.bags) == 1, "--jobs", "there is one bag"),
    )
    jobs = [f"{option} is ignored: {reason}" for given, option, reason in cases if given]
    return [*ignored_bag_options(args), *jobs]


def run(args: argparse.Namespace) -> int:
    """Replay the bags and print the comparison; 1 where one of them failed."""
    from sqap_vla_ros.evaluation.replay.jobs import run_jobs
    from sqap_vla_ros.evaluation.replay.report import OPEN_LOOP
    from sqap_vla_ros.evaluation.replay.tables import print_table
    from sqap_vla_ros.policy.checkpoints.writing import check_folder

    check_folder(args.out)
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
