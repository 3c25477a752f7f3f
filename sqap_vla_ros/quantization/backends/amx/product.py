"""The integer product of backend `amx`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sqap_vla_ros.quantization.backends.amx.library import address, kernels
from sqap_vla_ros.quantization.backends.product import IntegerProduct

CHANNELS_OF_A_PANEL = 32
MOST_INPUTS = 2**31 // (127 * 128)  # more could overflow an accumulator: |activation| <= 127, |weight| <= 128


class AmxProduct:
    """Multiply with AMX tiles; weights take half a byte where they fit four bits. weight: int8 [N, K]; scale: [N]."""

    rows_per_call = 1 << 20  # the kernel splits the work itself

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        self.outputs, self.inputs = weight.shape
        if self.inputs > MOST_INPUTS:
            raise ValueError(f"{self.inputs} input channels could overflow 32 bits; at most {MOST_INPUTS} are possible")
        low, high = torch.aminmax(weight)
        self.four_bits = bool(low >= -8 and high <= 7)
        sizes = [ctypes.c_int64(size) for size in weight.shape]
        weight, library = weight.contiguous(), kernels()
        self.packed = torch.empty(library.packed_bytes(*sizes, self.four_bits), dtype=torch.uint8)
        library.pack_weight(address(weight), address(self.packed), *sizes, self.four_bits)
        missing = -self.outputs % CHANNELS_OF_A_PANEL
        self.scale = torch.nn.functional.pad(scale.float(), (0, missing)).contiguous()

    def __call__(self, values: Tensor, scale: Tensor) -> Tensor:
        return self._run("product", values, scale, self._weights)

    def gated(self, up: IntegerProduct, values: Tensor, scale: Tensor) -> Tensor:
        """See `IntegerProduct.gated`."""
        assert isinstance(up, AmxProduct)
        return self._run("gated", values, scale, self._weights + up._weights)

    @property
    def _weights(self) -> list[object]:
        return [address(self.packed), self.four_bits, address(self.scale)]

    def _run(self, kernel: str, values: Tensor, scale: Tensor, weights: list[object]) -> Tensor:
        if values.shape[-1] != self.inputs or values.dtype != torch.int8:
            raise ValueError(f"expected int8 [M, {self.inputs}], got {values.dtype} {tuple(values.shape)}")
        if scale.dtype not in (torch.bfloat16, torch.float32):
            raise ValueError(f"backend amx computes in bfloat16 and float32, not in {scale.dtype}")
        values, scale = values.contiguous(), scale.contiguous()
        result = torch.empty(len(values), self.outputs, dtype=scale.dtype)
        sizes = map(ctypes.c_int64, (len(values), self.outputs, self.inputs))
        run = getattr(kernels(), f"{kernel}_{str(scale.dtype).removeprefix('torch.')}")
        run(address(values), *weights, address(scale), address(result), *sizes)
        return result
