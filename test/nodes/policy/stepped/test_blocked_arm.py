"""An arm that cannot move is pushed by no more than stated, whatever the output mode and however chunks are entered."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from stepped.running import QUICK, moving, violations
from stepped.simulated_cell import Cell

from sqap_vla_ros.contracts import JOINS, ActionChunk
from sqap_vla_ros.control.arm.arm_watch import CONFIRMATIONS
from sqap_vla_ros.control.motion import MotionConfig

LAG_S = 0.06
# A chunk is as old as the policy took when it comes, and is executed until the next one has taken over.
LATENCY_S, AGE_S = 0.1, 0.4
UNWATCHED = {
    "max_tracking_m": 0.3,
    "max_tracking_rad": 1.5,
    "max_start_m": 0.3,
    "max_start_rad": 1.5,
    "standstill_timeout_s": 9.0,
}


def pushing(speed_m_s: float, turn_rad_s: float = 0.0) -> Callable[[ActionChunk], ActionChunk]:
    """Return an edit that makes every chunk ask for more of the same, to the left, and turning about the vertical."""

    def edit(chunk: ActionChunk) -> ActionChunk:
        deltas = np.zeros_like(chunk.deltas)
        deltas[:, 1], deltas[:, 5] = speed_m_s * chunk.dt_s, turn_rad_s * chunk.dt_s
        return replace(chunk, deltas=deltas)

    return edit


def pushed(cell: Cell, seconds: float) -> np.ndarray:
    """Block the arm. Return [N, 2] how far (m, rad) the command leads it every 20 ms."""
    cell.switches.blocked = True
    leads = []
    for _ in range(round(seconds / 0.02)):
        cell.run(0.02)
        leads.append(cell.left_behind())
    return np.array(leads)


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("mode", ["joint", "pose", "twist"])
def test_each_chunk_for_a_blocked_arm_starts_near_it_however_chunks_are_entered(mode, join):
    """With a tracking check that is too wide to stop it, the push stays at max_lead_* and what one chunk asks for."""
    with Cell(mode, seed=2, lag_s=LAG_S, parameters=QUICK | UNWATCHED | {"chunk_join": join}) as cell:
        cell.switches.latency_s = LATENCY_S
        cell.switches.chunk_edit = pushing(0.1, 0.5)
        moving(cell, 0.6)
        leads = pushed(cell, 2.5)
        assert cell.loop.executive.moving
        assert cell.loop.executive.counters.holds == 0
        assert leads[:, 0].max() <= MotionConfig.max_lead_m + 0.1 * AGE_S
        assert leads[:, 1].max() <= MotionConfig.max_lead_rad + 0.5 * AGE_S
        assert leads[:, 0].max() > MotionConfig.max_lead_m  # it does push
        assert violations(cell) == []


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("mode", ["joint", "pose", "twist"])
def test_an_arm_that_is_blocked_ends_the_motion_however_chunks_are_entered(mode, join):
    with Cell(mode, seed=2, lag_s=LAG_S, parameters=QUICK | {"chunk_join": join}) as cell:
        cell.switches.latency_s = 0.3
        cell.switches.chunk_edit = pushing(0.2)
        moving(cell, 0.8)
        leads = pushed(cell, 1.0)
        assert cell.loop.executive.counters.tracking_errors > 0
        assert cell.loop.executive.counters.holds > 0
        found_s, braking_m = 0.02 * (CONFIRMATIONS + 2), 0.2**2 / (2 * 4.0) + 0.2 * 0.02  # 4 m/s^2, not at once
        assert leads[:, 0].max() <= MotionConfig.max_tracking_m + 0.2 * found_s + braking_m
        assert violations(cell) == []
