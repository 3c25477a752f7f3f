"""One instruction being followed, how it ends, and the clock of its deadlines."""

from __future__ import annotations

import enum
from collections.abc import Hashable
from dataclasses import dataclass

from sqap_vla_ros.contracts import NS_PER_S, unreadable

MAX_INSTRUCTION_CHARS = 1000


class Termination(enum.IntEnum):
    """Reasons for the end of a mission: the values of `sqap_vla_ros/action/RunPolicy`."""

    CANCELED = 0
    DEADLINE = 1
    STOPPED = 2
    FAULT = 3
    INPUT_LOST = 4


@dataclass(frozen=True)
class Mission:
    """One instruction being followed. goal: the action goal it came with; None when it came from the topic."""

    instruction: str
    goal: Hashable | None
    deadline_s: float


@dataclass(frozen=True)
class MissionEnd:
    """The end of a mission. elapsed_s, chunks: time passed and predictions made until then."""

    mission: Mission
    termination: Termination
    message: str
    elapsed_s: float
    chunks: int


def instruction_problem(instruction: str) -> str | None:
    """Return why an instruction cannot be followed, or None."""
    if len(instruction) > MAX_INSTRUCTION_CHARS:
        return f"the instruction has {len(instruction)} characters, the limit is {MAX_INSTRUCTION_CHARS}"
    return unreadable(instruction)


class MissionClock:
    """The time that passes for deadlines: of the steady clock, or of ROS time where it is simulated.

    Time that jumps does not pass: a simulation that is reset or skips ahead neither extends nor ends a mission.
    """

    def __init__(self, *, ros_time: bool) -> None:
        self._ros_time = ros_time
        self._last: float | None = None

    def passed_s(self, now_ns: int, now_s: float) -> float:
        """Return the seconds since the last call. now_ns: ROS time, now_s: steady clock."""
        now = now_ns / NS_PER_S if self._ros_time else now_s
        last, self._last = self._last, now
        return max(0.0, now - last) if last is not None else 0.0

    def jumped(self) -> None:
        """Forget the last call: what lies between it and the next did not pass."""
        self._last = None
