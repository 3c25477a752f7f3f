"""The engine of policy_node in stepped time, without a middleware: faults of a certain order and moment of events."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from std_msgs.msg import String
from stepped.node_double import INFO
from stepped.running import QUICK, moving, told, violations
from stepped.simulated_cell import Cell

from sqap_vla_ros.contracts import ActionChunk
from sqap_vla_ros.control.conditions import Input
from sqap_vla_ros.control.executive import REJECTED, State
from sqap_vla_ros.nodes import messages
from sqap_vla_ros.nodes.policy.control_loop import ControlLoop
from sqap_vla_ros.serving.events import Ready

PRESSING = {
    "max_lead_m": 0.3,
    "max_lead_rad": 1.0,
    "max_tracking_m": 0.3,
    "max_tracking_rad": 1.0,
    "max_start_rad": 1.2,
}


def slipping(slip_m: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return an edit of TF that slips by 0.01 m a sample until it is that far off."""
    slipped = np.zeros(3)

    def edit(pose: np.ndarray) -> np.ndarray:
        slipped[1] = min(slipped[1] + 0.01, slip_m)
        pose[:3, 3] += slipped
        return pose

    return edit


def with_an_open_hand(chunk: ActionChunk) -> ActionChunk:
    return replace(chunk, deltas=np.column_stack([chunk.deltas[:, :6], np.ones(len(chunk.deltas))]))


def positions(cell: Cell) -> np.ndarray:
    return np.array([messages.pose_from_message(c.message.pose)[:3, 3] for c in cell.commands])


def test_the_log_has_one_readable_line_of_the_policy():
    with Cell("pose", seed=1, parameters=QUICK) as cell:
        cell.run(0.2)
        (said,) = [text for _, text in cell.node.log.lines if text.startswith("policy ready")]
        assert said == Ready(INFO, 0.1).in_words()


@pytest.mark.parametrize("jump_s", [-30.0, 30.0])
def test_a_clock_that_was_set_while_nothing_moved_does_not_move_the_next_hold(jump_s):
    """The moment that was left is of the motion of that time: a later hold is of a later motion."""
    with Cell("pose", seed=1, parameters=QUICK) as cell:
        moving(cell, 1.0)
        cell.enable(False)
        cell.run(0.7)
        cell.clock.set_ros(jump_s)
        cell.run(0.3)
        assert cell.enable().success
        cell.run(1.0)
        assert cell.loop.executive.moving
        before = len(cell.commands)
        cell.trigger("stop")
        cell.run(0.5)
        steps = np.linalg.norm(np.diff(positions(cell)[before - 1 :], axis=0), axis=1)
        assert steps.max() <= 0.4 * 0.02 * 1.03


@pytest.mark.parametrize(
    ("joint", "by_rad", "parameters"),
    [
        (6, 0.25, {}),  # the tool turns by less than max_lead_rad
        (0, 0.07, {}),  # no joint is 0.1 rad away: near enough
        (0, 0.4, PRESSING),
        (1, -0.4, PRESSING),
    ],
)
def test_an_arm_that_was_moved_while_it_rested_starts_where_it_stands(joint, by_rad, parameters):
    """However far a command may lead a moving arm: from rest it would be a leap."""
    with Cell("joint", seed=2, parameters=QUICK | parameters) as cell:
        moving(cell, 1.0)
        cell.enable(False)
        cell.run(1.5)
        cell.relocate(cell.joints + by_rad * np.eye(7)[joint])
        cell.run(1.0)
        before = len(cell.commands)
        assert cell.enable().success
        cell.run(1.5)
        first = cell.commands[before]
        assert cell.loop.executive.moving
        assert np.abs(np.array(first.message.points[0].positions) - first.joints).max() <= 0.1


def test_the_seam_between_two_motions_keeps_the_limits_of_the_joints():
    """Each of the two does; what is sent, the end of the first with the second, has to as well."""
    hurried = QUICK | {"blend_s": 0.02, "execution_horizon": 1, "chunk_join": "path", "max_open_loop_s": 0.4}
    for seed, lag_s in ((2, 0.06), (3, 0.14), (5, 0.14)):
        with Cell("joint", seed=seed, lag_s=lag_s, parameters=hurried) as cell:
            moving(cell, 3.0)
            assert violations(cell) == []


@pytest.mark.parametrize(("join", "latency_s"), [("clock", 0.07), ("path", 0.11)])
def test_no_motion_is_refused_because_its_first_action_is_nearly_over(join, latency_s):
    """The joints have a speed, and would have to take on another one in the milliseconds that are left of it."""
    with Cell("joint", seed=1, parameters=QUICK | {"chunk_join": join}) as cell:
        cell.switches.latency_s = latency_s
        moving(cell, 2.0)
        assert "chunk rejected: step 0" not in told(cell)


