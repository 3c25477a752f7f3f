"""Named faults against the engine in stepped time: each is refused or held, and the status says which it is."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from std_msgs.msg import String
from stepped.running import QUICK, moving, told, violations
from stepped.simulated_cell import Cell

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.conditions import Input
from sqap_vla_ros.control.motion import UnsafeChunk
from sqap_vla_ros.nodes import messages
from sqap_vla_ros.robot.holding import HoldReason

STEP_M = 0.4 * 0.02 * 1.03  # max_linear_velocity for a period of the commands
MODES = ("joint", "pose", "twist")
LAMP = '<joint name="lamp_joint" type="fixed"><parent link="base_link"/><child link="lamp"/></joint>'


def at_rest(cell: Cell, seconds: float = 1.0) -> bool:
    """The arm's command does not change any more."""
    before = cell.loop.commander.sink.commanded_tool(cell.clock.ros_ns)
    cell.run(seconds)
    after = cell.loop.commander.sink.commanded_tool(cell.clock.ros_ns)
    return bool(np.allclose(before, after, atol=1e-9))


# One wrong sample


@pytest.mark.parametrize("mode", MODES)
def test_one_wrong_sample_of_tf_neither_holds_nor_moves_the_arm(mode):
    with Cell(mode, seed=1, parameters=QUICK) as cell:
        # Slow, so that no chunk is rejected for what the policy wants.
        cell.switches.chunk_edit = lambda chunk: replace(chunk, deltas=chunk.deltas * [*6 * [0.2], 1.0])
        moving(cell)
        count = iter(range(10**6))

        def glitch(pose: np.ndarray) -> np.ndarray:
            if next(count) % 51 == 10:  # with the image of its moment, or some ticks after it
                pose[2, 3] -= 0.35
            return pose

        cell.switches.tf_edit = glitch
        cell.run(5.1)
        assert cell.loop.executive.moving
        counters = cell.loop.executive.counters
        assert (counters.tracking_errors, counters.holds, counters.chunks_rejected) == (0, 0, 0)
        assert violations(cell) == []


@pytest.mark.parametrize("wrong", [lambda q: [0.0] * len(q), lambda q: [q[0] + 0.5, *q[1:]]])  # outside limits; inside
def test_one_wrong_joint_state_just_before_a_stop_is_not_commanded(wrong):
    with Cell("joint", seed=1, parameters=QUICK) as cell:
        moving(cell)
        cell.switches.joints_edit = lambda names, values: (names, wrong(values))
        cell.run(0.02)
        count = len(cell.commands)
        cell.trigger("stop")
        cell.run(0.5)
        assert len(cell.commands) > count
        for command in cell.commands[count:]:
            positions = np.array([point.positions for point in command.message.points])
            assert np.abs(positions - command.joints).max() < 0.2
        assert violations(cell) == []


# Measurements that stop or are old


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", ["tf_silent", "joints_silent", "image_silent", "info_silent"])
def test_an_input_that_stops_brings_the_arm_to_rest_where_it_is(mode, what):
    with Cell(mode, seed=2, parameters={**QUICK, "max_open_loop_s": 1.0}) as cell:
        moving(cell)
        setattr(cell.switches, what, True)
        cell.run(2.5)
        if what == "joints_silent" and mode != "joint":
            assert cell.loop.executive.moving  # nothing depends on them
            return
        assert not cell.loop.executive.moving
        assert at_rest(cell)
        assert violations(cell) == []
        setattr(cell.switches, what, False)
        cell.run(2.0)
        assert cell.loop.executive.moving


