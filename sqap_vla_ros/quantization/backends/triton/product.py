"""The integer product of backend `triton`."""

from __future__ import annotations

import sys

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from sqap_vla_ros.quantization.backends.product import IntegerProduct
from sqap_vla_ros.quantization.backends.triton.tiles import Tile, tile_for
from sqap_vla_ros.quantization.quantizers import largest

# PTX for four bytes in a register; for NVIDIA's GPUs only, the interpreter and others take the plain operations
LOW = tl.constexpr("shl.b32 $0, $1, 4; and.b32 $0, $0, 0xF0F0F0F0;")
HIGH = tl.constexpr("and.b32 $0, $1, 0xF0F0F0F0;")


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
def _tile_sum(  # type: ignore[no-untyped-def]
    x_ptr,
    w_ptr,
    m,
    n,
    INPUTS: tl.constexpr,
    PACKED: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return sum_k w[n, k] x[m, k] as int32 [BLOCK_N, BLOCK_M], for rows m of x and n of w that all exist.

    The weights are the left factor, which Hopper's tensor cores take from registers: unpacked there, they never go
    back to shared memory.
    """
    row_bytes: tl.constexpr = (INPUTS + 1) // 2 if PACKED else INPUTS
    x_row = x_ptr + m.to(tl.int64)[:, None] * INPUTS
    w_row = w_ptr + n.to(tl.int64)[:, None] * row_bytes
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.int32)
    for start in range(0, row_bytes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)[None, :]
        x = tl.load(x_row + k, mask=k < row_bytes, other=0)
        w = tl.load(w_row + k, mask=k < row_bytes, other=0)
        if PACKED:
            # byte j of a row holds columns j (low nibble) and row_bytes + j (high nibble)
            x_high = tl.load(x_row + row_bytes + k, mask=row_bytes + k < INPUTS, other=0)
            low, high = _nibbles(w, ASSEMBLY)
            total = tl.dot(low, tl.trans(x), total, out_dtype=tl.int32)
            total = tl.dot(high, tl.trans(x_high), total, out_dtype=tl.int32)
        else:
            total = tl.dot(w.to(tl.int8, bitcast=True), tl.trans(x), total, out_dtype=tl.int32)
    return total >> 4 if PACKED else total  # sixteen times a sum fits int32 for up to 150,000 inputs


@triton.jit(do_not_specialize=["rows"])  # one kernel for all row counts
def _product_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    x_scale_ptr,
    w_ptr,
    w_scale_ptr,
    up_ptr,
    up_scale_ptr,
    out_ptr,
    rows,
    outputs,
    INPUTS: tl.constexpr,
    PACKED: tl.constexpr,
    UP_PACKED: tl.constexpr,
    SCALED: tl.constexpr,
    GATED: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute a tile of x w^T with its scales, or of silu(x w^T) * (x up^T) where GATED.

    Neighbouring programs share a tile of the weights, which then comes from memory once.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    # beyond the edge the first rows are read again; what they give is not stored
    m_read, n_read = m % rows, n % outputs
    kind = out_ptr.dtype.element_ty
    result = _tile_sum(x_ptr, w_ptr, m_read, n_read, INPUTS, PACKED, ASSEMBLY, BLOCK_M, BLOCK_N, BLOCK_K)
    if SCALED:
        x_scale = tl.load(x_scale_ptr + m_read)[None, :].to(tl.float32)
        # rounded between the two scales, as every backend does
        result = (result.to(tl.float32) * tl.load(w_scale_ptr + n_read)[:, None]).to(kind).to(tl.float32) * x_scale
    if GATED:
        up = _tile_sum(x_ptr, up_ptr, m_read, n_read, INPUTS, UP_PACKED, ASSEMBLY, BLOCK_M, BLOCK_N, BLOCK_K)
        up = (up.to(tl.float32) * tl.load(up_scale_ptr + n_read)[:, None]).to(kind).to(tl.float32) * x_scale
        result = result * tl.sigmoid(result) * up
    place = out_ptr + m.to(tl.int64)[:, None] * outputs + n[None, :]
    tl.store(place, tl.trans(result.to(kind)), mask=(m[:, None] < rows) & (n[None, :] < outputs))


class TritonProduct:
    """Multiply on a GPU; weights take half a byte where they fit four bits. weight: int8 [N, K]; scale: [N]."""

    rows_per_call = sys.maxsize

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor) -> None:
        self.outputs, self.inputs = weight.shape
        self.packed = bool(weight.abs().amax() <= largest(4))
        self.weight = pack_halves(weight) if self.packed else weight.contiguous().view(torch.uint8)
        self.scale = scale.float().contiguous()

    def _launch(
        self, values: torch.Tensor, scale: torch.Tensor | None, kind: torch.dtype, up: TritonProduct | None = None
    ) -> torch.Tensor:
        rows, values, second = values.shape[0], values.contiguous(), up or self
        out = torch.empty(rows, self.outputs, dtype=kind, device=values.device)
        if not rows:
            return out

        def launch(tile: Tile) -> None:
            grid = (triton.cdiv(rows, tile.m), triton.cdiv(self.outputs, tile.n))
            _product_kernel[grid](
                values,
                self.scale if scale is None else scale.contiguous(),
                self.weight,
                self.scale,
                second.weight,
                second.scale,
                out,
                rows,
                self.outputs,
                self.inputs,
                PACKED=self.packed,
                UP_PACKED=second.packed,
                SCALED=scale is not None,
                GATED=up is not None,
                ASSEMBLY=isinstance(_product_kernel, triton.JITFunction) and torch.version.hip is None,
                BLOCK_M=tile.m,
                BLOCK_N=tile.n,
                BLOCK_K=tile.k,
                num_warps=tile.warps,
                num_stages=tile.stages,
                enable_fp_fusion=False,
            )

        with torch.cuda.device_of(values):
            shape = (self.outputs, self.inputs, self.packed, second.packed, up is not None)
            launch(tile_for(rows, shape, values.device, launch))
        return out

    def accumulate(self, values: torch.Tensor) -> torch.Tensor:
        """Return the exact int32 accumulators [M, N] of int8 activations [M, K]."""
        return self._launch(values, None, torch.int32)

    def __call__(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self._launch(values, scale, scale.dtype)

    def gated(self, up: IntegerProduct, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """See `IntegerProduct.gated`."""
        assert isinstance(up, TritonProduct)  # linears of one model share a backend
        return self._launch(values, scale, scale.dtype, up)


def pack_halves(weight: torch.Tensor) -> torch.Tensor:
    """Pack four-bit int8 [N, K] into uint8 [N, ceil(K / 2)]: byte j holds column j and, above it, ceil(K / 2) + j.

    Either nibble then meets a contiguous piece of the activations, which goes to the tensor cores as it was loaded.
    """
    half = -(-weight.shape[1] // 2)
    high = torch.nn.functional.pad(weight[:, half:], (0, weight.shape[1] % 2))
    return (weight[:, :half].view(torch.uint8) & 15) | (high.view(torch.uint8) << 4)
