"""The chunk buffer of one client, over an engine that only pretends."""

import asyncio
import logging

import numpy as np
import pytest

from sqap_vla_ros.contracts import ActionChunk, Observation, PolicyInfo
from sqap_vla_ros.robot.ensemble import AdaptiveEnsemble
from sqap_vla_ros.robot.interchange.action_rate import resample_chunk
from sqap_vla_ros.robot.interchange.action_space import ACTION_SPACES
from sqap_vla_ros.serving.events import Result
from sqap_vla_ros.serving.server.engine import PredictionError
from sqap_vla_ros.serving.server.episode import ENSEMBLES, ChunkUse, Episode

DT_S = 0.2


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
        return Result(1, ActionChunk(observation.stamp_ns, deltas, DT_S, deltas), 0.1)


def episode_of(engine, use, space="metric") -> Episode:
    return Episode(engine, use, ACTION_SPACES[space])


def observation(instruction="pick") -> Observation:
    return Observation(np.zeros((4, 4, 3), np.uint8), 0, instruction)


def actions(episode, count, instruction="pick") -> list[float]:
    async def run():
        return [float((await episode.action(observation(instruction)))[0]) for _ in range(count)]

    return asyncio.run(run())


def test_so_many_actions_of_each_chunk_are_used():
    engine = FakeEngine()
    assert actions(episode_of(engine, ChunkUse(horizon=3)), 5) == [1.0, 1.01, 1.02, 2.0, 2.01]
    assert engine.resets == [True, False]


def test_an_episode_begins_with_a_new_chunk_and_a_reset():
    engine = FakeEngine()
    episode = episode_of(engine, ChunkUse(horizon=8))
    assert actions(episode, 2) == [1.0, 1.01]
    episode.begin()
    assert actions(episode, 1) == [2.0]
    assert engine.resets == [True, True]


def test_another_instruction_begins_another_episode():
    engine = FakeEngine()
    episode = episode_of(engine, ChunkUse(horizon=8))
    actions(episode, 2)
    assert actions(episode, 1, "place") == [2.0]
    assert engine.resets == [True, True]


def test_a_failed_prediction_changes_nothing():
    engine = FakeEngine()
    episode = episode_of(engine, ChunkUse(horizon=2))
    engine.fail = True
    with pytest.raises(PredictionError):
        actions(episode, 1)
    engine.fail = False
    assert actions(episode, 3) == [1.0, 1.01, 2.0]
    assert engine.resets == [True, False]


def test_the_original_ensemble_averages_successive_calls():
    episode = episode_of(FakeEngine(), ChunkUse(horizon=1, ensemble="original"))
    first, second, _ = actions(episode, 3)
    assert first == 1.0
    assert second == pytest.approx((1.01 + 2.0) / 2)  # parallel actions weigh the same


@pytest.mark.parametrize(("chunks", "counted"), [(1, [3]), (2, [2, 3]), (None, [1, 2, 3])])
@pytest.mark.parametrize("ensemble", ["by_time", "original"])
def test_an_ensemble_averages_so_many_chunks(ensemble, chunks, counted):
    use = ChunkUse(1, ensemble) if chunks is None else ChunkUse(1, ensemble, ensemble_chunks=chunks)
    found = moves(episode_of(MovingEngine(), use), 3)[2]
    own = AdaptiveEnsemble(align=ENSEMBLES[ensemble])
    for number in counted:
        averaged = own.update(MovingEngine.deltas(number), round((number - 1) * DT_S * 1e9), DT_S)
    np.testing.assert_array_equal(found, averaged[0])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"horizon": 0}, "at least 1 action, got 0"),
        ({"ensemble": "mean"}, "one of none, by_time, original, got 'mean'"),
        ({"horizon": 2, "ensemble": "original"}, "needs an execution horizon of 1, got 2"),
        ({"ensemble_chunks": 0}, "must average 1 to 100 chunks, got 0"),
        ({"ensemble_chunks": 10**30}, "must average 1 to 100 chunks, got 1000000"),
    ],
)
def test_an_execution_that_cannot_be_is_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        ChunkUse(**arguments)


# clients that act at another rate


