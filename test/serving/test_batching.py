"""Which observations share a call, and that nobody's chunk depends on who else waits."""

import time
from dataclasses import replace

import numpy as np
import pytest
from policy_doubles import Double
from workers import observation
from workers.together import FAILS, Remembering, Rounding, Together

from sqap_vla_ros.compression.load import load_policy
from sqap_vla_ros.contracts import ActionChunk
from sqap_vla_ros.pruning.baselines import RandomDropSelector
from sqap_vla_ros.serving.batching import Batcher

FOUR = [observation(seed, 8 + seed, 8) for seed in range(4)]


def predict(batcher, observations):
    """The outcomes, and in calls of how many rows they were made."""
    outcomes = [chunk for chunk, _ in batcher.predict(observations, range(len(observations)))]
    return outcomes, [chunk.timings_ms.get("rows") for chunk in outcomes if isinstance(chunk, ActionChunk)]


def test_the_first_batch_of_a_shape_is_answered_one_by_one_and_the_next_ones_together():
    batcher = Batcher(Together(), 0.0)
    assert batcher.choose(FOUR) == [0, 1, 2, 3]
    assert predict(batcher, FOUR)[1] == [1, 1, 1, 1]
    outcomes, rows = predict(batcher, FOUR)
    assert rows == [4, 4, 4, 4]
    sums = [int(one.image.astype(int).sum()) for one in FOUR]
    assert [list(chunk.normalized[0, :2]) for chunk in outcomes] == [[total, n] for n, total in enumerate(sums)]
    assert predict(batcher, FOUR[:3])[1] == [1, 1, 1]
    assert batcher.off == ""


def test_a_batch_that_changes_a_bit_is_the_last_one():
    batcher = Batcher(Rounding(), 0.0)
    assert predict(batcher, FOUR)[1] == [1, 1, 1, 1]
    assert "a batch of 4 differs from single predictions by 1e-06 normalised units; the tolerance is 0" in batcher.off
    assert batcher.choose(FOUR) == [0]


def test_rounding_within_the_tolerance_is_allowed():
    batcher = Batcher(Rounding(), 1e-5)
    predict(batcher, FOUR)
    assert predict(batcher, FOUR)[1] == [4, 4, 4, 4]


def test_another_choice_of_tokens_is_no_rounding():
    class Choosing(Together):
        def predict_batch(self, observations, *, seeds):
            chunks = super().predict_batch(observations, seeds=seeds)
            return [replace(one, selection=None) for one in chunks] if len(chunks) > 1 else chunks

    batcher = Batcher(Choosing(), 0.0)
    predict(batcher, FOUR)
    assert "the tokens" in batcher.off


def test_only_observations_with_the_same_key_share_a_call():
    longer = replace(FOUR[1], instruction="pick up the cube")
    assert Batcher(Together(), 0.0).choose([FOUR[0], longer, FOUR[2]]) == [0, 2]


def test_an_instruction_without_a_key_is_predicted_alone():
    class Picky(Together):
        def batch_key(self, observation):
            if not observation.instruction:
                raise ValueError("the instruction is empty")
            return 1

    empty = replace(FOUR[1], instruction="")
    assert Batcher(Picky(), 0.0).choose([FOUR[0], empty, FOUR[2]]) == [0, 2]
    assert Batcher(Picky(), 0.0).choose([empty, FOUR[0]]) == [0]


def test_one_bad_observation_fails_by_itself():
    batcher = Batcher(Together(), 0.0)
    outcomes, rows = predict(batcher, [FOUR[0], replace(FOUR[1], instruction=FAILS), FOUR[2]])
    assert isinstance(outcomes[1], ValueError)
    assert rows == [1, 1]
    assert len(batcher.choose(FOUR)) == 4


def test_batches_that_fail_without_a_bad_observation_become_smaller():
    class Small(Together):
        most = 2

        def predict_batch(self, observations, *, seeds):
            if len(observations) > self.most:
                raise MemoryError("out of memory")
            return super().predict_batch(observations, seeds=seeds)

    batcher = Batcher(Small(), 0.0)
    for rows in (4, 3, 2, 2):
        chosen = [FOUR[at] for at in batcher.choose(FOUR)]
        assert len(chosen) == rows
        assert len(predict(batcher, chosen)[1]) == rows
    Small.most = 1
    predict(batcher, FOUR[:2])
    assert "out of memory" in batcher.off
    assert batcher.choose(FOUR) == [0]


def test_batches_that_take_longer_than_their_rows_become_smaller(monkeypatch):
    class Slow(Together):
        now_s = 0.0

        def predict_batch(self, observations, *, seeds):
            rows = len(observations)
            self.now_s += (1.0, 1.5, 4.0, 5.0)[rows - 1]
            return super().predict_batch(observations, seeds=seeds)

    policy = Slow()
    monkeypatch.setattr(time, "perf_counter", lambda: policy.now_s)
    batcher = Batcher(policy, 0.0)
    for rows in (4, 3, 2, 2):
        assert len(batcher.choose(FOUR)) == rows
        predict(batcher, FOUR[:rows])


@pytest.mark.parametrize(
    ("policy", "reason"),
    [(Double(), "one observation at a time"), (Remembering(), "remembers earlier observations")],
)
def test_policies_that_predict_nothing_together(policy, reason):
    batcher = Batcher(policy, 0.0)
    assert reason in batcher.off
    assert batcher.choose(FOUR) == [0]


@pytest.mark.parametrize("recipe", ["fp32", "sqap"])
def test_chunks_of_a_network_are_to_the_last_bit_those_of_single_predictions(recipe):
    policy = load_policy("micro", recipe)
    policy.selector, selector = RandomDropSelector(), policy.selector
    assert "draws from one seed" in Batcher(policy, 0.0).off
    policy.selector = selector
    batcher = Batcher(policy, 0.0)
    assert batcher.off == ""
    for _ in range(2):
        chosen = batcher.choose(FOUR)
        assert (len(chosen) == 1) == bool(batcher.off)
        got, _ = predict(batcher, [FOUR[at] for at in chosen])
        for seed, chunk in enumerate(got):
            alone = policy.predict(FOUR[chosen[seed]], seed=seed)
            np.testing.assert_array_equal(chunk.normalized, alone.normalized)
            np.testing.assert_array_equal(chunk.selection.indices, alone.selection.indices)
