import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sqap_vla_ros.quantization.backends.table import (
    BackendError,
    OneDnnProduct,
    ReferenceProduct,
    onednn_unsupported,
    resolve_backend,
)
from sqap_vla_ros.quantization.fused import fused_unavailable, gated, quantize_rows
from sqap_vla_ros.quantization.linear import ActivationQuantizer, QuantizedLinear, WeightOnlyLinear, use_backend
from sqap_vla_ros.quantization.packing import PackedWeight
from sqap_vla_ros.quantization.quantizers import quantize_activation, quantize_weight
from sqap_vla_ros.quantization.rotations import OrthogonalMix
from sqap_vla_ros.text_rows import text_rows

needs_onednn = pytest.mark.skipif(bool(onednn_unsupported()), reason=f"backend onednn: {onednn_unsupported()}")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(n: int, k: int, bits: int = 4, activation_bits: int = 4, bias: bool = False, **kwargs) -> QuantizedLinear:
    weight = PackedWeight.of(quantize_weight(random(n, k, seed=1), bits))
    return QuantizedLinear(weight, ActivationQuantizer(activation_bits, **kwargs), random(n, seed=2) if bias else None)


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_layer_shapes_agree_between_backends(dtype):
    layer = linear(320, 4096, bias=True, clip=0.9, rotation=OrthogonalMix(4096))
    x = random(2, 150, 4096, seed=5).to(dtype)
    expected = layer(x)
    layer.use_backend("onednn")
    assert layer.weight is None
    assert torch.equal(layer(x), expected)


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


def test_backend_names_and_unsupported_cpu(monkeypatch):
    with pytest.raises(BackendError, match="no backend named 'cuda'; there are: auto, reference, amx, onednn, triton"):
        resolve_backend("cuda", torch.device("cpu"))
    with pytest.raises(BackendError, match="backend triton runs on CUDA devices, the weights are on cpu"):
        use_backend(nn.Sequential(linear(4, 8)), "triton")
    monkeypatch.setattr("sqap_vla_ros.quantization.backends.amx.amx_unsupported", lambda: "no AMX")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert resolve_backend("auto", torch.device("cpu")) == "reference"
    with pytest.raises(BackendError, match=r"neither AVX512-VNNI nor AMX.*use backend reference"):
        use_backend(nn.Sequential(linear(4, 8)), "onednn")


def test_expanded_weights_cannot_be_read_back():
    layer = linear(4, 8)
    layer.weight, layer.backend = None, "onednn"
    with pytest.raises(RuntimeError, match="load the policy again"):
        layer.quantized_weight()


def test_compiled_quantiser_gives_the_same_integers():
    if fused_unavailable():
        pytest.skip(fused_unavailable())
    plain, fused = (ActivationQuantizer(4, clip=0.85) for _ in range(2))
    fused.row_quantizer = quantize_rows
    generator = torch.Generator().manual_seed(0)
    for tokens, power in ((1, 0), (17, 3), (64, -5)):
        x = (torch.randn(tokens, 96, generator=generator) * 10.0**power).bfloat16()
        x[0] = 0
        for actual, expected in zip(fused(x), plain(x), strict=True):
            assert torch.equal(actual, expected)
    fused.clip = plain.clip = 0.7
    assert torch.equal(fused(x)[0], plain(x)[0])
    fused.rms_eps = plain.rms_eps = 1e-5
    (values, scale), (expected_values, expected_scale) = fused(x), plain(x)
    assert torch.equal(values, expected_values)
    torch.testing.assert_close(scale, expected_scale)  # the sum of squares may run in another order


def test_compiled_gate_is_the_formula():
    if fused_unavailable():
        pytest.skip(fused_unavailable())
    for tokens in (1, 5, 40):
        gate, up = (random(tokens, 48, seed=i).bfloat16() for i in (1, 2))
        scale = random(tokens, 1, seed=3).abs().bfloat16()
        expected = nn.functional.silu(gate.float() * scale) * (up.float() * scale)
        torch.testing.assert_close(gated(gate, up, scale), expected.bfloat16())


def test_compilation_is_refused_without_a_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    fused_unavailable.cache_clear()
    with pytest.raises(BackendError, match="no C\\+\\+ compiler"):
        use_backend(nn.Sequential(linear(4, 8)), "reference", fused=True)
    fused_unavailable.cache_clear()


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
    if fused_unavailable():
        pytest.skip(fused_unavailable())
    plain, fused = (ActivationQuantizer(4, clip=0.85, text_bits=8) for _ in range(2))
    fused.row_quantizer = quantize_rows
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