@pytest.mark.parametrize(
    ("switch", "words"),
    [({"joints_age_s": 2.0}, "joint_states are stale: joint1 is stamped"), ({"joints_age_s": -5.0}, "in the future")],
)
def test_joint_states_are_judged_by_their_stamps(switch, words):
    with Cell("joint", seed=3, parameters=QUICK) as cell:
        for name, value in switch.items():
            setattr(cell.switches, name, value)
        cell.run(0.2)
        cell.instruct("pick")
        cell.enable()
        cell.run(1.5)
        assert words in told(cell)
        assert cell.commands == []


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda names, values: ([*names, names[0]], [*values, 1.2]), "name joint1 twice"),
        (lambda names, values: ([*names, "x"], values), "8 names and 7 positions"),
        (lambda names, values: (names, [float("nan"), *values[1:]]), "non-finite"),
        (lambda names, values: (names, [values[0] + 0.5, *values[1:]]), "contradict each other"),
    ],
)
def test_joint_states_that_contradict_themselves_or_tf_move_nothing(edit, words):
    with Cell("joint", seed=3, parameters=QUICK) as cell:
        cell.switches.joints_edit = edit
        cell.run(0.5)
        cell.instruct("pick")
        cell.enable()
        cell.run(1.0)
        assert words in told(cell)
        assert cell.commands == []


def test_joint_states_in_two_messages_are_as_good_as_one():
    with Cell("joint", seed=3, parameters=QUICK) as cell:
        halves = iter(range(10**6))

        def half(names: list[str], values: list[float]) -> tuple[list[str], list[float]]:
            part = slice(0, 3) if next(halves) % 2 else slice(3, 7)
            return names[part], values[part]

        cell.switches.joints_edit = half
        moving(cell)
        assert cell.loop.executive.moving
        assert violations(cell) == []


def test_a_second_publisher_of_joint_states_is_named_and_holds():
    with Cell("joint", seed=4, parameters=QUICK) as cell:
        moving(cell)
        cell.switches.second_joints = np.zeros(7)
        cell.run(1.0)
        assert "is there a second publisher?" in told(cell)
        assert not cell.loop.executive.moving
        assert violations(cell) == []


def test_a_second_publisher_of_tf_is_named_and_ends_the_motion():
    with Cell("pose", seed=4, parameters={**QUICK, "max_open_loop_s": 1.0}) as cell:
        moving(cell)
        cell.switches.second_tf = np.eye(4)
        cell.run(2.5)
        assert "second publisher" in told(cell) or "two publishers" in told(cell)
        assert not cell.loop.executive.moving
        assert violations(cell) == []


def test_images_that_cannot_be_used_hide_no_fault_of_tf():
    with Cell("twist", seed=4, parameters=QUICK) as cell:
        moving(cell)
        cell.switches.image_stamp = 0
        cell.run(0.2)
        cell.switches.second_tf = np.eye(4)
        before = len(cell.statuses)
        cell.run(0.3)
        reasons = [reason for *_, reason in cell.statuses[before:]]
        assert any("images are stamped zero" in reason and "second publisher" in reason for reason in reasons)


@pytest.mark.parametrize("mode", MODES)
def test_transforms_that_are_not_finite_are_named_and_never_commanded(mode):
    with Cell(mode, seed=4, parameters={**QUICK, "max_open_loop_s": 1.0}) as cell:
        moving(cell)
        cell.switches.tf_edit = lambda pose: np.full((4, 4), np.nan)
        cell.run(2.5)
        assert not cell.loop.executive.moving
        assert Input.TF in cell.loop.executive.problems()
        assert violations(cell) == []


# A blocked arm


def test_a_blocked_arm_is_not_pushed_on():
    with Cell("joint", seed=5, parameters={**QUICK, "max_tracking_m": 0.03, "max_lead_m": 0.03}) as cell:
        moving(cell)
        cell.switches.blocked = True
        for _ in range(100):  # it returns, tries again, and after the third time no more
            cell.run(0.1)
            if "3 times in a row" in told(cell):
                break
        assert "tracking error" in told(cell)
        cell.run(3.0)  # the way back is slow
        assert at_rest(cell)
        tool = cell.loop.commander.sink.commanded_tool(cell.clock.ros_ns)
        assert np.linalg.norm(tool[:3, 3] - cell.tool[:3, 3]) < 0.04


def test_an_old_image_is_named_where_no_prediction_is_due():
    parameters = {**QUICK, "replan": "horizon", "request_margin_s": 0.0, "image_timeout_s": 0.4}
    with Cell("pose", seed=2, parameters=parameters) as cell:
        moving(cell, 0.5)
        cell.switches.image_age_s = 0.8
        asked = len(cell.asked_ns)
        cell.run(1.05)
        assert len(cell.asked_ns) == asked
        assert cell.loop.executive.moving
        assert "the image is stale: stamped 0.8" in cell.told()
        cell.switches.image_age_s = 0.0
        cell.run(0.2)
        assert "stale" not in cell.told()


