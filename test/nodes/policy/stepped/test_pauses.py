"""A node that pauses in a motion goes on from what it sent last, and a coarse simulated clock is no pause."""

from dataclasses import replace

import numpy as np
import pytest
from stepped.command_checks import CommandChecks
from stepped.simulated_cell import Cell

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes import messages

QUICK = {"ensemble_chunks": 1, "ramp_s": 0.3}
WAY = np.array([0.0, 0.02, 0.0, 0.0, 0.0, 0.0, 1.0])  # 0.2 m/s
LONGEST_S = 0.05  # two and a half periods of the commands


def straight(cell: Cell, seconds: float = 1.0) -> Cell:
    """Let the tool go straight on, as fast as WAY has it."""
    cell.switches.chunk_edit = lambda chunk: replace(chunk, deltas=np.tile(WAY, (len(chunk.deltas), 1)))
    cell.run(0.2)
    cell.instruct("pick")
    assert cell.enable().success
    cell.run(seconds)
    assert cell.loop.executive.moving
    return cell


def pause(cell: Cell, seconds: float) -> None:
    cell.switches.stalled = True
    cell.run(seconds)
    cell.switches.stalled = False


def steps_m(cell: Cell) -> np.ndarray:
    poses = [messages.pose_from_message(c.message.pose)[:3, 3] for c in cell.commands]
    return np.linalg.norm(np.diff(poses, axis=0), axis=1)


def judged(cell: Cell) -> list:
    return CommandChecks(cell, cell.loop.commander.motion.limits).judge()


@pytest.mark.parametrize("replan", ["continuous", "horizon"])
@pytest.mark.parametrize("pause_s", [0.04, 0.1, 0.2])
def test_a_stream_of_poses_goes_on_from_what_was_sent_last(pause_s, replan):
    with Cell("pose", seed=1, parameters={**QUICK, "replan": replan}) as cell:
        straight(cell, 1.5)
        sent = len(cell.commands)
        pause(cell, pause_s)
        cell.run(0.4)
        after = steps_m(cell)[sent - 1 : sent + 15]
        assert after.max() <= 0.2 * LONGEST_S * 1.05
        assert np.median(after) == pytest.approx(0.2 * 0.02, rel=0.05)  # as fast as before, not stopped
        assert cell.loop.executive.counters.holds == 0
        assert judged(cell) == []


def test_a_stream_of_twists_goes_on_with_the_path_of_before():
    with Cell("twist", seed=1, parameters=QUICK) as cell:
        straight(cell, 1.5)
        sink, sent = cell.loop.commander.sink, len(cell.commands)
        told = sink.commanded_tool(cell.clock.ros_ns)
        pause(cell, 0.2)
        cell.run(0.02)
        assert np.linalg.norm((sink.commanded_tool(cell.clock.ros_ns) - told)[:3, 3]) <= 0.2 * LONGEST_S * 1.05
        cell.run(0.3)
        speeds = np.array([c.message.twist.linear.y for c in cell.commands[sent - 1 :]])
        assert np.abs(np.diff(speeds)).max() < 0.05 + 0.02  # what a correction may add
        assert cell.loop.executive.counters.holds == 0


def test_a_pause_just_before_a_stop_makes_the_hold_no_longer():
    with Cell("pose", seed=1, parameters=QUICK) as cell:
        straight(cell, 1.5)
        sent = len(cell.commands)
        pause(cell, 0.2)
        cell.trigger("stop")
        cell.run(0.8)
        assert steps_m(cell)[sent - 1 :].max() <= 0.2 * LONGEST_S * 1.05
        assert steps_m(cell)[sent - 1 :].sum() < 0.05


def test_many_pauses_do_not_lead_a_motion_beyond_the_open_loop_limit():
    with Cell("pose", seed=1, parameters={**QUICK, "max_open_loop_s": 1.5, "replan": "horizon"}) as cell:
        straight(cell, 0.5)
        cell.switches.latency_s = 5.0
        image_ns = cell.loop.commander.motion.current.stamp_ns
        for _ in range(20):
            pause(cell, 0.1)
            cell.run(0.06)
        moved = np.flatnonzero(steps_m(cell) > 1e-6)
        assert cell.commands[moved[-1] + 1].ros_ns <= image_ns + round(1.5 * NS_PER_S)
        assert "the node paused, and would not end in time what was commanded" in cell.told()
        assert judged(cell) == []


