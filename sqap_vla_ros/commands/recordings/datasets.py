"""The options that say which features of a LeRobot dataset are read and what they mean."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqap_vla_ros.commands.ignored import ignored
from sqap_vla_ros.commands.options import STATE_HELP
from sqap_vla_ros.commands.recordings.cameras import fixed_camera, mirrored_without_camera

if TYPE_CHECKING:
    from sqap_vla_ros.recordings.lerobot.spec import DatasetSpec

DATASET_OPTIONS = ("--image-key", "--state-key", "--state", "--action-key", "--action-space", "--episodes")
_MOST_EPISODES = 10**6


def add_dataset_features(group: Any) -> None:
    """Add `DATASET_OPTIONS`; see `dataset_spec`."""
    group.add_argument("--image-key", help="which camera, where there are several")
    group.add_argument("--state-key", help="the tool's pose: x, y, z and rotation first; none: do not use it")
    group.add_argument("--state", help=f"{STATE_HELP}; else from the names of its elements")
    group.add_argument("--action-key", help="the recorded actions; none: do not compare with them")
    group.add_argument("--action-space", default="metric", help="what recorded actions mean, as in `serve`")
    group.add_argument("--episodes", type=_episodes, default=(), metavar="LIST", help="such as 0,4,10-19; else all")


def ignored_dataset_options(args: argparse.Namespace) -> list[str]:
    """Return a sentence for each option about datasets that another one makes useless."""
    return ignored(
        args,
        (("--state",), args.state_key == "none", "--state-key none reads no state"),
        (("--action-space",), args.action_key == "none", "--action-key none reads no actions"),
        mirrored_without_camera(args),
    )


def dataset_spec(args: argparse.Namespace) -> DatasetSpec:
    """Return what the options say about features, camera and episodes. Raises ValueError."""
    from sqap_vla_ros.recordings.lerobot.spec import DatasetSpec

    return DatasetSpec(
        *(args.image_key, args.state_key, args.action_key, args.state, args.action_space),
        camera=fixed_camera(args, Path(args.camera_info) if args.camera_info else None),
        instruction=args.instruction or "",
        episodes=args.episodes,
        stride=args.stride,
    )


def _episodes(text: str) -> tuple[int, ...]:
    """Read `0,4,10-19`."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        is_range = first.isdecimal() and (last.isdecimal() or not dash)
        if not is_range or int(last or first) - int(first) > _MOST_EPISODES:
            raise argparse.ArgumentTypeError(f"expected episodes such as 0,4,10-19, got {text!r}")
        found += range(int(first), int(last or first) + 1)
    if not found or len(found) != len(set(found)):
        raise argparse.ArgumentTypeError(f"each episode must be named once, got {text!r}")
    return tuple(found)
