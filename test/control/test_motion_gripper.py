"""A late chunk is joined by what the gripper was decided to be, however long ago."""

from dataclasses import replace

import numpy as np
import pytest

from sqap_vla_ros.contracts import NS_PER_S, ActionChunk
from sqap_vla_ros.control.motion import COMMAND_LEAD_NS, Motion, MotionConfig
from sqap_vla_ros.robot.gripper.hysteresis import GripperHysteresis
from sqap_vla_ros.robot.safety import SafetyLimits
from sqap_vla_ros.robot.trajectory import anchor_chunk

DT_S, HORIZON, STAMP_NS = 0.1, 16, 1_700_000_000 * NS_PER_S
LIMITS = SafetyLimits(workspace_min_m=(0.0, -0.5, 0.0), workspace_max_m=(1.0, 0.5, 1.0), max_start_m=1.0)


def pose(z: float = 0.3) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = 0.4, 0.0, z
    return matrix


def motion(**config) -> Motion:
    return Motion(MotionConfig(blend_s=0.0, **config), LIMITS)


def at(seconds: float) -> int:
    return STAMP_NS + round(seconds * NS_PER_S)


def grasp(hovering: float, *, down: int) -> ActionChunk:
    """60 mm down in so many actions, one or two to close, and up by the same way, at openings that hover by then."""
    deltas = np.zeros((HORIZON, 7))
    lift = 8 if down == 6 else 4
    deltas[:down, 2], deltas[lift:, 2] = -0.06 / down, 0.01
    deltas[:down, 6], deltas[lift:, 6] = 1.0, hovering
    return ActionChunk(STAMP_NS, deltas, DT_S, deltas.copy())


def told_once(planner: Motion, path) -> int:
    planner.commit(path)
    return at(0.6)


def told_again_and_again(planner: Motion, path) -> int:
    """More chunks than are remembered came since it closed."""
    planner.commit(path)
    for late_s in np.arange(0.42, 0.6, 0.02):
        planner.commit(path.after(at(late_s)))
    return at(0.6)


def told_with_a_pause(planner: Motion, path) -> int:
    planner.commit(path)
    for pauses in range(4):
        planner.interrupted(at(0.45 + 0.1 * pauses), round(0.1 * NS_PER_S))
    return at(1.0)


def told_before_a_hold(planner: Motion, path) -> int:
    planner.commit(path)
    planner.clear(at(0.45))
    planner.commit(path.after(at(0.45)).moved_by(at(0.5) - at(0.45)))
    return at(0.65)


@pytest.mark.parametrize("told", [told_once, told_again_and_again, told_with_a_pause, told_before_a_hold])
@pytest.mark.parametrize("hovering", [0.0, 0.41, 0.5, 0.59])
def test_a_gripper_that_closed_and_hovers_since_is_not_opened_by_the_next_chunk(told, hovering):
    """The arm lifts what it holds. By the clock, the chunk passes the same place on its way down."""
    planner = motion()
    start_ns = told(planner, anchor_chunk(grasp(hovering, down=3).deltas, pose(), STAMP_NS, DT_S))
    where = planner.current.sample(start_ns)[0]
    assert where[2, 3] == pytest.approx(0.26)
    safe = planner.plan(grasp(0.0, down=6), pose(), where, start_ns - COMMAND_LEAD_NS)
    later, opening = safe.trajectory.sample(start_ns + NS_PER_S // 4)
    assert (later[2, 3], opening) == (pytest.approx(0.285, abs=1e-3), 0.0)


@pytest.mark.parametrize(("held_s", "opening"), [(0.45, 0.0), (0.55, 0.0), (0.35, 1.0)])
def test_a_hold_leaves_the_gripper_where_it_was_told_to_be_as_late_as_the_arm(held_s, opening):
    """The path closes 0.3 s after its begin, which is commanded 0.1 s later."""
    planner = motion(arm_lag_s=0.1)
    planner.commit(anchor_chunk(grasp(0.5, down=3).deltas, pose(), STAMP_NS, DT_S))
    planner.clear(at(held_s))
    up = np.tile([0.0, 0.0, 0.01, 0.0, 0.0, 0.0, 0.5], (HORIZON, 1))
    planner.commit(anchor_chunk(up, pose(z=0.24), at(0.6), DT_S))
    late = replace(grasp(0.0, down=6), stamp_ns=at(0.1))
    safe = planner.plan(late, pose(), pose(z=0.26), at(0.8) - COMMAND_LEAD_NS)
    assert safe.trajectory.gripper[0] == opening


def hand(before, after, *, lag_s: float, seam_s: float = 0.89) -> list[tuple[float, str]]:
    """What an arm's hand is sent and when (s), where one chunk of openings takes over from another at the seam."""
    planner, fingers, sent = motion(arm_lag_s=lag_s), GripperHysteresis(), []
    straight = np.zeros((HORIZON, 7))
    straight[:, 0] = 0.005
    for begin_s, openings in ((0.0, before), (seam_s, after)):
        if openings is None:
            continue
        straight[:, 6] = openings
        planner.commit(anchor_chunk(straight, pose(), at(begin_s), DT_S))
        for tick in range(round(50 * begin_s), round(50 * (seam_s if begin_s == 0.0 and after is not None else 4.0))):
            opening = planner.opening(at(0.02 * tick))
            if opening is not None and (command := fingers.update(opening)) is not None:
                sent.append((0.02 * tick, command))
    return sent


CLOSES = np.where(np.arange(HORIZON) < 8, 1.0, 0.0)  # from 0.8 s on


@pytest.mark.parametrize("lag_s", [0.0, 0.14, 0.3])
def test_what_a_chunk_closed_is_closed_although_the_next_one_hovers_by_then(lag_s):
    assert hand(CLOSES, np.full(HORIZON, 0.5), lag_s=lag_s)[-1] == (pytest.approx(0.81 + lag_s, abs=0.02), "close")


@pytest.mark.parametrize("lag_s", [0.0, 0.14, 0.3])
def test_the_next_chunk_closes_where_the_arm_gets_to_it_and_not_before(lag_s):
    assert hand(np.ones(HORIZON), np.zeros(HORIZON), lag_s=lag_s)[-1] == (
        pytest.approx(0.9 + lag_s, abs=0.021),
        "close",
    )


def test_a_motion_that_ends_by_itself_still_closes_the_hand_as_late_as_the_arm():
    openings = np.where(np.arange(HORIZON) < 15, 1.0, 0.0)  # decided 0.1 s before its end
    assert hand(openings, None, lag_s=0.14) == [
        (pytest.approx(0.15, abs=0.011), "open"),
        (pytest.approx(1.65, abs=0.011), "close"),
    ]
