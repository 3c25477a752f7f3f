"""The integer product of backend `amx`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sqap_vla_ros.quantization.backends.amx.library import address, kernels
from sqap_vla_ros.quantization.backends.compiled import gated
from sqap_vla_ros.quantization.backends.product import IntegerProduct, rows_by_width

CHANNELS_OF_A_PANEL = 32
BYTES_OF_A_UNIT = 512  # of a panel's two-bit weights in a tile of depth, which is 64 inputs
INPUTS_OF_A_TILE = 64
MOST_INPUTS = 2**31 // (127 * 128)  # more could overflow an accumulator: |activation| <= 127, |weight| <= 128


class AmxProduct:
    """Multiply with AMX tiles; weights stay packed in 2, 4 or 8 bits.

    weight: int8 [N, K]. scale: [N]. row_bits: [N] width of each row; None for one width, four bits where all fit.
    """

    rows_per_call = 1 << 20  # the kernel splits the work itself

    def __init__(self, weight: Tensor, scale: Tensor, row_bits: Tensor | None = None) -> None:
        self.outputs, self.inputs = weight.shape
        if self.inputs > MOST_INPUTS:
            raise ValueError(f"{self.inputs} input channels could overflow 32 bits; at most {MOST_INPUTS} are possible")
        low, high = torch.aminmax(weight)
        if row_bits is None:
            groups = {4 if low >= -8 and high <= 7 else 8: torch.arange(self.outputs)}
        else:
            groups = rows_by_width(row_bits)
        # every panel has one width; what is missing in the last one of a width is -1
        channels, units = [], [0]
        for bits, rows in groups.items():
            channels.append(torch.nn.functional.pad(rows, (0, -len(rows) % CHANNELS_OF_A_PANEL), value=-1))
            units += [bits // 2] * (len(channels[-1]) // CHANNELS_OF_A_PANEL)
        self.channels, self.starts = torch.cat(channels).int(), torch.tensor(units).cumsum(0)
        self.panels = len(self.starts) - 1
        depth = -(-self.inputs // INPUTS_OF_A_TILE)
        self.packed = torch.empty(int(self.starts[-1]) * depth * BYTES_OF_A_UNIT, dtype=torch.uint8)
        weight = weight.contiguous()
        places = [address(tensor) for tensor in (weight, self.packed, self.starts, self.channels)]
        kernels().pack_weight(*places, ctypes.c_int64(self.panels), ctypes.c_int64(self.inputs))
        self.scale = torch.where(self.channels < 0, 0.0, scale.float()[self.channels.clamp_min(0)])
        self.in_order = row_bits is None

    def __call__(self, values: Tensor, scale: Tensor) -> Tensor:
        return self._run("product", values, scale, self._weights)

    def gated(self, up: IntegerProduct, values: Tensor, scale: Tensor) -> Tensor:
        """See `IntegerProduct.gated`."""
        assert isinstance(up, AmxProduct)
        if torch.equal(self.channels, up.channels):
            return self._run("gated", values, scale, self._weights + up._weights)
        one = torch.ones_like(scale)
        return gated(self(values, one), up(values, one), scale)

    @property
    def _weights(self) -> list[object]:
        return [address(tensor) for tensor in (self.packed, self.starts, self.scale)]

    def _run(self, kernel: str, values: Tensor, scale: Tensor, weights: list[object]) -> Tensor:
        if values.shape[-1] != self.inputs or values.dtype != torch.int8:
            raise ValueError(f"expected int8 [M, {self.inputs}], got {values.dtype} {tuple(values.shape)}")
        if scale.dtype not in (torch.bfloat16, torch.float32):
            raise ValueError(f"backend amx computes in bfloat16 and float32, not in {scale.dtype}")
        values, scale = values.contiguous(), scale.contiguous()
        make = torch.empty if self.in_order else torch.zeros  # rows of no width are not written
        result = make(len(values), self.outputs, dtype=scale.dtype)
        sizes = map(ctypes.c_int64, (len(values), self.outputs, self.inputs, self.panels))
        columns = None if self.in_order else address(self.channels)
        run = getattr(kernels(), f"{kernel}_{str(scale.dtype).removeprefix('torch.')}")
        run(address(values), *weights, columns, address(scale), address(result), *sizes)
        return result
