"""The gripper's commands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from std_msgs.msg import Float64MultiArray

from sqap_vla_ros.nodes.policy.sinks.sink import COMMAND_QOS
from sqap_vla_ros.robot.gripper import CLOSE_BELOW, OPEN_ABOVE, GripperCommand, GripperHysteresis


@dataclass(frozen=True)
class GripperConfig:
    """Commands of the gripper and the decision between them.

    closed_m, open_m: opening of one finger that is commanded. open_above, close_below: see GripperHysteresis.
    """

    closed_m: float = 0.0
    open_m: float = 0.04
    open_above: float = OPEN_ABOVE
    close_below: float = CLOSE_BELOW


class GripperSink(ABC):
    """The gripper's commands, sent on a decided change only. A new kind is a subclass and a row of `GRIPPER_SINKS`.

    A hold leaves the gripper as it is: opening it would drop what it carries.
    SUMMARY: a sentence for the documentation of the parameter gripper_output.
    """

    SUMMARY: ClassVar[str]

    publisher: Any

    @abstractmethod
    def __init__(self, node: Any, config: GripperConfig) -> None:
        """Create the publisher on the node."""
        self._hysteresis = GripperHysteresis(open_above=config.open_above, close_below=config.close_below)

    @abstractmethod
    def _send(self, command: GripperCommand) -> None:
        """Command the gripper to open or to close."""

    def update(self, opening: float) -> None:
        """Command what changed. opening: what the trajectory asks for now, 0 closed to 1 open."""
        if (decided := self._hysteresis.update(opening)) is not None:
            self._send(decided)

    def reset(self) -> None:
        """Forget the last command, so that a new mission sends it again."""
        self._hysteresis.reset()


class FingerOpening(GripperSink):
    """std_msgs/Float64MultiArray for a forward_command_controller: one value, the opening of a finger in metres."""

    SUMMARY = "std_msgs/Float64MultiArray with the opening of one finger."

    def __init__(self, node: Any, config: GripperConfig) -> None:
        super().__init__(node, config)
        self._opening_m = {"close": config.closed_m, "open": config.open_m}
        self.publisher = node.create_lifecycle_publisher(Float64MultiArray, "gripper_command", COMMAND_QOS)

    def _send(self, command: GripperCommand) -> None:
        self.publisher.publish(Float64MultiArray(data=[self._opening_m[command]]))
