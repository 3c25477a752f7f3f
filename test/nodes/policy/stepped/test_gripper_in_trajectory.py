"""A gripper that is a joint of the arm's controller, with the whole engine in stepped time."""

import dataclasses

import numpy as np
import pytest
from stepped.running import told
from stepped.simulated_cell import TICK_NS, Cell

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes import messages
from sqap_vla_ros.robot.gripper.state import GripperState
from sqap_vla_ros.robot.joint_trajectory import JointTrajectoryArrays

CLOSED, OPEN, MEASURED, TRAVEL_S = -0.2, 1.0, 0.5, 0.4
PARAMETERS = {
    "gripper_output": "joint_trajectory",
    "gripper_joint": "jaw",
    "gripper_closed": CLOSED,
    "gripper_open": OPEN,
    "gripper_unit": "rad",
    "gripper_travel_s": TRAVEL_S,
    "ensemble_chunks": 1,
    "ramp_s": 0.3,
}


class JawCell(Cell):
    """An arm whose controller has a jaw too. blocked_at: an object that the jaw cannot be closed beyond."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.opening = 1.0  # that the policy asks for
        self.jaw, self.blocked_at = MEASURED, -np.inf
        self.jaw_told: list[float] = []  # setpoint in every tick
        self._jaw_path: JointTrajectoryArrays | None = None
        self.switches.joints_edit = lambda names, values: ([*names, "jaw"], [*values, self.jaw])
        self.switches.chunk_edit = self._with_opening

    def _with_opening(self, chunk):
        deltas = chunk.deltas.copy()
        deltas[:, 6] = self.opening
        return dataclasses.replace(chunk, deltas=deltas)

    def _obey(self, topic, message):
        assert list(message.joint_names) == [*self.kinematics.joint_names, "jaw"]
        times_ns = np.array([messages.time_ns(p.time_from_start) for p in message.points], dtype=np.int64)
        stamp_ns = messages.time_ns(message.header.stamp)
        positions, velocities = (
            np.array([[getattr(p, kind)[-1]] for p in message.points]) for kind in ("positions", "velocities")
        )
        self._jaw_path = JointTrajectoryArrays(("jaw",), stamp_ns, times_ns, positions, velocities)
        message.joint_names = message.joint_names[:-1]
        for point in message.points:
            point.positions, point.velocities = point.positions[:-1], point.velocities[:-1]
        super()._obey(topic, message)

    def _tick(self):
        super()._tick()
        if self._jaw_path is not None:
            told = float(self._jaw_path.state(self.clock.ros_ns).position[0])
            self.jaw_told.append(told)
            self.jaw += 0.3 * (max(told, self.blocked_at) - self.jaw)

    def move(self, opening: float, seconds: float) -> None:
        """Let the policy move the arm and ask for this opening."""
        self.opening = opening
        self.instruct("pick")
        assert self.enable().success
        self.run(seconds)
        assert self.loop.executive.moving

    def report(self):
        return self.loop.health().gripper


@pytest.fixture
def cell():
    with JawCell("joint", seed=1, parameters=PARAMETERS) as made:
        made.run(0.3)
        yield made


def test_the_jaw_moves_smoothly_is_in_every_message_and_keeps_its_command_through_a_stop(cell):
    cell.move(1.0, 1.2)
    assert cell.jaw_told[0] == pytest.approx(MEASURED)  # it begins where it was measured
    assert cell.jaw_told[-1] == pytest.approx(OPEN)
    assert cell.report().state is GripperState.REACHED
    cell.opening = 0.0
    cell.run(0.6)  # the next chunk has come, and the jaw is on its way
    cell.trigger("stop")
    cell.run(1.5)
    assert cell.jaw_told[-1] == pytest.approx(CLOSED)
    assert not cell.refusals
    step = 2.0 * (OPEN - CLOSED) / TRAVEL_S * TICK_NS / NS_PER_S
    assert np.abs(np.diff(cell.jaw_told)).max() < step
    assert min(cell.jaw_told) >= CLOSED - 1e-6
    assert max(cell.jaw_told) <= OPEN + 1e-6


def test_an_object_is_held_on_through_stops_and_the_next_task(cell):
    cell.blocked_at = 0.4
    cell.move(0.0, 2.0)
    assert cell.jaw_told[-1] == pytest.approx(CLOSED)
    report = cell.report()
    assert report.state is GripperState.HOLDING
    assert report.text == "closed on an object at 0.4 rad"
    cell.trigger("stop")
    cell.run(1.0)
    cell.trigger("reset_fault")
    cell.instruct("")
    told = len(cell.jaw_told)
    cell.move(0.0, 1.0)
    assert np.ptp(cell.jaw_told[told - 20 :]) < 1e-9


@pytest.mark.parametrize("jump_s", [-30.0, 30.0])
def test_a_jump_of_time_does_not_move_the_jaw(cell, jump_s):
    cell.move(0.0, 1.5)
    cell.clock.set_ros(jump_s)
    cell.run(1.0)
    assert cell.jaw_told[-60:] == pytest.approx([CLOSED] * 60, abs=1e-6)


def test_a_joint_of_the_arm_is_refused_as_a_gripper():
    with JawCell("joint", seed=1, parameters={**PARAMETERS, "gripper_joint": "joint7"}) as cell:
        cell.switches.joints_edit = None
        cell.run(0.3)
        cell.instruct("pick")
        assert cell.enable().success
        cell.run(0.5)
        assert not cell.commands
        assert "gripper_joint joint7 is a joint of the arm" in cell.told()


def test_a_joint_that_is_not_measured_is_named(cell):
    cell.switches.joints_edit = None
    cell.loop.inputs.arm.gripper = None
    cell.instruct("pick")
    assert cell.enable().success
    cell.run(1.0)
    assert not cell.commands
    assert "joint_states have no position of gripper_joint jaw" in cell.told()


def test_a_controller_that_may_refuse_the_jaw_is_asked_about_it(cell):
    cell.move(1.0, 1.0)
    cell.switches.blocked = True
    cell.run(2.5)
    assert "is its controller active and listening on joint_trajectory, has it the joint jaw, do" in told(cell)