@pytest.mark.parametrize("set_s", [0.04, -0.04])
def test_a_clock_that_is_set_by_a_hair_moves_the_stream_by_no_more(set_s):
    """Below what counts as a jump of the clock."""
    with Cell("pose", seed=1, parameters=QUICK) as cell:
        straight(cell, 1.5)
        sent = len(cell.commands)
        cell.clock.set_ros(set_s)
        cell.run(0.3)
        steps = np.diff([messages.pose_from_message(c.message.pose)[1, 3] for c in cell.commands])[sent - 1 :]
        assert steps.max() <= 0.2 * LONGEST_S * 1.05
        assert steps.min() >= -1e-6  # never back
        assert cell.loop.executive.counters.holds == 0


@pytest.mark.parametrize("tick_s", [0.1, 0.2])
def test_a_simulated_clock_of_coarse_steps_delays_nothing(tick_s):
    with Cell("pose", seed=1, simulated=True, parameters=QUICK) as cell:
        straight(cell, 0.5)
        pause_s = tick_s - 0.02

        def coarse() -> None:  # time stands for some samples, then makes a step
            stands_ns = cell.clock.ros_ns
            for _ in range(round(tick_s / 0.02)):
                cell.run(0.02)
                cell.clock.ros_ns = stands_ns
            cell.clock.ros_ns = stands_ns + round(tick_s * NS_PER_S)

        for _ in range(round(1.0 / tick_s)):
            coarse()
        assert cell.loop.commander._pace.longest_ns >= pause_s * NS_PER_S
        told, _ = cell.loop.commander.motion.current.sample(cell.clock.ros_ns)
        begin = cell.commands[0].message.pose.position.y
        assert told[1, 3] - begin > 0.2  # 1.5 s at 0.2 m/s, less the ramp


def test_one_step_of_simulated_time_is_a_pause():
    with Cell("pose", seed=1, simulated=True, parameters=QUICK) as cell:
        straight(cell, 1.5)
        sent = len(cell.commands)
        cell.clock.ros_ns += 200_000_000
        cell.run(0.3)
        assert steps_m(cell)[sent - 1 :].max() <= 0.2 * LONGEST_S * 1.05
        assert cell.loop.executive.counters.holds == 0


@pytest.mark.parametrize("mode", ["joint", "pose", "twist"])
def test_an_executor_that_stands_still_while_it_plans_commands_nothing_when_it_goes_on(mode, monkeypatch):
    """The watchdog held the arm meanwhile; what was planned with is still there, and the plan is refused."""
    with Cell(mode, parameters=QUICK) as cell:
        straight(cell)
        commander = cell.loop.commander
        joined, taken = commander.motion._joined, []

        def standing_still(*arguments: object) -> object:
            if not taken:
                commander.emergency(lambda: True)
                taken.append(len(cell.commands))
            return joined(*arguments)

        monkeypatch.setattr(commander.motion, "_joined", standing_still)
        cell.run(0.3)
        assert taken
        assert cell.loop.executive.counters.chunks_rejected > 0
        assert len(cell.commands) - taken[0] < 25  # of the hold, and of no new motion
        commander.resume()
        assert commander.motion.current is None
        assert judged(cell) == []


@pytest.mark.parametrize("mode", ["joint", "pose", "twist"])
def test_a_watchdog_that_waited_for_an_executor_which_has_gone_on_by_then_does_nothing(mode):
    with Cell(mode, parameters=QUICK) as cell:
        straight(cell)
        cell.loop.commander.emergency(lambda: False)
        cell.run(0.5)
        assert cell.loop.executive.moving
        assert cell.loop.executive.counters.chunks_rejected == 0


@pytest.mark.parametrize("late_s", [0.01, 0.1, 0.19])
@pytest.mark.parametrize("mode", ["joint", "pose", "twist"])
def test_a_chunk_that_comes_when_the_motion_has_just_ended_is_executed(mode, late_s):
    """The end of a stream is repeated for a while, and a chunk that came meanwhile was refused."""
    with Cell(mode, parameters={**QUICK, "replan": "horizon"}) as cell:
        slowly = 0.1 * WAY + 0.9 * np.array([0.0] * 6 + [1.0])
        cell.switches.chunk_edit = lambda chunk: replace(chunk, deltas=np.tile(slowly, (len(chunk.deltas), 1)))
        cell.switches.latency_s = 1.6 + late_s  # a chunk lasts 1.6 s, and the next image is that of its beginning
        cell.run(0.2)
        cell.instruct("pick")
        assert cell.enable().success
        cell.run(8.0)
        counters = cell.loop.executive.counters
        assert (counters.chunks_published, counters.chunks_rejected) == (4, 0)
        assert judged(cell) == []
