"""Success rates and their comparison: Wilson interval, exact McNemar test, interval of a paired difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and the limits around it."""

    value: float
    low: float
    high: float


def wilson(successes: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the success rate with Wilson's score interval (Wilson 1927). Raises ValueError for impossible counts."""
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"successes must be within 0 and trials, and trials positive, got {successes} of {trials}")
    limits = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return Interval(successes / trials, float(limits.low), float(limits.high))


@dataclass(frozen=True)
class PairedOutcomes:
    """Outcomes of the same episodes under two methods. ours_only: episodes in which only ours succeeded; and so on."""

    both: int
    ours_only: int
    reference_only: int
    neither: int

    @classmethod
    def of(cls, ours: Sequence[bool], reference: Sequence[bool]) -> PairedOutcomes:
        """Count outcomes of episodes given in the same order."""
        pairs = list(zip(ours, reference, strict=True))
        return cls(*(pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))))

    @property
    def pairs(self) -> int:
        return self.both + self.ours_only + self.reference_only + self.neither

    def mcnemar(self) -> float:
        """Return the two-sided p-value of the exact McNemar test of equal success."""
        discordant = self.ours_only + self.reference_only
        return float(binomtest(self.ours_only, discordant).pvalue) if discordant else 1.0

    def difference(self, confidence: float = CONFIDENCE) -> Interval:
        """Return our success rate minus the reference's, with Newcombe's interval for paired proportions.

        Method 10 of Newcombe, "Improved confidence intervals for the difference between binomial proportions based on
        paired data", Statistics in Medicine 17 (1998): Wilson's limits, combined with the correlation of the pairs.
        """
        n = self.pairs
        ours = wilson(self.both + self.ours_only, n, confidence)
        reference = wilson(self.both + self.reference_only, n, confidence)
        phi = self._correlation()
        below = _combine(ours.value - ours.low, reference.high - reference.value, phi)
        above = _combine(ours.high - ours.value, reference.value - reference.low, phi)
        value = ours.value - reference.value
        return Interval(value, max(-1.0, value - below), min(1.0, value + above))

    def _correlation(self) -> float:
        """Return phi of the four-fold table; a positive one is corrected for continuity as Newcombe does."""
        ours, reference = self.both + self.ours_only, self.both + self.reference_only
        margins = ours * (self.pairs - ours) * reference * (self.pairs - reference)
        if not margins:
            return 0.0
        product = float(self.both * self.neither - self.ours_only * self.reference_only)
        if product > 0:
            product = max(0.0, product - self.pairs / 2)
        return product / math.sqrt(margins)


def _combine(one: float, other: float, correlation: float) -> float:
    return math.sqrt(max(0.0, one**2 - 2 * correlation * one * other + other**2))