def test_a_chunk_that_comes_while_a_hold_is_pending_is_rejected_in_words_said_once():
    rejected = []
    loop = SimpleNamespace(
        _planned=None,
        executive=SimpleNamespace(obstacle=lambda: f"{REJECTED}outside the workspace"),
        _reject=lambda why, _flight, **_: rejected.append(why),
    )
    ControlLoop._execute(loop, None, SimpleNamespace(mission=None), 0, 0.0)
    assert rejected == ["outside the workspace"]


def test_a_clock_that_was_set_in_motion_stops_it_where_it_was():
    with Cell("pose", seed=1, parameters=QUICK) as cell:
        moving(cell, 1.0)
        before = len(cell.commands)
        cell.switches.image_silent = True
        cell.clock.set_ros(-30.0)
        cell.run(0.5)
        steps = np.linalg.norm(np.diff(positions(cell)[before - 1 :], axis=0), axis=1)
        assert steps.max() <= 0.4 * 0.02 * 1.03
        assert not steps[-5:].any()


@pytest.mark.parametrize("jump_s", [0.06, -0.1, 0.2, -0.24])
@pytest.mark.parametrize("mode", ["joint", "pose"])
def test_a_clock_that_was_set_by_little_makes_no_leap(mode, jump_s):
    with Cell(mode, seed=3, parameters=QUICK) as cell:
        moving(cell, 1.0)
        cell.clock.set_ros(jump_s)
        cell.run(0.1)
        assert "clock jumped by" in cell.told()
        cell.run(1.0)
        assert violations(cell) == []


def test_nothing_starts_where_the_tool_was_believed_while_its_transform_leaps_away():
    """The transform wandered off for a while, and comes back: for a few samples the wrong pose is still believed."""
    for seed in range(4):
        with Cell("pose", seed=seed, parameters=QUICK) as cell:
            moving(cell, 0.8)
            away = np.zeros(3)

            def wandering(pose: np.ndarray, away: np.ndarray = away) -> np.ndarray:
                away[0] += 0.01
                pose[:3, 3] += away
                return pose

            cell.switches.tf_edit = wandering
            cell.run(0.6)
            cell.switches.tf_edit = None
            cell.run(0.6)
            assert violations(cell) == []


@pytest.mark.parametrize("mode", ["joint", "pose", "twist"])
@pytest.mark.parametrize(("slip_m", "returns"), [(0.25, True), (0.35, False)])
def test_a_transform_that_slips_and_stays_moves_no_command_in_one_step(mode, slip_m, returns):
    """It slips slower than a tool can move, so that each sample is believed."""
    with Cell(mode, seed=2, parameters=QUICK) as cell:
        moving(cell, 0.8)
        cell.switches.tf_edit = slipping(slip_m)
        cell.run(13.0)  # the way back is slow
        if mode == "pose":
            steps = np.linalg.norm(np.diff(positions(cell), axis=0), axis=1)
            assert steps.max() <= 0.4 * 0.02 * 1.03
            assert not steps[-5:].any()
        elif mode == "joint":
            joints = np.array([q for _, q in cell.setpoints])
            assert np.abs(np.diff(joints, axis=0)).max() <= 0.015
        assert violations(cell) == []
        said = "\n".join(text for _, text in cell.node.log.lines)
        assert (mode == "pose") == ("is the tool's transform right?" in said)
        assert (mode == "pose" and returns) == ("its command goes back to it first" in said)


@pytest.mark.parametrize(("slip_m", "set_s"), [(0.08, 0.0), (0.08, -30.0), (0.12, 0.0), (0.4, 30.0)])
def test_nothing_starts_after_a_transform_has_slipped_at_rest(slip_m, set_s):
    """Nobody moves, the transform slips, and the clock is set; then the next motion starts."""
    with Cell("pose", seed=2, parameters=QUICK) as cell:
        moving(cell, 0.8)
        cell.enable(False)
        cell.run(1.0)
        cell.switches.tf_edit = slipping(slip_m)
        cell.run(1.0)
        cell.clock.set_ros(set_s)
        sent = len(cell.commands)
        cell.run(0.5)
        assert len(cell.commands) == sent
        cell.enable()
        cell.run(6.0)
        assert len(cell.commands) == sent  # was it led there, or did its transform slip? A person has to say
        assert not cell.loop.executive.moving
        away = f"{slip_m * 1e3:.0f} mm and 0.00 rad from where it was told to rest, and was moved there since"
        assert f"{away}: is the tool's transform right?" in cell.told()


