import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sqap_vla_ros.quantization.quantizers import quantize_activation
from sqap_vla_ros.quantization.rotations import OrthogonalMix, hartley, mix_factors, random_signs, sylvester


@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_sylvester_is_scipys_hadamard(size):
    expected = torch.from_numpy(scipy.linalg.hadamard(size)).double() / size**0.5
    torch.testing.assert_close(sylvester(size), expected)


@given(st.integers(1, 300))
@settings(max_examples=40, deadline=None)
def test_hartley_is_orthogonal_and_symmetric_for_every_size(size):
    matrix = hartley(size)
    torch.testing.assert_close(matrix @ matrix, torch.eye(size, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(matrix, matrix.t())


def test_hartley_is_the_real_minus_imaginary_part_of_the_dft():
    spectrum = torch.fft.fft(torch.eye(9, dtype=torch.float64))
    torch.testing.assert_close(hartley(9), (spectrum.real - spectrum.imag) / 3.0)


@pytest.mark.parametrize("size", [4096, 11008, 1152, 4304, 1024, 43, 1])
def test_factors_multiply_to_the_size(size):
    left, right = mix_factors(size)
    assert left.shape[0] * right.shape[0] == size
    if size == 11008:
        assert (left.shape[0], right.shape[0]) == (86, 128)


@given(
    size=st.sampled_from([1, 2, 12, 43, 64, 86, 344]),
    stride=st.sampled_from([1, 1, 4]),
    signed=st.booleans(),
    rows=st.integers(1, 4),
)
@settings(max_examples=40, deadline=None)
def test_mix_equals_its_dense_matrix_and_inverts(size, stride, signed, rows):
    width = size * stride
    mix = OrthogonalMix(size, stride=stride, signs=random_signs(width, 3) if signed else None)
    dense = torch.kron(torch.kron(*mix_factors(size)), torch.eye(stride, dtype=torch.float64))
    if mix.signs is not None:
        dense = torch.diag(mix.signs) @ dense
    x = torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
    torch.testing.assert_close(mix(x), x @ dense)
    torch.testing.assert_close(mix.inverse(mix(x)), x)
    torch.testing.assert_close(mix(x).norm(dim=-1), x.norm(dim=-1))


def test_mix_spreads_an_outlier_and_makes_four_bits_enough():
    x = torch.randn(16, 11008, generator=torch.Generator().manual_seed(0))
    x[:, 5] *= 300

    def error_beside_the_outlier(mix: OrthogonalMix | None) -> float:
        values, scale = quantize_activation(x if mix is None else mix(x), 4)
        restored = values * scale if mix is None else mix.inverse(values * scale)
        return float((restored - x)[:, 6:].norm() / x[:, 6:].norm())

    assert error_beside_the_outlier(None) > 0.9  # everything but the outlier is lost
    assert error_beside_the_outlier(OrthogonalMix(11008)) < 0.6


def test_another_width_is_refused():
    with pytest.raises(ValueError, match="expected 8 channels, got 9"):
        OrthogonalMix(8)(torch.zeros(1, 9))
    with pytest.raises(ValueError, match="power of two, got 12"):
        sylvester(12)
