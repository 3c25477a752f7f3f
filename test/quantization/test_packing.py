import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sqap_vla_ros.quantization.packing import pack, packed_columns, unpack


@given(rows=st.integers(1, 5), columns=st.integers(1, 33), bits=st.sampled_from([2, 3, 4, 8]), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_round_trip_over_the_whole_range(rows, columns, bits, seed):
    half = 2 ** (bits - 1)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-half, half, (rows, columns), generator=generator).to(torch.int8)
    packed = pack(values, bits)
    assert packed.shape == (rows, packed_columns(columns, bits))
    assert torch.equal(unpack(packed, bits, columns), values)


def test_byte_layout_is_the_documented_one():
    assert pack(torch.tensor([[1, -1, 7]], dtype=torch.int8), 4).tolist() == [[0xF1, 0x07]]
    assert pack(torch.tensor([[1, -1, 0, -2]], dtype=torch.int8), 2).tolist() == [[0b10_00_11_01]]


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"-1..8 do not fit 4 bits \(-8..7\)"):
        pack(torch.tensor([[-1, 8]], dtype=torch.int8), 4)


def test_another_width_is_refused():
    with pytest.raises(ValueError, match=r"2\] uint8 for 3 columns of 4 bits"):
        unpack(torch.zeros(2, 3, dtype=torch.uint8), 4, 3)
