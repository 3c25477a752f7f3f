"""Requests of people and other nodes: instruction, safety_stop, the services and the RunPolicy action.

All of it runs in the node's executor thread. A request changes the executive and then makes a turn of the engine, so
that its answer tells the state it led to.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.qos import QoSProfile
from rclpy.task import Future
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger

from sqap_vla_ros.action import RunPolicy
from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.executive import Executive, MissionEnd, Termination
from sqap_vla_ros.nodes import messages
from sqap_vla_ros.nodes.policy.health import Health
from sqap_vla_ros.nodes.policy.inputs import LATCHED_QOS

FEEDBACK_S = 0.5


class Services:
    """The topics instruction and safety_stop, ~/enable, ~/stop, ~/reset_fault, ~/reset_policy and ~/run_policy."""

    def __init__(
        self,
        node: Any,
        executive: Executive,
        *,
        active: Callable[[], bool],
        reset_policy: Callable[[], None],
        turn: Callable[[], None],
    ) -> None:
        """active: the node is active. reset_policy: makes the policy forget. turn: makes a turn of the engine."""
        self._node = node
        self._executive = executive
        self._active = active
        self._forget = reset_policy
        self._turn = turn
        self._stop_pressed = False
        self._subscriptions = [
            node.create_subscription(String, "instruction", self._on_instruction, LATCHED_QOS),
            node.create_subscription(Bool, "safety_stop", self._on_safety_stop, QoSProfile(depth=1)),
        ]
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

    def mission_ended(self, end: MissionEnd) -> None:
        """Give the goal its result, if the mission came from one."""
        if end.mission.from_goal and self._ended is not None and not self._ended.done():
            self._ended.set_result(end)

    def tick(self, health: Health) -> None:
        """Publish the feedback of a running goal, now and then."""
        mission = health.mission
        if self._goal is None or mission is None or health.steady_s - self._feedback_s < FEEDBACK_S:
            return
        self._feedback_s = health.steady_s
        self._goal.publish_feedback(
            RunPolicy.Feedback(
                state=int(health.state),
                reason=health.reason,
                elapsed=messages.duration_message(round((health.steady_s - mission.started_s) * NS_PER_S)),
                chunks=health.mission_chunks,
            )
        )

    def destroy(self) -> None:
        """Remove everything from the node."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        for service in self._services:
            self._node.destroy_service(service)
        self._action.destroy()

    # Topics and services

    def _on_instruction(self, message: String) -> None:
        self._executive.set_instruction(message.data, time.monotonic())
        self._turn()

    def _on_safety_stop(self, message: Bool) -> None:
        self._stop_pressed = message.data
        if message.data:
            self._executive.stop("safety_stop is set", time.monotonic())
            self._turn()

    def _enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        refusal = None
        if not request.data:
            self._executive.disable(time.monotonic())
        elif not self._active():
            refusal = "the node is not active: activate it first (ros2 lifecycle set)"
        else:
            refusal = self._executive.enable(time.monotonic())
        return self._answer(response, refusal)

    def _stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._executive.stop("stopped through ~/stop", time.monotonic())
        return self._answer(response)

    def _reset_fault(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._stop_pressed:
            return self._answer(response, "safety_stop is still set: release it first")
        self._executive.reset_fault()
        return self._answer(response)

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
        refusal = None if self._active() else "the node is not active"
        refusal = refusal or self._executive.goal_refusal(request.instruction)
        if refusal is None and seconds < 0.0:
            refusal = f"max_duration must not be negative, got {seconds:g} s"
        if refusal is not None:
            self._node.get_logger().warning(f"goal rejected: {refusal}")
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _begin(self, goal: Any) -> None:
        request = goal.request
        self._goal, self._ended = goal, Future()
        self._executive.start_goal(
            request.instruction, messages.time_ns(request.max_duration) / NS_PER_S, time.monotonic()
        )
        goal.execute()
        self._turn()

    def _cancel(self, goal: Any) -> CancelResponse:
        self._executive.cancel_goal(time.monotonic())
        # The result follows once the goal has changed to canceling, which rclpy does after this returns.
        return CancelResponse.ACCEPT

    async def _execute(self, goal: Any) -> RunPolicy.Result:
        assert self._ended is not None
        end: MissionEnd = await self._ended
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
