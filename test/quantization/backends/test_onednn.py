import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sqap_vla_ros.quantization.backends import onednn
from sqap_vla_ros.quantization.backends.onednn import OneDnnProduct
from sqap_vla_ros.quantization.backends.reference import ReferenceProduct

UNSUPPORTED = onednn.unsupported(torch.device("cpu"))
needs_onednn = pytest.mark.skipif(bool(UNSUPPORTED), reason=f"backend onednn: {UNSUPPORTED}")


def test_the_reference_is_exact_where_float32_is_not():
    values, weight = torch.full((1, 4097), 127, dtype=torch.int8), torch.full((1, 4097), 127, dtype=torch.int8)
    weight[0, 0] = 126
    assert ReferenceProduct(weight, torch.ones(1)).accumulate(values).item() == 4097 * 127 * 127 - 127


@needs_onednn
@given(
    m=st.sampled_from([1, 2, 17, 255, 256, 257, 300]),
    k=st.sampled_from([1, 3, 43, 64, 688]),
    n=st.sampled_from([1, 17, 96]),
    bits=st.sampled_from([4, 8]),
    extreme=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_accumulators_are_equal_to_the_last_bit(m, k, n, bits, extreme):
    top = 2 ** (bits - 1) - 1
    generator = torch.Generator().manual_seed(m * k + n)
    values = torch.randint(-top, top + 1, (m, k), generator=generator).to(torch.int8)
    weight = torch.randint(-top, top + 1, (n, k), generator=generator).to(torch.int8)
    if extreme:  # the largest sums there are
        values.fill_(-top)
        weight.fill_(top)
    scale = torch.rand(n, generator=generator) + 0.5
    reference, onednn = ReferenceProduct(weight, scale), OneDnnProduct(weight, scale)
    expected = torch.from_numpy(values.numpy().astype("int64") @ weight.numpy().astype("int64").T)
    assert torch.equal(reference.accumulate(values).long(), expected)
    assert expected.abs().max() < 2**24
    assert torch.equal(onednn.accumulate(values).long(), expected)
    onednn.shift = 128  # as on CPUs without AMX
    assert torch.equal(onednn.accumulate(values).long(), expected)
    for dtype in (torch.float32, torch.bfloat16):
        token_scale = (torch.rand(m, 1, generator=generator) + 0.5).to(dtype)
        assert torch.equal(reference(values, token_scale), onednn(values, token_scale))


@needs_onednn
def test_onednn_does_not_fall_back_to_its_plain_loop():
    weight = torch.ones(256, 256, dtype=torch.int8)
    values, scale = torch.ones(64, 256, dtype=torch.int8), torch.ones(64, 1)
    seconds = []
    for product in (OneDnnProduct(weight, torch.ones(256)), ReferenceProduct(weight, torch.ones(256))):
        runs = []
        for _ in range(5):
            start = time.perf_counter()
            product(values, scale)
            runs.append(time.perf_counter() - start)
        seconds.append(min(runs))
    assert seconds[0] < 20 * seconds[1]  # the plain loop takes far longer


@needs_onednn
@pytest.mark.parametrize("extreme", [False, True])
def test_sums_that_float32_does_not_hold_are_rounded_as_the_reference_does(extreme):
    generator = torch.Generator().manual_seed(0)
    values, weight = (torch.randint(-127, 128, (rows, 11008), generator=generator).to(torch.int8) for rows in (33, 64))
    if extreme:
        values.fill_(127)
        values[:, :5], weight[::2], weight[1::2] = 124, 127, -127
    scale, token_scale = torch.rand(64, generator=generator), torch.rand(33, 1, generator=generator)
    reference = ReferenceProduct(weight, scale)
    assert (reference.accumulate(values).abs().max() > 2**24) == extreme
    assert torch.equal(OneDnnProduct(weight, scale)(values, token_scale), reference(values, token_scale))
