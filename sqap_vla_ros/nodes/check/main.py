"""`check`: one go/no-go before the first motion. It only reads; the arm is not commanded.

ros2 run sqap_vla_ros check robot:=ur5e image:=/camera/image_raw camera_info:=/camera/camera_info
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from rich.console import Console

from sqap_vla_ros.nodes.check import picture
from sqap_vla_ros.nodes.check.collector import Collector
from sqap_vla_ros.nodes.check.finding import warning
from sqap_vla_ros.nodes.check.hand_eye.command import check_hand_eye
from sqap_vla_ros.nodes.check.options import DESCRIPTION, LISTEN_S, add_options
from sqap_vla_ros.nodes.check.report import Report, Row, examine, print_rows
from sqap_vla_ros.nodes.check.session import standing_in
from sqap_vla_ros.nodes.check.snapshot import PolicyTrial, Snapshot
from sqap_vla_ros.nodes.check.table import CHECKS
from sqap_vla_ros.nodes.check.trial import try_policy
from sqap_vla_ros.nodes.launch.table import read_arguments
from sqap_vla_ros.nodes.policy.observer import View


def run(args: argparse.Namespace) -> int:
    """Check the robot and print the report, its findings as they become known; return the exit status.

    Raises ValueError and OSError for arguments and parameter files that are wrong.
    """
    if args.camera:
        return check_hand_eye(args)
    if args.bag or args.board or args.clicks:
        raise ValueError("--bag, --board and --clicks are for --camera: add it, or leave them out")
    with standing_in(read_arguments(args.arguments)) as (node, values):
        snapshot = Collector(node, values).collect(args.listen or LISTEN_S)
    console = None if args.json else Console()
    width = max(len(check.name) for check in CHECKS)
    at_once = examine(snapshot, [check for check in CHECKS if not check.by_policy])
    if console is not None:  # the policy takes long to load
        print_rows(console, at_once, width)
    if not args.without_policy:
        snapshot = dataclasses.replace(snapshot, trial=_trial(args, snapshot))
    rows = examine(snapshot, [check for check in CHECKS if check.by_policy])
    shown = ""
    if (drawn := picture.draw(snapshot)) is not None:
        try:
            picture.save(drawn, args.picture)
            shown = str(args.picture)
        except OSError as error:  # the findings are worth more
            rows = (*rows, Row("picture", warning(str(error), "name another file with --picture")))
    if console is None:
        order = {check.name: place for place, check in enumerate(CHECKS)}
        ordered = tuple(sorted((*at_once, *rows), key=lambda row: order.get(row.check, len(order))))
        report = Report(ordered, shown)
        print(json.dumps(report.as_json(), indent=2, ensure_ascii=False))
    else:
        report = Report((*at_once, *rows), shown)
        print_rows(console, rows, width)
        report.print_verdict(console)
    return 0 if report.go else 1


def _trial(args: argparse.Namespace, snapshot: Snapshot) -> PolicyTrial:
    """Load the policy, and let it predict from the newest image, where there is one that it can use."""
    view = snapshot.view
    observation = view.observation if isinstance(view, View) else None
    if observation is not None and not observation.instruction:
        observation = dataclasses.replace(observation, instruction="check")
    return try_policy(snapshot.values, observation, wait_s=args.wait, say=_say)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 2 for bad arguments."""
    parser = argparse.ArgumentParser(prog="check", description=DESCRIPTION)
    add_options(parser)
    try:
        return run(parser.parse_args(argv))
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"check: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
