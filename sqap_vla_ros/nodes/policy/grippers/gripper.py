"""The interface of a gripper, and what all kinds share."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from sqap_vla_ros.control.arm.joint_monitor import JointMonitor
from sqap_vla_ros.nodes.policy.sinks.sink import Sink
from sqap_vla_ros.robot.gripper.hysteresis import CLOSE_BELOW, OPEN_ABOVE, GripperCommand, GripperHysteresis
from sqap_vla_ros.robot.gripper.state import (
    FAULTS,
    GripperMeasurement,
    GripperRange,
    GripperReport,
    GripperState,
    judge,
)

STANDS_S = 0.4  # a gripper whose position did not change for this long stands
REACTS_S = 2.0  # in which a gripper begins to move


@dataclass(frozen=True)
class GripperConfig:
    """The gripper's positions and limits in its own unit, and the decision between them.

    closed, opened: positions that are commanded; unit: 'm' or 'rad'. max_effort: N or Nm, 0 leaves it to the gripper.
    joint: its joint's name, where the kind needs it or where its position is to be watched. action: name of its server.
    answer_scale: what the positions in an action's answers are multiplied by to have those that are commanded.
    travel_s: time between open and closed for a gripper in the arm's trajectory. timeout_s: a gripper that is neither
    there nor stalled by then is late. open_above, close_below: see GripperHysteresis.
    """

    closed: float = 0.0
    opened: float = 0.04
    unit: str = "m"
    max_effort: float = 0.0
    joint: str = ""
    action: str = "gripper_cmd"
    answer_scale: float = 1.0
    travel_s: float = 0.6
    timeout_s: float = 5.0
    open_above: float = OPEN_ABOVE
    close_below: float = CLOSE_BELOW

    @property
    def span(self) -> GripperRange:
        """The two positions."""
        return GripperRange(self.closed, self.opened, self.unit)


@dataclass(frozen=True)
class GripperParts:
    """Parts of a gripper. arm: the sink of the arm's commands; joints: joint_states."""

    config: GripperConfig
    arm: Sink
    joints: JointMonitor


class GripperSink(ABC):
    """A gripper, commanded on a decided change only. A new kind is a subclass and a row of `table.GRIPPER_SINKS`.

    A hold leaves the gripper as it is, with its last command: opening it, or taking the force away, would drop what it
    carries. Nothing is sent but while the arm moves, and nothing here ever waits for the gripper.

    SUMMARY: a sentence for the documentation of the parameter gripper_output.
    NEEDS_JOINT: the parameter gripper_joint must name its joint.
    TOPIC, MESSAGE: name and type of the topic that it commands on, where it has one of its own.
    ACTION: ROS name of the action's type, where it is commanded through the server `GripperConfig.action`.
    IN_TRAJECTORY: its joint is in the arm's messages, so that the arm's sink must carry it.
    """

    SUMMARY: ClassVar[str]
    TOPIC: ClassVar[str] = ""
    MESSAGE: ClassVar[type | None] = None
    ACTION: ClassVar[str] = ""
    NEEDS_JOINT: ClassVar[bool] = False
    IN_TRAJECTORY: ClassVar[bool] = False

    publisher: Any = None  # of its commands, where they are messages

    @abstractmethod
    def __init__(self, node: Any, parts: GripperParts) -> None:
        """Create what it commands with on the node."""
        self._node = node
        self._config = parts.config
        self._joints = parts.joints
        self._span = parts.config.span
        self._hysteresis = GripperHysteresis(parts.config.open_above, parts.config.close_below)
        self._watched = _Watched(self._span)

    @abstractmethod
    def _send(self, command: GripperCommand) -> None:
        """Command the gripper to open or to close."""

    @classmethod
    def missing(cls) -> str:
        """Return what has to be installed for this kind, the empty string when nothing has."""
        return ""

    def update(self, opening: float) -> None:
        """Command what changed. opening: what the trajectory asks for now, 0 closed to 1 open."""
        if (decided := self._hysteresis.update(opening)) is not None:
            self._watched.begin(decided)
            self._send(decided)

    def reset(self) -> None:
        """Forget the last command, so that a new mission sends it again."""
        self._hysteresis.reset()

    def time_jumped(self, left_ns: int, now_ns: int) -> None:  # noqa: B027
        """Take what is commanded along into the new time. left_ns: this moment by the time before."""

    def report(self) -> GripperReport:
        """Return what the gripper does; here by its joint in joint_states, where that is known."""
        return self._watched.report(self._joints, self._config)

    def destroy(self) -> None:
        """Remove what it commands with from the node."""
        if self.publisher is not None:
            self._node.destroy_lifecycle_publisher(self.publisher)


