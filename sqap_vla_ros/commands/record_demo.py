"""`sqap-vla record-demo`: record a bag of the simulated arm doing a task, so that anyone can try the replay."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sqap_vla_ros.commands.options import add_command, add_seed, integer
from sqap_vla_ros.simulation.vocabulary import TaskFamily

_DESCRIPTION = """\
Record the embedded simulator's arm while a scripted expert does a task: compressed images, camera_info, TF, joint
states, the robot description, the instruction and the expert's actions. The same seed gives the same messages."""


def register(subparsers: Any) -> None:
    """Add the `record-demo` sub-command."""
    parser = add_command(
        subparsers, "record-demo", run, summary="record a bag of the simulated arm", description=_DESCRIPTION
    )
    parser.add_argument("out", type=Path, help="folder of the new bag")
    parser.add_argument("--family", choices=tuple(map(str, TaskFamily)), help="task family, else drawn from the seed")
    add_seed(parser, "layout of the first episode")
    parser.add_argument("--episodes", type=integer(1), default=1, help="episodes one after the other, seeds ascending")
    parser.add_argument("--width", type=integer(16, 1280), default=640, help="of the image, pixels")
    parser.add_argument("--height", type=integer(16, 960), default=480, help="of the image, pixels")
    parser.add_argument("--jpeg-quality", type=integer(1, 100), default=90, help="of the stored images")


def run(args: argparse.Namespace) -> int:
    """Write the bag; 0 when it is complete."""
    from sqap_vla_ros.evaluation.demo.record_bag import record_demo

    outcomes = record_demo(
        args.out,
        family=args.family,
        seed=args.seed,
        episodes=args.episodes,
        width=args.width,
        height=args.height,
        jpeg_quality=args.jpeg_quality,
    )
    size_mb = sum(path.stat().st_size for path in args.out.iterdir()) / 1e6
    print(f"{args.out}: {len(outcomes)} episodes, the expert succeeded in {sum(outcomes)}, {size_mb:.1f} MB")
    print(f"try: sqap-vla replay {args.out} --recipes fp32,sqap")
    return 0
