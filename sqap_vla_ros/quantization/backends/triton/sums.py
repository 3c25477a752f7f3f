"""Sums of packed integer weights times int8 activations, the part that all Triton products share.

A row of b-bit weights is cut into 8 / b parts of equal length, and byte j holds place j of every part, the first part
lowest. Each part then meets a contiguous piece of the activations, which goes to the tensor cores as it was loaded.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

# PTX for four bytes in a register; for NVIDIA's GPUs only, the interpreter and others take the plain operations
LOW = tl.constexpr("shl.b32 $0, $1, 4; and.b32 $0, $0, 0xF0F0F0F0;")
HIGH = tl.constexpr("and.b32 $0, $1, 0xF0F0F0F0;")
QUARTERS = tuple(
    tl.constexpr(f"shl.b32 $0, $1, {shift}; and.b32 $0, $0, 0xC0C0C0C0; or.b32 $0, $0, 0x20202020;")
    for shift in (6, 4, 2, 0)
)
QUARTER_0, QUARTER_1, QUARTER_2, QUARTER_3 = QUARTERS


@triton.jit
def _nibbles(packed, ASSEMBLY: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the low and the high values of bytes that hold two each, times 16 in int8: a nibble atop its byte."""
    if ASSEMBLY:  # Triton itself would take the bytes apart: about five instructions for a value instead of 3 / 8
        low = tl.inline_asm_elementwise(LOW, "=r,r", [packed], dtype=tl.int8, is_pure=True, pack=4)
        high = tl.inline_asm_elementwise(HIGH, "=r,r", [packed], dtype=tl.int8, is_pure=True, pack=4)
    else:
        low, high = (packed << 4).to(tl.int8, bitcast=True), (packed & 0xF0).to(tl.int8, bitcast=True)
    return low, high


@triton.jit
def _quarter(packed, PART: tl.constexpr, ASSEMBLY: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return one of the four values 2 c + 1 in bytes of four c, times 32 in int8: c atop its byte, the next bit set."""
    if ASSEMBLY:
        if PART == 0:
            value = tl.inline_asm_elementwise(QUARTER_0, "=r,r", [packed], dtype=tl.int8, is_pure=True, pack=4)
        elif PART == 1:
            value = tl.inline_asm_elementwise(QUARTER_1, "=r,r", [packed], dtype=tl.int8, is_pure=True, pack=4)
        elif PART == 2:
            value = tl.inline_asm_elementwise(QUARTER_2, "=r,r", [packed], dtype=tl.int8, is_pure=True, pack=4)
        else:
            value = tl.inline_asm_elementwise(QUARTER_3, "=r,r", [packed], dtype=tl.int8, is_pure=True, pack=4)
    else:
        value = (((packed << (6 - 2 * PART)) & 0xC0) | 0x20).to(tl.int8, bitcast=True)
    return value


@triton.jit
def tile_sum(  # type: ignore[no-untyped-def]
    x_ptr,
    w_ptr,
    m,
    n,
    INPUTS: tl.constexpr,
    BITS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return sum_k w[n, k] x[m, k] as int32 [BLOCK_N, BLOCK_M], for rows m of x and n of w that all exist.

    The weights are the left factor, which Hopper's tensor cores take from registers: unpacked there, they never go
    back to shared memory. BITS: 2 (mid-rise), 4 or 8. BLOCK_K: bytes of a row at once; half of them at two bits, since
    a byte then meets four activations.
    """
    row_bytes: tl.constexpr = (INPUTS * BITS + 7) // 8
    step: tl.constexpr = BLOCK_K // 2 if BITS == 2 else BLOCK_K
    x_row = x_ptr + m.to(tl.int64)[:, None] * INPUTS
    w_row = w_ptr + n.to(tl.int64)[:, None] * row_bytes
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.int32)
    for start in range(0, row_bytes, step):
        k = start + tl.arange(0, step)[None, :]
        w = tl.load(w_row + k, mask=k < row_bytes, other=0)
        x = tl.load(x_row + k, mask=k < row_bytes, other=0)
        if BITS == 8:
            total = tl.dot(w.to(tl.int8, bitcast=True), tl.trans(x), total, out_dtype=tl.int32)
        elif BITS == 4:
            x_high = tl.load(x_row + row_bytes + k, mask=row_bytes + k < INPUTS, other=0)
            low, high = _nibbles(w, ASSEMBLY)
            total = tl.dot(low, tl.trans(x), total, out_dtype=tl.int32)
            total = tl.dot(high, tl.trans(x_high), total, out_dtype=tl.int32)
        else:
            total = tl.dot(_quarter(w, 0, ASSEMBLY), tl.trans(x), total, out_dtype=tl.int32)
            for part in tl.static_range(1, 4):
                place = part * row_bytes + k
                # no value of two bits is zero: beyond the row the activations are
                x = tl.load(x_row + place, mask=(k < row_bytes) & (place < INPUTS), other=0)
                total = tl.dot(_quarter(w, part, ASSEMBLY), tl.trans(x), total, out_dtype=tl.int32)
    # sixteen times a sum fits int32 for up to 150,000 inputs
    if BITS == 4:
        total = total >> 4
    elif BITS == 2:
        total = total >> 5
    return total


def pack_parts(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack int8 [N, K] of 2 (mid-rise), 4 or 8 bits into uint8 [N, ceil(K * bits / 8)], as the module describes."""
    if bits == 8:
        return weight.contiguous().view(torch.uint8)
    count, mask = 8 // bits, 2**bits - 1
    length = -(-weight.shape[1] // count)
    values = torch.nn.functional.pad(weight >> 1 if bits == 2 else weight, (0, count * length - weight.shape[1]))
    packed = torch.zeros(len(weight), length, dtype=torch.uint8, device=weight.device)
    for part in range(count):
        place = values[:, part * length : (part + 1) * length]
        packed |= (place.contiguous().view(torch.uint8) & mask) << (part * bits)
    return packed


def uses_assembly(kernel: object) -> bool:
    """Return whether a kernel is compiled for an NVIDIA GPU, whose assembly it may then use."""
    return isinstance(kernel, triton.JITFunction) and torch.version.hip is None