# Descriptions


def test_another_description_while_moving_holds_and_the_hold_is_sent():
    with Cell("joint", seed=6, parameters=QUICK) as cell:
        moving(cell)
        count = len(cell.commands)
        cell.publish("robot_description", String(data=cell.urdf.replace('<joint name="', '<joint name="other_')))
        cell.run(0.3)
        assert "another robot_description came" in told(cell)
        holds = cell.commands[count:]
        assert holds
        assert not any(holds[-1].message.points[-1].velocities)
        assert not cell.loop.executive.moving
        assert at_rest(cell)
        assert violations(cell) == []


@pytest.mark.parametrize(
    "edit",
    [
        lambda urdf: urdf,
        lambda urdf: urdf.replace("<link", "<!-- calibrated today -->\n\n  <link"),
        lambda urdf: urdf.replace('"0.316', '"0.3160'),
        lambda urdf: urdf.replace("</robot>", '<link name="lamp"/></robot>').replace("</robot>", LAMP + "</robot>"),
    ],
)
def test_a_description_of_the_same_arm_again_changes_nothing(edit):
    with Cell("joint", seed=6, parameters=QUICK) as cell:
        moving(cell)
        for _ in range(3):
            cell.publish("robot_description", String(data=edit(cell.urdf)))
            cell.run(0.2)
            cell.publish("robot_description", String(data=cell.urdf))
            cell.run(0.2)
        assert cell.loop.executive.moving
        assert cell.loop.executive.counters.holds == 0


@pytest.mark.parametrize("text", ["<robot name='broken'>", "garbage", ""])
def test_a_broken_description_keeps_the_one_before(text):
    with Cell("joint", seed=6, parameters=QUICK) as cell:
        moving(cell)
        cell.publish("robot_description", String(data=text))
        cell.run(1.0)
        assert "robot_description: " in told(cell)
        assert cell.loop.executive.moving


# Ends of motions


def test_a_server_that_is_slow_is_named():
    server = {"checkpoint": "ws://workstation:8000", "prediction_timeout_s": 2.0}
    with Cell("pose", seed=7, parameters={**QUICK, **server}) as cell:
        cell.switches.latency_s = 4.0
        cell.run(0.2)
        cell.instruct("pick")
        cell.enable()
        cell.run(1.0)
        assert "the server at ws://workstation:8000 has been computing for" in told(cell)
        cell.run(1.5)
        named = "a prediction took longer than 2 s: the server at ws://workstation:8000 does not answer"
        assert named in told(cell)


@pytest.mark.parametrize("mode", MODES)
def test_a_policy_that_is_too_slow_leaves_the_arm_at_rest(mode):
    with Cell(mode, seed=7, parameters={**QUICK, "max_open_loop_s": 1.0}) as cell:
        moving(cell)
        cell.switches.latency_s = 4.0
        cell.run(3.0)
        assert not cell.loop.executive.moving
        assert "the policy has been computing for" in told(cell)
        if mode == "twist":
            twist = cell.commands[-1].message.twist
            assert (twist.linear.x, twist.linear.y, twist.linear.z) == (0.0, 0.0, 0.0)
        assert at_rest(cell, 0.5)
        assert violations(cell) == []


@pytest.mark.parametrize("mode", MODES)
def test_no_motion_reaches_beyond_the_open_loop_limit(mode):
    slow = {"max_linear_velocity": 0.06, "max_joint_velocity": 0.4}
    with Cell(mode, seed=8, parameters={**QUICK, **slow, "max_open_loop_s": 1.0}) as cell:
        cell.run(0.2)
        cell.instruct("pick")
        cell.enable()
        latest = 0.0
        for _ in range(100):
            cell.run(0.04)
            motion = cell.loop.commander.motion.current
            if cell.loop.executive.moving and motion is not None:
                latest = max(latest, (motion.end_ns - motion.stamp_ns) / NS_PER_S)
        assert 0.0 < latest <= 1.0


