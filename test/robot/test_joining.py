"""A late chunk is entered where the arm is, and the clock decides where that is ambiguous."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqap_vla_ros.robot.conventions import compose_delta
from sqap_vla_ros.robot.joining import JoinWeights, entered, joining_action
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


def join(chunk, told, executed=0, then=1.0, now=1.0, weights=None):
    return joining_action(chunk, told, executed=executed, gripper_at_image=then, gripper_told=now, weights=weights)


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
    weights = JoinWeights(step_m=0.02)  # dearer than the place: the clock alone
    assert join(chunk, at(0.03), executed=7, weights=weights) == 7
    assert join(chunk, at(0.03), executed=7) == 3


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


@pytest.mark.parametrize("action", [0, 1, 7, 15])
def test_a_chunk_is_entered_at_an_action(action):
    chunk = chunk_of(straight())
    late = entered(chunk, action, 10_000_000_000)
    assert len(late) == 16 - action
    assert (late.stamp_ns, late.anchor_ns) == (0, 10_000_000_000)
    np.testing.assert_allclose(late.anchor[0, 3], 0.01 * action)
    np.testing.assert_array_equal(late.times_ns - late.anchor_ns, 200_000_000 * np.arange(1, 17 - action))
    np.testing.assert_array_equal(late.poses, chunk.poses[action:])
    np.testing.assert_array_equal(late.gripper, chunk.gripper[action:])


@pytest.mark.parametrize("action", [-1, 16])
def test_a_chunk_has_no_such_action(action):
    with pytest.raises(ValueError, match=f"actions 0 to 15, it cannot be entered at {action}"):
        entered(chunk_of(straight()), action, 0)
