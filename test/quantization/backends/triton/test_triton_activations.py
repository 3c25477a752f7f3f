import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sqap_vla_ros.quantization.quantizers import quantize_activation

pytest.importorskip("triton", reason="backend triton: triton is not installed")
from sqap_vla_ros.quantization.backends.triton import activations
from sqap_vla_ros.quantization.backends.triton.activations import quantize_tokens

pytestmark = pytest.mark.usefixtures("rounding_interpreter")
KINDS = (torch.bfloat16, torch.float16, torch.float32)


def bits_of(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def assert_same(x: torch.Tensor, bits: int, clip: float) -> None:
    values, scale = quantize_tokens(x, bits, clip, None)
    expected_values, expected_scale = quantize_activation(x, bits, clip=clip)
    assert values.dtype == torch.int8
    assert torch.equal(values, expected_values)
    assert scale.dtype == x.dtype
    assert torch.equal(bits_of(scale), bits_of(expected_scale))


@given(
    rows=st.integers(1, 5),
    columns=st.sampled_from([1, 2, 3, 16, 43, 127, 128, 129, 300]),
    bits=st.sampled_from([4, 8, 2, 3]),
    clip=st.one_of(st.sampled_from([1.0, 0.9, 0.65, 1e-6]), st.floats(0.25, 1.0)),
    dtype=st.sampled_from(KINDS),
    power=st.integers(-30, 30),
    outlier=st.sampled_from([1.0, 1e3, 1e6]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_integers_and_scales_are_the_reference_s_to_the_last_bit(
    rows, columns, bits, clip, dtype, power, outlier, seed
):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator).double()
    x[0, seed % columns] *= outlier
    x[-1] *= 0 if seed % 3 == 0 else -1
    x = (x * 2.0**power).clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
    assert_same(x, bits, clip)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("bits", [4, 8])
def test_ties_go_to_the_even_neighbour(dtype, bits):
    top = 2 ** (bits - 1) - 1
    x = torch.arange(-2 * top, 2 * top + 1).to(dtype)[None] / 2  # inverse is 1: every other value is a tie
    values, scale = quantize_tokens(x, bits, 1.0, None)
    assert scale.item() == 1.0
    assert torch.equal(values, torch.round(x).to(torch.int8))  # torch rounds ties to even
    assert values[0, :4].tolist() == {4: [-7, -6, -6, -6], 8: [-127, -126, -126, -126]}[bits]


@pytest.mark.parametrize("dtype", KINDS)
def test_zeros_and_the_largest_numbers(dtype):
    numbers = torch.finfo(dtype)
    x = torch.tensor([[0.0, -0.0], [numbers.max, numbers.min], [numbers.tiny, 0], [numbers.max, numbers.tiny]])
    for clip in (1.0, 0.65):
        assert_same(x.to(dtype), 4, clip)
    values, scale = quantize_tokens(torch.zeros(2, 5, dtype=dtype), 4, 0.9, None)
    assert not values.any()
    assert torch.isfinite(scale).all()


@pytest.mark.parametrize("damage", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_show_in_their_scale(damage):
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    x[1, 7] = damage
    scale = quantize_tokens(x, 4, 0.9, 1e-5)[1]
    assert torch.isfinite(scale[:, 0]).tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("shape", [(1, 64), (4, 129), (3, 1)])
def test_a_norm_in_the_kernel_is_one_more_factor_of_the_scale(dtype, shape):
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(*shape, generator=generator) * torch.logspace(-2, 2, shape[0])[:, None]).to(dtype)
    values, scale = quantize_tokens(x, 4, 0.9, 1e-5)
    expected_values, expected_scale = quantize_activation(x, 4, clip=0.9, rms_eps=1e-5)
    assert torch.equal(values, expected_values)
    # the sum of squares runs in another order: at most the last bit of the scale
    assert (bits_of(scale).int() - bits_of(expected_scale).int()).abs().max() <= (4 if dtype == torch.float32 else 1)
    assert torch.isfinite(quantize_tokens(torch.zeros(1, 8, dtype=dtype), 4, 1.0, 1e-5)[1]).all()


def test_strided_rows_and_no_rows():
    wide = torch.randn(6, 40, generator=torch.Generator().manual_seed(2))
    assert_same(wide[:, ::2], 4, 0.8)
    assert_same(wide.t(), 8, 1.0)
    values, scale = quantize_tokens(wide[:0], 4, 1.0, None)
    assert values.shape == (0, 40)
    assert scale.shape == (0, 1)


def test_long_rows_and_float64_take_the_plain_operations(monkeypatch):
    double = torch.randn(2, 10, generator=torch.Generator().manual_seed(3)).double()
    assert quantize_tokens(double, 4, 0.9, None)[1].dtype == torch.float64
    monkeypatch.setattr(activations, "LONGEST_ROW", 8)
    monkeypatch.setattr(activations, "_quantize_kernel", None)  # would fail if it were launched
    assert_same(torch.ones(2, 9), 4, 0.9)
