"""Observations of the simulated arm at work, for whoever calibrates on its scenes."""

from __future__ import annotations

import itertools

import numpy as np

from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.simulation.environment import CONTROL_NS, TabletopEnv
from sqap_vla_ros.simulation.experts import expert
from sqap_vla_ros.simulation.vocabulary import TaskFamily

CALIBRATION_SEED = 900_000  # layouts that neither training nor evaluation uses
HELD_OUT_SEED = 950_000  # nor calibration
PER_EPISODE = 8  # observations of one episode


def expert_observations(count: int, *, seed: int = CALIBRATION_SEED) -> list[Observation]:
    """Return `count` camera images of the scripted expert at work, all task families in turn.

    The images are plain 640x480 ones, as simulator_node renders them, and the same for the same seed. Episode e has the
    layout of seed `seed` + e and gives up to `PER_EPISODE` observations, spread evenly over it.
    """
    families = list(TaskFamily)
    share = min(PER_EPISODE, max(1, count // len(families)))
    observations: list[Observation] = []
    with TabletopEnv(shadows=False, antialiasing=False) as env:
        for episode in itertools.count():
            if len(observations) >= count:
                break
            env.reset(seed + episode, families[episode % len(families)])
            observations += _episode_observations(env, min(share, count - len(observations)))
    return observations


def _episode_observations(env: TabletopEnv, wanted: int) -> list[Observation]:
    """Return `wanted` observations from the start of an episode to its end, fewer where the episode is shorter."""
    instruction, seen = env.task.instruction, []
    while True:
        stamp_ns = env.steps * CONTROL_NS
        pose = env.world.base_from_tool
        seen.append(Observation(env.render(), stamp_ns, instruction, env.gripper_pixel, pose))
        result = env.step(expert(env.task, env.state))
        if result.terminated or result.truncated:
            break
    return [seen[i] for i in np.unique(np.linspace(0, len(seen) - 1, min(wanted, len(seen))).astype(int))]
