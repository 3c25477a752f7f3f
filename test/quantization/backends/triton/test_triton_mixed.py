import copy

import pytest
import torch
from backend_cases import allow_triton_on_the_cpu, integers_of, some_bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sqap_vla_ros.quantization.backends.reference import ReferenceProduct
from sqap_vla_ros.quantization.linear import ActivationQuantizer, use_backend
from sqap_vla_ros.quantization.mixed import MixedLinear, MixedWeightOnlyLinear, PackedMixedWeight, quantize_mixed

pytest.importorskip("triton", reason="backend triton: triton is not installed")
from sqap_vla_ros.quantization.backends.triton import mixed, tiles
from sqap_vla_ros.quantization.backends.triton.mixed import MixedTritonProduct
from sqap_vla_ros.quantization.backends.triton.tiles import TILES

pytestmark = pytest.mark.usefixtures("rounding_interpreter")


@given(
    m=st.sampled_from([1, 63, 70]),
    k=st.sampled_from([1, 2, 3, 43, 64, 129, 300]),
    n=st.sampled_from([1, 17, 70, 150]),
    widths=st.sampled_from([(2,), (2, 4, 8), (0, 2, 4, 8, 16), (0,), (8, 2)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    extreme=st.booleans(),
    tile=st.sampled_from(TILES),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_of_mixed_widths_are_the_references_to_the_last_bit(m, k, n, widths, dtype, extreme, tile):
    generator = torch.Generator().manual_seed(m * k + n)
    bits = some_bits(n, widths, generator)
    weight = integers_of(bits, k, generator, extreme)
    values = torch.randint(-127, 128, (m, k), generator=generator).to(torch.int8)
    if extreme:  # the largest sums there are
        values.fill_(-127)
    scale, token_scale = torch.rand(n, generator=generator), torch.rand(m, 1, generator=generator).to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILES", (tile,))
        kernel, reference = MixedTritonProduct(weight, scale, bits), ReferenceProduct(weight, scale)
        assert torch.equal(kernel.accumulate(values), reference.accumulate(values))
        assert torch.equal(kernel(values, token_scale), reference(values, token_scale))
    rows = sum(int((bits == width).sum()) * -(-k * width // 8) for width in (2, 4, 8))
    assert rows <= kernel.weight.numel() < rows + 3 * 16


def test_a_linear_is_one_launch_and_equals_the_reference(monkeypatch):
    allow_triton_on_the_cpu(monkeypatch)
    launches, kernel = [], mixed._mixed_kernel

    class Counted:
        def __getitem__(self, grid):
            launches.append(grid)
            return kernel[grid]

    monkeypatch.setattr(mixed, "_mixed_kernel", Counted())
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(150, 96, generator=generator)
    packed = PackedMixedWeight.of(quantize_mixed(weight, some_bits(150, (0, 2, 4, 8, 16), generator)))
    x = torch.randn(1, 9, 96, generator=generator).bfloat16()
    for layer in (MixedLinear(packed, ActivationQuantizer(8)), MixedWeightOnlyLinear(packed)):
        expected = copy.deepcopy(layer)(x)
        use_backend(layer, "triton")
        launches.clear()
        assert torch.equal(layer(x), expected)
        assert len(launches) == 1
        assert layer.weight is None
