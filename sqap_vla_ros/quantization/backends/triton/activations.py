"""Quantise activations in one GPU kernel: a program reads a token once and writes its integers and its scale.

Everything happens in one pass, in registers: the range of the row, the recipe's clipping, the RMSNorm that
`layer_fusion` moved here, the scale, rounding and saturation. The integers are `quantize_activation`'s to the last bit,
and so are the scales without a norm; with one, the sum of squares runs in another order.

It is not part of the product's kernel. A scale needs its whole row, so every one of the product's N / BLOCK_N column
tiles would read and quantise the row again (16 to 172 times in the 7B decoder), from bfloat16 instead of int8; q, k and
v also share one result. Nor is it joined with the online rotations, which are two small matrix products (`rotations`)
that the GPU's own library does. One scale for a whole tensor (recipe `sqap_paper`) is left to the plain operations. The
kernel is tested with Triton's interpreter on a CPU and has not run on a GPU yet; its launch settings are reasoned, not
measured.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from sqap_vla_ros.quantization.quantizers import TINY, clip_ratio, largest, quantize_activation

LONGEST_ROW = 1 << 15  # channels a program holds in registers; longer rows take the plain operations
CHANNELS_OF_A_WARP = 1024  # 32 in each thread, four loads of 16 bytes in bfloat16
KINDS = (torch.bfloat16, torch.float16, torch.float32)


@triton.jit
def _quantize_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    values_ptr,
    scale_ptr,
    columns,
    ratio,
    rms_eps,
    TOP: tl.constexpr,
    SMALLEST: tl.constexpr,
    NORMALISED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Quantise one row: values = clamp(round(x * inverse)), scale = 1 / inverse; see `activation_scales`."""
    row = tl.program_id(0).to(tl.int64) * columns
    column = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row + column, mask=column < columns, other=0.0).to(tl.float32)
    # |x| as bits: ordered like the numbers, with NaN above all of them, so that a damaged row shows in its scale
    magnitude = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=0).to(tl.float32, bitcast=True)
    step = magnitude * ratio
    step = tl.where(step < SMALLEST, SMALLEST, step)
    inverse = tl.div_rn(1.0, step)  # `/` is not rounded correctly on GPUs
    inverse = (inverse.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)  # bfloat16's precision
    scale = tl.div_rn(1.0, inverse)
    if NORMALISED:
        scale *= tl.rsqrt(tl.sum(x * x, axis=0) / columns + rms_eps)
    tl.store(scale_ptr + tl.program_id(0), scale.to(scale_ptr.dtype.element_ty))
    # 1.5 * 2^23 leaves no room for a fraction: adding it rounds, ties to even
    shifted = tl.minimum(tl.maximum(x * inverse, -TOP), TOP) + 12582912.0
    tl.store(values_ptr + row + column, (shifted - 12582912.0).to(tl.int8), mask=column < columns)


def quantize_tokens(
    x: torch.Tensor, bits: int, clip: float, rms_eps: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply `quantize_activation` per token to x [M, K]: int8 [M, K] and scales [M, 1] in x's dtype."""
    rows, columns = x.shape
    if columns > LONGEST_ROW or x.dtype not in KINDS:
        return quantize_activation(x, bits, clip=clip, rms_eps=rms_eps)
    top = largest(bits)
    values = torch.empty(rows, columns, dtype=torch.int8, device=x.device)
    scale = torch.empty(rows, 1, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(columns)
    with torch.cuda.device_of(x):
        _quantize_kernel[(rows,)](
            x.contiguous(),
            values,
            scale,
            columns,
            clip_ratio(clip, bits),
            rms_eps or 0.0,
            TOP=top,
            SMALLEST=TINY,
            NORMALISED=rms_eps is not None,
            BLOCK=block,
            num_warps=min(max(block // CHANNELS_OF_A_WARP, 1), 16),
            enable_fp_fusion=False,  # the product is rounded before anything is added, as on the CPU
        )
    return values, scale
