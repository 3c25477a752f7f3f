"""Chunks that come late on a motion that was slowed down, paused, or promised to a policy."""

import numpy as np
import pytest

from sqap_vla_ros.contracts import JOINS, NS_PER_S, ActionChunk
from sqap_vla_ros.control.motion import COMMAND_LEAD_NS, Motion, MotionConfig
from sqap_vla_ros.nodes.policy.sinks.sink import ending_at_rest
from sqap_vla_ros.robot.safety import SafetyLimits
from sqap_vla_ros.robot.trajectory import anchor_chunk

DT_S, HORIZON, STAMP_NS = 0.1, 16, 1_700_000_000 * NS_PER_S
BOX = {"workspace_min_m": (0.0, -0.5, 0.0), "workspace_max_m": (1.0, 0.5, 1.0), "max_linear_jerk": 500.0}
LIMITS = SafetyLimits(**BOX, max_linear_velocity=0.5)
SLOW = SafetyLimits(**BOX, max_linear_velocity=0.05, hard_ratio=10.0)  # a quarter of what the chunks want


def pose(x: float = 0.4) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = x, 0.0, 0.3
    return matrix


def at(seconds: float) -> int:
    return STAMP_NS + round(seconds * NS_PER_S)


def straight(stamp_ns: int, step_m: float = 0.02) -> ActionChunk:
    deltas = np.zeros((HORIZON, 7))
    deltas[:, 0], deltas[:, 6] = step_m, 1.0
    return ActionChunk(stamp_ns, deltas, DT_S, deltas.copy())


def slowed(join: str, *, stream: bool = False) -> Motion:
    planner = Motion(MotionConfig(chunk_join=join, ramp_s=0.1, max_lead_m=0.2), SLOW)
    safe = planner.plan(straight(STAMP_NS), pose(), pose(), at(0.1))
    assert "slowed down" in safe.note
    path = ending_at_rest(safe.trajectory, planner.latest_ns(STAMP_NS), SLOW) if stream else safe.trajectory
    planner.commit(path)
    return planner


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("stream", [False, True], ids=["joint", "pose or twist"])
def test_a_late_chunk_on_a_slowed_motion_goes_on_where_the_arm_is(join, stream):
    """0.8 s late the arm did about one action; eight had passed by the clock, 140 mm ahead."""
    planner = slowed(join, stream=stream)
    image, now = at(1.0), at(1.8)
    shown, told = planner.commanded(image), planner.current.sample(now + COMMAND_LEAD_NS)[0]
    safe = planner.plan(straight(image), shown, told, now)
    moments = np.arange(now + COMMAND_LEAD_NS, at(2.3), 20_000_000)
    speeds = np.diff(safe.trajectory.sample_many(moments)[0][:, 0, 3]) / 0.02
    assert speeds.min() >= 0.0
    assert speeds.max() < 0.06


def test_a_commitment_to_a_slowed_motion_is_repeated_at_its_speed():
    planner = slowed("path")
    image, now = at(1.0), at(1.8)
    commitment = planner.commitment(image, DT_S, 0.8, "guided")
    deltas = commitment.actions[np.minimum(np.arange(HORIZON), len(commitment.actions) - 1)]
    told = planner.current.sample(now + COMMAND_LEAD_NS)[0]
    repeated = ActionChunk(image, deltas, DT_S, deltas)
    safe = planner.plan(repeated, planner.commanded(image), told, now, commitment=commitment)
    moments = np.arange(now + COMMAND_LEAD_NS, at(2.4), 20_000_000)
    way, meant = (path.sample_many(moments)[0][:, 0, 3] for path in (safe.trajectory, planner.current))
    np.testing.assert_allclose(way, meant, atol=2e-3)


def under_way(**config: object) -> Motion:
    planner = Motion(MotionConfig(**config), LIMITS)
    planner.commit(anchor_chunk(straight(STAMP_NS).deltas, pose(), STAMP_NS, DT_S))
    return planner


def test_a_chunk_that_comes_later_than_was_committed_is_joined_as_any_other():
    """It repeats four actions and then turns; eight are done by now, so it is entered nearest to the arm."""
    image, now = at(0.3), at(1.1)

    def planned(*, repeats: bool) -> np.ndarray:
        planner = under_way()
        commitment = planner.commitment(image, DT_S, 0.39, "replace")
        deltas = straight(image).deltas
        deltas[commitment.executed :, :3] = 0.0, 0.02, 0.0
        told = planner.current.sample(now + COMMAND_LEAD_NS)[0]
        late = ActionChunk(image, deltas, DT_S, deltas)
        committed = commitment if repeats else None
        return planner.plan(late, planner.commanded(image), told, now, commitment=committed).trajectory.poses

    np.testing.assert_array_equal(planned(repeats=True), planned(repeats=False))


def test_a_pause_after_a_commitment_is_no_time_in_which_it_was_executed():
    planner = under_way()
    image, now = at(0.3), at(0.9)
    commitment = planner.commitment(image, DT_S, 0.39, "replace")
    planner.interrupted(at(0.5), round(0.3 * NS_PER_S))
    told = planner.current.sample(now + COMMAND_LEAD_NS)[0]
    safe = planner.plan(straight(image), planner.commanded(image), told, now, commitment=commitment)
    moments = np.arange(now + COMMAND_LEAD_NS, at(1.5), 20_000_000)
    way, meant = (path.sample_many(moments)[0][:, 0, 3] for path in (safe.trajectory, planner.current))
    np.testing.assert_allclose(way, meant, atol=1e-6)


@pytest.mark.parametrize("pauses", range(6))
@pytest.mark.parametrize("join", JOINS)
def test_pauses_of_a_stream_do_not_forget_what_the_image_shows(pauses, join):
    planner = under_way(chunk_join=join, arm_lag_s=0.1)
    image = at(0.5)
    for number in range(pauses):
        planner.interrupted(at(0.6 + 0.15 * number), 60_000_000)
    now = at(0.7 + 0.15 * pauses)
    np.testing.assert_allclose(planner.commanded(image)[0, 3], 0.48, atol=1e-9)
    told = planner.current.sample(now + COMMAND_LEAD_NS)[0]
    behind = planner.commanded(now)
    safe = planner.plan(straight(image), planner.commanded(image), behind, now)
    moments = np.arange(now + COMMAND_LEAD_NS, now + 500_000_000, 20_000_000)
    assert (safe.trajectory.sample_many(moments)[0][:, 0, 3] - told[0, 3]).min() > -1e-3
