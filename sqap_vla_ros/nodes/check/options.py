"""The command line of the check, for `check` and for `sqap-vla check`."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "look at everything around the policy node before the first motion"
DESCRIPTION = (
    "Look at everything that the policy node depends on, before the first motion: clocks, rates, QoS, camera, "
    "transforms, kinematics, controller, gripper and policy. Nothing is commanded. The arguments are those of "
    "policy.launch.py. The exit status is 0 for go and 1 for no-go."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add arguments and options."""
    parser.add_argument("arguments", nargs="*", metavar="name:=value", help="arguments of policy.launch.py")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--listen", type=_seconds, default=3.0, metavar="S", help="seconds to listen")
    parser.add_argument(
        "--picture", type=Path, default=Path("check.png"), help="where the gripper's pixel is drawn into an image"
    )
    parser.add_argument("--without-policy", action="store_true", help="do not load the policy")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"needs a number, got {text!r}") from None
    if not 0.5 <= value <= 600.0:
        raise argparse.ArgumentTypeError(f"must be 0.5 to 600 seconds, got {text}")
    return value
