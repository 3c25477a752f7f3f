"""`sqap-vla replay`: measure recipes on recorded bags."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqap_vla_ros.commands.ignored import ignored, ignored_by_server, ignored_recipes, note
from sqap_vla_ros.commands.options import (
    UsageError,
    add_checkpoint,
    add_checkpoint_settings,
    add_command,
    add_device,
    add_jobs,
    add_ray,
    add_recipes,
    add_sampling,
    add_seed,
    add_threads,
    add_unnorm_key,
    checkpoint_settings,
    instruction,
    integer,
    number,
    worker_settings,
)
from sqap_vla_ros.commands.policy_checks import require_device, require_fitting, require_mover, require_policy
from sqap_vla_ros.commands.recordings.bags import (
    BAG_OPTIONS,
    add_bag_frames,
    add_bag_topics,
    bag_spec,
    ignored_bag_options,
)
from sqap_vla_ros.commands.recordings.cameras import add_fixed_camera
from sqap_vla_ros.commands.recordings.datasets import (
    DATASET_OPTIONS,
    add_dataset_features,
    dataset_spec,
    ignored_dataset_options,
)

if TYPE_CHECKING:
    from sqap_vla_ros.evaluation.replay.jobs import ReplayJob
    from sqap_vla_ros.evaluation.replay.sources import RecordingSpec

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
    add_dataset_features(dataset)
    add_fixed_camera(dataset)
    frames = parser.add_argument_group("frames")
    add_bag_frames(frames)
    how = parser.add_argument_group("how")
    how.add_argument("--stride", type=integer(1), default=1, help="use every n-th image")
    how.add_argument(
        "--control-rate", type=number(0.0, above=True), default=5.0, help="Hz; slower predictions miss their deadline"
    )
    add_jobs(how, 1, "bags at a time, in processes of this machine")
    add_ray(how, "bags")
    how.add_argument("--no-video", action="store_true", help="leave out the overlay video")


def _spec_of(recording: Path, args: argparse.Namespace) -> RecordingSpec:
    from sqap_vla_ros.recordings.lerobot.layout import is_dataset

    if is_dataset(recording.expanduser()):
        return dataset_spec(args)
    if args.simulator_camera:
        raise UsageError(
            f"--simulator-camera {args.simulator_camera}: a bag brings its camera in camera_info and TF; the option is "
            "for LeRobot datasets"
        )
    return bag_spec(args, stride=args.stride)


def recipes_of(args: argparse.Namespace) -> Sequence[str]:
    """Return the recipes to compare: a server has chosen its own. Raises UsageError where it cannot be reached."""
    from sqap_vla_ros.serving.frames import is_remote

    if not is_remote(args.checkpoint):
        return tuple(args.recipes)
    from sqap_vla_ros.evaluation.closed_loop.study import served_info
    from sqap_vla_ros.serving.remote import RemoteError

    try:
        served = served_info(args.checkpoint).recipe
    except RemoteError as error:
        raise UsageError(f"--checkpoint {args.checkpoint}: {error}") from error
    if Path(served).name != served:
        raise UsageError(f"--checkpoint {args.checkpoint}: a recipe becomes a folder's name, got {served!r}")
    note(ignored(args, (("--recipes",), tuple(args.recipes) != (served,), f"the server has chosen {served}")))
    return (served,)


def jobs_of(args: argparse.Namespace) -> list[ReplayJob]:
    """Return one job a recording, each with its own folder under --out. Raises ValueError."""
    from sqap_vla_ros.evaluation.replay.jobs import make_jobs
    from sqap_vla_ros.serving.frames import is_remote
    from sqap_vla_ros.serving.worker import WorkerConfig

    settings = checkpoint_settings(args)
    require_policy(args.checkpoint, *(() if is_remote(args.checkpoint) else args.recipes), settings=settings)
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
    jobs = make_jobs(
        args.bags,
        args.out,
        [_spec_of(recording, args) for recording in args.bags],
        recipes_of(args),
        worker,
        control_rate_hz=args.control_rate,
        video=not args.no_video,
    )
    require_mover(args.checkpoint, settings)
    require_fitting(args.checkpoint, args.recipes)
    return jobs


def ignored_options(args: argparse.Namespace) -> list[str]:
    """Return a sentence for each option that was typed and has no effect."""
    from sqap_vla_ros.recordings.lerobot.layout import is_dataset

    datasets = sum(is_dataset(recording.expanduser()) for recording in args.bags)
    bags = len(args.bags) - datasets
    said = ignored(
        args,
        (BAG_OPTIONS, not bags, "there is no bag among the recordings"),
        (DATASET_OPTIONS, not datasets, "there is no LeRobot dataset among the recordings"),
        (("--camera-pose", "--mirrored"), not datasets, "a bag brings its camera in camera_info and TF"),
        (("--jobs",), args.ray, "--ray distributes the bags"),
        (("--jobs",), args.jobs > 1 and not args.ray and len(args.bags) == 1, "there is one bag"),
    )
    if bags:
        said += ignored_bag_options(args)
    if datasets:
        said += ignored_dataset_options(args)
    return said + ignored_by_server(args)


def run(args: argparse.Namespace) -> int:
    """Replay the bags and print the comparison; 1 where one of them failed."""
    from sqap_vla_ros.evaluation.ray_cluster import require_cluster
    from sqap_vla_ros.evaluation.replay.jobs import run_jobs
    from sqap_vla_ros.evaluation.replay.report import OPEN_LOOP
    from sqap_vla_ros.evaluation.replay.tables import print_table
    from sqap_vla_ros.policy.checkpoints.writing import check_folder

    check_folder(args.out)
    if args.ray is not None:
        require_cluster(args.ray)
    jobs = jobs_of(args)
    require_device(args.device, args.checkpoint)
    note((*ignored_options(args), *ignored_recipes(args)))
    results = run_jobs(jobs, processes=args.jobs, ray_address=args.ray)
    halted = next((result for result in results if result.halts), None)
    for result in results:
        if result.halts and result is not halted:
            continue  # one sentence for all
        if result.error:
            print(f"{result.trace if args.traceback else ''}error: {result.error}", file=sys.stderr)
        else:
            print_table(result.job.bag, result.summaries)
            print(f"report: {result.job.out / 'report.html'}")
    if not all(result.error for result in results):
        print(OPEN_LOOP)
    return 1 if any(result.error for result in results) else 0
