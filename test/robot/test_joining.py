"""A late chunk is entered where the arm is, and the clock decides where that is ambiguous."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqap_vla_ros.robot.conventions import compose_delta
from sqap_vla_ros.robot.joining import JoinWeights, Reach, deciding_opening, entered, joining_ns
from sqap_vla_ros.robot.trajectory import anchor_chunk


def chunk_of(deltas):
    return anchor_chunk(deltas, np.eye(4), 0, 0.2)


def straight(step_m=0.01, count=16):
    deltas = np.zeros((count, 7))
    deltas[:, 0], deltas[:, 6] = step_m, 1.0
    return deltas


def at(x_m, y_m=0.0):
    pose = np.eye(4)
    pose[:2, 3] = x_m, y_m
    return pose


STEP_NS = 200_000_000


def join(chunk, told, executed=0, then=1.0, now=1.0, weights=None, substeps=1, reach=None, undecided=(0.5, 0.5)):
    """The action at which the chunk is entered."""
    entry_ns = joining_ns(
        chunk,
        told,
        executed_ns=round(executed * STEP_NS),
        gripper_at_image=then,
        gripper_told=now,
        substeps=substeps,
        weights=weights,
        reach=reach,
        undecided=undecided,
    )
    return (entry_ns - chunk.anchor_ns) / STEP_NS


@pytest.mark.parametrize("reached", range(16))
def test_the_action_that_begins_where_the_arm_is(reached):
    assert join(chunk_of(straight()), at(0.01 * reached), executed=reached) == reached


def test_an_arm_that_stood_still_begins_with_the_first_action():
    assert join(chunk_of(straight(0.001)), np.eye(4)) == 0


@given(seed=st.integers(0, 10_000), taken=st.integers(0, 15))
def test_a_chunk_that_says_the_same_goes_on_without_a_leap(seed, taken):
    """Where the arm executed the chunk itself, the pose alone says how far it got."""
    rng = np.random.default_rng(seed)
    deltas = np.concatenate([rng.normal(0.02, 0.01, (16, 3)), rng.normal(0.0, 0.1, (16, 3)), np.ones((16, 1))], axis=1)
    told = np.eye(4)
    for action in deltas[:taken]:
        told = compose_delta(told, action)
    assert join(chunk_of(deltas), told, executed=taken) == taken


def test_the_orientation_tells_turns_on_the_spot_apart():
    deltas = np.zeros((16, 7))
    deltas[:, 5] = 0.2
    told = compose_delta(np.eye(4), np.array([0, 0, 0, 0, 0, 1.0, 0]))
    assert join(chunk_of(deltas), told, executed=5) == 5
    assert join(chunk_of(deltas), told, executed=3) == 5


def test_a_path_that_comes_back_is_entered_at_about_the_right_time():
    out_and_back = straight()
    out_and_back[8:, 0] = -0.01
    chunk = chunk_of(out_and_back)
    assert join(chunk, at(0.04), executed=4) == 4
    assert join(chunk, at(0.04), executed=11) == 12


def test_an_object_is_not_let_go_of_twice():
    """The path passes the same place with an open and with a closed hand."""
    deltas = straight()
    deltas[8:, 0] = -0.01
    deltas[8:, 6] = 0.0
    chunk = chunk_of(deltas)
    assert join(chunk, at(0.04), executed=8, now=1.0) == 4
    assert join(chunk, at(0.04), executed=8, now=0.0) == 12


def test_the_weights_are_metres():
    chunk = chunk_of(straight())
    weights = JoinWeights(clock_m_per_s=0.1)  # dearer than the place: the clock alone
    assert join(chunk, at(0.03), executed=7, weights=weights) == 7
    assert join(chunk, at(0.03), executed=7) == 3


@pytest.mark.parametrize("rate_hz", [1, 5, 10, 25, 50])
@pytest.mark.parametrize(("speed_m_s", "entered_s"), [(0.15, 0.5), (0.03, 0.5), (0.01, 2.0)])
def test_time_costs_the_same_at_every_rate_of_actions(rate_hz, speed_m_s, entered_s):
    """The same motion, 0.5 s in by its pose and 2 s by the clock, which decides where it is slower than 20 mm/s."""
    deltas = straight(speed_m_s / rate_hz, count=4 * rate_hz)
    chunk = anchor_chunk(deltas, np.eye(4), 0, 1.0 / rate_hz)
    entry_ns = joining_ns(
        chunk, at(0.5 * speed_m_s), executed_ns=2_000_000_000, gripper_at_image=1.0, gripper_told=1.0, substeps=8
    )
    assert entry_ns / 1e9 == pytest.approx(entered_s, abs=1 / (8 * rate_hz))


@pytest.mark.parametrize(
    ("measured_m", "action"),
    [
        (0.08, 8),  # the arm is where it was told to be
        (0.06, 8),  # or not far behind
        (0.02, 5),  # further behind: as far ahead of it as is allowed
        (-0.02, 2),  # so far behind that only the clock is left
    ],
)
def test_an_arm_that_is_left_behind_is_led_by_no_more_than_by_the_clock_or_the_reach(measured_m, action):
    chunk = chunk_of(straight())
    reach = Reach(at(measured_m), max_m=0.03 + 1e-9, max_rad=0.3)
    assert join(chunk, at(0.08), executed=2, reach=reach) == action
    assert join(chunk, at(0.08), executed=2) == 8
    assert join(chunk, at(0.0), executed=2, reach=reach) == 0  # back is never too far


def test_the_reach_has_an_angle_too():
    deltas = np.zeros((16, 7))
    deltas[:, 5], deltas[:, 6] = 0.1, 1.0
    told = compose_delta(np.eye(4), np.array([0, 0, 0, 0, 0, 0.9, 0]))
    for max_rad, action in ((0.91, 9), (0.51, 5), (0.01, 2)):
        assert join(chunk_of(deltas), told, executed=2, reach=Reach(np.eye(4), 0.03, max_rad)) == action


def test_brute_force():
    rng = np.random.default_rng(3)
    for _ in range(50):
        deltas = np.concatenate([rng.normal(0, 0.02, (16, 3)), rng.normal(0, 0.2, (16, 3))], axis=1)
        deltas = np.column_stack([deltas, rng.integers(0, 2, 16)])
        told = compose_delta(np.eye(4), np.concatenate([rng.normal(0, 0.05, 3), rng.normal(0, 0.3, 3), [1.0]]))
        executed, then, now = int(rng.integers(0, 12)), float(rng.integers(0, 2)), float(rng.integers(0, 2))
        pose, opening, costs = np.eye(4), then, []
        for index, action in enumerate(deltas):
            cosine = (np.trace(pose[:3, :3].T @ told[:3, :3]) - 1) / 2
            cost = np.linalg.norm(pose[:3, 3] - told[:3, 3]) + 0.1 * np.arccos(np.clip(cosine, -1, 1))
            costs.append(cost + 0.004 * abs(index - executed) + 0.05 * (opening != now))
            pose, opening = compose_delta(pose, action), action[6]
        assert join(chunk_of(deltas), told, executed=executed, then=then, now=now) == int(np.argmin(costs))


@pytest.mark.parametrize("reached", [0.0, 0.25, 3.5, 7.875, 15.25])
def test_a_chunk_is_entered_in_the_middle_of_an_action_where_that_is_wanted(reached):
    assert join(chunk_of(straight()), at(0.01 * reached), executed=reached, substeps=8) == reached


def test_in_the_middle_of_an_action_its_own_opening_is_in_effect():
    deltas = straight(0.0)
    deltas[4:, 6] = 0.0
    chunk = chunk_of(deltas)  # it closes during action 4, without moving
    assert join(chunk, np.eye(4), executed=4, now=0.0, substeps=4) == 4.25
    assert join(chunk, np.eye(4), executed=4, now=1.0, substeps=4) == 4.0


@pytest.mark.parametrize("action", [0, 1, 7.5, 15])
def test_what_is_left_of_a_chunk_begins_now(action):
    chunk = chunk_of(straight())
    late = entered(chunk, round(action * STEP_NS), 10_000_000_000)
    left = 16 - int(action)
    assert len(late) == left
    assert (late.stamp_ns, late.anchor_ns) == (0, 10_000_000_000)
    np.testing.assert_allclose(late.anchor[0, 3], 0.01 * action)
    assert late.end_ns - late.anchor_ns == round((16 - action) * STEP_NS)
    np.testing.assert_array_equal(late.poses, chunk.poses[-left:])
    np.testing.assert_array_equal(late.gripper, chunk.gripper[-left:])


@pytest.mark.parametrize("at_ns", [-1, 16 * STEP_NS])
def test_a_chunk_cannot_be_entered_outside_of_itself(at_ns):
    with pytest.raises(ValueError, match=f"from 0 ns to 3200000000 ns, it cannot be entered at {at_ns} ns"):
        entered(chunk_of(straight()), at_ns, 0)


def test_substeps_must_make_sense():
    with pytest.raises(ValueError, match="substeps must be at least 1, got 0"):
        join(chunk_of(straight()), np.eye(4), substeps=0)


@pytest.mark.parametrize("hovering", [0.41, 0.45, 0.55])
def test_a_gripper_that_hovers_does_not_send_the_arm_back(hovering):
    """The gripper stays closed at such openings, so nothing about them is a reason to go back to a closed action."""
    deltas = straight(0.004)
    deltas[:, 6] = hovering
    chunk, told = chunk_of(deltas), at(0.004 * 6)
    assert join(chunk, told, executed=6, then=0.0, now=0.0, undecided=(0.4, 0.6)) == 6
    deltas[:, 6] = 0.95
    assert join(chunk_of(deltas), told, executed=6, then=0.0, now=0.0, undecided=(0.4, 0.6)) == 0


def test_a_hovering_opening_keeps_what_the_chunk_decided_before():
    """Told to be open, the arm is not yet where the chunk closes, though openings hover after that."""
    deltas = straight(0.004)
    deltas[2, 6], deltas[3:, 6] = 0.05, 0.5
    assert join(chunk_of(deltas), at(0.004 * 3), executed=3, now=1.0, undecided=(0.4, 0.6)) == 2


def openings(*values, begin=0.0):
    """A path that begins so many actions after 0 and has these openings."""
    deltas = np.zeros((len(values), 7))
    deltas[:, 6] = values
    return anchor_chunk(deltas, np.eye(4), round(begin * STEP_NS), 0.2)


@pytest.mark.parametrize(
    ("paths", "at_action", "opening"),
    [
        ([], 3.0, 0.52),  # nothing was told
        ([openings(0.5, 0.4, 0.6)], 3.0, 0.52),  # or nothing that decides
        ([openings(1.0, begin=2)], 1.5, 0.52),  # or not yet
        ([openings(1.0, 0.1, 0.5, 0.45)], 0.0, 1.0),
        ([openings(1.0, 0.1, 0.5, 0.45)], 1.0, 1.0),  # the next action has not begun
        ([openings(1.0, 0.1, 0.5, 0.45)], 1.1, 0.1),
        ([openings(1.0, 0.1, 0.5, 0.45)], 9.0, 0.1),  # a gripper that has closed stays so
        ([openings(0.1, 0.5, 0.5), openings(0.5, 0.5, begin=1), openings(0.5, 0.9, begin=2)], 3.0, 0.1),
        ([openings(0.1, 0.5, 0.5), openings(0.5, 0.5, begin=1), openings(0.5, 0.9, begin=2)], 3.1, 0.9),
        ([openings(0.1, 0.5, 0.9), openings(0.5, 0.5, begin=2)], 4.0, 0.1),  # replaced before it would have opened
        ([openings(0.1, 0.5), openings(0.9, begin=1), openings(0.5, begin=1)], 4.0, 0.1),  # replaced before it began
    ],
)
def test_the_gripper_is_what_the_last_decided_opening_made_of_it(paths, at_action, opening):
    assert deciding_opening(paths, round(at_action * STEP_NS), 0.52, (0.4, 0.6)) == opening


@pytest.mark.parametrize("executed", [3, 4, 5, 8])
@pytest.mark.parametrize("lifted", [1, 2, 3])
def test_a_hand_that_has_closed_and_hovers_does_not_go_back_to_open(lifted, executed):
    """Down, closed, and up again by the same way: told 0.5 since, the hand is closed and the arm goes on up."""
    deltas = np.zeros((16, 7))
    deltas[:6, 2], deltas[8:, 2], deltas[:6, 6] = -0.01, 0.01, 1.0
    told = np.eye(4)
    told[2, 3] = -0.06 + 0.01 * lifted
    now = deciding_opening([openings(1.0, 0.0, 0.5, 0.5)], 4 * STEP_NS, 0.5, (0.4, 0.6))
    assert join(chunk_of(deltas), told, executed=executed, now=now, undecided=(0.4, 0.6)) == 8 + lifted
