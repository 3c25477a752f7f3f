"""Requests of people and other nodes: the instruction, the services and the RunPolicy action.

All of it runs in the node's executor thread. A request changes the executive and then makes a turn of the engine, so
that its answer tells the state it led to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.task import Future
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from sqap_vla_ros.action import RunPolicy
from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.executive import Executive
from sqap_vla_ros.control.mission import Mission, MissionEnd, Termination
from sqap_vla_ros.nodes import messages
from sqap_vla_ros.nodes.policy.health import Health
from sqap_vla_ros.nodes.policy.publishers import HearAll

FEEDBACK_S = 0.5


class Services:
    """The instruction topic, ~/enable, ~/stop, ~/reset_fault, ~/reset_policy and ~/run_policy."""

    def __init__(
        self,
        node: Any,
        executive: Executive,
        *,
        refusal: Callable[[], str | None],
        reset_refusal: Callable[[], str | None],
        reset_policy: Callable[[], None],
        turn: Callable[[], None],
    ) -> None:
        """refusal: why nothing may move now; reset_refusal: why a stop must stay. Each None when there is no reason.

        reset_policy: makes the policy forget. turn: makes a turn of the engine.
        """
        self._node = node
        self._executive = executive
        self._refusal = refusal
        self._reset_refusal = reset_refusal
        self._forget = reset_policy
        self._turn = turn
        self._instruction = HearAll(node, String, "instruction", self._on_instruction)
        self._services = [
            node.create_service(SetBool, "~/enable", self._enable),
            node.create_service(Trigger, "~/stop", self._stop),
            node.create_service(Trigger, "~/reset_fault", self._reset_fault),
            node.create_service(Trigger, "~/reset_policy", self._reset_policy),
        ]
        self._goals: dict[bytes, Any] = {}  # by id: every goal that was accepted and has no result yet
        self._ends: dict[bytes, Future] = {}  # by id: the end of its mission
        self._feedback_s = 0.0
        self._action = ActionServer(
            node,
            RunPolicy,
            "~/run_policy",
            execute_callback=self._execute,
            goal_callback=self._accept,
            handle_accepted_callback=self._begin,
            cancel_callback=self._cancel,
        )

    def mission_ended(self, end: MissionEnd) -> None:
        """Give the goal its result, if the mission came from one."""
        if (future := self._ends.get(_key(end.mission))) is not None and not future.done():
            future.set_result(end)

    @property
    def owes_results(self) -> bool:
        """True while a goal waits for its result; the executor has to be spun to send it."""
        return bool(self._goals)

    def tick(self, health: Health) -> None:
        """Publish the feedback of a running goal, now and then."""
        if health.mission is None or health.steady_s - self._feedback_s < FEEDBACK_S:
            return
        goal = self._goals.get(_key(health.mission))
        if goal is None or not goal.is_active:
            return
        self._feedback_s = health.steady_s
        goal.publish_feedback(
            RunPolicy.Feedback(
                state=int(health.state),
                reason=health.reason,
                elapsed=messages.duration_message(round(health.mission_elapsed_s * NS_PER_S)),
                chunks=health.mission_chunks,
            )
        )

    def destroy(self) -> None:
        """Remove everything from the node."""
        self._instruction.destroy()
        for service in self._services:
            self._node.destroy_service(service)
        self._action.destroy()

    # Topics and services

    def _on_instruction(self, message: String, _publisher: bytes) -> None:
        self._executive.set_instruction(message.data)
        self._turn()

    def _enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        refusal = None
        if not request.data:
            self._executive.disable()
        else:
            refusal = self._refusal() or self._executive.enable()
        return self._answer(response, refusal)

    def _stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._executive.stop("stopped through ~/stop")
        return self._answer(response)

    def _reset_fault(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        refusal = self._reset_refusal()
        if refusal is None:
            self._executive.reset_fault()
        return self._answer(response, refusal)

    def _reset_policy(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._forget()
        response.success, response.message = True, "the policy forgets what it kept between images"
        return response

    def _answer(self, response: Any, refusal: str | None = None) -> Any:
        """Make a turn, and answer with the refusal or with the state that the request led to."""
        self._turn()
        state, reason = self._executive.state()
        response.success = refusal is None
        response.message = refusal or (f"{state.name}: {reason}" if reason else state.name)
        return response

    # The action

    def _accept(self, request: RunPolicy.Goal) -> GoalResponse:
        seconds = messages.time_ns(request.max_duration) / NS_PER_S
        refusal = self._refusal() or self._executive.goal_refusal(request.instruction)
        if refusal is None and seconds < 0.0:
            refusal = f"max_duration must not be negative, got {seconds:g} s"
        if refusal is not None:
            self._node.get_logger().warning(f"goal rejected: {refusal}")
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _begin(self, goal: Any) -> None:
        key = bytes(goal.goal_id.uuid)
        self._goals[key], self._ends[key] = goal, Future()
        self._executive.start_goal(
            key, goal.request.instruction, messages.time_ns(goal.request.max_duration) / NS_PER_S
        )
        goal.execute()
        self._turn()

    def _cancel(self, goal: Any) -> CancelResponse:
        # The result follows in a later turn: rclpy changes the goal to canceling after this returns.
        self._executive.cancel_goal(bytes(goal.goal_id.uuid))
        return CancelResponse.ACCEPT

    async def _execute(self, goal: Any) -> RunPolicy.Result:
        key = bytes(goal.goal_id.uuid)
        end: MissionEnd = await self._ends[key]
        del self._goals[key], self._ends[key]
        if end.termination is Termination.DEADLINE:
            goal.succeed()
        elif end.termination is Termination.CANCELED and goal.is_cancel_requested:
            goal.canceled()
        else:
            goal.abort()
        return RunPolicy.Result(
            termination_reason=int(end.termination),
            message=end.message,
            elapsed=messages.duration_message(round(end.elapsed_s * NS_PER_S)),
            chunks=end.chunks,
        )


def _key(mission: Mission) -> bytes:
    """Return the id of the goal that a mission came with; b"" for one of the topic."""
    return mission.goal if isinstance(mission.goal, bytes) else b""
