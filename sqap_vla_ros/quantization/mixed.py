"""Weight matrices whose rows have widths of their own, and the linears that multiply with them.

A row (output channel) is stored in 0, 2, 4, 8 or 16 bits: a 0-bit row is zero, two bits are the mid-rise levels
-3 -1 1 3, four and eight are symmetric integers, and 16 is bfloat16. The rows of a width lie together, truly packed.
All rows up to eight bits are one integer product on every backend, as 2- and 4-bit integers are int8 ones as well.

QVLA (Xu et al., "Not All Channels Are Equal in Vision-Language-Action Model's Quantization") chooses the widths by how
much the action depends on a row. This module only rounds, stores and multiplies, whatever chose them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from sqap_vla_ros.quantization.backends.product import IntegerProduct
from sqap_vla_ros.quantization.backends.table import Backend
from sqap_vla_ros.quantization.backends.wide_rows import WideRowsProduct
from sqap_vla_ros.quantization.gptq import gptq, inverse_factor
from sqap_vla_ros.quantization.linear import ActivationQuantizer, IntegerLinear
from sqap_vla_ros.quantization.packing import pack, packed_columns, unpack
from sqap_vla_ros.quantization.quantizers import QuantizedWeight, quantize_weight, split_activation
from sqap_vla_ros.quantization.rotations import OrthogonalMix

WIDTHS = (0, 2, 4, 8, 16)
INTEGER_WIDTHS = (2, 4, 8)


@dataclass(frozen=True)
class MixedWeight:
    """A weight matrix [N, K] with a width for every row: w = values * scale, or a row of `wide`.

    values: [N, K] int8; zero in rows of 0 and 16 bits.
    scale: [N, 1] float32.
    bits: [N] uint8, each one of `WIDTHS`.
    wide: [W, K] bfloat16, the 16-bit rows in their order.
    """

    values: torch.Tensor
    scale: torch.Tensor
    bits: torch.Tensor
    wide: torch.Tensor

    def dequantize(self) -> torch.Tensor:
        """Return the weights the rows stand for, [N, K] float32."""
        result = self.values.float() * self.scale
        result[self.bits == 16] = self.wide.float()
        return result


def quantize_mixed(
    weight: torch.Tensor,
    bits: torch.Tensor,
    *,
    hessian: torch.Tensor | None = None,
    factor: torch.Tensor | None = None,
    clip_search: bool = True,
) -> MixedWeight:
    """Round every row of a weight [N, K] at its own width.

    bits: [N], each one of `WIDTHS`.
    hessian: [K, K] second moment of the inputs for GPTQ, rows being independent of each other; None rounds to nearest.
    factor: `gptq.inverse_factor(hessian)` where the matrix is rounded several times.
    clip_search: shrink each row's range to the least error, see `quantizers.weight_grid`.
    """
    rows, columns = weight.shape
    bits = _checked(bits, rows)
    if hessian is not None and factor is None:
        factor = inverse_factor(hessian)
    values = torch.zeros(rows, columns, dtype=torch.int8, device=weight.device)
    scale = torch.zeros(rows, 1, device=weight.device)
    for width in INTEGER_WIDTHS:
        chosen = bits == width
        if not chosen.any():
            continue
        found: QuantizedWeight
        if hessian is None:
            found = quantize_weight(weight[chosen], width, mid_rise=width == 2, clip_search=clip_search)
        else:
            found = gptq(weight[chosen], hessian, width, mid_rise=width == 2, clip_search=clip_search, factor=factor)
        values[chosen], scale[chosen] = found.values, found.scale
    scale[~weight.any(1)] = 0.0  # the levels of two bits have no zero among them
    return MixedWeight(values, scale, bits, weight[bits == 16].bfloat16())


def _checked(bits: torch.Tensor, rows: int) -> torch.Tensor:
    unknown = sorted({*bits.tolist()} - {*WIDTHS})
    if bits.shape != (rows,) or unknown:
        widths = ", ".join(map(str, WIDTHS))
        raise ValueError(f"each of the {rows} rows needs a width of {widths}; got {tuple(bits.shape)} with {unknown}")
    return bits.to(torch.uint8)


@dataclass(frozen=True)
class PackedMixedWeight:
    """A `MixedWeight` as it is stored.

    packed: [B] uint8, the rows of 2 bits, then those of 4, then those of 8, each group in the matrix's order.
    scale: [N, 1] float32. bits: [N] uint8. wide: [W, K] bfloat16. columns: K.
    """

    packed: torch.Tensor
    scale: torch.Tensor
    bits: torch.Tensor
    wide: torch.Tensor
    columns: int

    @classmethod
    def empty(cls, bits: torch.Tensor, columns: int, device: str | torch.device = "meta") -> PackedMixedWeight:
        """Make room for a matrix whose rows have these widths [N], without values."""
        counts = {width: int((bits == width).sum()) for width in WIDTHS}
        size = sum(counts[width] * packed_columns(columns, width) for width in INTEGER_WIDTHS)
        return cls(
            torch.empty(size, dtype=torch.uint8, device=device),
            torch.empty(len(bits), 1, device=device),
            _checked(bits, len(bits)).to(device),
            torch.empty(counts[16], columns, dtype=torch.bfloat16, device=device),
            columns,
        )

    @classmethod
    def with_counts(cls, counts: Mapping[int, int], columns: int) -> PackedMixedWeight:
        """Make room on the meta device for rows of which only the number of each width is known."""
        widths = [torch.full((count,), bits, dtype=torch.uint8) for bits, count in counts.items()]
        return cls.empty(torch.cat(widths), columns)

    @classmethod
    def of(cls, weight: MixedWeight) -> PackedMixedWeight:
        """Pack a matrix of mixed widths."""
        groups = []
        for width in INTEGER_WIDTHS:
            values = weight.values[weight.bits == width]
            groups.append(pack((values - 1) >> 1 if width == 2 else values, width).flatten())
        return cls(torch.cat(groups), weight.scale, weight.bits, weight.wide, weight.values.shape[1])

    def unpack(self) -> MixedWeight:
        """Undo `of`."""
        values = torch.zeros(len(self.bits), self.columns, dtype=torch.int8, device=self.packed.device)
        start = 0
        for width in INTEGER_WIDTHS:
            chosen = self.bits == width
            size = packed_columns(self.columns, width)
            count = int(chosen.sum())
            group = self.packed[start : start + count * size].view(count, size)
            start += count * size
            found = unpack(group, width, self.columns)
            values[chosen] = found * 2 + 1 if width == 2 else found
        return MixedWeight(values, self.scale, self.bits, self.wide)


class MixedRowsLinear(IntegerLinear):
    """Base class of linears with mixed widths: the packed rows, and how a state dict describes them.

    A state dict holds `weight`, `weight_scale`, `row_bits`, and `wide_rows` where there are 16-bit rows.
    """

    def __init__(self, weight: PackedMixedWeight, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.in_features, self.out_features = weight.columns, len(weight.bits)
        self.weight_scale: torch.Tensor
        self.row_bits: torch.Tensor
        self.wide_rows: torch.Tensor | None
        self.register_buffer("weight", weight.packed)
        self.register_buffer("weight_scale", weight.scale)
        self.register_buffer("row_bits", weight.bits)
        self.register_buffer("wide_rows", weight.wide if len(weight.wide) else None)
        self.register_buffer("bias", None if bias is None else bias.detach())

    @property
    def stored_bytes(self) -> int:
        """Return the bytes that weights, scales and widths take as packed."""
        sizes = {width: packed_columns(self.in_features, width) for width in INTEGER_WIDTHS}
        sizes |= {0: 0, 16: 2 * self.in_features}
        return sum(sizes[width] for width in self.row_bits.tolist()) + 5 * self.out_features

    def mixed_weight(self) -> MixedWeight:
        """Return the weights on their grids. Raises RuntimeError when the packed copy is no longer held."""
        packed, wide = self.held_weight(), self.wide_rows
        if wide is None:
            wide = torch.empty(0, self.in_features, dtype=torch.bfloat16, device=packed.device)
        return PackedMixedWeight(packed, self.weight_scale, self.row_bits, wide, self.in_features).unpack()

    def make_product(self, backend: Backend) -> IntegerProduct:
        """Prepare the product from the packed weights."""
        weight = self.mixed_weight()
        product = backend.make(weight.values, weight.scale[:, 0], self.row_bits)
        if self.wide_rows is None:
            return product
        return WideRowsProduct(product, self.wide_rows, torch.nonzero(self.row_bits == 16)[:, 0])

    def extra_repr(self) -> str:
        if self.row_bits.is_meta:
            return f"in_features={self.in_features}, out_features={self.out_features}"
        bits = self.row_bits.float().mean().item()
        return f"in_features={self.in_features}, out_features={self.out_features}, mean_bits={bits:.2f}"


class MixedLinear(MixedRowsLinear):
    """A linear of mixed-width rows and integer activations: y = (Q(x R) @ W_int^T) * s_w * s_x + b."""

    activation: ActivationQuantizer

    def __init__(
        self, weight: PackedMixedWeight, activation: ActivationQuantizer, bias: torch.Tensor | None = None
    ) -> None:
        super().__init__(weight, bias)
        self.activation = activation


class MixedWeightOnlyLinear(MixedRowsLinear):
    """A linear of mixed-width rows whose activations keep 16 bits.

    The weights are never dequantised: a token's activations are 16-bit integers of two int8 digits each, which go
    through the integer product as two rows.
    """

    def __init__(
        self, weight: PackedMixedWeight, bias: torch.Tensor | None = None, rotation: OrthogonalMix | None = None
    ) -> None:
        super().__init__(weight, bias)
        self.rotation = rotation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., K] to [..., N] in x's dtype."""
        rotated = x if self.rotation is None else self.rotation(x)
        high, low = self.product(*split_activation(rotated.reshape(-1, self.in_features))).chunk(2)
        y = high + low
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)
