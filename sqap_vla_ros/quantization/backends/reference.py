"""Backend `reference`: the definition of the product, in plain PyTorch on any device."""

from __future__ import annotations

import torch

from sqap_vla_ros.quantization.backends.product import SeparateProducts


class ReferenceProduct(SeparateProducts):
    """Multiply integers in the floating-point type that holds every accumulator exactly.

    PyTorch has integer matrix products on CPUs only, and slow ones. weight: int8 [N, K]; scale: [N]. What width a row
    has changes nothing here.
    """

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, row_bits: torch.Tensor | None = None) -> None:
        self.weight, self.scale = weight, scale
        largest = 128 * weight.shape[1] * weight.float().abs().max().item()
        self.exact = torch.float32 if largest <= 2**24 else torch.float64

    def accumulate(self, values: torch.Tensor) -> torch.Tensor:
        """Return the exact int32 accumulators [M, N] of int8 activations [M, K]."""
        return (values.to(self.exact) @ self.weight.to(self.exact).t()).to(torch.int32)

    def unscaled(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return (self.accumulate(values).float() * self.scale).to(dtype)

    def __call__(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.unscaled(values, scale.dtype).mul_(scale)


def unsupported(device: torch.device) -> str:
    """Return the empty string: this backend runs on every device."""
    return ""
