"""A defect in the policy node itself: an exception that nothing expects, in the middle of a callback."""

import time
from typing import Any

from policy_doubles import DEFECT, STALL

from sqap_vla_ros.nodes import messages


def install() -> None:
    """Let the node stumble over predictions whose selection is called `DEFECT`, and stand still over `STALL`."""
    message_of = messages.selection_message

    def selection_message(selection: Any, *arguments: Any, **options: Any) -> Any:
        if selection.method == DEFECT:
            raise ZeroDivisionError("a defect")
        if selection.method == STALL:
            time.sleep(1.5)
        return message_of(selection, *arguments, **options)

    messages.selection_message = selection_message
