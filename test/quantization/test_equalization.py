import pytest
import torch
from torch import nn

from sqap_vla_ros.quantization.equalization import (
    awq_clipped_weight,
    awq_scale,
    clipped_grid,
    move_scale,
    smoothing_scale,
)
from sqap_vla_ros.quantization.gptq import quantization_objective
from sqap_vla_ros.quantization.quantizers import quantize_activation, quantize_weight


class Block(nn.Module):
    """Norm, two linears that share its output, and one after them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.RMSNorm(32)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        self.first, self.second = nn.Linear(32, 64, bias=False), nn.Linear(32, 64)
        self.last = nn.Linear(64, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return self.last(self.first(y) * self.second(y))


@pytest.fixture
def block():
    return Block().requires_grad_(False).double()


def inputs() -> torch.Tensor:
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(1)).double()
    x[:, 3] *= 30
    return x


def test_smoothquant_and_awq_moves_preserve_the_function(block):
    x, expected = inputs(), block(inputs())
    scale = torch.rand(32) + 0.1
    move_scale(scale, block.norm, [block.first, block.second])
    torch.testing.assert_close(block(x), expected)
    move_scale(torch.rand(64) + 0.1, block.second, [block.last])  # second's rows and bias, last's columns
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.85, 1.0])
def test_smoothing_scale_by_hand(alpha):
    linears = [nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)]
    linears[0].weight.data = torch.tensor([[0.5, -4.0]])
    linears[1].weight.data = torch.tensor([[-2.0, 1.0]])
    scale = smoothing_scale(torch.tensor([8.0, 0.25]), linears, alpha)
    expected = torch.tensor([8.0**alpha / 2.0 ** (1 - alpha), 0.25**alpha / 4.0 ** (1 - alpha)])
    torch.testing.assert_close(scale, expected)


def test_smoothing_helps_a_layer_with_an_outlier_channel(block):
    block.float()
    y = block.norm(inputs().float())
    scale = smoothing_scale(y.abs().amax(0), [block.first, block.second], 0.5)

    def error(activations: torch.Tensor, weight: torch.Tensor) -> float:
        values, steps = quantize_activation(activations, 4)
        output = (values * steps) @ quantize_weight(weight, 8).dequantize().t()
        return float((output - y @ block.first.weight.t()).norm())

    assert error(y / scale, block.first.weight * scale) < 0.75 * error(y, block.first.weight)


def test_awq_finds_a_scale_that_helps_and_leaves_the_weights_alone(block):
    block.float()
    x = inputs().float()
    y = block.norm(x)
    before = block.first.weight.clone()
    linears = [block.first, block.second]
    scale = awq_scale(y.abs().mean(0), linears, lambda: block(x), 3 + 1)
    assert torch.equal(block.first.weight, before)
    assert scale[3] > scale.median()  # the loud channel gets the finer grid

    def error(s: torch.Tensor) -> float:
        restored = quantize_weight(before * s, 4, symmetric=False).dequantize() / s
        return float((y @ (restored - before).t()).norm())

    assert error(scale) < error(torch.ones(32))


@pytest.mark.parametrize("group", [0, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_awq_clipping_never_errs_more_than_the_full_range(group, symmetric):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 32, generator=generator)
    weight[:, 0] *= 8
    x = torch.randn(100, 32, generator=generator)
    size = group or 32
    hessian = torch.block_diag(*[(x.t() @ x)[i : i + size, i : i + size] for i in range(0, 32, size)])
    plain = quantize_weight(weight, 4, group=group, symmetric=symmetric)
    clipped = awq_clipped_weight(weight, hessian, 4, group=group, symmetric=symmetric)
    errors = [quantization_objective(weight, q.dequantize(), hessian) for q in (clipped, plain)]
    assert (errors[0] <= errors[1] * (1 + 1e-4)).all()
    assert errors[0].sum() < errors[1].sum()


def test_clipped_grid_shrinks_each_row_by_its_own_factor():
    weight = torch.tensor([[7.0, 1.0], [7.0, 1.0]])
    quantized = clipped_grid(weight, torch.tensor([1.0, 0.5]), 4)
    torch.testing.assert_close(quantized.scale, torch.tensor([[1.0], [0.5]]))
    assert quantized.values.tolist() == [[7, 1], [7, 2]]
