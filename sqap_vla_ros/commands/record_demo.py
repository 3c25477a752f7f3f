"""`sqap-vla record-demo`: a bag of the simulated arm doing a task, so that anyone can try the replay."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_DESCRIPTION = """\
Records the embedded simulator's arm while a scripted expert does a task: compressed images, camera_info, TF, joint
states, the robot description, the instruction and the expert's actions. The same seed gives the same messages."""


def register(subparsers: Any) -> None:
    """Add the `record-demo` sub-command."""
    parser = subparsers.add_parser("record-demo", help="make a bag of the simulated arm", description=_DESCRIPTION)
    parser.add_argument("out", type=Path, help="folder of the new bag")
    parser.add_argument("--family", help="task family, drawn from the seed unless given (pick, open_drawer, ...)")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode (default 0)")
    parser.add_argument("--episodes", type=int, default=1, help="one after the other, seeds ascending (default 1)")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--jpeg-quality", type=int, default=90)
    parser.set_defaults(run=run)


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
