"""Chunks for a client that acts at another rate than the policy was trained at."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.robot.conventions import deltas_between
from sqap_vla_ros.robot.trajectory import anchor_chunk

_SAME_RATE = 1e-6  # relative; also the share of a step that is too short to be one


def is_rate_of(control_hz: float, dt_s: float) -> bool:
    """Return whether actions `dt_s` apart come at `control_hz`."""
    return abs(dt_s * control_hz - 1.0) <= _SAME_RATE


def resampled_steps(steps: int, dt_s: float, control_hz: float) -> int:
    """Return how many actions at `control_hz` take as long as `steps` actions `dt_s` apart, the last one begun."""
    return math.ceil(steps * dt_s * control_hz - _SAME_RATE)


def resample_chunk(deltas: NDArray[np.float64], dt_s: float, control_hz: float) -> NDArray[np.float64]:
    """Return a chunk [T, 7] of actions `dt_s` apart as actions [N, 7] at `control_hz`: the same motion.

    The chunk's poses are sampled at the end of each new step, on a straight line at constant speed and by slerp between
    two of them, so the new actions compose to the pose at which the chunk ends. Where its duration is no whole number
    of steps the last action is shorter. The gripper is held: each step has the opening in force when it begins.
    At the same rate the chunk is returned as it is. Raises ValueError for a misshapen or non-finite chunk.
    """
    if is_rate_of(control_hz, dt_s):
        return deltas
    motion = anchor_chunk(deltas, np.eye(4), 0, dt_s)
    edges = np.arange(resampled_steps(len(deltas), dt_s, control_hz) + 1)
    edges_ns = np.rint(edges * (NS_PER_S / control_hz)).astype(np.int64)
    poses, _ = motion.sample_many(edges_ns)
    under_way = np.searchsorted(motion.times_ns, edges_ns[:-1], side="right")
    return np.concatenate([deltas_between(poses), motion.gripper[under_way][:, None]], axis=1)