def test_an_arm_that_never_quite_arrives_starts_with_a_lead_of_nothing():
    """As a small servo that sags: with max_lead_m 0 any distance is more than allowed."""
    with Cell("pose", seed=2, parameters=QUICK | {"max_lead_m": 0.0, "max_lead_rad": 0.0}) as cell:
        cell.switches.tf_edit = lambda pose: pose - np.outer([0.0, 0.0, 0.02, 0.0], [0.0, 0.0, 0.0, 1.0])
        for _ in range(3):
            moving(cell, 0.8)
            cell.enable(False)
            cell.run(1.0)
        assert violations(cell) == []


@pytest.mark.parametrize("mode", ["joint", "pose", "twist"])
def test_a_second_publisher_of_tf_that_always_stamps_last_is_named(mode):
    """It is seen first after a gap, so that the tool may have come there, and the first publisher never again."""
    with Cell(mode, seed=2, parameters=QUICK) as cell:
        moving(cell, 0.5)
        cell.switches.tf_age_s, cell.switches.image_silent = 1.5, True
        cell.run(0.4)
        second = cell.tool.copy()
        second[:3, 3] += (0.0, 0.2, 0.1)
        cell.switches.tf_age_s, cell.switches.second_tf = 0.0, second
        cell.run(0.5)
        assert "from base_link to tool0 alternates between two poses 2" in cell.told()
        cell.switches.second_tf, cell.switches.image_silent = None, False
        cell.run(1.1)
        assert "alternates" not in cell.told()


@pytest.mark.parametrize("latency_s", [0.07, 0.11, 0.125])
def test_a_stream_of_poses_goes_on_while_the_next_motion_has_not_begun(latency_s):
    """It begins a little after it came; until then the one before is under way."""
    with Cell("pose", seed=2, parameters=QUICK) as cell:
        cell.switches.latency_s = latency_s
        moving(cell, 3.0)
        steps = np.linalg.norm(np.diff(positions(cell), axis=0), axis=1)
        assert steps.max() <= 0.4 * 0.02 * 1.03
        assert np.median(steps) > 1e-4


@pytest.mark.parametrize("latency_s", [0.07, 0.11, 0.125])
def test_a_stream_of_twists_has_no_pause_where_a_motion_follows_another(latency_s):
    with Cell("twist", seed=2, parameters=QUICK) as cell:
        cell.switches.latency_s = latency_s
        cell.switches.chunk_edit = with_an_open_hand  # that it opens or closes anew is a reason to turn back
        moving(cell, 3.0)
        linear = [c.message.twist.linear for c in cell.commands]
        speeds = np.linalg.norm([[v.x, v.y, v.z] for v in linear], axis=1)
        beside = np.minimum(speeds[:-2], speeds[2:])
        assert (speeds[1:-1] >= 0.5 * beside).all()


@pytest.mark.parametrize("stall_s", [0.8, 1.0])
@pytest.mark.parametrize("mode", ["joint", "pose"])
def test_after_the_executor_stood_still_nothing_starts_where_the_arm_was_before(mode, stall_s):
    """The image that comes first wakes the engine: a chunk is ready, and nobody has looked at the transforms since."""
    for seed in range(3):
        with Cell(mode, seed=seed, parameters=QUICK) as cell:
            cell.switches.latency_s = 0.2
            moving(cell, 0.48)
            cell.switches.stalled = True
            cell.run(stall_s)
            cell.switches.stalled = False
            cell.run(0.5)
            assert violations(cell) == []


def test_a_chunk_that_comes_with_the_hold_of_a_stall_starts_nothing():
    """The transforms come first after the stall, then the chunk, and only then the timer."""
    with Cell("pose", seed=1, parameters=QUICK) as cell:
        cell.switches.latency_s = 0.2
        moving(cell, 0.48)
        cell.switches.stalled = True
        cell.run(1.0)
        cell.switches.stalled = False
        cell._publish_state()
        cell.loop.inputs.measure_tool()
        cell.loop.turn()
        assert not cell.loop.executive.moving
        cell.run(1.0)
        assert cell.loop.executive.moving
        assert violations(cell) == []


def test_another_arms_description_makes_no_jump_of_the_joints():
    """Its inverse kinematics puts the tool where TF has it with joints that are elsewhere.

    A chunk comes when the arm has come to rest, and before several samples have shown that joints and TF contradict.
    """
    with Cell("joint", seed=1, parameters=QUICK) as cell:
        cell.switches.latency_s = 0.09
        moving(cell, 0.5)
        cell.publish("robot_description", String(data=cell.urdf.replace("0.316", "0.416")))
        cell.run(0.6)
        assert violations(cell) == []
        assert "contradict each other" in cell.told()


