"""The chunk buffer of one client, over an engine that only pretends."""

import asyncio

import numpy as np
import pytest

from sqap_vla_ros.contracts import ActionChunk, Observation
from sqap_vla_ros.serving.events import Result
from sqap_vla_ros.serving.server.engine import PredictionError
from sqap_vla_ros.serving.server.episode import ChunkUse, Episode


class FakeEngine:
    """Chunk n has the actions n.00, n.01, …"""

    def __init__(self) -> None:
        self.resets: list[bool] = []
        self.fail = False

    async def predict(self, owner, observation, *, seed, reset) -> Result:
        if self.fail:
            raise PredictionError("no")
        self.resets.append(reset)
        deltas = np.repeat(len(self.resets) + np.arange(16) / 100, 7).reshape(16, 7)
        return Result(1, ActionChunk(observation.stamp_ns, deltas, 0.2, deltas), 0.1)


def observation(instruction="pick") -> Observation:
    return Observation(np.zeros((4, 4, 3), np.uint8), 0, instruction)


def actions(episode, count, instruction="pick") -> list[float]:
    async def run():
        return [float((await episode.action(observation(instruction)))[0]) for _ in range(count)]

    return asyncio.run(run())


def test_so_many_actions_of_each_chunk_are_used():
    engine = FakeEngine()
    assert actions(Episode(engine, ChunkUse(horizon=3)), 5) == [1.0, 1.01, 1.02, 2.0, 2.01]
    assert engine.resets == [True, False]


def test_an_episode_begins_with_a_new_chunk_and_a_reset():
    engine = FakeEngine()
    episode = Episode(engine, ChunkUse(horizon=8))
    assert actions(episode, 2) == [1.0, 1.01]
    episode.begin()
    assert actions(episode, 1) == [2.0]
    assert engine.resets == [True, True]


def test_another_instruction_begins_another_episode():
    engine = FakeEngine()
    episode = Episode(engine, ChunkUse(horizon=8))
    actions(episode, 2)
    assert actions(episode, 1, "place") == [2.0]
    assert engine.resets == [True, True]


def test_a_failed_prediction_changes_nothing():
    engine = FakeEngine()
    episode = Episode(engine, ChunkUse(horizon=2))
    engine.fail = True
    with pytest.raises(PredictionError):
        actions(episode, 1)
    engine.fail = False
    assert actions(episode, 3) == [1.0, 1.01, 2.0]
    assert engine.resets == [True, False]


def test_the_original_ensemble_averages_successive_calls():
    episode = Episode(FakeEngine(), ChunkUse(horizon=1, ensemble="original"))
    first, second, _ = actions(episode, 3)
    assert first == 1.0
    assert second == pytest.approx((1.01 + 2.0) / 2)  # parallel actions weigh the same


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"horizon": 0}, "at least 1 action, got 0"),
        ({"ensemble": "mean"}, "one of none, by_time, original, got 'mean'"),
        ({"horizon": 2, "ensemble": "original"}, "needs an execution horizon of 1, got 2"),
    ],
)
def test_an_execution_that_cannot_be_is_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        ChunkUse(**arguments)
