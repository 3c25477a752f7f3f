"""The token quantiser of backend `amx`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sqap_vla_ros.quantization.backends.amx.library import address, kernels
from sqap_vla_ros.quantization.quantizers import clip_ratio, largest, quantize_activation


def quantize_tokens(x: Tensor, bits: int, clip: float, rms_eps: float | None) -> tuple[Tensor, Tensor]:
    """Apply `quantize_activation` per token, reading each row of x [M, K] once.

    Other dtypes than bfloat16 take the plain operations.
    """
    if x.dtype != torch.bfloat16:
        return quantize_activation(x, bits, clip=clip, rms_eps=rms_eps)
    x, top = x.contiguous(), largest(bits)
    values = torch.empty(x.shape, dtype=torch.int8)
    scale = torch.empty(len(x), 1, dtype=x.dtype)
    kernels().quantize_tokens(
        *map(address, (x, values, scale)),
        *map(ctypes.c_int64, x.shape),
        top,
        ctypes.c_float(clip_ratio(clip, bits)),
        ctypes.c_float(-1.0 if rms_eps is None else rms_eps),
    )
    return values, scale
