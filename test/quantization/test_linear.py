import pytest
import torch
from torch import nn

from sqap_vla_ros.quantization.backends.compiled import compilation_unavailable, quantize_tokens
from sqap_vla_ros.quantization.linear import ActivationQuantizer, QuantizedLinear, WeightOnlyLinear
from sqap_vla_ros.quantization.packing import PackedWeight
from sqap_vla_ros.quantization.quantizers import quantize_activation, quantize_weight
from sqap_vla_ros.quantization.rotations import OrthogonalMix
from sqap_vla_ros.text_rows import text_rows


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(n: int, k: int, bits: int = 4, activation_bits: int = 4, bias: bool = False, **kwargs) -> QuantizedLinear:
    weight = PackedWeight.of(quantize_weight(random(n, k, seed=1), bits))
    return QuantizedLinear(weight, ActivationQuantizer(activation_bits, **kwargs), random(n, seed=2) if bias else None)


def test_forward_is_the_documented_formula():
    layer = linear(5, 12, bias=True, rotation=OrthogonalMix(12))
    x = random(3, 12, seed=9)
    values, scale = quantize_activation(OrthogonalMix(12)(x), 4)
    integers = values.long() @ layer.quantized_weight().values.long().t()
    expected = integers * layer.weight_scale[:, 0] * scale + layer.bias
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("bits", "activation_bits", "bound"), [(8, 8, 0.02), (4, 4, 0.25)])
def test_close_to_the_float_layer(bits, activation_bits, bound):
    layer, x = linear(64, 256, bits, activation_bits), random(20, 256, seed=3)
    expected = x @ random(64, 256, seed=1).t()
    assert (layer(x) - expected).norm() / expected.norm() < bound


def test_weight_only_equals_a_linear_with_the_dequantised_weight():
    weight = quantize_weight(random(6, 16, seed=1), 4, group=8, symmetric=False)
    layer, x = WeightOnlyLinear(PackedWeight.of(weight), random(6, seed=2)), random(2, 3, 16, seed=3)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, weight.dequantize(), layer.bias))


def test_consumers_share_one_quantised_input():
    calls = []

    class Counting(OrthogonalMix):
        def __call__(self, x):
            calls.append(x)
            return super().__call__(x)

    shared = ActivationQuantizer(4, rotation=Counting(8), consumers=3)
    x, other = random(4, 8), random(4, 8, seed=1)
    first = shared(x)
    assert shared(x)[0] is first[0]
    assert shared(x)[0] is first[0]
    assert len(calls) == 1
    assert shared._result is None  # nothing is kept once all have taken it
    shared(x)
    assert not torch.equal(shared(other)[0], first[0])
    assert len(calls) == 3


def test_four_bit_weights_take_half_a_byte():
    assert linear(16, 64).stored_bytes == 16 * 32 + 16 * 4
    assert linear(16, 64).state_dict()["weight"].shape == (16, 32)


def test_asymmetric_weights_cannot_enter_an_integer_product():
    with pytest.raises(ValueError, match="symmetric"):
        QuantizedLinear(PackedWeight.of(quantize_weight(torch.ones(2, 4), 4, symmetric=False)), ActivationQuantizer(4))


def test_expanded_weights_cannot_be_read_back():
    layer = linear(4, 8)
    layer.weight = None  # as backends with a copy of their own leave it
    with pytest.raises(RuntimeError, match="load the policy again"):
        layer.quantized_weight()


@pytest.mark.parametrize("granularity", ["token", "tensor"])
@pytest.mark.parametrize("text", [0, 1, 4, 11, 30])
def test_text_rows_are_quantised_with_their_own_bits(text, granularity):
    wide = ActivationQuantizer(4, clip=0.8, granularity=granularity, text_bits=8)
    x = random(2, 11, 16)
    with text_rows(text):
        values, scale = (part.view(2, 11, -1) for part in wide(x))
    visual = max(0, 11 - text)
    for rows, bits, clip in ((slice(0, visual), 4, 0.8), (slice(visual, 11), 8, 1.0)):
        if x[:, rows].numel():
            expected = quantize_activation(x[:, rows], bits, clip=clip, granularity=granularity)
            assert torch.equal(values[:, rows], expected[0])
            assert torch.equal(scale[:, rows], expected[1])


def test_text_rows_through_a_row_kernel():
    if compilation_unavailable():
        pytest.skip(compilation_unavailable())
    plain, fused = (ActivationQuantizer(4, clip=0.85, text_bits=8) for _ in range(2))
    fused.token_quantizer = quantize_tokens
    x = random(3, 40, 96).bfloat16()
    with text_rows(5):
        for actual, expected in zip(fused(x), plain(x), strict=True):
            assert torch.equal(actual, expected)


def test_text_bits_are_refused_where_nothing_says_which_rows_are_text():
    quantizer, x = ActivationQuantizer(4, text_bits=8), random(3, 40, 96)
    with text_rows(7), text_rows(2):
        quantizer(x)
    with pytest.raises(RuntimeError, match="text rows are to be quantised to 8 bits, but nothing says which"):
        quantizer(x)
