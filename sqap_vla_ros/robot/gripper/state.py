"""The state of a gripper after its last command, judged from what the gripper says of itself."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from sqap_vla_ros.robot.gripper.hysteresis import GripperCommand

ARRIVED_SHARE = 0.05  # of the way between open and closed: no further from the commanded position is there
MOVED_SHARE = 0.01  # of it: a smaller change of its position is noise
BEYOND_SHARE = 0.5  # of it: a position further than this beyond both is in another unit, or of another joint


class GripperState(enum.IntEnum):
    """The fate of the last command."""

    UNKNOWN = 0  # nothing was commanded, or nothing comes back from this gripper
    MOVING = 1
    REACHED = 2
    HOLDING = 3  # it closed on an object
    STALLED = 4  # it did not move, or stopped before it was open; or nobody knows where, or where it cannot be
    LATE = 5  # neither there nor stalled after its time
    FAILED = 6  # absent, refused, or ended without getting there


FAULTS = frozenset({GripperState.STALLED, GripperState.LATE, GripperState.FAILED})


@dataclass(frozen=True)
class GripperRange:
    """The two positions that a gripper is sent to, in its own unit; closed may be above open.

    unit: 'm' or 'rad', for texts. beyond: share of the way between them that it can be beyond both.
    """

    closed: float
    opened: float
    unit: str
    beyond: float = BEYOND_SHARE

    def target(self, command: GripperCommand) -> float:
        """Return the position of a command."""
        return self.closed if command == "close" else self.opened

    def arrived(self, command: GripperCommand, position: float) -> bool:
        """Return whether a measured position is where the command leads."""
        return abs(position - self.target(command)) <= ARRIVED_SHARE * abs(self.opened - self.closed)

    def moved(self, began: float, position: float) -> bool:
        """Return whether two measured positions differ by more than noise."""
        return abs(position - began) > MOVED_SHARE * abs(self.opened - self.closed)

    def holds(self, position: float) -> bool:
        """Return whether a gripper with these two positions can be at this one."""
        low, high = sorted((self.closed, self.opened))
        spare = self.beyond * (high - low)
        return low - spare <= position <= high + spare


@dataclass(frozen=True)
class GripperMeasurement:
    """A gripper's account of itself. position: in its own unit, None where unknown or not finite."""

    position: float | None
    stalled: bool
    reached: bool


def judge(
    command: GripperCommand, measured: GripperMeasurement, span: GripperRange, began: float | None = None
) -> GripperState | None:
    """Return what became of a command, None while it is under way. began: where the gripper was then; None: unknown.

    Closing that ends well before the closed position and off the open one holds an object, whichever of the two flags
    says that it ended. One that did not move has not closed on anything.
    A position that this gripper cannot have says nothing about an object.
    """
    if not (measured.stalled or measured.reached):
        return None
    if measured.position is None:
        return GripperState.REACHED if measured.reached else GripperState.STALLED
    if span.arrived(command, measured.position):
        return GripperState.REACHED
    if not span.holds(measured.position):
        return GripperState.STALLED
    if command == "close":  # nothing as wide as the opening is held
        stood = span.arrived("open", measured.position) or not (began is None or span.moved(began, measured.position))
        return GripperState.STALLED if stood else GripperState.HOLDING
    return GripperState.REACHED if measured.reached else GripperState.STALLED


@dataclass(frozen=True)
class GripperReport:
    """The gripper for people and other nodes.

    text: a sentence with the values; position: as last measured, in the gripper's unit, None where unknown.
    """

    state: GripperState
    text: str
    position: float | None = None

    @property
    def problem(self) -> str | None:
        """The text where something is wrong, None where nothing is."""
        return self.text if self.state in FAULTS else None
