"""`sqap-vla operate`: instruct, enable, stop and watch a running `policy_node`, without the ros2 command line."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING, Any

from sqap_vla_ros.commands.options import UsageError, add_command
from sqap_vla_ros.contracts import unreadable

if TYPE_CHECKING:
    from sqap_vla_ros.nodes.operate.operator import Operator

TRIGGERS = {"stop": "stop", "reset": "reset_fault"}  # what is typed -> the node's service
EXAMPLE = 'sqap-vla operate start "pick up the cube"'
DESCRIPTION = """Instruct, enable, stop and watch a running policy_node, as `ros2 topic` and `ros2 service` do:

  status               print what it does until Ctrl-C; with --once a single line
  start "pick up …"    print what it commands and who hears it, give it this instruction, enable it and print what it
                       does, until it is disabled or stopped; Ctrl-C disables it: the arm holds. Refused where nobody
                       hears the arm's commands
  disable              end the task; the arm holds
  stop                 latch a stop
  reset                clear a latched stop or fault
  reload               clean up and configure the node: parameters and policy are read anew, and it begins where the
                       arm is"""


def register(subparsers: Any) -> None:
    """Add the `operate` sub-command."""
    parser = add_command(
        subparsers,
        "operate",
        run,
        summary="instruct, enable, stop and watch a running policy node",
        description=DESCRIPTION,
    )
    parser.set_defaults(once=False, anyway=False, node="/policy_node")
    _add_options(parser)
    # A parser for each, so that options may stand before the instruction as well.
    kinds = parser.add_subparsers(dest="what", required=True, help="see above")
    for what in ("status", "start", "disable", *TRIGGERS, "reload"):
        kind = kinds.add_parser(what)
        kind.add_argument("instruction", nargs="?", help="of `start`: the task in words")
        kind.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        _add_options(kind)


def _node_name(text: str) -> str:
    if not re.fullmatch(r"(/?[A-Za-z_][A-Za-z0-9_]*)(/[A-Za-z_][A-Za-z0-9_]*)*", text):
        raise argparse.ArgumentTypeError(
            f"must be a node's name such as /policy_node or /left/policy_node, of letters, digits and _, got {text!r}"
        )
    return text


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; one that is not given leaves the value of the parser before."""
    options: tuple[tuple[str, dict[str, Any]], ...] = (
        ("--once", {"action": "store_true", "help": "of `status`: print one line and end"}),
        ("--anyway", {"action": "store_true", "help": "of `start`: also where nobody hears the commands of the arm"}),
        (
            "--node",
            {"type": _node_name, "help": "the policy node with its namespace; /policy_node unless given"},
        ),
    )
    for name, settings in options:
        parser.add_argument(name, default=argparse.SUPPRESS, **settings)


def run(args: argparse.Namespace) -> int:
    """Do it; 1 where the node refuses."""
    if (args.instruction is None) == (args.what == "start"):
        begins = args.what == "start"
        raise UsageError(f"{'`start` needs' if begins else 'only `start` has'} an instruction: {EXAMPLE}")
    if args.instruction is not None and (problem := unreadable(args.instruction)) is not None:
        raise UsageError(problem)
    if args.once and args.what != "status":
        raise UsageError("--once is for `status`: leave it out")
    if args.anyway and args.what != "start":
        raise UsageError("--anyway is for `start`: leave it out")
    from sqap_vla_ros.nodes.operate.operator import Operator

    with Operator(args.node, lambda text: print(text, flush=True)) as operator:
        if args.what in TRIGGERS:
            return 0 if operator.trigger(TRIGGERS[args.what]) else 1
        if args.what == "reload":
            return 0 if operator.reload() else 1
        if args.what == "disable":
            return 0 if operator.enable(False) else 1
        if args.once:
            operator.tell()
            return 0
        if args.what == "start":
            operator.describe(anyway=args.anyway)
            operator.instruct(args.instruction)
        try:
            if args.what == "start" and not operator.enable(True):
                return 1
            if args.what == "start":
                return 0 if operator.watch_task() else 1
            operator.watch()
        except BaseException:
            if args.what == "start":
                _disable(operator)
            raise
    return 0


def _disable(operator: Operator) -> None:
    """End the task; say so where that is cut short."""
    try:
        operator.enable(False)
    except BaseException:
        print("the node was NOT disabled, and may move on: sqap-vla operate disable", file=sys.stderr, flush=True)
        raise
