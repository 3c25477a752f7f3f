"""Corrections: states that the policy gets itself into, labelled with what the expert would do there.

Source: Ross et al., "A reduction of imitation learning and structured prediction to no-regret online learning"
(DAgger, 2011). The policy acts, the expert labels; several worlds take turns, so that the policy predicts for all of
them at once.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.policy.checkpoints.load import load_checkpoint
from sqap_vla_ros.simulation.environment import TabletopEnv
from sqap_vla_ros.simulation.layout import Variation
from sqap_vla_ros.simulation.vocabulary import TaskFamily
from sqap_vla_ros.training.collection import FIRST_SEED, LABELS, CollectionConfig, Recorder, stack
from sqap_vla_ros.training.labels import FAMILIES, Asked, draw_tasks

_WORLDS = 6
_KEPT = 0.7  # share of the decisions
_EXECUTED = (2, 10)  # actions of a chunk, drawn anew each time: any phase of the motion may become a decision
_OVERTIME = 1.2
_TURNS = (*FAMILIES, TaskFamily.MOVE_NEAR, TaskFamily.PLACE_IN_BOWL)  # the hardest twice
_SEEDS_APART = 500_000_000  # from those of the experts' layouts


class _World:
    """One tabletop in the middle of an episode."""

    def __init__(self, variation: Variation) -> None:
        self.env = TabletopEnv(variation=variation)
        self.recorder = Recorder(self.env)

    def begin(self, seed: int, rng: np.random.Generator) -> None:
        """Begin a new episode."""
        self.env.reset(seed, _TURNS[seed % len(_TURNS)])
        self.noise_m = float(rng.choice((0.0, 0.006)))
        self.done = False

    def observation(self) -> Observation:
        """Return what the policy sees."""
        return Observation(self.env.render(), 0, self.env.task.instruction)

    def follow(self, deltas: NDArray[np.float64], rng: np.random.Generator) -> bool:
        """Execute some actions; True when the episode is over (one more decision after its success)."""
        over = self.done
        for delta in deltas:
            action = delta.copy()
            action[:3] += rng.normal(0.0, self.noise_m, 3)
            if self.env.step(action).terminated:
                self.done = True
                break
        return over or self.env.steps > _OVERTIME * self.env.task.max_steps

    def close(self) -> None:
        """Free the renderers."""
        self.recorder.close()
        self.env.close()


def correction_shard(config: CollectionConfig, shard: int, *, checkpoint: Path) -> dict[str, NDArray]:  # type: ignore[type-arg]
    """Return the frames of one shard from episodes of the policy in `checkpoint`."""
    torch.set_num_threads(1)
    policy = load_checkpoint(checkpoint)
    rng = np.random.default_rng((config.seed, shard, 1))
    seed = FIRST_SEED + _SEEDS_APART + (config.seed * 1000 + shard) * 10_000
    worlds = [_World(config.variation(shard)) for _ in range(_WORLDS)]
    frames: list[dict[str, NDArray]] = []  # type: ignore[type-arg]
    try:
        for number, world in enumerate(worlds):
            world.begin(seed + number, rng)
        seed += _WORLDS
        while len(frames) < config.frames:
            observations = [world.observation() for world in worlds]
            chunks = policy.predict_batch(observations, seeds=[int(rng.integers(2**31)) for _ in worlds])
            for world, observation, chunk in zip(worlds, observations, chunks, strict=True):
                if rng.random() < _KEPT:
                    own = Asked(world.env.task.family, 0, 1)
                    world.recorder.record(draw_tasks(world.env.world, own, LABELS, rng), observation.image)
                    frames.append(world.recorder.frames.pop())
                if world.follow(chunk.deltas[: rng.integers(_EXECUTED[0], _EXECUTED[1] + 1)], rng):
                    world.begin(seed, rng)
                    seed += 1
    finally:
        for world in worlds:
            world.close()
    return stack(frames[: config.frames])
