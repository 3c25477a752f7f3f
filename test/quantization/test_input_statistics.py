import pytest
import torch

from sqap_vla_ros.quantization.input_statistics import SAMPLES, InputStatistics


def test_streaming_equals_all_at_once():
    x = torch.randn(5000, 6, generator=torch.Generator().manual_seed(0))
    stats = InputStatistics(6, hessian=True)
    for part in x.split(37):
        stats.add(part[None])
    torch.testing.assert_close(stats.absmax, x.abs().amax(0))
    torch.testing.assert_close(stats.mean_abs, x.abs().mean(0))
    torch.testing.assert_close(stats.hessian.matrix, 2 * x.t() @ x / 5000, rtol=1e-4, atol=1e-4)


def test_samples_are_bounded_and_spread_over_the_stream():
    x = torch.arange(5000.0)[:, None]
    stats = InputStatistics(1)
    for part in x.split(113):
        stats.add(part)
    samples = stats.samples[:, 0]
    assert SAMPLES / 4 < len(samples) <= SAMPLES
    assert samples[0] < 100
    assert samples[-1] > 4900
    gaps = samples.diff()
    assert gaps.min() > 0
    assert gaps.max() <= 2 * gaps.median()


def test_empty_and_damaged_inputs_are_refused():
    with pytest.raises(ValueError, match="no calibration input"):
        _ = InputStatistics(3).mean_abs
    with pytest.raises(ValueError, match="expected 3 channels, got 4"):
        InputStatistics(3).add(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="NaN or infinity"):
        InputStatistics(1).add(torch.tensor([[float("inf")]]))
