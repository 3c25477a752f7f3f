import pytest
import torch
from torch import nn

from sqap_vla_ros.quantization.reordered_weights import ReorderedLinear, reorder_weights

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="oneDNN has no bfloat16 here",
)


@pytest.mark.parametrize("shape", [(1, 520), (2, 3, 520), (300, 520)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_equal_to_the_last_bit(shape, bias):
    torch.manual_seed(0)
    linear = nn.Linear(520, 24, bias=bias).bfloat16().requires_grad_(False)
    x = torch.randn(*shape).bfloat16()
    expected = linear(x)
    model = nn.Sequential(linear)
    assert reorder_weights(model) == 1
    assert isinstance(model[0], ReorderedLinear)
    assert torch.equal(model(x), expected)


def test_only_wide_bfloat16_linears_are_replaced():
    model = nn.Sequential(nn.Linear(8, 8).bfloat16(), nn.Linear(600, 8), nn.Linear(600, 8).bfloat16())
    parameters, size = sum(p.numel() for p in model.parameters()), sum(p.nbytes for p in model.parameters())
    assert reorder_weights(model) == 1
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.nbytes for p in model.parameters()) == size
    assert reorder_weights(model) == 0
