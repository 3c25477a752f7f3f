"""The integer product of the CPU's backends, one class for each unit of a processor."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sqap_vla_ros.quantization.backends.cpu.library import address, kernels, require
from sqap_vla_ros.quantization.backends.cpu.units import AMX, AVX2, AVX_VNNI, DOTPROD, I8MM, NEON, VNNI, Unit
from sqap_vla_ros.quantization.backends.product import IntegerProduct, gated_apart, rows_by_width

CHANNELS_OF_A_PANEL, CHANNELS_OF_A_STRIPE = 32, 256
BYTES_OF_A_UNIT = 512  # of a panel's two-bit weights in a tile of depth, which is 64 inputs
INPUTS_OF_A_TILE = 64
MOST_INPUTS = 2**31 // (127 * 128)  # more could overflow an accumulator: |activation| <= 127, |weight| <= 128

Gelu = Literal["none", "tanh"]  # as `torch.nn.functional.gelu` names its approximations
GELUS: tuple[Gelu, ...] = ("none", "tanh")


class _Weights(ctypes.Structure):
    """`Weights` of kernels.cpp."""

    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("packed", "starts", "first", "scale", "places", "stripes")),
        *((name, ctypes.c_int64) for name in ("outputs", "inputs", "panels")),
    ]


@dataclass(frozen=True)
class PanelLayout:
    """The order of a weight's rows in panels of one width each.

    channels: [panels * 32] int32, the row in every place, -1 for none. widths: bits of each panel.
    places, stripes: as `Weights` of kernels.cpp has them; None where rows are in order.
    """

    channels: Tensor
    widths: list[int]
    places: Tensor | None = None
    stripes: Tensor | None = None

    @classmethod
    def of_one_width(cls, outputs: int, bits: int) -> PanelLayout:
        channels = _whole_panels(torch.arange(outputs))
        return cls(channels.int(), [bits] * (len(channels) // CHANNELS_OF_A_PANEL))

    @classmethod
    def by_width(cls, row_bits: Tensor) -> PanelLayout:
        """Sort the rows of every stripe by width [N].

        What does not fill a panel joins the rows of the next width, whose integers hold its own: no panel but a
        stripe's last has empty places. Rows of 0 and 16 bits have no place.
        """
        channels, widths, stripes, places = [torch.empty(0, dtype=torch.int64)], [], [0], []
        for begin in range(0, len(row_bits), CHANNELS_OF_A_STRIPE):
            groups = rows_by_width(row_bits[begin : begin + CHANNELS_OF_A_STRIPE])
            carried = torch.empty(0, dtype=torch.int64)
            for bits, rows in groups.items():
                rows = torch.cat((carried, rows))
                whole = len(rows) - (0 if bits == max(groups) else len(rows) % CHANNELS_OF_A_PANEL)
                filled, carried = _whole_panels(rows[:whole]), rows[whole:]
                channels.append(torch.where(filled < 0, -1, filled + begin))
                widths += [bits] * (len(filled) // CHANNELS_OF_A_PANEL)
            sorted_rows = torch.cat(channels)[stripes[-1] * CHANNELS_OF_A_PANEL :]
            there = sorted_rows >= 0
            place = torch.full((CHANNELS_OF_A_STRIPE,), -1)
            place[sorted_rows[there] - begin] = torch.nonzero(there)[:, 0]
            places.append(place)
            stripes.append(len(widths))
        return cls(torch.cat(channels).int(), widths, torch.cat(places).short(), torch.tensor(stripes))


def _whole_panels(rows: Tensor) -> Tensor:
    return torch.nn.functional.pad(rows, (0, -len(rows) % CHANNELS_OF_A_PANEL), value=-1)


class TileProduct:
    """Multiply tiles with a unit of the processor; weights stay packed in 2, 4 or 8 bits. A base: one class a unit.

    weight: int8 [N, K]. scale: [N]. row_bits: [N] width of each row; None for one width, four bits where all fit.
    """

    rows_per_call = 1 << 20  # the kernel splits the work itself
    unit: ClassVar[Unit]

    def __init__(self, weight: Tensor, scale: Tensor, row_bits: Tensor | None = None) -> None:
        self.outputs, self.inputs = weight.shape
        require("weight", weight, (self.outputs, self.inputs), torch.int8)
        require("scale of the weight", scale, (self.outputs,), scale.dtype)
        if self.inputs > MOST_INPUTS:
            raise ValueError(f"{self.inputs} input channels could overflow 32 bits; at most {MOST_INPUTS} are possible")
        low, high = torch.aminmax(weight)
        if row_bits is None:
            layout = PanelLayout.of_one_width(self.outputs, 4 if low >= -8 and high <= 7 else 8)
        else:
            layout = PanelLayout.by_width(row_bits)
        starts = torch.tensor([0, *(bits // 2 for bits in layout.widths)]).cumsum(0)
        depth = -(-self.inputs // INPUTS_OF_A_TILE)
        self.packed = torch.empty(int(starts[-1]) * depth * BYTES_OF_A_UNIT, dtype=torch.uint8)
        first = torch.zeros(len(layout.channels), dtype=torch.int32)
        weight, channels, panels = weight.contiguous(), layout.channels, len(layout.widths)
        tensors = [address(tensor) for tensor in (weight, self.packed, starts, channels, first)]
        kernels(self.unit).pack_weight(*tensors, ctypes.c_int64(panels), ctypes.c_int64(self.inputs))
        scales = torch.where(channels < 0, 0.0, scale.float()[channels.clamp_min(0)])
        self._held = (self.packed, starts, first, scales, layout.places, layout.stripes)
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in self._held]
        self._weights = _Weights(*addresses, self.outputs, self.inputs, panels)

    def __deepcopy__(self, memo: dict[int, object]) -> TileProduct:
        return self  # nothing in it changes, and its addresses are those of its own tensors

    def __call__(self, values: Tensor, scale: Tensor) -> Tensor:
        return self._run("product", values, scale, self._weights)

    def gated(self, up: IntegerProduct, values: Tensor, scale: Tensor) -> Tensor:
        """See `IntegerProduct.gated`."""
        if not isinstance(up, TileProduct):  # some of its rows are wide
            return gated_apart(self, up, values, scale)
        if (up.unit, up.outputs, up.inputs) != (self.unit, self.outputs, self.inputs):
            one, other = (f"{each.unit.name} [{each.outputs}, {each.inputs}]" for each in (self, up))
            raise ValueError(f"gate and up must be of one backend and one shape, got {one} and {other}")
        return self._run("gated", values, scale, self._weights, up._weights)

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
        row, whole = (self.outputs,), (len(values), self.outputs)
        for name, tensor, shape in zip(("bias", "factor", "residual"), following, (row, row, whole), strict=True):
            require(name, tensor, shape, torch.bfloat16)
        if gelu is not None and gelu not in GELUS:
            raise ValueError(f"gelu must be one of {', '.join(GELUS)} or None, got {gelu!r}")
        places = [None if tensor is None else address(tensor) for tensor in following]
        steps = [*places, ctypes.c_int64(0 if gelu is None else GELUS.index(gelu) + 1)]
        return self._run("finished", values, scale, self._weights, steps=steps)

    def _run(
        self, kernel: str, values: Tensor, scale: Tensor, *weights: _Weights, steps: Sequence[object] = ()
    ) -> Tensor:
        if values.ndim != 2 or values.shape[1] != self.inputs or values.dtype != torch.int8 or not values.is_cpu:
            raise ValueError(f"expected int8 [M, {self.inputs}], got {values.dtype} {tuple(values.shape)}")
        if scale.dtype not in (torch.bfloat16, torch.float32):
            raise ValueError(f"backend {self.unit.name} computes in bfloat16 and float32, not in {scale.dtype}")
        if scale.numel() != len(values) or not scale.is_cpu:
            raise ValueError(f"{len(values)} rows of activations need as many scales, got {tuple(scale.shape)}")
        values, scale = values.contiguous(), scale.contiguous()
        result = torch.empty(len(values), self.outputs, dtype=scale.dtype)
        run = getattr(kernels(self.unit), f"{kernel}_{str(scale.dtype).removeprefix('torch.')}")
        run(*map(ctypes.byref, weights), *steps, *map(address, (values, scale, result)), ctypes.c_int64(len(values)))
        return result


class AmxProduct(TileProduct):
    """Backend `amx`."""

    unit = AMX


class VnniProduct(TileProduct):
    """Backend `vnni`."""

    unit = VNNI


class AvxVnniProduct(TileProduct):
    """Backend `avx_vnni`."""

    unit = AVX_VNNI


class Avx2Product(TileProduct):
    """Backend `avx2`."""

    unit = AVX2


class I8mmProduct(TileProduct):
    """Backend `i8mm`."""

    unit = I8MM


class DotprodProduct(TileProduct):
    """Backend `dotprod`."""

    unit = DOTPROD


class NeonProduct(TileProduct):
    """Backend `neon`."""

    unit = NEON
