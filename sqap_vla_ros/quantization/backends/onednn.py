"""Backend `onednn` for CPUs with VNNI or AMX units: oneDNN's int8 matrix product, weights expanded to a byte each."""

from __future__ import annotations

import torch

from sqap_vla_ros.quantization.backends.product import SeparateProducts, split_rows


class OneDnnProduct(SeparateProducts):
    """Multiply with oneDNN; the weights are expanded to int8 once, in the kernel's own layout.

    VNNI multiplies unsigned by signed bytes. Without AMX, oneDNN would take signed activations through a plain loop, so
    they are shifted by 128 there, and oneDNN subtracts the shift from the accumulators.

    weight: int8 [N, K]; scale: [N]. A row takes eight bits whatever its width.
    """

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, row_bits: torch.Tensor | None = None) -> None:
        self.packed = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
        self.scale = scale.float().contiguous()
        self.zero = torch.zeros(scale.shape, dtype=torch.int32)
        self.shift = 0 if torch.cpu._is_amx_tile_supported() else 128

    def _product(self, values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if self.shift:
            values = (values ^ -128).view(torch.uint8)  # values + 128
        return torch.ops.onednn.qlinear_pointwise(
            values, 1.0, self.shift, self.packed, scale, self.zero, None, 1.0, 0, dtype, "none", [], ""
        )

    def accumulate(self, values: torch.Tensor) -> torch.Tensor:
        """Return the float32 accumulators [M, N] of int8 activations [M, K], exact while they are below 2^24."""
        return self._product(values, torch.ones_like(self.scale), torch.float32)

    def unscaled(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        parts = [self._product(values[rows], self.scale, dtype) for rows in split_rows(values.shape[0])]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __call__(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        parts = split_rows(values.shape[0])
        if len(parts) == 1:
            return self._product(values, self.scale, scale.dtype).mul_(scale)
        result = torch.empty(values.shape[0], self.scale.shape[0], dtype=scale.dtype)
        for rows in parts:
            torch.mul(self._product(values[rows], self.scale, scale.dtype), scale[rows], out=result[rows])
        return result


def unsupported(device: torch.device) -> str:
    """Return why oneDNN's int8 kernels are absent or inexact for weights on `device`; empty when they are fine."""
    if device.type != "cpu":
        return f"it runs on the CPU, and the weights are on {device}"
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch was built without oneDNN"
    if not torch.cpu._is_vnni_supported():
        return "the CPU has neither AVX512-VNNI nor AMX, without which int8 products may saturate"
    return ""
