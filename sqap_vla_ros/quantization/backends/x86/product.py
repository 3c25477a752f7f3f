"""The integer product of the backends `amx` and `vnni`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sqap_vla_ros.quantization.backends.compiled import gated
from sqap_vla_ros.quantization.backends.product import IntegerProduct, rows_by_width
from sqap_vla_ros.quantization.backends.x86.library import AMX, VNNI, Unit, address, kernels

CHANNELS_OF_A_PANEL = 32
BYTES_OF_A_UNIT = 512  # of a panel's two-bit weights in a tile of depth, which is 64 inputs
INPUTS_OF_A_TILE = 64
MOST_INPUTS = 2**31 // (127 * 128)  # more could overflow an accumulator: |activation| <= 127, |weight| <= 128

Gelu = Literal["none", "tanh"]  # as `torch.nn.functional.gelu` names its approximations
GELUS: tuple[Gelu, ...] = ("none", "tanh")


class _Weights(ctypes.Structure):
    """`Weights` of kernels.cpp."""

    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("packed", "starts", "first", "scale", "columns")),
        *((name, ctypes.c_int64) for name in ("outputs", "inputs", "panels")),
    ]


class TileProduct:
    """Multiply tiles with a unit of the processor; weights stay packed in 2, 4 or 8 bits. A base: one class a unit.

    weight: int8 [N, K]. scale: [N]. row_bits: [N] width of each row; None for one width, four bits where all fit.
    """

    rows_per_call = 1 << 20  # the kernel splits the work itself
    unit: ClassVar[Unit]

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
        panels = len(self.starts) - 1
        depth = -(-self.inputs // INPUTS_OF_A_TILE)
        self.packed = torch.empty(int(self.starts[-1]) * depth * BYTES_OF_A_UNIT, dtype=torch.uint8)
        self.first = torch.zeros(len(self.channels), dtype=torch.int32)
        weight = weight.contiguous()
        places = [address(tensor) for tensor in (weight, self.packed, self.starts, self.channels, self.first)]
        kernels(self.unit).pack_weight(*places, ctypes.c_int64(panels), ctypes.c_int64(self.inputs))
        self.scale = torch.where(self.channels < 0, 0.0, scale.float()[self.channels.clamp_min(0)])
        self.in_order = row_bits is None
        self._held = (self.packed, self.starts, self.first, self.scale)
        self._weights = _Weights(
            *(tensor.data_ptr() for tensor in self._held),
            None if self.in_order else self.channels.data_ptr(),
            self.outputs,
            self.inputs,
            panels,
        )

    def __deepcopy__(self, memo: dict[int, object]) -> TileProduct:
        return self  # nothing in it changes, and its addresses are those of its own tensors

    def __call__(self, values: Tensor, scale: Tensor) -> Tensor:
        return self._run("product", values, scale, self._weights)

    def gated(self, up: IntegerProduct, values: Tensor, scale: Tensor) -> Tensor:
        """See `IntegerProduct.gated`."""
        assert isinstance(up, TileProduct)
        if torch.equal(self.channels, up.channels):
            return self._run("gated", values, scale, self._weights, up._weights)
        one = torch.ones_like(scale)
        return gated(self(values, one), up(values, one), scale)

    def finished(
        self,
        values: Tensor,
        scale: Tensor,
        *,
        bias: Tensor | None = None,
        gelu: Gelu | None = None,
        factor: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Return residual + factor * gelu(product + bias) in one pass, [M, N] bfloat16; what is None is left out.

        scale: bfloat16. bias, factor: [N] bfloat16. residual: [M, N] bfloat16. Each step is rounded, as it is in
        separate operations.
        """
        following = [None if tensor is None else tensor.contiguous() for tensor in (bias, factor, residual)]
        if any(tensor is not None and tensor.dtype != torch.bfloat16 for tensor in (scale, *following)):
            raise ValueError("what follows a product is computed in bfloat16")
        places = [None if tensor is None else address(tensor) for tensor in following]
        steps = [*places, ctypes.c_int64(0 if gelu is None else GELUS.index(gelu) + 1)]
        return self._run("finished", values, scale, self._weights, steps=steps)

    def _run(
        self, kernel: str, values: Tensor, scale: Tensor, *weights: _Weights, steps: Sequence[object] = ()
    ) -> Tensor:
        if values.shape[-1] != self.inputs or values.dtype != torch.int8:
            raise ValueError(f"expected int8 [M, {self.inputs}], got {values.dtype} {tuple(values.shape)}")
        if scale.dtype not in (torch.bfloat16, torch.float32):
            raise ValueError(f"backend {self.unit.name} computes in bfloat16 and float32, not in {scale.dtype}")
        values, scale = values.contiguous(), scale.contiguous()
        make = torch.empty if self.in_order else torch.zeros  # rows of no width are not written
        result = make(len(values), self.outputs, dtype=scale.dtype)
        run = getattr(kernels(self.unit), f"{kernel}_{str(scale.dtype).removeprefix('torch.')}")
        run(*map(ctypes.byref, weights), *steps, *map(address, (values, scale, result)), ctypes.c_int64(len(values)))
        return result


class AmxProduct(TileProduct):
    """Backend `amx`."""

    unit = AMX


class VnniProduct(TileProduct):
    """Backend `vnni`."""

    unit = VNNI