# Time


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("jump_s", [-30.0, -0.5, 0.5, 30.0])
def test_ros_time_that_jumps_holds_without_a_jump_of_the_command(mode, jump_s):
    with Cell(mode, seed=10, parameters=QUICK) as cell:
        moving(cell)
        cell.clock.set_ros(jump_s)
        cell.run(0.1)
        assert "jumped by" in told(cell)
        cell.run(3.0)
        assert violations(cell) == []
        if mode == "pose":
            positions = np.array([messages.pose_from_message(c.message.pose)[:3, 3] for c in cell.commands])
            assert np.linalg.norm(np.diff(positions, axis=0), axis=1).max() <= 2 * STEP_M


def test_simulated_time_that_never_comes_is_named():
    with Cell("pose", seed=10, parameters=QUICK) as cell:
        cell.loop.inputs._clock._simulated = True
        cell.node.clock = cell.loop._node.clock = SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=0))
        cell.loop.executive.set_instruction("pick")
        cell.loop.executive.enable()
        cell.loop.turn()
        assert "no /clock was received" in cell.loop.executive.state()[1]


# A hold while the policy computes


def held_while_computing(cell: Cell, hold) -> tuple[list[float], list[float]]:
    """A policy of 1 s goes along y at 60 mm/s and closes beyond 150 mm; the arm is held 0.5 s after an image.

    Return the tool's y (m), and the gripper that was told, every 20 ms from the image on.
    """
    cell.switches.latency_s = 1.0

    def seen(chunk):
        deltas = np.zeros_like(chunk.deltas)
        deltas[:, 1] = 0.012
        deltas[:, 6] = cell.tool[1, 3] + np.cumsum(deltas[:, 1]) < 0.15
        return replace(chunk, deltas=deltas, normalized=deltas)

    cell.switches.chunk_edit = seen
    moving(cell, 1.2)
    asked = len(cell.asked_ns)
    while len(cell.asked_ns) == asked:
        cell.run(0.02)
    way, gripper = [], []

    def note(seconds: float) -> None:
        for _ in range(round(seconds / 0.02)):
            cell.run(0.02)
            way.append(float(cell.tool[1, 3]))
            if (current := cell.loop.commander.motion.current) is not None:
                gripper.append(current.sample(cell.clock.ros_ns)[1])

    note(0.5)
    hold(cell)
    note(2.5)
    return way, gripper


def another_description(cell: Cell) -> None:
    cell.publish("robot_description", String(data=cell.urdf.replace("0.316", "0.3161")))


def interrupted(cell: Cell) -> None:
    cell.loop.executive.interrupt("a hold", HoldReason.INPUT)


@pytest.mark.parametrize("hold", [interrupted, another_description])
@pytest.mark.parametrize("mode", ["pose", "joint"])
def test_a_chunk_from_before_a_hold_does_not_take_the_arm_back(mode, hold):
    with Cell(mode, seed=1, parameters={**QUICK, "max_open_loop_s": 4.0}, described=True) as cell:
        way, gripper = held_while_computing(cell, hold)
        assert cell.loop.executive.counters.holds == 1
        assert np.min(np.diff(way)) > -1e-3
        assert way[-1] > max(way[:40]) + 0.02  # it went on with a newer image
        closed = np.flatnonzero(np.array(gripper) < 0.5)[0]
        assert max(gripper[closed:]) < 0.5  # what it holds is not let go of
        assert "its image was taken before the arm had come to rest" in told(cell)
        assert violations(cell) == []


def test_a_chunk_that_the_arm_cannot_follow_is_not_averaged_into_the_next(monkeypatch):
    with Cell("pose", seed=1, parameters={**QUICK, "ensemble_chunks": 2}) as cell:
        moving(cell)
        sink, averaged = cell.loop.commander.sink, cell.loop.commander.motion._ensemble
        monkeypatch.setattr(sink, "start", lambda *_: (_ for _ in ()).throw(UnsafeChunk("not reachable")))
        cell.run(0.5)
        assert "not reachable" in told(cell)
        assert len(averaged) == 0
