"""The command line of the check, for `check` and for `sqap-vla check`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

LISTEN_S, LISTEN_CAMERA_S = 3.0, 60.0
FARTHEST_M = 10.0  # of a point of a tool from its frame
SUMMARY = "look at everything around the policy node before the first motion"
DESCRIPTION = (
    "Look at everything that the policy node depends on, before the first motion: clocks, rates, QoS, camera, "
    "transforms, kinematics, controller, gripper and policy. Nothing is commanded. The arguments are those of "
    "policy.launch.py. The exit status is 0 for go and 1 for no-go. With --camera it compares where the tool is seen "
    "in the images with where it is projected to, while somebody moves the arm by hand, or in a recording."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add arguments and options, in any order."""
    parser.add_argument("arguments", nargs="*", metavar="name:=value", help="arguments of policy.launch.py")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument(
        "--listen",
        type=_seconds,
        metavar="S",
        help=f"seconds to listen, {LISTEN_S:g} unless given, with --camera {LISTEN_CAMERA_S:g}",
    )
    parser.add_argument(
        "--picture", type=Path, default=Path("check.png"), help="where the gripper's pixel is drawn into an image"
    )
    parser.add_argument("--without-policy", action="store_true", help="do not load the policy")
    parser.add_argument(
        "--wait",
        type=_load_seconds,
        metavar="S",
        help="seconds for the policy to load; unless given load_timeout_s, and half a minute for that of a server",
    )
    camera = parser.add_argument_group("hand-eye (of --camera)")
    camera.add_argument(
        "--camera", action="store_true", help="compare the projected tool with where it is seen; nothing is moved"
    )
    camera.add_argument("--bag", type=Path, metavar="PATH", help="a recording, instead of the running robot")
    camera.add_argument(
        "--board",
        default="",
        metavar="SPEC",
        help="marker on the tool: tag:DICTIONARY:ID or charuco:DICTIONARY:COLUMNSxROWS:SQUARE:MARKER (metres)",
    )
    camera.add_argument(
        "--point",
        type=_coordinate,
        nargs=3,
        default=(0.0, 0.0, 0.0),
        metavar=("X", "Y", "Z"),
        help="the clicked point, or the middle of the board, in tool_frame, metres; its origin unless given",
    )
    camera.add_argument(
        "--clicks", type=Path, metavar="FILE", help="clicked pixels, CSV or JSON with stamp, u, v of each image"
    )
    camera.add_argument(
        "--pictures",
        type=Path,
        default=Path("check_camera"),
        metavar="FOLDER",
        help="without --board and --clicks: where the pictures to click in are written",
    )
    _collect_arguments(parser)


def _collect_arguments(parser: argparse.ArgumentParser) -> None:
    """Let arguments stand between options too.

    argparse takes the first group of positional arguments only, and its parse_intermixed_args knows no sub-commands.
    """
    parse = parser.parse_known_args

    def parse_known_args(args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        found, rest = parse(args, namespace)
        found.arguments = [*found.arguments, *(word for word in rest if not word.startswith("-"))]
        return found, [word for word in rest if word.startswith("-")]

    parser.parse_known_args = parse_known_args  # type: ignore[assignment,method-assign]


def _seconds(text: str) -> float:
    return _within(text, 0.5, 600.0, "seconds")


def _load_seconds(text: str) -> float:
    return _within(text, 0.5, 86_400.0, "seconds")


def _coordinate(text: str) -> float:
    return _within(text, -FARTHEST_M, FARTHEST_M, "metres")


def _within(text: str, low: float, high: float, unit: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"needs a number, got {text!r}") from None
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"must be {low:g} to {high:g} {unit}, got {text}")
    return value
