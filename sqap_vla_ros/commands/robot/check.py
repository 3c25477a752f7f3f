"""`sqap-vla check`: a go/no-go before the first motion of a robot."""

from __future__ import annotations

import argparse
from typing import Any

from sqap_vla_ros.commands.options import add_command
from sqap_vla_ros.nodes.check.options import DESCRIPTION, SUMMARY, add_options


def register(subparsers: Any) -> None:
    """Add the `check` sub-command."""
    add_options(add_command(subparsers, "check", run, summary=SUMMARY, description=DESCRIPTION))


def run(args: argparse.Namespace) -> int:
    """Check the robot; 1 for no-go."""
    from sqap_vla_ros.nodes.check.main import run as run_check

    return run_check(args)
