import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sqap_vla_ros.quantization.allocation import mean_width, narrow_units

WIDTHS = (2, 4, 8)


def random_errors(units: int, seed: int, widths: tuple[int, ...] = WIDTHS) -> torch.Tensor:
    """Errors that fall about fourfold a bit, with a sensitivity for each unit."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(units, len(widths), generator=generator) + 0.5
    sensitivity = (4 * torch.randn(units, 1, generator=generator)).exp()
    return sensitivity * noise * 4.0 ** -torch.tensor(widths)


@given(units=st.integers(1, 6), seed=st.integers(0, 200), average=st.sampled_from([2.0, 2.5, 3.0, 4.0, 5.5, 8.0]))
@settings(max_examples=100, deadline=None)
def test_no_cheaper_choice_errs_less(units, seed, average):
    errors = random_errors(units, seed)
    sizes = torch.randint(1, 4, (units,), generator=torch.Generator().manual_seed(seed))
    bits = narrow_units(errors, sizes, average, WIDTHS)
    assert mean_width(bits, sizes) <= average
    ours = sum(errors[u, WIDTHS.index(b)].item() for u, b in enumerate(bits.tolist()))
    for choice in itertools.product(range(3), repeat=units):
        widths = torch.tensor([WIDTHS[column] for column in choice])
        if (widths * sizes).sum() <= (bits * sizes).sum():
            assert sum(errors[u, column].item() for u, column in enumerate(choice)) >= ours * (1 - 1e-9)


def test_the_average_is_met_closely_and_sensitive_units_get_more():
    errors, sizes = random_errors(4000, 0), torch.full((4000,), 64)
    bits = narrow_units(errors, sizes, 3.0, WIDTHS)
    assert 2.998 < mean_width(bits, sizes) <= 3.0
    assert errors[bits == 8, 0].mean() > errors[bits == 4, 0].mean() > errors[bits == 2, 0].mean()


def test_large_units_give_way_to_small_ones():
    errors, sizes = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([10, 1])
    assert narrow_units(errors, sizes, 3.0, (2, 4)).tolist() == [2, 4]


def test_stages_finish_a_width_before_the_next():
    errors, sizes = random_errors(100, 1), torch.ones(100, dtype=torch.int64)
    # the paper's stages, taken literally
    assert {*narrow_units(errors, sizes, 4.0, WIDTHS, stages=True).tolist()} == {4}
    assert {*narrow_units(errors, sizes, 3.0, WIDTHS, stages=True).tolist()} == {2, 4}
    assert {*narrow_units(errors, sizes, 6.0, WIDTHS, stages=True).tolist()} == {4, 8}
    cheapest = (errors[:, 0] - errors[:, 1]).sort().values[49]
    low = narrow_units(errors, sizes, 3.0, WIDTHS, stages=True) == 2
    assert (errors[low, 0] - errors[low, 1]).max() <= cheapest


@pytest.mark.parametrize("stages", [False, True])
def test_no_more_than_a_share_is_pruned(stages):
    widths = (0, 2, 4, 8, 16)
    errors, sizes = random_errors(200, 2, widths), torch.ones(200, dtype=torch.int64)
    errors[:150] *= 1e-6  # these do nothing
    bits = narrow_units(errors, sizes, 1.95, widths, stages=stages, most_pruned=0.1)
    assert 0 < (bits == 0).sum() <= 20
    with pytest.raises(ValueError, match=r"1.5 bits cannot be met: 2.00 is the least"):
        narrow_units(errors, sizes, 1.5, widths, stages=stages, most_pruned=0.0)


def test_a_width_that_does_better_than_the_next_is_skipped_over():
    errors = torch.tensor([[2.0, 5.0, 0.0], [3.0, 2.0, 0.0]])  # the first unit's four bits are worse than its two
    bits = narrow_units(errors, torch.tensor([1, 1]), 5.0, WIDTHS)
    assert bits.tolist() == [2, 8]


def test_what_cannot_be_met_is_refused():
    errors, sizes = random_errors(5, 0), torch.ones(5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"1 bits cannot be met: 2\.00 is the least these widths allow"):
        narrow_units(errors, sizes, 1, WIDTHS)
    with pytest.raises(ValueError, match="9 bits is more than the largest width, 8"):
        narrow_units(errors, sizes, 9, WIDTHS)
    with pytest.raises(ValueError, match="NaN or infinity"):
        narrow_units(errors * torch.nan, sizes, 4, WIDTHS)
    with pytest.raises(ValueError, match="ascending widths"):
        narrow_units(errors, sizes, 4, (8, 4, 2))
