"""Each gripper behind an action against a real action server, over DDS."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import rclpy
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.task import Future
from sensor_msgs.msg import JointState

pytest.importorskip("control_msgs", reason="control_msgs is not installed: make setup")

from control_msgs.action import GripperCommand, ParallelGripperCommand

from sqap_vla_ros.nodes.policy.grippers.gripper import GripperConfig, GripperParts
from sqap_vla_ros.nodes.policy.grippers.table import GRIPPER_SINKS
from sqap_vla_ros.robot.gripper.state import GripperState

CLOSED, OPEN = 0.8, 0.0
TIMEOUT_S = 30.0
KINDS = {
    "gripper_command": {
        "kind": GripperCommand,
        "position_of": lambda goal: goal.command.position,
        "result": lambda position, stalled, reached: GripperCommand.Result(
            position=position, stalled=stalled, reached_goal=reached
        ),
        "feedback": lambda position: GripperCommand.Feedback(position=position),
    },
    "parallel_gripper_command": {
        "kind": ParallelGripperCommand,
        "position_of": lambda goal: goal.command.position[goal.command.name.index("jaw")],
        "result": lambda position, stalled, reached: ParallelGripperCommand.Result(
            state=JointState(position=[position]), stalled=stalled, reached_goal=reached
        ),
        "feedback": lambda position: ParallelGripperCommand.Feedback(state=JointState(position=[position])),
    },
}


class GripperServer:
    """A gripper behind an action, which does with each goal what the test says.

    They arrive, stall, are rejected or stay, by `mode`: 'reach', 'stall', 'reject' or 'stay'. result, feedback: make
    the messages of a position, whether it stalled and whether it arrived.
    """

    def __init__(self, node: Node, kind: Any, name: str, *, position_of: Any, result: Any, feedback: Any) -> None:
        self.mode = "reach"
        self.held_at = 0.3  # where it stalls, and is while it stays
        self.positions: list[float] = []  # commanded by the goals that came
        self.ended: list[str] = []
        self._position_of, self._result, self._feedback = position_of, result, feedback
        self._cancelled: Future = Future()
        self._server = ActionServer(
            node, kind, name,
            execute_callback=self._execute, goal_callback=self._accept, cancel_callback=self._cancel,
        )  # fmt: skip

    def destroy(self) -> None:
        self._server.destroy()

    def _accept(self, request: Any) -> GoalResponse:
        self.positions.append(self._position_of(request))
        return GoalResponse.REJECT if self.mode == "reject" else GoalResponse.ACCEPT

    def _cancel(self, goal: Any) -> CancelResponse:
        self._cancelled.set_result(None)
        return CancelResponse.ACCEPT

    async def _execute(self, goal: Any) -> Any:
        goal.publish_feedback(self._feedback(self.held_at))
        if self.mode == "stay":
            self._cancelled = Future()
            await self._cancelled
            goal.canceled()
            self.ended.append("canceled")
            return self._result(self.held_at, stalled=False, reached=False)
        stalled = self.mode == "stall"
        goal.abort() if stalled else goal.succeed()
        self.ended.append(self.mode)
        position = self.held_at if stalled else self._position_of(goal.request)
        return self._result(position, stalled=stalled, reached=not stalled)


class Bench:
    """A gripper's server and what commands it, two nodes that one thread spins; `want` is a policy's tick."""

    def __init__(self, output: str) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.near, self.far = (Node(name, context=self.context) for name in ("near", "far"))
        for node in (self.near, self.far):
            self.executor.add_node(node)
        self._kind = GRIPPER_SINKS[output]
        self.server = GripperServer(self.far, name="hand/gripper_cmd", **KINDS[output])
        self.gripper = self.new("hand/gripper_cmd")

    def new(self, action: str, timeout_s: float = 60.0):
        config = GripperConfig(CLOSED, OPEN, "rad", joint="jaw", action=action, timeout_s=timeout_s)
        return self._kind(self.near, GripperParts(config, None, SimpleNamespace(gripper=None)))

    def want(self, opening: float, until: Callable[[], object], gripper=None) -> None:
        """Let the policy ask for an opening until something is so."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            (gripper or self.gripper).update(opening)
            self.executor.spin_once(timeout_sec=0.01)
            if until():
                return
        raise AssertionError(f"{self.report(gripper)}; {self.server.positions}, {self.server.ended}")

    def report(self, gripper=None):
        return (gripper or self.gripper).report()

    def comes_to(self, state: GripperState, gripper=None) -> Callable[[], bool]:
        return lambda: self.report(gripper).state is state

    def close(self) -> None:
        self.gripper.destroy()
        self.server.destroy()
        self.executor.shutdown()
        for node in (self.near, self.far):
            node.destroy_node()
        self.context.try_shutdown()


@pytest.fixture(scope="module", params=KINDS)
def bench(request):
    made = Bench(request.param)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _fresh(bench):
    """The gripper stands open."""
    bench.server.mode = "reach"
    bench.gripper.reset()
    bench.want(1.0, lambda: bench.report().state is GripperState.REACHED and bench.report().text.startswith("open"))
    bench.server.positions.clear()
    bench.server.ended.clear()


def test_it_closes_on_nothing(bench):
    bench.want(0.0, lambda: bench.report().text == "closed, nothing held at 0.8 rad")
    bench.want(0.1, lambda: bench.report().state is GripperState.REACHED)
    assert bench.server.positions == [CLOSED]


def test_it_holds_an_object(bench):
    bench.server.mode = "stall"
    bench.want(0.0, bench.comes_to(GripperState.HOLDING))
    assert bench.report().position == pytest.approx(bench.server.held_at)
    assert bench.report().problem is None
    assert bench.server.positions == [CLOSED]


def test_a_rejected_goal_is_named_and_tried_again(bench):
    bench.server.mode = "reject"
    bench.want(0.0, bench.comes_to(GripperState.FAILED))
    assert bench.report().text.endswith("/hand/gripper_cmd rejected the goal")
    bench.server.mode = "reach"
    bench.want(0.0, bench.comes_to(GripperState.REACHED))
    assert bench.server.positions == [CLOSED, CLOSED]


def test_a_change_of_mind_cancels_what_is_under_way(bench):
    bench.server.mode = "stay"
    bench.want(0.0, lambda: bench.report().position == pytest.approx(bench.server.held_at) and bench.server.positions)
    assert bench.report().state is GripperState.MOVING
    bench.server.mode = "reach"
    bench.want(1.0, lambda: bench.server.ended == ["canceled", "reach"])
    bench.want(1.0, bench.comes_to(GripperState.REACHED))
    assert bench.server.positions == [CLOSED, OPEN]


def test_one_that_never_arrives_is_named_and_one_that_is_absent_too(bench):
    late = bench.new("hand/gripper_cmd", timeout_s=0.2)
    absent = bench.new("nobody/gripper_cmd")
    bench.server.mode = "stay"
    try:
        bench.want(0.0, bench.comes_to(GripperState.LATE, late), late)
        assert "neither there nor stalled" in bench.report(late).text
        assert bench.server.ended == []  # it keeps its goal
        absent.update(0.0)
        assert absent.report().text == "no action server /nobody/gripper_cmd: does the gripper's driver run?"
        bench.server.mode = "reach"
        bench.want(1.0, lambda: "reach" in bench.server.ended, late)
    finally:
        late.destroy()
        absent.destroy()
