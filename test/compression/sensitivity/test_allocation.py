import itertools

import pytest
import torch

from sqap_vla_ros.compression.sensitivity.allocation import (
    ALLOCATIONS,
    TIES,
    AllocationError,
    Budget,
    allocate,
    averages,
    require_reachable,
)

LAYER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROWS = {"q_proj": 8, "k_proj": 8, "v_proj": 8, "o_proj": 8, "gate_proj": 12, "up_proj": 12, "down_proj": 8}
COLUMNS = {(0, name): 12 if name == "down_proj" else 8 for name in LAYER}


def layer_scores(seed=0, widths=(0, 2, 4, 8)):
    """Damage that falls by about 16 a width of twice the bits, with rows a thousand times apart."""
    generator = torch.Generator().manual_seed(seed)
    size = {name: 10 ** (3 * torch.rand(rows, generator=generator)) for name, rows in ROWS.items()}
    return {(0, name): {width: size[name] * 4.0**-width for width in widths} for name in LAYER}


def damage(bits, scores):
    return sum(float(scores[linear][int(width)][row]) for linear in bits for row, width in enumerate(bits[linear]))


def test_the_cheapest_widths_are_found_on_a_small_case():
    """Against all assignments of five rows."""
    generator = torch.Generator().manual_seed(1)
    size = 10 ** (2 * torch.rand(5, generator=generator))
    scores = {(0, "v_proj"): {width: size * 4.0**-width for width in (2, 4, 8)}}
    budget = Budget(4.0, by_parameters=False, widths=(2, 4, 8))
    found = allocate(scores, {(0, "v_proj"): 8}, budget)
    best = min(
        damage({(0, "v_proj"): torch.tensor(widths)}, scores)
        for widths in itertools.product((2, 4, 8), repeat=5)
        if sum(widths) <= 4 * 5
    )
    assert int(found[0, "v_proj"].sum()) <= 20
    assert damage(found, scores) <= best * 1.5  # greedy on the hull: within one step of the best


@pytest.mark.parametrize("method", ALLOCATIONS)
@pytest.mark.parametrize("by_parameters", [True, False])
@pytest.mark.parametrize("average", [2.5, 3.0, 4.0, 6.0])
def test_the_average_is_kept_and_nearly_used(method, by_parameters, average):
    scores = layer_scores()
    bits = allocate(scores, COLUMNS, Budget(average, by_parameters=by_parameters), method=method)
    parameters, channels = averages(bits, COLUMNS)
    reached = parameters if by_parameters else channels
    assert average - 0.2 < reached <= average
    assert {int(width) for widths in bits.values() for width in widths} <= {2, 4, 8}


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("by_parameters", [True, False])
@pytest.mark.parametrize("zero_share", [0.02, 0.3, 1.0])
def test_the_least_average_of_a_shape_is_as_low_as_any_scores_come(ties, by_parameters, zero_share):
    """With one score for every row, zeros go in until no more fit; what is below their average is refused."""
    scores = {(0, name): {0: torch.ones(rows), 2: torch.zeros(rows)} for name, rows in ROWS.items()}
    shape = ({(0, name): rows for name, rows in ROWS.items()}, COLUMNS)

    def reached(average):
        budget = Budget(average, by_parameters, widths=(0, 2), zero_share=zero_share)
        bits = allocate(scores, COLUMNS, budget, ties=ties, head_width=4)
        require_reachable(*shape, budget, ties=ties, head_width=4)
        return averages(bits, COLUMNS)[0 if by_parameters else 1]

    lowest, highest = 2.0 * (1.0 - zero_share), 2.0
    with pytest.raises(AllocationError, match="is the least") as refused:
        require_reachable(*shape, Budget(lowest, by_parameters, (0, 2), zero_share), ties=ties, head_width=4)
    least = float(str(refused.value).split("met: ")[1].split(" is")[0])
    assert lowest < least <= highest
    if ties == "none":  # whole linears fill a share in some orders only
        assert reached(least + 0.001) == pytest.approx(least, abs=0.05)


def test_widths_that_stand_twice_count_once():
    scores = layer_scores()
    for method in ALLOCATIONS:
        once, twice = (
            allocate(scores, COLUMNS, Budget(3.0, widths=widths), method=method) for widths in ((2, 4, 8), (2, 4, 8, 8))
        )
        assert all(torch.equal(once[linear], twice[linear]) for linear in once)


