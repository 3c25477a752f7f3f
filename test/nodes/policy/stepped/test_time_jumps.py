"""Simulated time that jumps, as a bag that begins again: every order in which the clock and the sensors may do it."""

import contextlib
import itertools
from collections.abc import Iterator

import pytest
from stepped.command_checks import CommandChecks
from stepped.simulated_cell import Cell

from sqap_vla_ros.control.executive import State
from sqap_vla_ros.robot.conventions import pose_distance

QUICK = {"ensemble_chunks": 1, "ramp_s": 0.3, "max_open_loop_s": 1.0}
MODES = ("joint", "pose", "twist")
SOURCES = ("clock", "image", "tf", "joints")
ORDERS = tuple(itertools.permutations(SOURCES))
AGAIN_S = 3.0  # in which the arm moves again after a jump


@contextlib.contextmanager
def moving(mode: str, **parameters: float) -> Iterator[Cell]:
    with Cell(mode, simulated=True, parameters={**QUICK, **parameters}) as cell:
        cell.run(0.2)
        cell.instruct("pick")
        assert cell.enable().success
        cell.run(1.0)
        assert cell.loop.executive.moving
        yield cell
        assert CommandChecks(cell, cell.loop.commander.motion.limits).judge() == []


def jump(cell: Cell, seconds: float, order: tuple[str, ...] = SOURCES, gap_s: float = 0.0) -> None:
    """Let one source after the other go to the new time, gap_s apart."""
    jumped: set[str] = set()
    for source in order:
        jumped.add(source)
        if source == "clock":
            cell.clock.jump(seconds)
        for sensor in SOURCES[1:]:
            ahead = (sensor in jumped) - ("clock" in jumped)
            setattr(cell.switches, f"{sensor}_age_s", -ahead * seconds)
        cell.run(gap_s)


def moves_again(cell: Cell) -> bool:
    for _ in range(round(AGAIN_S / 0.1)):
        cell.run(0.1)
        if cell.loop.executive.moving:
            return True
    return False


@pytest.mark.parametrize(("mode", "first"), [(mode, i) for i, mode in enumerate(MODES)])
def test_in_whatever_order_clock_and_sensors_jump_the_arm_holds_and_moves_again(mode, first):
    with moving(mode) as cell:
        for number, order in enumerate(ORDERS[first :: len(MODES)]):
            seconds = (-500.0, -5.0, 500.0, -1.5)[number % 4]
            gap_s = (0.04, 0.1)[number // 4]
            jump(cell, seconds, order, gap_s)
            text = f"{order} by {seconds:+g} s, {gap_s:g} s apart"
            assert moves_again(cell), f"{text}: {cell.told()}"
            cell.run(0.3)
            assert cell.loop.executive.state() == (State.RUNNING, ""), text


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seconds", [-500.0, 500.0])
def test_a_hold_that_is_under_way_comes_to_rest_in_the_new_time(mode, seconds):
    with moving(mode) as cell:
        cell.trigger("stop")
        cell.run(0.04)
        jump(cell, seconds)
        cell.run(2.0)
        assert cell.loop.commander.at_rest(cell.clock.ros_ns)
        sent = len(cell.commands)
        cell.run(1.0)
        assert len(cell.commands) == sent  # a stream ends
        cell.trigger("reset_fault")
        cell.enable()
        assert moves_again(cell), cell.told()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seconds", [-0.5, -500.0, 500.0])
def test_an_arm_at_rest_is_not_commanded_when_time_jumps_and_starts_where_it_is(mode, seconds):
    with moving(mode) as cell:
        cell.switches.latency_s = 5.0  # the motion ends by itself, without a hold
        cell.run(2.0)
        assert not cell.loop.executive.moving
        sent = len(cell.commands)
        jump(cell, seconds)
        cell.run(1.0)
        assert len(cell.commands) == sent
        cell.switches.latency_s = 0.1
        cell.run(3.0)
        assert moves_again(cell), cell.told()


def test_what_is_said_to_be_wrong_after_a_jump_is_what_is_wrong_now():
    with moving("pose") as cell:
        jump(cell, -500.0)
        cell.switches.tf_silent = True
        cell.run(0.1)
        assert "no transform base_link <- tool0" in cell.told()
        cell.switches.tf_silent = False
        cell.switches.image_silent = True
        cell.run(0.1)
        assert "transform" not in cell.told()


def test_one_transform_from_the_future_blinds_nobody():
    with moving("pose") as cell:
        cell.switches.tf_age_s = -3600.0
        cell.run(0.02)
        cell.switches.tf_age_s = 0.0
        cell.run(1.0)
        assert cell.loop.executive.moving
        assert cell.loop.executive.counters.holds == 0
        cell.switches.tf_age_s = -3600.0
        cell.run(2.0)
        assert "the transform from base_link to tool0 is stamped 3600.0 s in the future" in cell.told()
        assert not cell.loop.executive.moving


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stall_s", [0.6, 0.8, 1.5])
def test_simulated_time_that_the_executor_does_not_hear_keeps_the_watchdog_from_nothing(mode, stall_s):
    """It stands still for the node as long as the executor does; a twist must not go on for so long."""
    with moving(mode) as cell:
        cell.switches.stalled = True
        cell.run(stall_s)
        if stall_s > 1.0:
            before = cell.tool.copy()
            cell.run(0.3)
            assert pose_distance(before, cell.tool)[0] < 2e-3
        cell.switches.stalled = False
        cell.run(0.5)
        assert moves_again(cell), cell.told()


def test_a_node_that_is_deactivated_in_simulated_time_comes_to_rest():
    with moving("twist") as cell:
        cell.clock.deaf = True
        cell.loop.deactivate("deactivated")
        twist = cell.commands[-1].message.twist
        assert (twist.linear.x, twist.linear.y, twist.linear.z) == (0.0, 0.0, 0.0)
        assert cell.loop.commander.at_rest(cell.loop._running_ns())
        cell.clock.deaf = False
