"""Predicts requests together in the worker process, and checks that this does not change their answers.

Where a batch of some shape first occurs, its observations are also predicted one by one. These chunks are the answers,
and the batch is compared with them: matrix products sum in another order for other shapes, so what a client gets could
depend on who else waits. Where a chunk differs by more than is allowed, nothing is predicted together any more. Where a
batch takes longer than its rows one by one, which a CPU that is busy with one does, batches become smaller.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from sqap_vla_ros.contracts import ActionChunk, BatchPolicy, Observation, Policy, TokenSelection
from sqap_vla_ros.serving.defaults import MOST_BATCH

JUDGED_FROM_S = 1.0  # seconds of predictions one by one; what takes less is disturbed too easily to be compared
Outcome = tuple[ActionChunk | Exception, float]  # of one observation, and the seconds inside the policy


class Batcher:
    """Chooses which of the observations on offer share a call, and makes the calls.

    off: why observations are predicted one at a time, "" while some may share a call.
    """

    def __init__(self, policy: Policy, tolerance: float) -> None:
        """tolerance: normalised units by which a chunk may differ from the one predicted alone; 0 allows no bit."""
        self._policy = policy
        self._tolerance = tolerance
        self._most = MOST_BATCH
        self._same: set[tuple[int, int]] = set()  # (rows, key) of batches that gave what single predictions give
        self.off = "the policy takes one observation at a time"
        self._together: BatchPolicy | None = policy if isinstance(policy, BatchPolicy) else None
        if self._together is not None:
            self.off = self._together.unbatchable()
            if policy.info.stateful and not self.off:
                self.off = "the policy remembers earlier observations"

    def choose(self, observations: Sequence[Observation]) -> list[int]:
        """Return the positions of those to be predicted now: the first, and those that share a call with it."""
        if self.off or self._together is None or len(observations) == 1 or observations[0].commitment is not None:
            return [0]
        try:
            key = self._together.batch_key(observations[0])
        except Exception:  # its prediction will say what is wrong with it
            return [0]
        return [0, *(at for at in range(1, len(observations)) if self._fits(observations[at], key))][: self._most]

    def predict(self, observations: Sequence[Observation], seeds: Sequence[int]) -> Iterator[Outcome]:
        """Yield the outcome of each observation, in order; they are what `choose` returned."""
        batch = self._predict_together(observations, seeds) if len(observations) > 1 else None
        if isinstance(batch, list) and (len(batch), self._key(observations)) in self._same:
            yield from batch
            return
        alone = []
        for observation, seed in zip(observations, seeds, strict=True):
            alone.append(self._predict_alone(observation, seed))
            yield alone[-1]
        if isinstance(batch, list):
            self._compare(batch, alone, self._key(observations))
        elif isinstance(batch, Exception) and not any(isinstance(outcome, Exception) for outcome, _ in alone):
            # The batch itself is at fault, as one that is too large for the memory is.
            self._shrink(len(observations) - 1, f"two observations in one call fail where one does not: {batch}")

    def _shrink(self, most: int, reason: str) -> None:
        """Allow fewer rows. reason: why none are predicted together where that leaves one."""
        self._most = most
        if most < 2:
            self.off = reason

    def _fits(self, observation: Observation, key: int) -> bool:
        assert self._together is not None
        try:
            return observation.commitment is None and self._together.batch_key(observation) == key
        except Exception:
            return False

    def _key(self, observations: Sequence[Observation]) -> int:
        assert self._together is not None
        return self._together.batch_key(observations[0])

    def _predict_alone(self, observation: Observation, seed: int) -> Outcome:
        begin = time.perf_counter()
        try:
            return self._policy.predict(observation, seed=seed), time.perf_counter() - begin
        except Exception as error:
            return error, 0.0

    def _predict_together(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[Outcome] | Exception:
        assert self._together is not None
        begin = time.perf_counter()
        try:
            chunks = self._together.predict_batch(observations, seeds=seeds)
        except Exception as error:
            return error
        policy_s = time.perf_counter() - begin
        if len(chunks) != len(observations):
            return ValueError(f"{len(observations)} observations gave {len(chunks)} chunks")
        return [(chunk, policy_s) for chunk in chunks]

    def _compare(self, batch: Sequence[Outcome], alone: Sequence[Outcome], key: int) -> None:
        largest = max(_difference(one, other) for (one, _), (other, _) in zip(batch, alone, strict=True))
        if largest <= self._tolerance:
            self._same.add((len(batch), key))
            together_s, alone_s = batch[0][1], sum(policy_s for _, policy_s in alone)
            if JUDGED_FROM_S < alone_s < together_s:
                reason = f"together, two take {together_s:.1f} s, one by one {alone_s:.1f} s"
                self._shrink(len(batch) - 1, reason)
        else:
            amount = f"{largest:.2g} normalised units" if np.isfinite(largest) else "the tokens that are kept"
            allowed = f"the tolerance is {self._tolerance:g}"
            self.off = f"a batch of {len(batch)} differs from single predictions by {amount}; {allowed}"


def _difference(batched: ActionChunk | Exception, alone: ActionChunk | Exception) -> float:
    """Return the largest difference of the normalised chunks; infinite where the kept tokens or what failed differ."""
    if not isinstance(batched, ActionChunk) or not isinstance(alone, ActionChunk):
        return np.inf
    if not _same_tokens(batched.selection, alone.selection) or batched.normalized.shape != alone.normalized.shape:
        return np.inf
    if np.array_equal(batched.normalized, alone.normalized, equal_nan=True):
        return 0.0
    return float(np.nan_to_num(np.abs(batched.normalized - alone.normalized), nan=np.inf).max())


def _same_tokens(one: TokenSelection | None, other: TokenSelection | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one.indices, other.indices) and np.array_equal(one.reasons, other.reasons)
