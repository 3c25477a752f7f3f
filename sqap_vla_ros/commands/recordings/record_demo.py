"""`sqap-vla record-demo`: record the simulated arm doing a task, so that anyone can try the replay."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from sqap_vla_ros.commands.ignored import ignored, note
from sqap_vla_ros.commands.options import add_command, add_seed, integer
from sqap_vla_ros.simulation.vocabulary import TaskFamily

_DESCRIPTION = """\
Record the embedded simulator's arm while a scripted expert does a task: compressed images, camera_info, TF, joint
states, the robot description, the instruction and the expert's actions; or a LeRobot dataset. The same seed gives the
same messages."""


def _bag(args: argparse.Namespace) -> list[bool]:
    from sqap_vla_ros.evaluation.demo.record_bag import record_demo

    return record_demo(args.out, jpeg_quality=args.jpeg_quality, **_scene(args))


def _dataset(args: argparse.Namespace) -> list[bool]:
    from sqap_vla_ros.evaluation.demo.record_lerobot import record_dataset

    return record_dataset(args.out, **_scene(args))


def _scene(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("family", "seed", "episodes", "width", "height")}


_FORMATS = {"bag": _bag, "lerobot": _dataset}


def register(subparsers: Any) -> None:
    """Add the `record-demo` sub-command."""
    parser = add_command(subparsers, "record-demo", run, summary="record the simulated arm", description=_DESCRIPTION)
    parser.add_argument("out", type=Path, help="folder of the new recording")
    parser.add_argument("--format", choices=tuple(_FORMATS), default="bag", help="rosbag2, or LeRobotDataset v3.0")
    parser.add_argument("--family", choices=tuple(map(str, TaskFamily)), help="task family, else drawn from the seed")
    add_seed(parser, "layout of the first episode")
    parser.add_argument("--episodes", type=integer(1, 100_000), default=1, help="one after the other, seeds ascending")
    parser.add_argument("--width", type=integer(16, 1280), default=640, help="of the image, pixels")
    parser.add_argument("--height", type=integer(16, 960), default=480, help="of the image, pixels")
    parser.add_argument("--jpeg-quality", type=integer(1, 100), default=90, help="of the images in a bag")


def run(args: argparse.Namespace) -> int:
    """Write the recording; 0 when it is complete."""
    from sqap_vla_ros.evaluation.demo.record_lerobot import CAMERA_FILE
    from sqap_vla_ros.policy.checkpoints.writing import check_folder

    check_folder(args.out)
    note(ignored(args, (("--jpeg-quality",), args.format != "bag", "a dataset holds films")))
    outcomes = _FORMATS[args.format](args)
    size_mb = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file()) / 1e6
    print(f"{args.out}: {len(outcomes)} episodes, the expert succeeded in {sum(outcomes)}, {size_mb:.1f} MB")
    trial = ["sqap-vla", "replay", str(args.out), "--recipes", "fp32,sqap"]
    if (args.out / CAMERA_FILE).exists():
        trial += ["--simulator-camera", str(args.out / CAMERA_FILE)]
    print(f"try: {shlex.join(trial)}")
    return 0
