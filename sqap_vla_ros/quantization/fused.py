"""Activation quantisation as one compiled kernel: the same integers as `quantizers.quantize_activation`, sooner.

Written out as tensor operations, quantising a token's activations is half a dozen passes over memory; TorchInductor
makes one C++ kernel of them. It needs a C++ compiler at run time and some seconds the first time.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable

import torch

from sqap_vla_ros.quantization.quantizers import TINY, cut_to_bfloat16, largest

Quantize = Callable[[torch.Tensor, int, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def quantize_per_token(x: torch.Tensor, bits: int, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What is compiled: `quantize_activation` per token, written so that it fuses. clip: float32 scalar tensor."""
    top = largest(bits)
    magnitude = x.abs().amax(-1, keepdim=True)
    inverse = cut_to_bfloat16((magnitude.float() * (clip / top)).clamp_min(TINY).reciprocal())
    values = (x.float() * inverse).round().clamp(-top, top).to(torch.int8)
    return values, inverse.reciprocal().to(x.dtype)


@functools.cache
def fused_unavailable() -> str:
    """Why nothing can be compiled here; empty when it can. The first call compiles, which takes some seconds."""
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return "there is no C++ compiler (install g++)"
    clip = torch.tensor(1.0)
    try:
        for tokens in (1, 2):  # one token alone is compiled for itself
            fused_quantizer()(torch.ones(tokens, 64, dtype=torch.bfloat16), 4, clip)
    except Exception as error:  # whatever the compiler, its cache folder or its headers may come up with
        return f"compiling failed: {str(error).splitlines()[0]}"
    return ""


@functools.cache
def fused_quantizer() -> Quantize:
    """The compiled kernel; the first call for a dtype and a number of bits compiles it, token counts may vary."""
    return torch.compile(quantize_per_token, dynamic=True, fullgraph=True)
