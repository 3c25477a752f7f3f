import pytest
import torch
from backend_cases import integers_of, some_bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sqap_vla_ros.quantization.backends.cpu import library
from sqap_vla_ros.quantization.backends.cpu.activations import normalise_tokens, quantize_tokens, token_quantizer
from sqap_vla_ros.quantization.backends.cpu.attention import attention
from sqap_vla_ros.quantization.backends.cpu.product import MOST_INPUTS, PanelLayout
from sqap_vla_ros.quantization.backends.reference import ReferenceProduct
from sqap_vla_ros.quantization.linear import ActivationQuantizer, QuantizedLinear, use_backend
from sqap_vla_ros.quantization.packing import PackedWeight
from sqap_vla_ros.quantization.quantizers import quantize_activation, quantize_weight
from sqap_vla_ros.quantization.rotations import OrthogonalMix

slowly = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(
    m=st.sampled_from([1, 15, 16, 17, 33, 96, 300]),
    k=st.sampled_from([1, 63, 64, 65, 512, 577, 1100]),
    n=st.sampled_from([1, 16, 17, 31, 32, 65, 320]),
    top=st.sampled_from([7, 8, 127]),
    extreme=st.booleans(),
    threads=st.sampled_from([1, 2, 3]),
)
@slowly
def test_products_are_the_references_to_the_last_bit(product, m, k, n, top, extreme, threads):
    generator = torch.Generator().manual_seed(m * k + n)
    values = torch.randint(-127, 128, (m, k), generator=generator).to(torch.int8)
    weight = torch.randint(-top, top + (top < 8), (n, k), generator=generator).to(torch.int8)
    if extreme:  # the largest sums there are
        values.fill_(-127)
        weight.fill_(-top)
    scale = torch.rand(n, generator=generator) + 0.5
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        reference, tiles = ReferenceProduct(weight, scale), product(weight, scale)
        four_bits = weight.min() >= -8 and weight.max() <= 7
        assert tiles.packed.numel() == -(-n // 32) * 32 * -(-k // 64) * 64 // (2 if four_bits else 1)
        for dtype in (torch.float32, torch.bfloat16):
            token_scale = (torch.rand(m, 1, generator=generator) + 0.5).to(dtype)
            assert torch.equal(tiles(values, token_scale), reference(values, token_scale))
        assert library.kernels(product.unit).threads() == threads
    finally:
        torch.set_num_threads(before)


@given(
    m=st.sampled_from([1, 17, 40]),
    k=st.sampled_from([1, 63, 64, 577, 1100]),
    n=st.sampled_from([1, 31, 33, 70, 320, 600]),
    widths=st.sampled_from([(2,), (2, 4, 8), (0, 2, 4, 8, 16), (0,), (8, 2)]),
    extreme=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@slowly
def test_rows_of_mixed_widths_are_the_references_to_the_last_bit(product, m, k, n, widths, extreme, dtype):
    generator = torch.Generator().manual_seed(m * k + n)
    bits = some_bits(n, widths, generator)
    weight = integers_of(bits, k, generator, extreme)
    values = torch.randint(-127, 128, (m, k), generator=generator).to(torch.int8)
    if extreme:  # the largest sums there are
        values.fill_(-127)
    scale, token_scale = torch.rand(n, generator=generator), torch.rand(m, 1, generator=generator).to(dtype)
    tiles, reference = product(weight, scale, bits), ReferenceProduct(weight, scale)
    assert torch.equal(tiles(values, token_scale), reference(values, token_scale))
    assert tiles.packed.numel() == sum(PanelLayout.by_width(bits).widths) * 4 * -(-k // 64) * 64


@given(n=st.sampled_from([1, 33, 256, 700]), widths=st.sampled_from([(2,), (2, 4), (2, 4, 8), (0, 8, 16), (0,)]))
def test_rows_of_one_width_fill_panels(n, widths):
    bits = some_bits(n, widths, torch.Generator().manual_seed(n))
    layout = PanelLayout.by_width(bits)
    assert (
        sorted(layout.channels[layout.channels >= 0].tolist()) == torch.nonzero((bits > 0) & (bits < 16))[:, 0].tolist()
    )
    for number, begin in enumerate(range(0, n, 256)):
        panels = range(*layout.stripes[number : number + 2].tolist())
        rows, own = layout.channels[panels.start * 32 : panels.stop * 32], bits[begin : begin + 256]
        assert len(panels) == -(-int(((own > 0) & (own < 16)).sum()) // 32)
        for place, row in enumerate(rows.tolist()):
            if row >= 0:
                assert layout.places[row] == place
                assert bits[row] <= layout.widths[panels.start + place // 32]
        for width in {2, 4, 8} & {*own.tolist()}:
            filled = sum(layout.widths[panel] == width for panel in panels) * 32
            assert filled > int((own == width).sum()) - 32  # the others are in a wider panel


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gate_and_up_of_mixed_widths_are_those_of_one(product, dtype):
    generator = torch.Generator().manual_seed(2)
    bits = [some_bits(300, (2, 4), generator) for _ in range(2)]
    pair = [(integers_of(b, 130, generator), torch.rand(300, generator=generator) * 0.01) for b in bits]
    values = torch.randint(-127, 128, (21, 130), generator=generator).to(torch.int8)
    scale = (torch.rand(21, 1, generator=generator) * 0.1).to(dtype)
    gate, up = (product(*weight) for weight in pair)
    mixed_gate, mixed_up = (product(*weight, b) for weight, b in zip(pair, bits, strict=True))
    expected = gate.gated(up, values, scale)
    assert torch.equal(mixed_gate.gated(mixed_up, values, scale), expected)
    assert torch.equal(mixed_gate.gated(up, values, scale), expected)


@pytest.mark.parametrize("same", [True, False])
def test_gate_and_up_of_mixed_widths(product, same):
    generator = torch.Generator().manual_seed(1)
    bits = [some_bits(90, (0, 2, 4, 8), generator) for _ in range(2)]
    bits[1] = bits[0] if same else bits[1]
    pair = [(integers_of(b, 130, generator), torch.rand(90, generator=generator) * 0.01) for b in bits]
    gate, up = (product(*weight, b) for weight, b in zip(pair, bits, strict=True))
    values = torch.randint(-127, 128, (21, 130), generator=generator).to(torch.int8)
    scale = torch.rand(21, 1, generator=generator) * 0.1
    opened, other = (ReferenceProduct(*weight)(values, scale) for weight in pair)
    expected = torch.nn.functional.silu(opened) * other
    torch.testing.assert_close(gate.gated(up, values, scale), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("rows", "outputs"), [(1, 1), (40, 33), (16, 288)])
def test_gated_is_the_formula(product, rows, outputs):
    generator = torch.Generator().manual_seed(rows)
    values = torch.randint(-7, 8, (rows, 600), generator=generator).to(torch.int8)
    scale = torch.logspace(-4, 4, rows)[:, None].bfloat16()  # SiLU at its linear and at its flat parts
    weights = [torch.randint(-top, top, (outputs, 600), generator=generator).to(torch.int8) for top in (8, 127)]
    scales = [torch.rand(outputs, generator=generator) * 0.01 for _ in weights]
    gate, up = (product(*pair) for pair in zip(weights, scales, strict=True))
    for dtype in (torch.bfloat16, torch.float32):
        factors = [ReferenceProduct(*pair).unscaled(values, dtype) for pair in zip(weights, scales, strict=True)]
        opened, other = (factor.float() * scale.float() for factor in factors)
        expected = (torch.nn.functional.silu(opened) * other).to(dtype)
        tolerance = 0.008 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(gate.gated(up, values, scale.to(dtype)), expected, atol=1e-6, rtol=tolerance)


def test_no_rows_give_no_rows(product):
    tiles = product(torch.ones(40, 64, dtype=torch.int8), torch.ones(40))
    values, scale = quantize_tokens(product.unit, torch.ones(0, 64).bfloat16(), 4, 0.9, None)
    assert tiles(values, scale).shape == (0, 40)


def test_a_scale_that_is_not_finite_shows(product):
    tiles = product(torch.ones(40, 64, dtype=torch.int8), torch.ones(40))
    scale = torch.tensor([[1.0], [torch.nan], [torch.inf]]).bfloat16()
    y = tiles(torch.ones(3, 64, dtype=torch.int8), scale)
    assert (y[0] == 64).all()
    assert y[1].isnan().all()
    assert y[2].isinf().all()


@given(
    m=st.integers(1, 20),
    k=st.sampled_from([1, 15, 16, 63, 96, 1000]),
    bits=st.sampled_from([4, 8]),
    clip=st.sampled_from([1.0, 0.9, 0.65]),
    power=st.sampled_from([-38, -13, -4, 0, 4, 30]),
)
@slowly
def test_quantised_rows_are_the_plain_ones(product, m, k, bits, clip, power):
    generator = torch.Generator().manual_seed(m * k)
    x = (torch.randn(m, k, generator=generator) * 10.0**power).bfloat16()
    x[-1] = 0
    for actual, expected in zip(
        quantize_tokens(product.unit, x, bits, clip, None), quantize_activation(x, bits, clip=clip), strict=True
    ):
        assert torch.equal(actual, expected)
    values, scale = quantize_tokens(product.unit, x, bits, clip, 1e-5)
    assert torch.equal(values, quantize_activation(x, bits, clip=clip)[0])
    # the sum of squares may run in another order
    torch.testing.assert_close(scale, quantize_activation(x, bits, clip=clip, rms_eps=1e-5)[1])


def test_activations_that_are_not_finite_show_in_their_scale(product):
    x = torch.ones(3, 40).bfloat16()
    x[1, 39], x[2, 0] = torch.nan, torch.inf
    scale = quantize_tokens(product.unit, x, 4, 0.9, None)[1]
    assert scale.isfinite().tolist() == [[True], [False], [False]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_layers_agree_with_the_reference(product, dtype):
    generator = torch.Generator().manual_seed(1)
    weight = PackedWeight.of(quantize_weight(torch.randn(100, 1376, generator=generator), 4))
    layer = QuantizedLinear(weight, ActivationQuantizer(4, clip=0.9, rotation=OrthogonalMix(1376)), torch.ones(100))
    x = torch.randn(2, 21, 1376, generator=generator).to(dtype)
    expected = layer(x)
    assert use_backend(layer, product.unit.name).name == product.unit.name
    assert layer.activation.token_quantizer is token_quantizer(product.unit)
    assert torch.equal(layer(x), expected)


def test_activations_of_another_width_are_refused(product):
    tiles = product(torch.ones(8, 64, dtype=torch.int8), torch.ones(8))
    with pytest.raises(ValueError, match=r"expected int8 \[M, 64\], got torch.int8 \(2, 63\)"):
        tiles(torch.ones(2, 63, dtype=torch.int8), torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"not in torch\.float64"):
        tiles(torch.ones(2, 64, dtype=torch.int8), torch.ones(2, 1).double())
    with pytest.raises(ValueError, match="could overflow 32 bits"):
        product(torch.ones(1, MOST_INPUTS + 1, dtype=torch.int8), torch.ones(1))


def test_what_a_kernel_would_read_beyond_is_refused(product):
    one = product(torch.ones(40, 64, dtype=torch.int8), torch.ones(40))
    values, scale = torch.ones(4, 64, dtype=torch.int8), torch.ones(4, 1, dtype=torch.bfloat16)
    for wrong in (torch.ones(1), torch.ones(2, 1), torch.ones(4, 2), torch.ones(())):
        with pytest.raises(ValueError, match="4 rows of activations need as many scales"):
            one(values, wrong)
    assert torch.equal(one(values, scale[:, 0]), one(values, scale))  # as many, however they lie
    with pytest.raises(ValueError, match=r"expected int8 \[M, 64\]"):
        one(values[None], scale)
    row, whole = torch.ones(40).bfloat16(), torch.ones(4, 40).bfloat16()
    for name, wrong in (("bias", row[:-1]), ("factor", whole), ("residual", whole[:3]), ("residual", row)):
        with pytest.raises(ValueError, match=rf"{name} of a CPU kernel: expected bfloat16 \["):
            one.finished(values, scale, **{name: wrong})
    with pytest.raises(ValueError, match="gelu must be one of none, tanh or None, got 'erf'"):
        one.finished(values, scale, gelu="erf")
    assert one.finished(values, scale, bias=row, factor=row, residual=whole).shape == (4, 40)
    for other in (torch.ones(39, 64), torch.ones(40, 63)):
        with pytest.raises(ValueError, match=r"one shape, got \w+ \[40, 64\] and \w+ \["):
            one.gated(product(other.to(torch.int8), torch.ones(len(other))), values, scale)


def test_weights_and_norms_of_other_types_or_sizes_are_refused(product):
    with pytest.raises(ValueError, match=r"weight of a CPU kernel: expected int8 \[40, 64\] on the CPU, got float32"):
        product(torch.ones(40, 64), torch.ones(40))
    for wrong in (torch.ones(39), torch.ones(41), torch.ones(40, 1)):
        with pytest.raises(ValueError, match=r"scale of the weight of a CPU kernel: expected float32 \[40\]"):
            product(torch.ones(40, 64, dtype=torch.int8), wrong)
    rows = torch.ones(4, 64).bfloat16()
    with pytest.raises(ValueError, match=r"x of a CPU kernel: expected bfloat16 \[4, 64\]"):
        normalise_tokens(product.unit, rows.float(), 1.0, 1e-6, None, None)
    for name in ("weight", "bias"):
        given = {"weight": None, "bias": None, name: torch.ones(63)}
        with pytest.raises(ValueError, match=rf"{name} of a CPU kernel: expected float32 \[64\]"):
            normalise_tokens(product.unit, rows, 1.0, 1e-6, **given)


def test_attention_refuses_keys_that_are_not_as_many_as_its_queries(product):
    query = torch.ones(1, 8, 32).bfloat16()
    if not library.kernels(product.unit).has_attention():
        pytest.skip("PyTorch computes attention here, and checks it")
    for short in ({"key": query[:, :7]}, {"value": query[:, :7]}, {"key_bias": torch.ones(1, 7)}):
        given = {"key": query, "value": query} | short
        (name,) = short
        with pytest.raises(ValueError, match=rf"{name} of a CPU kernel: expected \w+ \[1, 8"):
            attention(product.unit, query, given["key"], given["value"], 2, key_bias=given.get("key_bias"))
