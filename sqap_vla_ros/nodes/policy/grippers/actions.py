"""Gripper kinds behind an action: GripperCommand and ParallelGripperCommand of control_msgs.

Everything is asynchronous and runs in the node's executor thread: `update` sends, callbacks note what came back, and
`report` says what that means. A goal that a newer one contradicts is cancelled first, because ros2_control's grippers
leave a goal that is only replaced without a result for ever. No other goal is ever cancelled: a gripper that is told to
stop closing takes its force away.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from rclpy.task import Future
from sensor_msgs.msg import JointState

from sqap_vla_ros.nodes.policy.grippers.gripper import GripperParts, GripperSink, described
from sqap_vla_ros.robot.gripper.hysteresis import GripperCommand
from sqap_vla_ros.robot.gripper.state import GripperMeasurement, GripperReport, GripperState, judge

try:
    from control_msgs.action import GripperCommand as GripperCommandType
    from control_msgs.action import ParallelGripperCommand as ParallelGripperCommandType
except ImportError:  # only these kinds need it
    GripperCommandType = ParallelGripperCommandType = None

ANSWER_S = 2.0  # a server that has not accepted or rejected a goal by then is asked again
CANCEL_S = 0.5  # a goal that has not ended by then, although it was cancelled, is replaced all the same
DISCOVERY_S = 3.0  # within which a server that runs is found
RETRY_S = 1.0  # between two goals while the gripper's server rejects them
LOOK_S = 0.5  # between two looks at which servers are there

_ENDS = {
    GoalStatus.STATUS_ABORTED: "its server aborted the goal",
    GoalStatus.STATUS_CANCELED: "the goal was cancelled",
}


@dataclass
class _Goal:
    """A goal from its client's end. The steady clock's times; problem: why it came to nothing."""

    command: GripperCommand
    sent_s: float
    handle: Any = None  # once it was accepted
    servers: frozenset[bytes] = frozenset()  # that were there when it was accepted
    cancelled_s: float | None = None  # when this node asked for its end
    measured: GripperMeasurement | None = None  # as the gripper last said
    began: float | None = None  # where it was when it was told so; None: unknown
    ended: bool = False
    problem: str = ""
    deserted: bool = False  # its server went away

    @property
    def unanswered(self) -> bool:
        return self.handle is None and not self.ended

    @property
    def running(self) -> bool:
        return self.handle is not None and not self.ended


class ActionGripper(GripperSink):
    """A gripper behind an action; subclasses say which, and how its messages are read."""

    ACTION_TYPE: ClassVar[Any]

    def __init__(self, node: Any, parts: GripperParts) -> None:
        super().__init__(node, parts)
        self._client = ActionClient(node, self.ACTION_TYPE, parts.config.action)
        action = action_name(node, parts.config.action)
        self._name = f"action server {action}"
        self._status_topic = f"{action}/_action/status"
        self._wanted: GripperCommand | None = None  # decided, and not yet sent
        self._goal: _Goal | None = None  # the newest one
        self._retry_s = self._looked_s = -math.inf
        self._created_s = time.monotonic()

    @classmethod
    def missing(cls) -> str:
        return "" if cls.ACTION_TYPE is not None else "control_msgs (ros-<distribution>-control-msgs, or `make setup`)"

    @abstractmethod
    def _goal_message(self, position: float) -> Any:
        """Return the goal that leads to a position."""

    @abstractmethod
    def _read_result(self, result: Any) -> GripperMeasurement:
        """Return what a result says."""

    @abstractmethod
    def _read_feedback(self, feedback: Any) -> GripperMeasurement:
        """Return what the gripper says under way."""

    def update(self, opening: float) -> None:
        super().update(opening)
        now_s = time.monotonic()
        self._watch_goal(now_s)
        if self._wanted is not None and now_s >= self._retry_s and self._may_send(self._wanted, now_s):
            self._send_goal(self._wanted, now_s)

    def reset(self) -> None:
        super().reset()
        self._wanted = None

    def report(self) -> GripperReport:
        now_s = time.monotonic()
        self._watch_goal(now_s)
        goal = self._goal
        needed = self._wanted is not None or (goal is not None and not goal.ended)
        if goal is None and now_s - self._created_s > DISCOVERY_S:
            needed = True
        if needed and not self._client.server_is_ready():
            return GripperReport(GripperState.FAILED, f"no {self._name}: does the gripper's driver run?")
        if goal is None:
            return GripperReport(GripperState.UNKNOWN, "nothing was commanded")
        measured = goal.measured
        position = None if measured is None else measured.position
        left = goal.began is None or position is None or self._span.moved(goal.began, position)
        say = partial(described, position=position, span=self._span, passed_s=now_s - goal.sent_s, left=left)
        if goal.problem:
            back = ", and is back" if goal.deserted and self._client.server_is_ready() else ""
            return GripperReport(GripperState.FAILED, f"did not {goal.command}: {goal.problem}{back}", position)
        if self._wanted is not None:
            return say(self._wanted, GripperState.MOVING)
        state = None if measured is None else judge(goal.command, measured, self._span, goal.began)
        if state is None and self._late(goal, now_s):
            state = GripperState.LATE
        return say(goal.command, state or GripperState.MOVING)

    def destroy(self) -> None:
        self._client.destroy()

    def _send(self, command: GripperCommand) -> None:
        self._wanted, self._retry_s = command, -math.inf

    def _watch_goal(self, now_s: float) -> None:
        """End a goal of which nothing is to be heard any more; also while the arm stands, though nothing is sent then.

        A driver that was killed counts as there until DDS misses it, about 20 s. One that was started again meanwhile
        is there, and knows nothing of the goal.
        """
        goal = self._goal
        if goal is None or goal.ended:
            return
        if goal.unanswered:
            if now_s - goal.sent_s > ANSWER_S:
                self._give_up(goal, f"{self._name} did not answer within {ANSWER_S:g} s")
        elif not self._client.server_is_ready():
            goal.deserted = True
            self._give_up(goal, f"{self._name} went away")
        elif now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            if self._servers() - goal.servers:
                self._give_up(goal, f"{self._name} was started again")

    def _servers(self) -> frozenset[bytes]:
        """Return the servers that are there, by what each publishes its goals' states with."""
        found = self._node.get_publishers_info_by_topic(self._status_topic)
        return frozenset(bytes(endpoint.endpoint_gid) for endpoint in found)

    def _late(self, goal: _Goal, now_s: float) -> bool:
        """Return whether a goal is neither there nor stalled although its time is over."""
        measured = goal.measured
        ended = measured is not None and (measured.stalled or measured.reached)
        return not ended and now_s - goal.sent_s > self._config.timeout_s

    def _may_send(self, wanted: GripperCommand, now_s: float) -> bool:
        """Return whether a goal may go out now; make room for it where one is under way."""
        goal = self._goal
        if goal is not None and goal.unanswered:
            return False
        if goal is not None and goal.running:
            if goal.cancelled_s is None:
                if goal.command == wanted:
                    if self._late(goal, now_s):  # nothing says that it is still under way
                        return bool(self._client.server_is_ready())
                    self._wanted = None  # it does that already
                    return False
                goal.cancelled_s = now_s
                goal.handle.cancel_goal_async()
            if now_s - goal.cancelled_s < CANCEL_S:
                return False
        return bool(self._client.server_is_ready())

    def _send_goal(self, command: GripperCommand, now_s: float) -> None:
        goal = self._goal = _Goal(command, now_s, began=self._began(command))
        self._wanted = None
        answer = self._client.send_goal_async(
            self._goal_message(self._span.target(command)), feedback_callback=partial(self._on_feedback, goal)
        )
        answer.add_done_callback(partial(self._on_answer, goal))

    def _began(self, command: GripperCommand) -> float | None:
        """Return where the gripper is as it is told so; where it was the first time, if it is told the same again."""
        before = self._goal
        if before is not None and before.command == command:
            return before.began
        if self._joints.gripper is not None:
            return self._joints.gripper
        ended = before is not None and before.ended and not before.problem
        return before.measured.position if before is not None and ended and before.measured is not None else None

    def _on_answer(self, goal: _Goal, answer: Future) -> None:
        if goal.ended:  # given up meanwhile
            return
        handle = answer.result()
        if not handle.accepted:
            self._give_up(goal, f"{self._name} rejected the goal")
            return
        goal.handle, goal.servers = handle, self._servers()
        handle.get_result_async().add_done_callback(partial(self._on_result, goal))

    def _on_feedback(self, goal: _Goal, message: Any) -> None:
        if not goal.ended:
            goal.measured = self._read_feedback(message.feedback)

    def _on_result(self, goal: _Goal, answer: Future) -> None:
        response = answer.result()
        measured = self._read_result(response.result)
        goal.ended = True
        if measured.stalled or measured.reached:  # an object that is held ends the goal as aborted, unless told not to
            goal.measured = measured
        elif response.status == GoalStatus.STATUS_SUCCEEDED:
            goal.measured = GripperMeasurement(None, stalled=False, reached=True)
        else:
            goal.problem = _ENDS.get(response.status, f"its goal ended with status {response.status}")

    def _give_up(self, goal: _Goal, problem: str) -> None:
        """End a goal that came to nothing; it is sent again as long as the policy asks for the same."""
        goal.ended, goal.problem = True, problem
        if goal is self._goal and self._wanted is None and self._hysteresis.state == goal.command:
            self._wanted = goal.command
            self._retry_s = time.monotonic() + RETRY_S


