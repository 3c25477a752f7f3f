"""bfloat16 linears whose weights lie in memory as oneDNN's kernels want them.

A plain weight is reordered inside every call, which costs as much as the product itself when there are few rows (the
action head's 34, ten times a prediction). The result is the same to the last bit.
"""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import Tensor, nn

REORDERED_FROM = 512  # input or output channels; below, the call itself costs more than reordering


class ReorderedLinear(nn.Module):
    """A linear x W^T + b with W [N, K] bfloat16 on a CPU, [..., K] -> [..., N].

    `weight` only tells shape and dtype (it is on the meta device), so such a model cannot be stored again.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(torch.empty_like(linear.weight, device="meta"), requires_grad=False)
        self.bias = linear.bias
        self._reordered = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._reordered, self.bias, "none", [], "")
        return y

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def give_back_freed_memory() -> None:
    """Return the holes in the C library's heap to the system: reordering weights leaves gigabytes of them."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(ctypes.c_size_t(0))


def reorder_weights(model: nn.Module) -> int:
    """Replace a model's wide bfloat16 linears on the CPU; return how many (none where oneDNN lacks bfloat16)."""
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return 0
    replaced = 0
    owners = [module for module in model.modules() if type(module) is not nn.Linear]  # a linear in it would live on
    for owner in owners:
        for name, child in list(owner.named_children()):
            if type(child) is not nn.Linear or max(child.weight.shape) < REORDERED_FROM:
                continue
            if child.weight.dtype == torch.bfloat16 and child.weight.device.type == "cpu":
                setattr(owner, name, ReorderedLinear(child))
                replaced += 1
                if replaced % 16 == 0:
                    give_back_freed_memory()
    return replaced
