"""The integer product of backend `triton`."""

from __future__ import annotations

import sys

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from sqap_vla_ros.quantization.backends.product import IntegerProduct
from sqap_vla_ros.quantization.backends.triton.sums import pack_parts, tile_sum, uses_assembly
from sqap_vla_ros.quantization.backends.triton.tiles import Tile, tile_for
from sqap_vla_ros.quantization.quantizers import largest


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
    BITS: tl.constexpr,
    UP_BITS: tl.constexpr,
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
    result = tile_sum(x_ptr, w_ptr, m_read, n_read, INPUTS, BITS, ASSEMBLY, BLOCK_M, BLOCK_N, BLOCK_K)
    if SCALED:
        x_scale = tl.load(x_scale_ptr + m_read)[None, :].to(tl.float32)
        # rounded between the two scales, as every backend does
        result = (result.to(tl.float32) * tl.load(w_scale_ptr + n_read)[:, None]).to(kind).to(tl.float32) * x_scale
    if GATED:
        up = tile_sum(x_ptr, up_ptr, m_read, n_read, INPUTS, UP_BITS, ASSEMBLY, BLOCK_M, BLOCK_N, BLOCK_K)
        up = (up.to(tl.float32) * tl.load(up_scale_ptr + n_read)[:, None]).to(kind).to(tl.float32) * x_scale
        result = result * tl.sigmoid(result) * up
    place = out_ptr + m.to(tl.int64)[:, None] * outputs + n[None, :]
    tl.store(place, tl.trans(result.to(kind)), mask=(m[:, None] < rows) & (n[None, :] < outputs))


class TritonProduct:
    """Multiply on a GPU; weights take half a byte where they fit four bits. weight: int8 [N, K]; scale: [N]."""

    rows_per_call = sys.maxsize

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor) -> None:
        self.outputs, self.inputs = weight.shape
        self.bits = 4 if weight.abs().amax() <= largest(4) else 8
        self.weight = pack_parts(weight, self.bits)
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
                BITS=self.bits,
                UP_BITS=second.bits,
                SCALED=scale is not None,
                GATED=up is not None,
                ASSEMBLY=uses_assembly(_product_kernel),
                BLOCK_M=tile.m,
                BLOCK_N=tile.n,
                BLOCK_K=tile.k,
                num_warps=tile.warps,
                num_stages=tile.stages,
                enable_fp_fusion=False,
            )

        with torch.cuda.device_of(values):
            shape = (self.outputs, self.inputs, self.bits, second.bits, up is not None)
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
