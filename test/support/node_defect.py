"""A defect in the policy node itself: an exception that nothing expects, in the middle of a callback."""

from typing import Any

from policy_doubles import DEFECT

from sqap_vla_ros.nodes import messages


def install() -> None:
    """Let the node stumble over predictions whose selection is called `DEFECT`, and over nothing else."""
    message_of = messages.selection_message

    def selection_message(selection: Any, *arguments: Any, **options: Any) -> Any:
        if selection.method == DEFECT:
            raise ZeroDivisionError("a defect")
        return message_of(selection, *arguments, **options)

    messages.selection_message = selection_message
