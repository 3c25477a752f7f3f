"""Sub-commands of the evaluation room."""

from typing import Any

from sqap_vla_ros.evaluation.replay_arguments import add_replay


def register(subparsers: Any) -> None:
    """Add `replay`."""
    add_replay(subparsers)