@pytest.mark.parametrize("mode", ["joint", "pose", "twist"])
def test_an_arm_that_is_slowed_so_far_that_an_action_outlasts_the_open_loop_limit_moves_on(mode):
    """The first pose of each chunk would be reached later than max_open_loop_s: it goes towards it until then."""
    with Cell(mode, seed=1, parameters={**QUICK, "speed_scale": 0.02, "max_open_loop_s": 2.0}) as cell:
        cell.switches.chunk_edit = lambda chunk: replace(
            chunk, deltas=np.tile([0.0, 0.02, 0.0, 0.0, 0.0, 0.0, 1.0], (len(chunk.deltas), 1))
        )
        moving(cell, 1.0)
        before = cell.tool[:3, 3].copy()
        cell.run(3.0)
        counters = cell.loop.executive.counters
        assert (counters.chunks_rejected, counters.holds) == (0, 0)
        assert 0.001 < (cell.tool[:3, 3] - before)[1] < 3.0 * 0.02 * 0.4
        assert violations(cell) == []


@pytest.mark.parametrize("mode", ["joint", "pose", "twist"])
def test_an_arm_that_is_slowed_down_goes_near_its_limit_and_does_not_creep(mode):
    with Cell(mode, seed=1, parameters={**QUICK, "speed_scale": 0.1}) as cell:
        cell.switches.chunk_edit = lambda chunk: replace(
            chunk, deltas=np.tile([0.0, 0.01, 0.0, 0.0, 0.0, 0.0, 1.0], (len(chunk.deltas), 1))
        )
        moving(cell, 1.0)
        before = cell.tool[:3, 3].copy()
        cell.run(1.5)
        assert 0.6 * 1.5 * 0.04 < (cell.tool[:3, 3] - before)[1] < 1.01 * 1.5 * 0.04
        assert violations(cell) == []


def test_a_transform_that_slips_by_less_than_a_tracking_error_contradicts_the_joints():
    """Slowly, so that what the arm does between two stamps explains little of it."""
    with Cell("joint", seed=1, parameters={**QUICK, "speed_scale": 0.1}) as cell:
        moving(cell, 1.0)
        before = cell.tool[:3, 3].copy()
        cell.switches.tf_edit = slipping(0.04)
        cell.run(1.0)
        assert not cell.loop.executive.moving
        assert "contradict each other: the tool is 40 mm and 0.00 rad apart" in cell.told()
        assert np.linalg.norm(cell.tool[:3, 3] - before) < 0.03
        assert violations(cell) == []


@pytest.mark.parametrize("mode", ["joint", "pose"])
def test_an_arm_that_was_blocked_and_comes_after_is_not_called_back(mode):
    """It hurries to where it was told to rest; a motion from where it happens to be would leap back."""
    for seed in range(3):
        with Cell(mode, seed=seed, parameters=QUICK) as cell:
            moving(cell, 0.5)
            cell.switches.blocked = True
            cell.run(0.9 + 0.02 * seed)
            cell.switches.blocked = False
            cell.run(0.6)
            assert violations(cell) == []


@pytest.mark.parametrize(
    ("itself", "loaded", "words"),
    [
        (True, False, "is being loaded (3 s so far); the node activates itself then: wait until its status asks"),
        (True, True, "the node activates itself then"),
        (False, False, "is being loaded (3 s so far); then activate it (ros2 lifecycle set /policy_node activate)"),
        (False, True, "the node is not active yet: activate it (ros2 lifecycle set /policy_node activate)"),
    ],
)
def test_enabling_too_early_says_what_to_wait_for(itself, loaded, words):
    with Cell("pose") as cell:
        cell.loop.active, cell.loop._activates_itself = False, itself
        cell.run(3.0)
        if not loaded:
            cell.loop.supervisor.info = None
        answer = cell.enable()
        assert not answer.success
        assert words in answer.message


def test_a_stop_that_is_not_heard_is_an_error_before_anybody_enables_the_node():
    with Cell("pose") as cell:
        cell.loop._safety_stop.timeout_s = 0.5
        cell.run(0.2)
        assert "was not heard yet" in cell.loop.executive.problems()[Input.SAFETY_STOP]  # ERROR in /diagnostics
        assert "was not heard yet" in cell.enable().message
        cell.safety_stop(False)
        cell.run(0.2)
        assert Input.SAFETY_STOP not in cell.loop.executive.problems()
        cell.run(1.0)
        state, reason = cell.loop.executive.state()
        assert state is State.DISABLED
        assert "safety_stop has not been heard for" in reason
        assert reason.endswith("; then call ~/enable with true to start")