class MovingEngine(FakeEngine):
    """Chunk n turns and moves the tool, a little otherwise than chunk n - 1."""

    async def predict(self, owner, observation, *, seed, reset) -> Result:
        self.resets.append(reset)
        deltas = self.deltas(len(self.resets))
        return Result(1, ActionChunk(observation.stamp_ns, deltas, DT_S, deltas), 0.1)

    @staticmethod
    def deltas(number) -> np.ndarray:
        return np.random.default_rng(number).uniform(0.0, 0.04, (16, 7))


def moves(episode, count) -> np.ndarray:
    async def run():
        return [await episode.action(observation()) for _ in range(count)]

    return np.array(asyncio.run(run()))


def test_a_client_at_another_rate_gets_the_resampled_chunk():
    found = moves(episode_of(MovingEngine(), ChunkUse(horizon=8, control_hz=20.0)), 12)
    first, second = (resample_chunk(MovingEngine.deltas(number), DT_S, 20.0) for number in (1, 2))
    np.testing.assert_array_equal(found, np.concatenate([first[:8], second[:4]]))
    np.testing.assert_allclose(found[:4, :3].sum(axis=0), MovingEngine.deltas(1)[0, :3], atol=1e-12)


def test_a_whole_chunk_is_resampled_too():
    whole, _ = asyncio.run(episode_of(MovingEngine(), ChunkUse(control_hz=2.5)).chunk(observation()))
    np.testing.assert_array_equal(whole, resample_chunk(MovingEngine.deltas(1), DT_S, 2.5))


@pytest.mark.parametrize("ensemble", ["none", "by_time"])
def test_a_client_at_the_policys_own_rate_gets_the_same_to_the_last_bit(ensemble):
    plain, told = (
        moves(episode_of(MovingEngine(), ChunkUse(4, ensemble, control_hz=control_hz)), 10)
        for control_hz in (None, 5.0)
    )
    assert plain.tobytes() == told.tobytes()


def test_the_ensembles_clock_is_the_clients():
    found = moves(episode_of(MovingEngine(), ChunkUse(10, "by_time", control_hz=20.0)), 20)
    ensemble = AdaptiveEnsemble(align="time")
    first, second = (resample_chunk(MovingEngine.deltas(number), DT_S, 20.0) for number in (1, 2))
    np.testing.assert_array_equal(found[:10], ensemble.update(first, 0, 0.05)[:10])
    np.testing.assert_array_equal(found[10:], ensemble.update(second, 500_000_000, 0.05)[:10])  # ten steps of 50 ms


def test_an_action_that_the_client_cannot_take_is_told_once(caplog):
    with caplog.at_level(logging.WARNING):
        moves(episode_of(MovingEngine(), ChunkUse(control_hz=5.0), "libero"), 8)
        assert not caplog.records
        clipped = moves(episode_of(MovingEngine(), ChunkUse(horizon=4, control_hz=1.0), "libero"), 8)
    assert np.abs(clipped[:, :6]).max() == 1.0
    (record,) = caplog.records
    assert "an action at 1 Hz is " in record.message
    assert "times the most that the client takes and is clipped" in record.message


INFO = PolicyInfo("double", "0" * 64, "fp32", 0, 16, DT_S, 224, (16, 16), "double", "none")


@pytest.mark.parametrize(
    ("use", "length", "notes"),
    [
        (ChunkUse(), 16, []),
        (ChunkUse(control_hz=5.0), 16, []),
        (ChunkUse(horizon=17), 16, ["horizon of 17 is longer than a chunk: all its 16 actions"]),
        (
            ChunkUse(control_hz=20.0),
            64,
            ["16 actions at 5 Hz are resampled to 64 actions at 20 Hz", "8 of them, 0.4 s"],
        ),
        (ChunkUse(control_hz=1.0), 4, ["resampled to 4 actions at 1 Hz", "all its 4 actions"]),
    ],
)
def test_what_the_rate_makes_of_chunks_is_told(use, length, notes):
    assert use.length(INFO) == length
    said = " ".join(use.notes(INFO))
    assert bool(said) == bool(notes)
    assert all(note in said for note in notes)
