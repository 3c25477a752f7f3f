"""The token quantiser of the CPU's backends."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from sqap_vla_ros.quantization.backends.cpu.library import address, kernels, require
from sqap_vla_ros.quantization.backends.cpu.units import Unit
from sqap_vla_ros.quantization.quantizers import TokenQuantizer, clip_ratio, largest, quantize_activation

NORM_BITS = 8  # that `normalise_tokens` rounds to


@functools.cache
def token_quantizer(unit: Unit) -> TokenQuantizer:
    """Return the quantiser in a unit's library."""
    return functools.partial(quantize_tokens, unit)


def quantize_tokens(unit: Unit, x: Tensor, bits: int, clip: float, rms_eps: float | None) -> tuple[Tensor, Tensor]:
    """Apply `quantize_activation` per token, reading each row of x [M, K] once.

    Other dtypes than bfloat16 take the plain operations.
    """
    if x.dtype != torch.bfloat16:
        return quantize_activation(x, bits, clip=clip, rms_eps=rms_eps)
    x, top = x.contiguous(), largest(bits)
    values = torch.empty(x.shape, dtype=torch.int8)
    scale = torch.empty(len(x), 1, dtype=x.dtype)
    kernels(unit).quantize_tokens(
        *map(address, (x, values, scale)),
        *map(ctypes.c_int64, x.shape),
        top,
        ctypes.c_float(clip_ratio(clip, bits)),
        ctypes.c_float(-1.0 if rms_eps is None else rms_eps),
    )
    return values, scale


def normalise_tokens(
    unit: Unit, x: Tensor, clip: float, eps: float, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Quantise LayerNorm(x) to eight bits, one pass over each row of x [M, K] bfloat16.

    weight, bias: [K] float32.
    """
    require("x", x, (len(x), x.shape[-1]), torch.bfloat16)
    for name, each in (("weight", weight), ("bias", bias)):
        require(name, each, (x.shape[1],), torch.float32)
    x = x.contiguous()
    affine = [None if each is None else each.contiguous() for each in (weight, bias)]
    values = torch.empty(x.shape, dtype=torch.int8)
    scale = torch.empty(len(x), 1, dtype=x.dtype)
    kernels(unit).normalise_tokens(
        *map(address, (x, values, scale)),
        *map(ctypes.c_int64, x.shape),
        largest(NORM_BITS),
        ctypes.c_float(clip_ratio(clip, NORM_BITS)),
        ctypes.c_float(eps),
        *(None if each is None else address(each) for each in affine),
    )
    return values, scale
