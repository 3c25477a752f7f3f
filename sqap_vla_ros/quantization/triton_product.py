"""Backend `triton` for GPUs: int4 weights stay packed in memory and are unpacked inside the kernel.

int8 x int8 -> int32 on the tensor cores (Hopper has no int4 ones), both scales applied before the result is written.
Four-bit weights cost four times less memory than bfloat16; the arithmetic is int8's. The kernel's logic is tested with
Triton's interpreter on a CPU; its speed has not been measured.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from sqap_vla_ros.quantization.packing import pack
from sqap_vla_ros.quantization.quantizers import largest


@triton.jit
def _product_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    w_ptr,
    w_scale_ptr,
    x_scale_ptr,
    out_ptr,
    rows,
    outputs,
    inputs,
    PACKED: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[m, n] = sum_k x[m, k] w[n, k], times w_scale[n], rounded, times x_scale[m]; a tile per program."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for start in range(0, inputs, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + m[:, None] * inputs + k[None, :], mask=(m[:, None] < rows) & (k[None, :] < inputs), other=0)
        if PACKED:
            # byte j of a row holds values 2j (low nibble) and 2j + 1 (high nibble)
            row_bytes = (inputs + 1) // 2
            j = start // 2 + tl.arange(0, BLOCK_K // 2)
            packed = tl.load(
                w_ptr + n[:, None] * row_bytes + j[None, :],
                mask=(n[:, None] < outputs) & (j[None, :] < row_bytes),
                other=0,
            )
            low = (packed << 4).to(tl.int8, bitcast=True) >> 4  # an arithmetic shift extends the sign
            high = packed.to(tl.int8, bitcast=True) >> 4
            even, odd = tl.split(tl.reshape(x, (BLOCK_M, BLOCK_K // 2, 2)))
            total += tl.dot(even, tl.trans(low), out_dtype=tl.int32)
            total += tl.dot(odd, tl.trans(high), out_dtype=tl.int32)
        else:
            w = tl.load(
                w_ptr + n[:, None] * inputs + k[None, :],
                mask=(n[:, None] < outputs) & (k[None, :] < inputs),
                other=0,
            )
            total += tl.dot(x, tl.trans(w.to(tl.int8, bitcast=True)), out_dtype=tl.int32)
    result = total
    if SCALED:
        w_scale = tl.load(w_scale_ptr + n, mask=n < outputs, other=0.0)
        x_scale = tl.load(x_scale_ptr + m, mask=m < rows, other=0.0)
        kind = out_ptr.dtype.element_ty
        # rounded between the two scales, as every backend does
        result = (total.to(tl.float32) * w_scale[None, :]).to(kind)
        result = (result.to(tl.float32) * x_scale[:, None].to(tl.float32)).to(kind)
    tl.store(out_ptr + m[:, None] * outputs + n[None, :], result, mask=(m[:, None] < rows) & (n[None, :] < outputs))


class TritonProduct:
    """Weights of one linear on the GPU: two to a byte where they fit four bits, else one."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor) -> None:
        self.outputs, self.inputs = weight.shape
        self.packed = bool(weight.abs().amax() <= largest(4))
        self.weight = pack(weight, 4) if self.packed else weight.contiguous().view(torch.uint8)
        self.scale = scale.float().contiguous()

    def _launch(self, values: torch.Tensor, scale: torch.Tensor, out: torch.Tensor, scaled: bool) -> torch.Tensor:
        rows = values.shape[0]
        block_m, block_n, block_k = 64, 64, 64
        grid = (triton.cdiv(rows, block_m), triton.cdiv(self.outputs, block_n))
        _product_kernel[grid](
            values.contiguous(),
            self.weight,
            self.scale,
            scale,
            out,
            rows,
            self.outputs,
            self.inputs,
            PACKED=self.packed,
            SCALED=scaled,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
        )
        return out

    def accumulate(self, values: torch.Tensor) -> torch.Tensor:
        """[M, K] int8 -> [M, N] exact int32 accumulators."""
        out = torch.empty(values.shape[0], self.outputs, dtype=torch.int32, device=values.device)
        return self._launch(values, self.scale, out, scaled=False)

    def __call__(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """See `backends.IntegerProduct`."""
        out = torch.empty(values.shape[0], self.outputs, dtype=scale.dtype, device=values.device)
        return self._launch(values, scale.contiguous(), out, scaled=True)

    def unscaled(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """See `backends.IntegerProduct`."""
        return self(values, torch.ones(values.shape[0], 1, dtype=dtype, device=values.device))
