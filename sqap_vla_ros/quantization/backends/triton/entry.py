"""The way into backend `triton`: Triton is imported when a GPU is to compute with it, and not before."""

from __future__ import annotations

import torch

from sqap_vla_ros.quantization.backends.product import IntegerProduct
from sqap_vla_ros.quantization.quantizers import TokenQuantizer


def unsupported(device: torch.device) -> str:
    """Return why Triton cannot multiply on `device`; empty when it can."""
    if device.type != "cuda":
        return f"it runs on CUDA devices, and the weights are on {device}"
    try:
        import triton  # type: ignore[import-not-found,import-untyped,unused-ignore] # noqa: F401
    except ImportError as error:
        return f"it needs the package triton ({error})"
    return ""


def product(weight: torch.Tensor, scale: torch.Tensor, row_bits: torch.Tensor | None = None) -> IntegerProduct:
    """Return a `TritonProduct`, or a `MixedTritonProduct` for rows of several widths."""
    from sqap_vla_ros.quantization.backends.triton.mixed import MixedTritonProduct
    from sqap_vla_ros.quantization.backends.triton.product import TritonProduct

    return TritonProduct(weight, scale) if row_bits is None else MixedTritonProduct(weight, scale, row_bits)


def token_quantizer() -> TokenQuantizer:
    """Return the kernel of `activations`."""
    from sqap_vla_ros.quantization.backends.triton.activations import quantize_tokens

    return quantize_tokens
