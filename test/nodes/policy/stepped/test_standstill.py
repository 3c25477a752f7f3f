"""An arm that stands still although it is told to move is held and named, however little its command leads it."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from stepped.running import QUICK, moving, told, violations
from stepped.simulated_cell import Cell

from sqap_vla_ros.contracts import ActionChunk
from sqap_vla_ros.control.executive import State
from sqap_vla_ros.robot.conventions import pose_distance

# The first motions of an arm, as docs/robots.md has them: the lead keeps the tracking error from ever being reached.
CAREFUL = QUICK | {"speed_scale": 0.1, "max_lead_m": 0.02, "max_tracking_m": 0.1}

NAMED = "the arm has not moved in 1."
REMEDY = "is its controller active and listening on "


def pushing(chunk: ActionChunk) -> ActionChunk:
    deltas = np.zeros_like(chunk.deltas)
    deltas[:, 1] = 0.03 * chunk.dt_s
    return replace(chunk, deltas=deltas)


def resting(chunk: ActionChunk) -> ActionChunk:
    """A policy that waits, with the noise of one."""
    noise = np.random.default_rng(chunk.stamp_ns % 1000).normal(size=chunk.deltas.shape) * 0.001
    return replace(chunk, deltas=noise * [1, 1, 1, 3, 3, 3, 0])


def careful(mode: str, *, described: bool = False, **parameters: float) -> Cell:
    cell = Cell(mode, seed=3, parameters=CAREFUL | parameters, described=described)
    cell.switches.chunk_edit = pushing
    return cell


def freeze(cell: Cell) -> None:
    """TF and joint_states go on with fresh stamps, and say the same for ever."""
    pose, joints = cell.tool.copy(), cell.joints.tolist()
    cell.switches.tf_edit = lambda _: pose.copy()
    cell.switches.joints_edit = lambda names, _: (names, list(joints))


def noisy(cell: Cell) -> Callable[[np.ndarray], np.ndarray]:
    def edit(pose: np.ndarray) -> np.ndarray:
        pose[:3, 3] += cell.rng.normal(size=3) * 1e-5
        return pose

    return edit


@pytest.mark.parametrize("mode", ["joint", "pose", "twist"])
def test_a_controller_that_does_not_listen_is_named_and_latches(mode):
    with careful(mode) as cell:
        cell.switches.blocked = True
        cell.switches.tf_edit = noisy(cell)
        moving(cell, 3.0)
        assert NAMED in told(cell)
        assert f"{REMEDY}{cell.commands[0].topic}" in told(cell)
        assert cell.loop.executive.counters.holds == 1
        cell.run(5.0)
        state, reason = cell.loop.executive.state()
        assert state is State.FAULT
        assert NAMED in reason
        assert violations(cell) == []


def fastest_m_s(cell: Cell, seconds: float) -> float:
    """Let time pass, and return how fast the tool went at the most, over 40 ms."""
    last, fastest = cell.tool.copy(), 0.0
    for _ in range(round(seconds / 0.04)):
        cell.run(0.04)
        fastest = max(fastest, float(np.linalg.norm(cell.tool[:3, 3] - last[:3, 3])) / 0.04)
        last = cell.tool.copy()
    return fastest


@pytest.mark.parametrize(("scale", "lead_m", "reach_m"), [(0.1, 0.02, 0.08), (0.3, 0.05, 0.2)])
@pytest.mark.parametrize("mode", ["joint", "pose", "twist"])
def test_measurements_that_stand_still_while_the_arm_obeys_end_the_motion(mode, scale, lead_m, reach_m):
    with careful(mode, speed_scale=scale, max_lead_m=lead_m) as cell:
        moving(cell, 1.0)
        freeze(cell)
        before = cell.tool.copy()
        assert fastest_m_s(cell, 8.0) < 1.5 * scale * 0.4, (
            "what starts anew must not leap to where the arm is said to be"
        )
        assert NAMED in " ".join(reason for _, _, reason in cell.statuses)
        assert cell.loop.executive.state()[0] in (State.FAULT, State.HOLDING)
        assert np.linalg.norm(cell.tool[:3, 3] - before[:3, 3]) < reach_m
        assert violations(cell) == []


def test_an_arm_that_is_put_elsewhere_as_soon_as_its_task_ends_starts_there():
    """As by a reset of the simulator: nobody saw it stand before."""
    with careful("joint") as cell:
        moving(cell, 1.0)
        cell.enable(False)
        cell.run(0.1)
        cell.relocate(cell.joints + 0.3 * np.eye(7)[0])
        cell.run(1.0)
        put = cell.tool.copy()
        cell.enable()
        assert fastest_m_s(cell, 2.0) < 0.06
        assert np.linalg.norm(cell.tool[:3, 3] - put[:3, 3]) > 0.01, told(cell)
        assert violations(cell) == []


@pytest.mark.parametrize("slipped", [False, True])
def test_in_output_mode_pose_joint_states_tell_an_arm_that_was_led_from_a_transform_that_slipped(slipped):
    with careful("pose", described=True) as cell:
        moving(cell, 1.0)
        cell.enable(False)
        cell.run(1.0)
        if slipped:
            slip = np.eye(4)
            slip[0, 3] = 0.1
            cell.switches.tf_edit = lambda pose: slip @ pose
        else:
            cell.relocate(cell.joints + 0.3 * np.eye(7)[0])
        cell.run(1.0)
        put, sent = cell.tool.copy(), len(cell.commands)
        cell.enable()
        assert fastest_m_s(cell, 2.0) < 0.06
        assert (len(cell.commands) == sent) is slipped
        if not slipped:
            assert np.linalg.norm(cell.tool[:3, 3] - put[:3, 3]) > 0.01, told(cell)
        assert violations(cell) == []


@pytest.mark.parametrize("mode", ["joint", "pose"])
def test_a_task_does_not_go_on_by_itself_after_somebody_led_its_arm(mode):
    with careful(mode, described=True, max_open_loop_s=1.0) as cell:
        moving(cell, 1.0)
        cell.switches.image_silent = True
        cell.run(3.0)
        assert not cell.loop.executive.moving
        cell.relocate(cell.joints + 0.3 * np.eye(7)[0])
        cell.run(0.5)
        cell.switches.image_silent = False
        assert fastest_m_s(cell, 2.0) == 0.0
        state, reason = cell.loop.executive.state()
        assert state is State.HOLDING
        assert "somebody moved it while its task was held, and the task does not go on by itself" in reason
        assert "waiting for a new instruction, goal or ~/enable" in reason
        put = cell.tool.copy()
        cell.enable()  # once more
        assert fastest_m_s(cell, 2.0) < 0.06
        assert np.linalg.norm(cell.tool[:3, 3] - put[:3, 3]) > 0.01, told(cell)
        assert violations(cell) == []


@pytest.mark.parametrize("joint", [0, 6])
@pytest.mark.parametrize("mode", ["joint", "pose"])
def test_an_arm_that_was_pushed_a_little_is_not_fetched_back_either(mode, joint):
    with careful(mode, described=True) as cell:
        moving(cell, 1.0)
        cell.enable(False)
        cell.run(1.0)
        cell.relocate(cell.joints + {0: 0.03, 6: 0.09}[joint] * np.eye(7)[joint])  # 15 mm, or a turn of the wrist
        cell.run(1.0)
        put = cell.tool.copy()
        cell.enable()
        assert fastest_m_s(cell, 0.3) < 0.06
        away_m, away_rad = pose_distance(put, cell.tool)
        assert away_m < 0.01
        assert away_rad < 0.04
        assert fastest_m_s(cell, 1.5) < 0.06
        assert pose_distance(put, cell.tool)[0] > 0.01, told(cell)
        assert violations(cell) == []


def test_an_arm_that_nobody_saw_stand_before_it_was_put_elsewhere_is_not_fetched_back():
    """Its driver ended with the task, say, and begins anew with the arm at another place."""
    with careful("pose") as cell:
        moving(cell, 1.0)
        cell.enable(False)
        cell.switches.tf_silent = cell.switches.image_silent = True
        cell.run(2.0)
        cell.relocate(cell.joints + 0.3 * np.eye(7)[0])
        cell.switches.tf_silent = cell.switches.image_silent = False
        cell.run(1.0)
        sent = len(cell.commands)
        cell.enable()
        assert fastest_m_s(cell, 2.0) == 0.0
        assert "from where it was told to rest, and was moved there since" in told(cell)
        assert len(cell.commands) == sent


@pytest.mark.parametrize("by_rad", [0.13, 0.24, 0.6])
@pytest.mark.parametrize("mode", ["joint", "pose", "twist"])
def test_an_arm_that_was_led_elsewhere_while_disabled_is_not_fetched_back(mode, by_rad):
    """By the teach pendant, say: its controller was switched off meanwhile, and has it where it is."""
    with careful(mode) as cell:
        moving(cell, 1.0)
        cell.enable(False)
        cell.run(1.0)
        for _ in range(50):
            cell.relocate(cell.joints + by_rad / 50 * np.eye(7)[0])
            cell.run(0.04)
        cell.run(0.5)
        led, sent = cell.tool.copy(), len(cell.commands)
        cell.trigger("stop")  # says nothing of where it rested before
        assert fastest_m_s(cell, 0.5) == 0.0
        cell.trigger("reset_fault")
        cell.enable()
        assert fastest_m_s(cell, 2.0) < 0.06
        if mode == "pose":  # by its transform alone, which may have slipped
            assert "from where it was told to rest, and was moved there since" in told(cell)
            assert len(cell.commands) == sent
        else:
            assert np.linalg.norm(cell.tool[:3, 3] - led[:3, 3]) > 0.01, told(cell)
        assert violations(cell) == []


@pytest.mark.parametrize("mode", ["joint", "pose", "twist"])
def test_an_arm_that_stands_for_a_moment_goes_on_by_itself(mode):
    with careful(mode) as cell:
        moving(cell, 1.0)
        cell.switches.blocked = True
        cell.switches.tf_edit = noisy(cell)  # as of encoders: it is alive
        cell.run(2.2)
        assert NAMED in told(cell)
        cell.switches.blocked = False
        before = cell.tool.copy()
        cell.run(2.0)
        assert cell.loop.executive.moving
        assert np.linalg.norm(cell.tool[:3, 3] - before[:3, 3]) > 0.02
        assert cell.loop.executive.counters.tracking_errors == 1
        assert violations(cell) == []


@pytest.mark.parametrize("mode", ["joint", "pose", "twist"])
def test_a_policy_that_waits_is_no_arm_that_stands_still(mode):
    with careful(mode) as cell:
        moving(cell, 1.0)
        cell.switches.chunk_edit = resting
        cell.run(8.0)
        assert cell.loop.executive.moving
        assert cell.loop.executive.counters.tracking_errors == 0


@pytest.mark.parametrize("mode", ["pose", "twist", "joint"])
def test_no_first_motion_starts_where_joint_states_begin_to_contradict_the_transform(mode):
    """The transform slips while a slow policy computes its first chunk: nothing was commanded yet to compare with."""
    with careful(mode, described=True) as cell:
        cell.switches.latency_s = 1.2
        cell.run(0.2)
        cell.instruct("pick")
        assert cell.enable().success
        cell.run(0.3)
        slip = np.eye(4)
        slip[0, 3] = 0.1
        cell.switches.tf_edit = lambda pose: slip @ pose
        cell.run(3.0)
        assert cell.commands == []
        assert "joint_states and TF contradict each other: the tool is 100 mm" in told(cell)
        assert violations(cell) == []
