"""What a gripper's own account makes of its last command."""

import pytest

from sqap_vla_ros.robot.gripper.state import (
    FAULTS,
    GripperMeasurement,
    GripperRange,
    GripperReport,
    GripperState,
    judge,
)

FRANKA = GripperRange(0.0, 0.04, "m")
ROBOTIQ = GripperRange(0.8, 0.0, "rad")
SO101 = GripperRange(-0.17, 1.75, "rad")


@pytest.mark.parametrize(
    ("span", "command", "position", "stalled", "reached", "state"),
    [
        (FRANKA, "close", 0.02, True, False, GripperState.HOLDING),
        (FRANKA, "close", 0.001, True, False, GripperState.REACHED),  # on nothing
        (FRANKA, "close", 0.0, False, True, GripperState.REACHED),
        (FRANKA, "open", 0.01, True, False, GripperState.STALLED),
        (FRANKA, "open", 0.04, False, True, GripperState.REACHED),
        (FRANKA, "close", 0.02, False, False, None),
        (FRANKA, "close", None, True, False, GripperState.STALLED),  # on something or on nothing: nobody knows
        (FRANKA, "close", None, False, True, GripperState.REACHED),
        (FRANKA, "close", 0.02, False, True, GripperState.HOLDING),  # a driver that calls a grasp its goal
        (ROBOTIQ, "close", 0.35, True, False, GripperState.HOLDING),
        (ROBOTIQ, "close", 0.79, True, False, GripperState.REACHED),
        (ROBOTIQ, "open", 0.3, True, False, GripperState.STALLED),
        (SO101, "close", 0.4, True, False, GripperState.HOLDING),
        (SO101, "close", -0.16, True, False, GripperState.REACHED),
        (ROBOTIQ, "close", 0.0, True, False, GripperState.STALLED),  # it did not move
        (FRANKA, "close", 0.0395, False, True, GripperState.STALLED),
        (ROBOTIQ, "close", 17.0, True, False, GripperState.STALLED),  # degrees: no account of an object
        (ROBOTIQ, "open", 45.0, False, True, GripperState.STALLED),
        (FRANKA, "close", 40.0, True, False, GripperState.STALLED),  # millimetres
        (FRANKA, "open", 0.08, False, True, GripperState.STALLED),  # the width of both fingers
        (SO101, "close", -0.2, True, False, GripperState.REACHED),  # a bit beyond is still its range
    ],
)
def test_each_account_is_judged(span, command, position, stalled, reached, state):
    assert judge(command, GripperMeasurement(position, stalled, reached), span) is state


def test_only_a_fault_is_a_problem():
    for state in GripperState:
        assert (GripperReport(state, "text").problem is not None) == (state in FAULTS)
