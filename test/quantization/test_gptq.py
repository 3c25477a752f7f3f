import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sqap_vla_ros.quantization.gptq import Hessian, blended_hessian, gptq, quantization_objective
from sqap_vla_ros.quantization.quantizers import quantize_weight


def problem(n: int, k: int, seed: int, rank: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=generator)
    mix = torch.randn(rank or k, k, generator=generator)
    hessian = Hessian(k)
    hessian.add(torch.randn(4 * k, rank or k, generator=generator) @ mix)
    return weight, hessian.matrix


@given(
    n=st.integers(1, 8),
    k=st.sampled_from([1, 5, 32, 130]),
    seed=st.integers(0, 50),
    rank=st.sampled_from([None, 1]),
    bits=st.sampled_from([2, 4]),
    clip_search=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_never_worse_than_rounding_on_its_own_objective(n, k, seed, rank, bits, clip_search):
    weight, hessian = problem(n, k, seed, rank)
    plain = quantize_weight(weight, bits, clip_search=clip_search, importance=hessian.diagonal())
    better = gptq(weight, hessian, bits, clip_search=clip_search)
    baseline = quantization_objective(weight, plain.dequantize(), hessian)
    assert (quantization_objective(weight, better.dequantize(), hessian) <= baseline * (1 + 1e-5)).all()


def test_clearly_better_on_correlated_inputs():
    weight, hessian = problem(16, 256, 0, rank=32)
    plain = quantization_objective(weight, quantize_weight(weight, 4).dequantize(), hessian).sum()
    assert quantization_objective(weight, gptq(weight, hessian, 4).dequantize(), hessian).sum() < 0.5 * plain


def test_uncorrelated_inputs_leave_plain_rounding():
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(gptq(weight, torch.eye(64), 4).values, quantize_weight(weight, 4).values)


def test_two_columns_by_hand():
    # x1 = x2: what the first column loses the second takes up. The row's scale is 1: 7.4 -> 7 leaves 0.4 for the next
    weight, hessian = torch.tensor([[7.0, 3.4, 3.4]]), torch.eye(3)
    hessian[1:, 1:] = 1.0
    # damping of 1 % makes the transfer 1 / 1.01
    assert gptq(weight, hessian, 4).values.tolist() == [[7, 3, 4]]


def test_grouped_asymmetric():
    weight, hessian = problem(3, 16, 1)
    result = gptq(weight, hessian, 4, group=8, symmetric=False)
    assert result.scale.shape == (3, 2)
    assert result.zero_point is not None
    assert (result.dequantize() - weight).abs().max() < 1.5


def test_channels_that_never_fire_do_not_break_it():
    weight, hessian = problem(3, 8, 1)
    hessian[2], hessian[:, 2] = 0, 0
    assert torch.isfinite(gptq(weight, hessian, 4).dequantize()).all()


def test_hessian_is_the_second_moment_and_streams():
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    streamed = Hessian(4)
    streamed.add(x[None, :7])
    streamed.add(x[7:])
    torch.testing.assert_close(streamed.matrix, 2 * x.t() @ x / 10)


def test_a_wrong_hessian_and_degenerate_inputs_are_refused():
    with pytest.raises(ValueError, match="no calibration input"):
        _ = Hessian(4).matrix
    with pytest.raises(ValueError, match=r"hessian must be \[4, 4\]"):
        gptq(torch.ones(2, 4), torch.eye(3), 4)
    with pytest.raises(ValueError, match="not finite"):
        gptq(torch.ones(2, 4), torch.full((4, 4), float("nan")), 4)


def test_a_weighted_hessian_is_the_weighted_second_moment():
    torch.manual_seed(0)
    x, weights = torch.randn(3, 50, 6), torch.rand(3, 50)
    hessian = Hessian(6)
    hessian.add(x[:1], weights[:1])
    hessian.add(x[1:], weights[1:])
    expected = 2 / 150 * torch.einsum("bt,bti,btj->ij", weights, x, x)
    torch.testing.assert_close(hessian.matrix, expected)


def test_blending_is_invariant_to_the_scales_and_falls_back_to_the_plain_inputs():
    torch.manual_seed(0)
    weighted, plain = (torch.cov(torch.randn(5, 20)) for _ in range(2))
    blended = blended_hessian(weighted, plain)
    torch.testing.assert_close(blended, blended_hessian(weighted * 1e-6, plain * 1e3))
    torch.testing.assert_close(blended.trace(), torch.tensor(1.1))
    torch.testing.assert_close(blended_hessian(weighted * 0, plain), plain / plain.trace())
    assert not blended_hessian(weighted * 0, plain * 0).any()
    for broken in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match=rf"weighted and its plain Hessian must be finite, got {broken} and"):
            blended_hessian(weighted * 0 + broken, plain)
        with pytest.raises(ValueError, match=rf"must be finite, got 0 and {broken}"):
            blended_hessian(weighted * 0, plain * 0 + broken)


def test_mid_rise_gptq_stays_on_its_grid_and_beats_rounding():
    torch.manual_seed(0)
    x = torch.randn(400, 24) @ torch.randn(24, 24)
    hessian, weight = Hessian(24), torch.randn(10, 24)
    hessian.add(x)
    found = gptq(weight, hessian.matrix, 2, mid_rise=True, clip_search=True)
    nearest = quantize_weight(weight, 2, mid_rise=True, clip_search=True, importance=hessian.matrix.diagonal())
    assert set(found.values.unique().tolist()) == {-3, -1, 1, 3}
    ours, plain = (quantization_objective(weight, q.dequantize(), hessian.matrix).sum() for q in (found, nearest))
    assert ours < 0.8 * plain
