import itertools
import math

import pytest
from scipy.stats import multinomial, norm

from sqap_vla_ros.evaluation.closed_loop.statistics import PairedOutcomes, wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (7, 10), (10, 10), (212, 300)])
def test_wilson_is_the_closed_form(successes, trials):
    z = norm.ppf(0.975)
    p = successes / trials
    centre = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    interval = wilson(successes, trials)
    assert interval.value == p
    assert interval.low == pytest.approx(max(0.0, centre - half), abs=1e-12)
    assert interval.high == pytest.approx(min(1.0, centre + half), abs=1e-12)


def test_counts_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="got 4 of 3"):
        wilson(4, 3)
    with pytest.raises(ValueError, match="got 0 of 0"):
        wilson(0, 0)


@pytest.mark.parametrize(("ours_only", "reference_only"), [(0, 0), (1, 0), (5, 5), (3, 11), (12, 2)])
def test_mcnemar_by_enumerating_all_ways_the_pairs_could_have_gone(ours_only, reference_only):
    n = ours_only + reference_only
    extreme = min(ours_only, reference_only)
    ways = [sum(signs) for signs in itertools.product((0, 1), repeat=n)]
    expected = sum(min(k, n - k) <= extreme for k in ways) / 2**n
    assert PairedOutcomes(40, ours_only, reference_only, 9).mcnemar() == pytest.approx(expected)


def test_outcomes_are_paired_in_order():
    ours = [True, True, False, False, True]
    reference = [True, False, True, False, False]
    outcomes = PairedOutcomes.of(ours, reference)
    assert outcomes == PairedOutcomes(both=1, ours_only=2, reference_only=1, neither=1)
    assert outcomes.difference().value == pytest.approx(0.2)
    with pytest.raises(ValueError, match="zip"):
        PairedOutcomes.of([True], [True, False])


def test_the_difference_changes_sign_with_the_sides():
    one = PairedOutcomes(50, 12, 5, 33).difference()
    other = PairedOutcomes(50, 5, 12, 33).difference()
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))
    assert one.low < one.value < one.high


def test_pairing_narrows_the_interval():
    """The same marginal rates, once with pairs that agree, once with independent ones."""
    agreeing = PairedOutcomes(60, 6, 4, 30).difference()
    independent = PairedOutcomes(42, 24, 22, 12).difference()
    assert agreeing.value == pytest.approx(independent.value)
    assert agreeing.high - agreeing.low < 0.75 * (independent.high - independent.low)


@pytest.mark.parametrize("cells", [(0.6, 0.1, 0.1, 0.2), (0.7, 0.15, 0.05, 0.1), (0.25, 0.25, 0.25, 0.25)])
def test_the_difference_is_covered_as_often_as_promised(cells):
    """Exact coverage over every possible table of 24 pairs."""
    n, truth = 24, cells[1] - cells[2]
    covered = 0.0
    for both, ours, reference in itertools.product(range(n + 1), repeat=3):
        if (neither := n - both - ours - reference) < 0:
            continue
        table = (both, ours, reference, neither)
        interval = PairedOutcomes(*table).difference()
        if interval.low <= truth <= interval.high:
            covered += multinomial.pmf(table, n, cells)
    assert 0.93 <= covered <= 0.99


def test_no_discordant_pair_and_no_variation():
    outcomes = PairedOutcomes(20, 0, 0, 0)
    assert outcomes.mcnemar() == 1.0
    interval = outcomes.difference()
    assert interval.value == 0.0
    assert -0.2 < interval.low < 0.0 < interval.high < 0.2