def test_sensitive_rows_get_more_bits():
    scores = layer_scores()
    bits = allocate(scores, COLUMNS, Budget(4.0))
    every = torch.cat([scores[linear][4] for linear in bits])
    widths = torch.cat(list(bits.values()))
    assert every[widths == 8].min() > every[widths == 2].max()


def test_strict_stages_at_a_width_give_every_row_that_width():
    bits = allocate(layer_scores(), COLUMNS, Budget(4.0, by_parameters=False), method="stages")
    assert {int(width) for widths in bits.values() for width in widths} == {4}
    heap = allocate(layer_scores(), COLUMNS, Budget(4.0, by_parameters=False))
    assert damage(heap, layer_scores()) < 0.8 * damage(bits, layer_scores())


def test_sixteen_bits_count_as_no_damage_and_all_rows_start_there():
    scores = layer_scores()
    bits = allocate(scores, COLUMNS, Budget(16.0, widths=(2, 4, 8, 16)))
    assert {int(width) for widths in bits.values() for width in widths} == {16}


@pytest.mark.parametrize("method", ALLOCATIONS)
def test_zeros_are_few_and_never_in_queries_and_keys(method):
    scores = layer_scores()
    for linear in scores:
        scores[linear][0][:] = scores[linear][2]  # to drop a row costs nothing more
    budget = Budget(2.0, by_parameters=False, widths=(0, 2, 4), zero_share=0.1)
    bits = allocate(scores, COLUMNS, budget, method=method)
    zero = {linear: int((widths == 0).sum()) for linear, widths in bits.items()}
    assert zero[0, "q_proj"] == zero[0, "k_proj"] == 0
    assert 0 < sum(zero.values()) + (method == "stages") <= 0.1 * sum(ROWS.values()) + 1
    none = allocate(scores, COLUMNS, Budget(2.0, widths=(0, 2, 4), zero_share=0.0), method=method)
    assert all((widths > 0).all() for widths in none.values())


def test_tied_rows_share_their_width():
    scores = layer_scores()
    bits = allocate(scores, COLUMNS, Budget(3.5), ties="layout", head_width=4)
    assert torch.equal(bits[0, "gate_proj"], bits[0, "up_proj"])
    assert torch.equal(bits[0, "q_proj"], bits[0, "k_proj"])
    pairs = bits[0, "q_proj"].view(2, 2, 2)  # heads, halves, channels: rotary positions turn the halves into each other
    assert torch.equal(pairs[:, 0], pairs[:, 1])
    assert len(bits[0, "o_proj"].unique()) == len(bits[0, "down_proj"].unique()) == 1
    assert averages(bits, COLUMNS)[0] <= 3.5
    assert damage(bits, scores) >= damage(allocate(scores, COLUMNS, Budget(3.5)), scores)


def test_a_linear_of_one_width_is_what_layer_wise_means():
    scores = layer_scores()
    bits = allocate(scores, COLUMNS, Budget(3.5), ties="linear")
    assert all(len(widths.unique()) == 1 for widths in bits.values())
    assert averages(bits, COLUMNS)[0] <= 3.5
    assert damage(bits, scores) >= damage(allocate(scores, COLUMNS, Budget(3.5)), scores)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Budget(1.5), r"an average of 1\.5 bits cannot be met with widths 2, 4, 8: it must be within 2 to 8"),
        (lambda: Budget(9.0), r"must be within 2 to 8"),
        (lambda: Budget(4.0, widths=(3, 4)), r"two or more of 0, 2, 4, 8, 16, got \(3, 4\)"),
        (lambda: Budget(4.0, widths=(4,)), r"two or more of"),
        (lambda: Budget(4.0, zero_share=2.0), r"zero_share must be within 0 to 1, got 2\.0"),
        (
            lambda: Budget(7.0, widths=(0, 8), zero_share=0.1),
            r"7 bits cannot be met with widths 0, 8 and a zero_share of 0\.1: it must be within 7\.2 to 8",
        ),
        (
            lambda: allocate(layer_scores(), COLUMNS, Budget(1.9, widths=(0, 2)), never_zero=[*COLUMNS]),
            r"an average of 1\.9 bits cannot be met: 2\.000 is the least, as too few rows may take 0 bits",
        ),
        (lambda: allocate(layer_scores(), COLUMNS, Budget(4.0), method="best"), r"method must be one of heap, stages"),
        (
            lambda: allocate(layer_scores(), COLUMNS, Budget(4.0), ties="all"),
            r"ties must be one of none, layout, linear",
        ),
    ],
)
def test_what_cannot_be_met_is_one_sentence(make, match):
    with pytest.raises(AllocationError, match=match):
        make()
