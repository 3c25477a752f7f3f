"""Packed integers: two int4 or four int2 values to a byte; int3 values take the room of int4.

Value j of a row sits in byte j // n at bit (j % n) * bits, in two's complement, n = 8 // bits values to a byte. Rows
are padded with zeros to whole bytes. A mid-rise value 2 c + 1 is stored as c.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sqap_vla_ros.quantization.quantizers import QuantizedWeight


def packed_columns(columns: int, bits: int) -> int:
    """Return the bytes of a packed row."""
    return -(-columns * _room(bits) // 8)


def _room(bits: int) -> int:
    return 4 if bits == 3 else bits


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack int8 values [N, K] of 2, 3, 4 or 8 bits into uint8 [N, ceil(K * bits / 8)], 3 bits as 4."""
    if values.dtype != torch.int8 or values.dim() != 2:
        raise ValueError(f"values must be [N, K] int8, got {tuple(values.shape)} of {values.dtype}")
    if bits == 8:
        return values.contiguous().view(torch.uint8)
    half = 2 ** (bits - 1)
    if values.numel() and (values.min() < -half or values.max() >= half):
        raise ValueError(
            f"values {values.min().item()}..{values.max().item()} do not fit {bits} bits ({-half}..{half - 1})"
        )
    bits = _room(bits)
    per_byte = 8 // bits
    padding = -values.shape[1] % per_byte
    lanes = torch.nn.functional.pad(values, (0, padding)).view(torch.uint8)
    lanes = lanes.view(values.shape[0], lanes.shape[1] // per_byte, per_byte)
    packed = torch.zeros(lanes.shape[:2], dtype=torch.uint8, device=values.device)
    for lane in range(per_byte):
        packed |= (lanes[..., lane] & (2**bits - 1)) << (lane * bits)
    return packed


def unpack(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Undo `pack`: return int8 [N, columns]."""
    if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[1] != packed_columns(columns, bits):
        raise ValueError(
            f"packed weights must be [N, {packed_columns(columns, bits)}] uint8 for {columns} columns of {bits} bits, "
            f"got {tuple(packed.shape)} of {packed.dtype}"
        )
    if bits == 8:
        return packed.view(torch.int8)
    bits = _room(bits)
    per_byte = 8 // bits
    values = torch.empty((*packed.shape, per_byte), dtype=torch.int8, device=packed.device)
    for lane in range(per_byte):
        # to the top of the byte, then an arithmetic shift back down extends the sign
        top = packed << (8 - bits - lane * bits)
        values[..., lane] = top.view(torch.int8) >> (8 - bits)
    return values.flatten(1)[:, :columns].contiguous()


@dataclass(frozen=True)
class PackedWeight:
    """A `QuantizedWeight` as it is stored.

    packed: [N, ceil(K * bits / 8)] uint8.
    scale, zero_point: [N, G] float32; zero_point is None when symmetric.
    columns: K.
    """

    packed: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None
    bits: int
    columns: int

    @classmethod
    def of(cls, weight: QuantizedWeight) -> PackedWeight:
        """Pack a quantised weight."""
        return cls(
            pack(weight.values, weight.bits), weight.scale, weight.zero_point, weight.bits, weight.values.shape[1]
        )

    def unpack(self) -> QuantizedWeight:
        """Undo `of`."""
        return QuantizedWeight(unpack(self.packed, self.bits, self.columns), self.scale, self.zero_point, self.bits)
