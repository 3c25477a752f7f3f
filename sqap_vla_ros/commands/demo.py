"""`sqap-vla demo`: a simulated arm under the compressed policy over real ROS 2 topics."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sqap_vla_ros.evaluation.demo.run import CHECKPOINT, RECIPE, DemoOptions, run_demo


def register(subparsers: Any) -> None:
    """Add the `demo` sub-command."""
    parser = subparsers.add_parser(
        "demo",
        help="a simulated arm under the compressed policy: film, report, numbers",
        description="Starts simulator_node and policy_node, enables the policy, records the run and reports on it.",
    )
    parser.add_argument("--instruction", default="", help="the task in words, such as 'pick up the red cube'")
    parser.add_argument("--task", default="", help="kind of task (default: drawn by the seed)")
    parser.add_argument("--seed", type=int, default=0, help="layout of the first scene (default 0)")
    parser.add_argument("--episodes", type=int, default=1, metavar="N", help="scenes, one after the other (default 1)")
    parser.add_argument("--duration", type=float, default=20.0, metavar="S", help="longest episode (default 20 s)")
    parser.add_argument("--checkpoint", default=CHECKPOINT, help=f"CogACT folder or file (default {CHECKPOINT})")
    parser.add_argument("--recipe", default=RECIPE, help="how the policy is compressed")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the results (default out/demo)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demonstration. Raises DemoFailed where the arm did not move under the policy."""
    run_demo(
        DemoOptions(
            args.out,
            instruction=args.instruction,
            task=args.task,
            seed=args.seed,
            episodes=args.episodes,
            duration_s=args.duration,
            checkpoint=args.checkpoint,
            recipe=args.recipe,
            quiet=args.quiet,
        )
    )
    return 0
