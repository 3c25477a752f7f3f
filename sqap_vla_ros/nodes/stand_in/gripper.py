"""The stand-in's gripper behind an action: it closes on nothing, and always arrives."""

from __future__ import annotations

from typing import Any

from rclpy.action import ActionServer
from rclpy.node import Node

from sqap_vla_ros.nodes.stand_in.arm import StandInArm

ACTIONS = ("gripper_command", "parallel_gripper_command")  # the kinds of `gripper_output` that are actions
ARRIVED = 1e-3  # rad or m


class GripperServer:
    """An action server of control_msgs that moves the arm's gripper. Raises ImportError without control_msgs."""

    def __init__(self, node: Node, arm: StandInArm, kind: str, name: str) -> None:
        """kind: one of `ACTIONS`. name: of the action."""
        from control_msgs.action import GripperCommand, ParallelGripperCommand

        self._arm = arm
        self._parallel = kind == ACTIONS[1]
        self._type = ParallelGripperCommand if self._parallel else GripperCommand
        self._goal: Any = None
        self._position = 0.0
        self._server = ActionServer(
            node, self._type, name, execute_callback=self._end, handle_accepted_callback=self._accept
        )

    def tick(self) -> None:
        """End the goal once the gripper has arrived."""
        if self._goal is not None and self._arrived():
            goal, self._goal = self._goal, None
            goal.execute()

    def _accept(self, goal: Any) -> None:
        before, self._goal = self._goal, goal
        position = goal.request.command.position
        self._position = float(position[0] if self._parallel else position)
        self._arm.move_gripper(self._position)
        if before is not None:
            before.execute()

    def _arrived(self) -> bool:
        return self._arm.gripper is None or abs(self._arm.gripper - self._position) < ARRIVED

    def _end(self, goal: Any) -> Any:
        arrived = self._arrived()
        if goal.is_cancel_requested:
            goal.canceled()
        elif arrived:
            goal.succeed()
        else:  # another one came
            goal.abort()
        result = self._type.Result(reached_goal=arrived)
        if self._parallel:
            result.state.position = [self._arm.gripper or 0.0]
        else:
            result.position = self._arm.gripper or 0.0
        return result
