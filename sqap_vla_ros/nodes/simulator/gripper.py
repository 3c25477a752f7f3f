"""The simulated gripper's commands: a topic for forward_command_controller's place, an action for GripperCommand's."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.clock import Clock, ClockType
from rclpy.task import Future
from std_msgs.msg import Float64MultiArray

from sqap_vla_ros.simulation.scene import FINGER_RANGE_M
from sqap_vla_ros.simulation.world import TabletopWorld

try:
    from control_msgs.action import GripperCommand
except ImportError:  # then there is the topic alone
    GripperCommand = None

PERIOD_S = 0.05  # between looks at a goal, as ros2_control's action_monitor_rate
TOLERANCE_M = 0.001
STALL_M_S, STALL_S = 0.002, 0.3


class SimulatorGripper:
    """Moves the fingers; positions are those of one finger, metres from the centre.

    Goals behave as with ros2_control's gripper controllers: a new one replaces the one under way, an object that is
    held ends the goal as aborted and stalled, and cancelling leaves the fingers where they are.
    """

    def __init__(self, node: Any, world: TabletopWorld, lock: threading.Lock) -> None:
        """lock: guards the world."""
        self._node = node
        self._world = world
        self._lock = lock
        node.create_subscription(Float64MultiArray, "gripper_command", self._on_command, 1)
        self._goal: Any = None  # under way
        self._ends: dict[bytes, Future] = {}  # by id: the goal's end, as a word and the finger's position
        self._still_s = 0.0
        if GripperCommand is None:
            return
        self._server = ActionServer(
            node,
            GripperCommand,
            "gripper_cmd",
            execute_callback=self._execute,
            goal_callback=self._accept,
            handle_accepted_callback=self._begin,
            cancel_callback=self._cancel,
        )
        node.create_timer(PERIOD_S, self._look, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _on_command(self, message: Float64MultiArray) -> None:
        if len(message.data) != 1 or not np.isfinite(message.data[0]):
            self._node.get_logger().error(
                f"gripper_command rejected: needs one finite value, the finger opening in m, got {list(message.data)}",
                throttle_duration_sec=1.0,
            )
            return
        self._move(message.data[0])

    def _move(self, position_m: float) -> None:
        with self._lock:
            self._world.command_fingers(position_m)

    def _fingers(self) -> tuple[float, float]:
        """Return position (m) and speed (m/s) of the fingers, their mean."""
        with self._lock:
            return float(self._world.finger_position.mean()), float(np.abs(self._world.finger_velocity).mean())

    # The action

    def _accept(self, request: Any) -> GoalResponse:
        position_m, (low, high) = request.command.position, FINGER_RANGE_M
        return GoalResponse.ACCEPT if low <= position_m <= high else GoalResponse.REJECT

    def _begin(self, goal: Any) -> None:
        if self._goal is not None:
            self._end("aborted")
        self._goal, self._still_s = goal, 0.0
        self._ends[bytes(goal.goal_id.uuid)] = Future()
        self._move(goal.request.command.position)
        goal.execute()

    def _cancel(self, goal: Any) -> CancelResponse:
        if goal is self._goal:
            self._move(self._fingers()[0])
            self._end("canceled")
        return CancelResponse.ACCEPT

    def _look(self) -> None:
        """Say where the fingers are, and end the goal when they are there or stand still."""
        if self._goal is None:
            return
        position_m, speed_m_s = self._fingers()
        self._goal.publish_feedback(GripperCommand.Feedback(position=position_m))
        self._still_s = self._still_s + PERIOD_S if speed_m_s < STALL_M_S else 0.0
        if abs(position_m - self._goal.request.command.position) <= TOLERANCE_M:
            self._end("reached")
        elif self._still_s >= STALL_S:
            self._end("stalled")

    def _end(self, how: str) -> None:
        self._ends[bytes(self._goal.goal_id.uuid)].set_result((how, self._fingers()[0]))
        self._goal = None

    async def _execute(self, goal: Any) -> Any:
        key = bytes(goal.goal_id.uuid)
        how, position_m = await self._ends[key]
        del self._ends[key]
        if how == "reached":
            goal.succeed()
        elif how == "canceled":
            goal.canceled()
        else:
            goal.abort()
        return GripperCommand.Result(position=position_m, stalled=how == "stalled", reached_goal=how == "reached")
