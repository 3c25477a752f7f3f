"""The safety stop: a topic that stops the arm, heard from the start of the process to its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from std_msgs.msg import Bool

from sqap_vla_ros.nodes.policy.publishers import HearAll


class SafetyStop:
    """Keeps what safety_stop last said, through every lifecycle state.

    A stop that was latched before the node started is obeyed, and one that was set holds after cleanup and configure.
    With a time-out the publisher has to repeat itself: silence stops too.
    """

    def __init__(self, node: Any) -> None:
        self.timeout_s = 0.0  # 0: silence is no stop
        self.changed: Callable[[], None] | None = None  # called after each message
        self._pressed = False
        self._heard_s: float | None = None
        self._subscription = HearAll(node, Bool, "safety_stop", self._on_message)
        self.topic = self._subscription.topic

    @property
    def pressed(self) -> bool:
        """True while the stop is set."""
        return self._pressed

    def reason(self, now_s: float) -> str | None:
        """Return why nothing may move, or None. now_s: steady clock."""
        if self._pressed:
            return "safety_stop is set"
        if self.timeout_s <= 0.0:
            return None
        if self._heard_s is None:
            return f"safety_stop was not heard yet, and safety_stop_timeout_s is {self.timeout_s:g} s"
        silent_s = now_s - self._heard_s
        if silent_s > self.timeout_s:
            return f"safety_stop has not been heard for {silent_s:.1f} s (limit {self.timeout_s:g} s)"
        return None

    def _on_message(self, message: Bool) -> None:
        self._pressed = bool(message.data)
        self._heard_s = time.monotonic()
        if self.changed is not None:
            self.changed()
