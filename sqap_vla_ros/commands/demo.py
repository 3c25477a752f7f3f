"""`sqap-vla demo`: run a simulated arm under the compressed policy over real ROS 2 topics."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sqap_vla_ros.commands.options import (
    add_checkpoint,
    add_command,
    add_recipe,
    add_seed,
    instruction,
    integer,
    number,
)
from sqap_vla_ros.commands.policy_checks import require_fitting, require_policy
from sqap_vla_ros.contracts import TRAINED_POLICY
from sqap_vla_ros.evaluation.demo.run import RECIPE, DemoOptions, run_demo
from sqap_vla_ros.simulation.vocabulary import TaskFamily


def register(subparsers: Any) -> None:
    """Add the `demo` sub-command."""
    parser = add_command(
        subparsers,
        "demo",
        run,
        summary="run a simulated arm under the compressed policy: film, report, numbers",
        description="Start simulator_node and policy_node, enable the policy, record the run and report on it.",
    )
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--instruction", type=instruction, help="task in words, such as 'pick up the red cube'")
    task.add_argument("--task", default="", choices=tuple(map(str, TaskFamily)), help="kind of task, else drawn")
    add_seed(parser, "layout of the first scene")
    parser.add_argument("--episodes", type=integer(1, 100), default=1, metavar="N", help="scenes, one after the other")
    parser.add_argument(
        "--duration", type=number(1.0, 3600.0), default=20.0, metavar="S", help="longest episode, seconds"
    )
    parser.add_argument(
        "--gripper",
        default="",
        choices=("forward_command", "gripper_command"),
        help="how the gripper is commanded: a topic, or an action of control_msgs",
    )
    add_checkpoint(parser, TRAINED_POLICY, server=False)
    add_recipe(parser, RECIPE)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the results")
    parser.add_argument("--quiet", action="store_true", help="show no progress bars")


def run(args: argparse.Namespace) -> int:
    """Run the demonstration. Raises DemoFailed where the arm did not move under the policy."""
    require_policy(args.checkpoint, args.recipe, server=False)
    require_fitting(args.checkpoint, (args.recipe,))
    run_demo(
        DemoOptions(
            args.out,
            instruction=args.instruction or "",
            task=args.task,
            seed=args.seed,
            episodes=args.episodes,
            duration_s=args.duration,
            checkpoint=args.checkpoint,
            recipe=args.recipe,
            gripper=args.gripper,
            quiet=args.quiet,
        )
    )
    return 0
