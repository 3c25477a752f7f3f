"""What people and other nodes ask of the policy node: its services and the RunPolicy action."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.task import Future
from std_srvs.srv import SetBool, Trigger

from sqap_vla_ros.action import RunPolicy
from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.executive import State, TaskEnd, Termination
from sqap_vla_ros.nodes import messages

if TYPE_CHECKING:
    from sqap_vla_ros.nodes.policy.control_loop import ControlLoop

FEEDBACK_S = 0.5


class Services:
    """~/enable, ~/stop, ~/reset_fault, ~/reset_policy and ~/run_policy."""

    def __init__(self, node: Any, loop: ControlLoop) -> None:
        self._node = node
        self._loop = loop
        self._services = [
            node.create_service(SetBool, "~/enable", self._enable),
            node.create_service(Trigger, "~/stop", self._stop),
            node.create_service(Trigger, "~/reset_fault", self._reset_fault),
            node.create_service(Trigger, "~/reset_policy", self._reset_policy),
        ]
        self._goal: Any = None
        self._ended: Future | None = None
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

    def task_ended(self, end: TaskEnd) -> None:
        """Tell the client of the goal, if the task came from one."""
        if end.task.from_goal and self._ended is not None and not self._ended.done():
            self._ended.set_result(end)

    def tick(self, now_s: float) -> None:
        """Feedback, now and then."""
        task = self._loop.executive.task
        if self._goal is None or task is None or now_s - self._feedback_s < FEEDBACK_S:
            return
        self._feedback_s = now_s
        state, reason = self._loop.executive.state()
        self._goal.publish_feedback(
            RunPolicy.Feedback(
                state=int(state),
                reason=reason,
                elapsed=messages.duration_message(round((now_s - task.started_s) * NS_PER_S)),
                chunks=self._loop.executive.task_chunks,
            )
        )

    def destroy(self) -> None:
        """Remove everything from the node."""
        for service in self._services:
            self._node.destroy_service(service)
        self._action.destroy()

    def _enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        executive = self._loop.executive
        if not request.data:
            executive.disable(time.monotonic())
            refusal = None
        elif not self._loop.active:
            refusal = "the node is not active: activate it first (ros2 lifecycle set)"
        else:
            refusal = executive.enable(time.monotonic())
        self._loop.advance()
        response.success = refusal is None
        response.message = refusal if refusal is not None else _describe(executive.state())
        return response

    def _stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._loop.executive.stop("stopped through ~/stop", time.monotonic())
        self._loop.advance()
        response.success, response.message = True, _describe(self._loop.executive.state())
        return response

    def _reset_fault(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._loop.safety_stop:
            response.success, response.message = False, "safety_stop is still set: release it first"
            return response
        self._loop.executive.reset_fault()
        self._loop.advance()
        response.success, response.message = True, _describe(self._loop.executive.state())
        return response

    def _reset_policy(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._loop.supervisor.reset_policy()
        response.success, response.message = True, "the policy forgets what it kept between images"
        return response

    def _accept(self, request: RunPolicy.Goal) -> GoalResponse:
        seconds = messages.time_ns(request.max_duration) / NS_PER_S
        refusal = None if self._loop.active else "the node is not active"
        refusal = refusal or self._loop.executive.goal_refusal(request.instruction)
        if refusal is None and seconds < 0.0:
            refusal = f"max_duration must not be negative, got {seconds:g} s"
        if refusal is not None:
            self._node.get_logger().warning(f"goal rejected: {refusal}")
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _begin(self, goal: Any) -> None:
        request = goal.request
        self._goal, self._ended = goal, Future()
        self._loop.executive.start_goal(
            request.instruction, messages.time_ns(request.max_duration) / NS_PER_S, time.monotonic()
        )
        goal.execute()
        self._loop.advance()

    def _cancel(self, goal: Any) -> CancelResponse:
        self._loop.executive.cancel_goal(time.monotonic())
        # The result follows once the goal has changed to canceling, which rclpy does after this returns.
        return CancelResponse.ACCEPT

    async def _execute(self, goal: Any) -> RunPolicy.Result:
        assert self._ended is not None
        end: TaskEnd = await self._ended
        self._goal = None
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


def _describe(state: tuple[State, str]) -> str:
    return f"{state[0].name}: {state[1]}" if state[1] else state[0].name
