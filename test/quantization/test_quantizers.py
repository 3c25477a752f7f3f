import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sqap_vla_ros.quantization.quantizers import (
    largest,
    quantize_activation,
    quantize_weight,
    search_activation_clip,
)

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 37))


def matrix(shape: tuple[int, int], seed: int, outlier: float = 1.0) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x[0, 0] *= outlier
    return x


@given(shape=SHAPES, seed=st.integers(0, 99), bits=st.sampled_from([2, 3, 4, 8]), symmetric=st.booleans())
@settings(max_examples=60, deadline=None)
def test_rounding_error_is_at_most_half_a_step(shape, seed, bits, symmetric):
    weight = matrix(shape, seed)
    quantized = quantize_weight(weight, bits, symmetric=symmetric)
    error = (quantized.dequantize() - weight).abs()
    # a zero point is rounded as well, which may push an end of the range out by half a step
    steps = 0.5 if symmetric else 1.0
    assert (error <= steps * quantized.scale * 1.0001 + 1e-9).all()


@given(
    shape=SHAPES, seed=st.integers(0, 99), bits=st.sampled_from([2, 3, 4, 8]), outlier=st.sampled_from([1, 1e4, 1e20])
)
@settings(max_examples=60, deadline=None)
def test_clip_search_never_worse_than_the_full_range(shape, seed, bits, outlier):
    weight = matrix(shape, seed, outlier)
    plain, searched = (quantize_weight(weight, bits, clip_search=search) for search in (False, True))

    def error(q):
        return (q.dequantize().double() - weight.double()).square().sum()

    assert error(searched) <= error(plain) * (1 + 1e-5)


def test_grouped_scales_follow_their_group():
    weight = torch.ones(1, 8)
    weight[0, 4:] = 100.0
    quantized = quantize_weight(weight, 4, group=4)
    torch.testing.assert_close(quantized.dequantize(), weight)
    assert quantized.scale.shape == (1, 2)


def test_asymmetric_weights_use_the_whole_range():
    weight = torch.linspace(0.0, 1.5, 16)[None]
    quantized = quantize_weight(weight, 4, symmetric=False)
    torch.testing.assert_close(quantized.dequantize(), weight)
    assert sorted(set(quantized.values[0].tolist())) == list(range(-8, 8))


@pytest.mark.parametrize(
    ("weight", "match"),
    [
        (torch.full((2, 2), float("nan")), "NaN"),
        (torch.zeros(4), r"\[N, K\]"),
        (torch.zeros(0, 4), "non-empty"),
    ],
)
def test_bad_weights_are_named(weight, match):
    with pytest.raises(ValueError, match=match):
        quantize_weight(weight, 4)


def test_group_must_divide():
    with pytest.raises(ValueError, match="weight_group 3 does not divide the 8"):
        quantize_weight(torch.ones(2, 8), 4, group=3)


@given(
    shape=SHAPES,
    seed=st.integers(0, 99),
    bits=st.sampled_from([2, 3, 4, 8]),
    clip=st.sampled_from([1.0, 0.9, 0.65]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    outlier=st.sampled_from([1.0, 1e6, 1e30]),
)
@settings(max_examples=80, deadline=None)
def test_activations_stay_on_the_grid(shape, seed, bits, clip, dtype, outlier):
    x = matrix(shape, seed, outlier).to(dtype)
    values, scale = quantize_activation(x, bits, clip=clip)
    assert values.dtype == torch.int8
    assert scale.dtype == dtype
    assert scale.shape == (shape[0], 1)
    assert values.abs().max() <= largest(bits)
    if clip == 1.0:
        step = scale.float()
        # half a step of rounding, and the input's own precision in bfloat16
        slack = 0.5 if dtype == torch.float32 else 0.55 + 0.01 * largest(bits)
        assert ((values * step - x.float()).abs() <= slack * step * 1.001 + 1e-9).all()


def test_zero_rows_and_one_row():
    values, scale = quantize_activation(torch.zeros(1, 5), 4)
    assert not values.any()
    assert torch.isfinite(scale).all()


def test_per_token_scales_are_independent_and_per_tensor_ones_are_not():
    x = torch.tensor([[1.0, 0.5], [100.0, 50.0]])
    token, _token_scale = quantize_activation(x, 4)
    assert token[0].tolist() == token[1].tolist()
    tensor, tensor_scale = quantize_activation(x, 4, granularity="tensor")
    assert tensor[0].tolist() == [0, 0]
    assert tensor_scale[0] == tensor_scale[1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_show_in_their_scale(bad):
    x = torch.ones(2, 4)
    x[1, 2] = bad
    _values, scale = quantize_activation(x, 4)
    assert torch.isfinite(scale[0])
    assert not torch.isfinite(scale[1])


def test_activation_clip_search_prefers_no_clipping_for_two_levels_and_clips_gaussians():
    two_levels = torch.where(torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) > 0.5, 1.0, -1.0)
    assert search_activation_clip(two_levels, 4) == 1.0
    gaussian = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0))
    assert search_activation_clip(gaussian, 4) < 0.9


def test_mid_rise_uses_all_four_levels_of_two_bits():
    weight = torch.randn(6, 50, generator=torch.Generator().manual_seed(3))
    found = quantize_weight(weight, 2, mid_rise=True)
    assert set(found.values.unique().tolist()) == {-3, -1, 1, 3}
    levels = found.scale[..., None] * torch.tensor([-3.0, -1.0, 1.0, 3.0])  # [N, 1, 4]
    nearest = (weight[..., None] - levels).abs().amin(-1)
    torch.testing.assert_close((found.dequantize() - weight).abs(), nearest)  # brute force over the levels
    assert (found.dequantize() - weight).norm() < 0.8 * (quantize_weight(weight, 2).dequantize() - weight).norm()


def test_mid_rise_clip_search_never_errs_more_and_has_no_eight_bits():
    weight = torch.randn(8, 200, generator=torch.Generator().manual_seed(4))
    error = [(quantize_weight(weight, 2, mid_rise=True, clip_search=s).dequantize() - weight).norm() for s in (0, 1)]
    assert error[1] < error[0]
    with pytest.raises(ValueError, match="mid-rise"):
        quantize_weight(weight, 8, mid_rise=True)