class _Watched:
    """A gripper from which nothing comes back but the position of its joint, if that.

    It stands when new positions say so. Where the joint is measured once a second, one that moves is not taken for one
    that stands between two of them.
    """

    def __init__(self, span: GripperRange) -> None:
        self._span = span
        self._command: GripperCommand | None = None
        self._since_s = 0.0  # when it was commanded
        self._began: float | None = None  # where it was then
        self._moved: tuple[float, float] | None = None  # position and time of the last noticeable change
        self._heard: tuple[int, float] = (-1, 0.0)  # count of the positions, and when the newest came

    def begin(self, command: GripperCommand) -> None:
        if command != self._command:  # told the same again, it stays where it went
            self._began = None
        self._command, self._since_s, self._moved = command, time.monotonic(), None

    def report(self, joints: JointMonitor, config: GripperConfig) -> GripperReport:
        position = joints.gripper
        if self._command is None:
            return GripperReport(GripperState.UNKNOWN, "nothing was commanded", position)
        if position is None:
            return GripperReport(GripperState.UNKNOWN, f"told to {self._command}; its joint is not watched")
        now_s = time.monotonic()
        if joints.gripper_count != self._heard[0]:
            self._heard = (joints.gripper_count, now_s)
        if self._began is None:
            self._began = position
        if self._moved is None or self._span.moved(self._moved[0], position):
            self._moved = (position, now_s)
        left = self._span.moved(self._began, position)
        stands_s = self._heard[1] - max(self._moved[1], self._since_s)
        stands = stands_s >= (STANDS_S if left else REACTS_S)
        there = self._span.arrived(self._command, position)
        measured = GripperMeasurement(position, stands and not there, there)
        state = judge(self._command, measured, self._span, self._began)
        if state is None and now_s - self._since_s > config.timeout_s:
            state = GripperState.LATE
        passed_s = now_s - self._since_s
        return described(self._command, state or GripperState.MOVING, position, self._span, passed_s, left=left)


def described(
    command: GripperCommand,
    state: GripperState,
    position: float | None,
    span: GripperRange,
    passed_s: float,
    *,
    left: bool = True,
) -> GripperReport:
    """Return the report on a command that was sent `passed_s` seconds ago. left: it is not where it was then."""
    doing = {"open": "opening", "close": "closing"}[command]
    at = "" if position is None else f" at {position:.3g} {span.unit}"
    target = f"{span.target(command):.3g} {span.unit}"
    text = {
        GripperState.UNKNOWN: f"told to {command}",
        GripperState.MOVING: f"{doing}{at}",
        GripperState.REACHED: f"{'open' if command == 'open' else 'closed, nothing held'}{at}",
        GripperState.HOLDING: f"closed on an object{at}",
        GripperState.STALLED: f"stalled{at} while {doing} to {target}",
        GripperState.LATE: f"{doing} to {target} for {passed_s:.0f} s{at}: neither there nor stalled",
        GripperState.FAILED: f"did not {command}{at}",
    }[state]
    if state is GripperState.STALLED and not left:
        text = f"told to {command}, it stays{at}: does its driver listen, or does it hold something already?"
    if state in FAULTS and position is not None and not span.holds(position):
        text += f"; that is far from {span.closed:g} to {span.opened:g} {span.unit}: does its driver use another unit?"
    return GripperReport(state, text, position)
