"""Sub-commands of the evaluation room."""

from typing import Any

from sqap_vla_ros.evaluation.closed_loop_arguments import add_evaluate
from sqap_vla_ros.evaluation.demo import add_demo
from sqap_vla_ros.evaluation.record_demo import add_record_demo
from sqap_vla_ros.evaluation.replay_arguments import add_replay


def register(subparsers: Any) -> None:
    """Add `demo`, `evaluate`, `record-demo` and `replay`."""
    add_demo(subparsers)
    add_evaluate(subparsers)
    add_record_demo(subparsers)
    add_replay(subparsers)
