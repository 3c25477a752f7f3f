"""The policy's opening as rare, decided commands."""

from __future__ import annotations

import math
from typing import Literal

GripperCommand = Literal["open", "close"]
OPEN_ABOVE, CLOSE_BELOW = 0.6, 0.4  # openings (0 closed, 1 open) at which the decision changes


class GripperHysteresis:
    """Turns a stream of openings (0 closed, 1 open) into edge-triggered commands.

    A policy's opening hovers; a gripper that is sent a new goal for every sample restarts its motion each time and
    never builds up grasp force. A command is given only on a crossing: above `open_above` "open", below `close_below`
    "close", once until the other threshold is crossed. What lies between repeats the last decision.
    """

    def __init__(self, open_above: float = OPEN_ABOVE, close_below: float = CLOSE_BELOW) -> None:
        if not 0.0 < close_below <= open_above < 1.0:
            raise ValueError(
                f"gripper thresholds must satisfy 0 < close_below <= open_above < 1, got close_below={close_below}, "
                f"open_above={open_above}"
            )
        self._open_above = open_above
        self._close_below = close_below
        self._state: GripperCommand | None = None

    @property
    def state(self) -> GripperCommand | None:
        """The last command given; None before the first."""
        return self._state

    def update(self, opening: float) -> GripperCommand | None:
        """Return the command for this opening, None when it is the last one again. Raises ValueError if not finite."""
        if not math.isfinite(opening):
            raise ValueError(f"gripper opening must be finite, got {opening}")
        wanted: GripperCommand | None = None
        if opening > self._open_above:
            wanted = "open"
        elif opening < self._close_below:
            wanted = "close"
        if wanted is None or wanted == self._state:
            return None
        self._state = wanted
        return wanted

    def reset(self) -> None:
        """Forget the last command, so that the next decided opening is sent again (new episode, restarted driver)."""
        self._state = None
