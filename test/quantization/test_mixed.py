import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sqap_vla_ros.quantization.backends.table import BACKENDS
from sqap_vla_ros.quantization.gptq import Hessian, quantization_objective
from sqap_vla_ros.quantization.layer_fusion import IntegerMlp
from sqap_vla_ros.quantization.linear import ActivationQuantizer, use_backend
from sqap_vla_ros.quantization.mixed import (
    WIDTHS,
    MixedLinear,
    MixedWeight,
    MixedWeightOnlyLinear,
    PackedMixedWeight,
    quantize_mixed,
)
from sqap_vla_ros.quantization.quantizers import quantize_activation, quantize_weight, split_activation
from sqap_vla_ros.quantization.rotations import OrthogonalMix

HERE = [backend.name for backend in BACKENDS if not backend.unsupported(torch.device("cpu"))]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_bits(rows: int, widths: tuple[int, ...] = WIDTHS, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(widths)[torch.randint(0, len(widths), (rows,), generator=generator)]


def mixed(rows: int, columns: int, widths: tuple[int, ...] = WIDTHS, seed: int = 0) -> MixedWeight:
    return quantize_mixed(random(rows, columns, seed=seed), some_bits(rows, widths, seed))


def test_every_row_is_the_row_of_its_width():
    weight, bits = random(40, 24, seed=1), some_bits(40)
    found = quantize_mixed(weight, bits).dequantize()
    for row, width in enumerate(bits.tolist()):
        one = weight[row : row + 1]
        if width in (0, 16):
            expected = one.bfloat16().float() * (width == 16)
        else:
            expected = quantize_weight(one, width, mid_rise=width == 2, clip_search=True).dequantize()
        torch.testing.assert_close(found[row : row + 1], expected)


def test_a_row_of_zeros_stays_zero_at_every_width():
    """The levels of two bits have no zero among them."""
    weight = random(10, 8)
    weight[::2] = 0.0
    assert not quantize_mixed(weight, torch.tensor(WIDTHS).repeat(2)).dequantize()[::2].any()


def test_gptq_rows_err_less_on_the_inputs_than_rounded_ones():
    weight, bits, x = random(30, 20, seed=2), some_bits(30, (2, 4)), random(200, 20, seed=3) @ random(20, 20, seed=4)
    hessian = Hessian(20)
    hessian.add(x)
    errors = [
        quantization_objective(weight, quantize_mixed(weight, bits, hessian=h).dequantize(), hessian.matrix)
        for h in (hessian.matrix, None)
    ]
    for width in (2, 4):
        rows = bits == width
        assert errors[0][rows].sum() < 0.8 * errors[1][rows].sum()


@given(rows=st.integers(1, 20), columns=st.integers(1, 33), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_packing_is_undone_and_takes_the_bytes_it_says(rows, columns, seed):
    weight = mixed(rows, columns, seed=seed)
    packed = PackedMixedWeight.of(weight)
    assert packed.packed.numel() == sum(-(-columns * width // 8) for width in weight.bits.tolist() if width < 16)
    found = packed.unpack()
    assert torch.equal(found.values, weight.values)
    assert torch.equal(found.dequantize(), weight.dequantize())
    layer = MixedWeightOnlyLinear(packed)
    assert layer.stored_bytes == sum(tensor.nbytes for tensor in layer.state_dict().values())


def test_an_empty_matrix_has_the_shapes_of_a_full_one():
    full = PackedMixedWeight.of(mixed(23, 9))
    empty = PackedMixedWeight.empty(full.bits, 9)
    shapes = [{key: t.shape for key, t in MixedWeightOnlyLinear(w).state_dict().items()} for w in (full, empty)]
    assert shapes[0] == shapes[1]
    assert "in_features=9" in repr(MixedWeightOnlyLinear(empty))


def test_rows_lie_together_by_width():
    values = torch.tensor([[7, -7], [3, -1], [127, 1], [-3, 1]], dtype=torch.int8)
    weight = MixedWeight(values, torch.ones(4, 1), torch.tensor([4, 2, 8, 2], dtype=torch.uint8), torch.empty(0, 2))
    # -3 -1 1 3 are the two-bit numbers -2 -1 0 1
    assert PackedMixedWeight.of(weight).packed.tolist() == [0b11_01, 0b00_10, 0x97, 127, 1]


def test_unknown_widths_are_refused():
    with pytest.raises(ValueError, match=r"needs a width of 0, 2, 4, 8, 16; got \(2,\) with \[3\]"):
        quantize_mixed(torch.ones(2, 4), torch.tensor([3, 4]))
    with pytest.raises(ValueError, match=r"each of the 2 rows needs a width"):
        quantize_mixed(torch.ones(2, 4), torch.tensor([4]))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("activation_bits", [4, 8])
@pytest.mark.parametrize("widths", [(2, 4, 8), WIDTHS, (0,), (16,)], ids=str)
def test_a_linear_is_the_product_of_its_integers(backend, activation_bits, widths):
    weight = mixed(70, 96, widths)
    quantizer = ActivationQuantizer(activation_bits, clip=0.9, rotation=OrthogonalMix(96))
    layer = MixedLinear(PackedMixedWeight.of(weight), quantizer, random(70, seed=5))
    use_backend(layer, backend, fused=False)
    x = random(2, 11, 96, seed=6)
    values, scale = quantize_activation(OrthogonalMix(96)(x), activation_bits, clip=0.9)
    expected = (values.double() @ weight.dequantize().double().t()) * scale + layer.bias
    torch.testing.assert_close(layer(x), expected.float())
    integers = weight.values.long() @ values[0].long().t()
    assert torch.equal(layer.product(values[0], torch.ones(11, 1))[:, weight.bits < 16], rescaled(integers, weight))


def rescaled(integers: torch.Tensor, weight: MixedWeight) -> torch.Tensor:
    return (integers.t().float() * weight.scale[:, 0])[:, weight.bits < 16]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backends_agree_to_the_last_bit(dtype):
    weight = PackedMixedWeight.of(mixed(130, 200))
    x = random(1, 37, 200, seed=7).to(dtype)
    found = []
    for backend in HERE:
        layer = MixedLinear(weight, ActivationQuantizer(8))
        use_backend(layer, backend, fused=False)
        found.append(layer(x))
    for other in found[1:]:
        assert torch.equal(other, found[0])


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_only_is_a_linear_with_the_dequantised_weight(backend, dtype):
    weight = mixed(70, 96)
    layer = MixedWeightOnlyLinear(PackedMixedWeight.of(weight), random(70, seed=5), OrthogonalMix(96))
    use_backend(layer, backend)
    x = random(2, 11, 96, seed=6).to(dtype)
    expected = nn.functional.linear(OrthogonalMix(96)(x).double(), weight.dequantize().double(), layer.bias.double())
    bound = 2e-4 if dtype == torch.float32 else 4e-3  # 16-bit integers; a rounding of bfloat16
    assert (layer(x).double() - expected).norm() < bound * expected.norm()
    assert layer(x).dtype == dtype
    assert layer(x).shape == (2, 11, 70)


def test_weight_only_never_holds_the_dequantised_weight():
    layer = MixedWeightOnlyLinear(PackedMixedWeight.of(mixed(512, 512, (2, 4, 8))))
    use_backend(layer, HERE[0])
    if layer.weight is not None:
        pytest.skip("only the reference backend runs here, which unpacks on every call")
    x, largest = random(1, 3, 512), 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            nonlocal largest
            result = function(*arguments, **(keywords or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        layer(x)
    assert 0 < largest < 512 * 512


def test_two_digits_hold_sixteen_bits():
    x = random(5, 300, seed=1) * torch.logspace(-3, 3, 5)[:, None]
    x[0, 0], x[3] = -1.0, 0
    values, scale = split_activation(x)
    high, low = (values * scale).chunk(2)
    error = (high + low - x).abs().amax(1)
    assert (error <= 0.5001 * x.abs().amax(1) / 32384 + 1e-12).all()
    assert values.abs().max() == 127


def test_a_state_dict_brings_the_rows_back():
    layer = MixedLinear(PackedMixedWeight.of(mixed(20, 16)), ActivationQuantizer(8))
    assert {*layer.state_dict()} == {"weight", "weight_scale", "row_bits", "wide_rows"}
    twin = copy.deepcopy(layer)
    twin.weight.zero_()
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.mixed_weight().dequantize(), layer.mixed_weight().dequantize())
    layer.weight = None  # as backends with a copy of their own leave it
    with pytest.raises(RuntimeError, match="load the policy again"):
        layer.mixed_weight()


@pytest.mark.parametrize("wide", ["both", "gate", "up"])
@pytest.mark.parametrize("backend", HERE)
def test_gate_and_up_of_mixed_widths_in_one_mlp(backend, wide):
    shared = ActivationQuantizer(8, consumers=2)
    narrow = quantize_mixed(random(72, 48, seed=5), torch.tensor([2, 4, 8]).repeat(24))
    gate, up = (
        MixedLinear(PackedMixedWeight.of(mixed(72, 48, seed=1) if wide in ("both", name) else narrow), shared)
        for name in ("gate", "up")
    )
    down = MixedLinear(PackedMixedWeight.of(mixed(48, 72, seed=3)), ActivationQuantizer(8))
    x = random(1, 9, 48, seed=4)
    expected = down(nn.functional.silu(gate(x)) * up(x))
    mlp = IntegerMlp(gate, up, down)
    use_backend(mlp, backend, fused=False)
    assert (mlp(x) - expected).norm() < 0.01 * expected.norm()
