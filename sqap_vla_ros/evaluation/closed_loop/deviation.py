"""Teacher-forced action deviation, cumulated over an episode (QVLA, Eq. 5 and Figure 3).

The reference policy's own episodes are the teacher: what it saw, chunk by chunk. Every method predicts on the same
images with the same noise, so the deviation says what compression did to the actions, not where a trajectory that had
parted long ago went.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import ActionChunk, Observation, Policy
from sqap_vla_ros.evaluation.action_metrics import chunk_distance
from sqap_vla_ros.evaluation.closed_loop.episodes import EpisodeRun, Execution, lockstep_width, predict_together
from sqap_vla_ros.simulation.environment import TabletopEnv
from sqap_vla_ros.simulation.vocabulary import TaskFamily


@dataclass(frozen=True)
class TaughtEpisode:
    """An episode of the reference: what it saw and what it answered, in order."""

    suite: str
    family: str
    seed: int
    observations: tuple[Observation, ...]
    seeds: tuple[int, ...]
    chunks: tuple[ActionChunk, ...]


@dataclass(frozen=True)
class Deviation:
    """The deviation of one episode. distances: ||A' - A*|| of each chunk (see `chunk_distance`)."""

    suite: str
    family: str
    seed: int
    distances: tuple[float, ...]

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def teach(reference: Policy, env: TabletopEnv, suite: str, family: TaskFamily, seed: int) -> TaughtEpisode:
    """Run an episode of the reference and keep its observations (about a megabyte each)."""
    reference.reset()
    episode = EpisodeRun(env, suite, family, seed, Execution())
    observations: list[Observation] = []
    seeds: list[int] = []
    chunks: list[ActionChunk] = []
    while not episode.finished:
        observations.append(episode.observe())
        seeds.append(episode.noise_seed)
        chunks.append(reference.predict(observations[-1], seed=seeds[-1]))
        episode.act(chunks[-1])
    return TaughtEpisode(suite, str(family), seed, tuple(observations), tuple(seeds), tuple(chunks))


def deviation(policy: Policy, taught: TaughtEpisode) -> Deviation:
    """Measure how far the policy's answers are from the teacher's."""
    policy.reset()
    width = lockstep_width(policy, len(taught.observations))
    answers: list[ActionChunk] = []
    for start in range(0, len(taught.observations), width):
        rows = slice(start, start + width)
        answers += [c for c, _ in predict_together(policy, taught.observations[rows], taught.seeds[rows])]
    distances = tuple(
        round(chunk_distance(ours.normalized, theirs.normalized), 5)
        for ours, theirs in zip(answers, taught.chunks, strict=True)
    )
    return Deviation(taught.suite, taught.family, taught.seed, distances)


def cumulative_curve(episodes: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Return the mean over episodes of the deviation summed up to each chunk.

    An episode that is over stays where it ended.
    """
    longest = max(map(len, episodes), default=0)
    curves = [np.cumsum(np.pad(np.asarray(e, dtype=np.float64), (0, longest - len(e)))) for e in episodes]
    return np.mean(curves, axis=0) if curves else np.zeros(0)
