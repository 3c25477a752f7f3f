"""Gripper commands of the robots CogACT was evaluated on, from the opening in a chunk (1 open, 0 closed)."""

from __future__ import annotations


def widowx_command(opening: float) -> float:
    """WidowX (bridge): +1 opens, -1 closes."""
    return 1.0 if opening > 0.5 else -1.0


class StickyGripper:
    """Google robot: the command is a change (+1 closes, -1 opens), held for `repeat` calls once it has begun.

    The first call only remembers the opening. While a change is held, new ones wait.
    """

    def __init__(self, repeat: int = 10) -> None:
        if repeat < 1:
            raise ValueError(f"repeat must be at least 1, got {repeat}")
        self.repeat = repeat
        self.reset()

    def reset(self) -> None:
        """A new episode begins."""
        self._previous: float | None = None
        self._held = 0.0
        self._calls = 0

    def update(self, opening: float) -> float:
        """The command for this call."""
        if self._previous is None:
            self._previous = opening
            return 0.0
        change = self._previous - opening
        if abs(change) > 0.5 and not self._calls:
            self._held, self._calls, self._previous = change, self.repeat, opening
        if self._calls:
            self._calls -= 1
            return self._held
        return change
