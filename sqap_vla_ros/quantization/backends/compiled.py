"""Passes over activations as single kernels compiled by TorchInductor: the same integers as the plain operations.

Written out as tensor operations, quantising a token's activations is half a dozen passes over memory; TorchInductor
makes one parallel C++ kernel of them. It needs a C++ compiler at run time and some seconds the first time. Columns are
compiled in (a kernel for each width), rows may vary; a single row is not worth a kernel.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable

import torch
from torch import Tensor

from sqap_vla_ros.quantization.quantizers import activation_scales, largest, quantize_activation

Quantize = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def quantize_tokens(x: Tensor, bits: int, clip: float, rms_eps: float | None) -> tuple[Tensor, Tensor]:
    """Apply `quantize_activation` per token to x [M, K] in one kernel."""
    if len(x) < 2:
        return quantize_activation(x, bits, clip=clip, rms_eps=rms_eps)
    torch._dynamo.maybe_mark_dynamic(x, 0)
    return _quantizer(bits, rms_eps)(x, torch.tensor(clip, device=x.device))


@functools.cache
def _quantizer(bits: int, rms_eps: float | None) -> Quantize:
    top = float(largest(bits))

    def rounded(x: Tensor, inverse: Tensor) -> Tensor:
        return (x.float() * inverse).round().clamp(-top, top).to(torch.int8)

    def plain(x: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
        inverse, scale = activation_scales(x, x.abs().amax(-1, keepdim=True), clip / top, None)
        return rounded(x, inverse), scale

    def normalised(x: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
        inverse, scale = activation_scales(x, x.abs().amax(-1, keepdim=True), clip / top, rms_eps)
        return rounded(x, inverse), scale

    return torch.compile(plain if rms_eps is None else normalised, dynamic=False, fullgraph=True)


def gated(gate: Tensor, up: Tensor, scale: Tensor) -> Tensor:
    """Return silu(gate * scale) * (up * scale), rounded once. gate, up: [M, K]; scale: [M, 1]; all of one dtype."""
    if len(gate) < 2:
        return _gated(gate, up, scale)
    for tensor in (gate, up, scale):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    compiled: Tensor = _compiled_gate()(gate, up, scale)
    return compiled


def _gated(gate: Tensor, up: Tensor, scale: Tensor) -> Tensor:
    wide = scale.float()
    opened = gate.float() * wide
    return (opened * opened.sigmoid() * (up.float() * wide)).to(gate.dtype)


@functools.cache
def _compiled_gate() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return torch.compile(_gated, dynamic=False, fullgraph=True)


@functools.cache
def compilation_unavailable() -> str:
    """Return why nothing can be compiled here; empty when it can. The first call compiles, which takes some seconds."""
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return "there is no C++ compiler (install g++)"
    try:
        quantize_tokens(torch.ones(2, 64, dtype=torch.bfloat16), 4, 1.0, None)
    except Exception as error:  # whatever the compiler, its cache folder or its headers may come up with
        return f"compiling failed: {str(error).splitlines()[0]}"
    return ""