class GripperCommandAction(ActionGripper):
    """control_msgs/action/GripperCommand: a position and the largest effort."""

    SUMMARY = "action control_msgs/GripperCommand, as of gripper_controllers and of many drivers."
    ACTION = "control_msgs/action/GripperCommand"
    ACTION_TYPE = GripperCommandType

    def _goal_message(self, position: float) -> Any:
        goal = self.ACTION_TYPE.Goal()
        goal.command.position, goal.command.max_effort = position, self._config.max_effort
        return goal

    def _read_result(self, result: Any) -> GripperMeasurement:
        position = _finite(result.position * self._config.answer_scale)
        return GripperMeasurement(position, result.stalled, result.reached_goal)

    def _read_feedback(self, feedback: Any) -> GripperMeasurement:
        return self._read_result(feedback)


class ParallelGripperCommandAction(ActionGripper):
    """control_msgs/action/ParallelGripperCommand: a JointState with the joint's position and, if any, its effort."""

    SUMMARY = "action control_msgs/ParallelGripperCommand, as of parallel_gripper_controller."
    NEEDS_JOINT = True
    ACTION = "control_msgs/action/ParallelGripperCommand"
    ACTION_TYPE = ParallelGripperCommandType

    def _goal_message(self, position: float) -> Any:
        goal = self.ACTION_TYPE.Goal()
        goal.command.name, goal.command.position = [self._config.joint], [position]
        if self._config.max_effort > 0.0:
            goal.command.effort = [self._config.max_effort]
        return goal

    def _read_result(self, result: Any) -> GripperMeasurement:
        return GripperMeasurement(self._position(result.state), result.stalled, result.reached_goal)

    def _read_feedback(self, feedback: Any) -> GripperMeasurement:
        return GripperMeasurement(self._position(feedback.state), stalled=False, reached=False)

    def _position(self, state: JointState) -> float | None:
        # ros2_control fills in no names. Of a gripper with several joints the one that is commanded counts.
        index = list(state.name).index(self._config.joint) if self._config.joint in state.name else 0
        return _finite(state.position[index]) if index < len(state.position) else None


def _finite(position: float) -> float | None:
    return float(position) if math.isfinite(position) else None


def action_name(node: Any, name: str) -> str:
    """Return the fully qualified name of an action that a node of this namespace calls by `name`."""
    return name if name.startswith("/") else f"{node.get_namespace().rstrip('/')}/{name}"
