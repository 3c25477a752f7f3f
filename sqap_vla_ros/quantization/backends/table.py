"""Who multiplies the integers.

Every backend computes the same product: int8 activations [M, K] times int8 weights [N, K], accumulated exactly in
32-bit integers, then scaled once per output channel. They differ in speed and in what they keep of the weights.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch

from sqap_vla_ros.quantization.fused import gated

ROWS_PER_CALL = 256  # oneDNN's int8 kernel takes twice the time from 257 rows on; two smaller calls do not
ROWS_OF_A_TILE = 16  # of an AMX register


class BackendError(RuntimeError):
    """This machine cannot run the backend that was asked for; the message says what can."""


class IntegerProduct(Protocol):
    """Prepared weights of one linear.

    rows_per_call: more rows than these are better given in several calls, see `row_parts`.
    """

    rows_per_call: int

    def __call__(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """int8 activations [M, K] and their scales [M, 1] -> [M, N] in the scales' dtype.

        The accumulators are multiplied by the weight scale in float32, rounded to that dtype, and then multiplied by
        the activation scale.
        """

    def gated(self, up: IntegerProduct, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """silu(this product) * (the product with `up`, which is of the same backend), rounded once: [M, N]."""


class SeparateProducts(ABC):
    """gate and up one after the other; the activation scale waits for the pass that joins them."""

    rows_per_call = ROWS_PER_CALL

    @abstractmethod
    def unscaled(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The product before the activation scale: [M, N]."""

    def gated(self, up: IntegerProduct, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """See `IntegerProduct`."""
        assert isinstance(up, SeparateProducts)
        return gated(self.unscaled(values, scale.dtype), up.unscaled(values, scale.dtype), scale)


class ReferenceProduct(SeparateProducts):
    """Integers in the floating point that holds every accumulator exactly: the definition, and runs anywhere.

    PyTorch has integer products on CPUs alone, and slow ones.
    """

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor) -> None:
        self.weight, self.scale = weight, scale
        largest = 128 * weight.shape[1] * weight.float().abs().max().item()
        self.exact = torch.float32 if largest <= 2**24 else torch.float64

    def accumulate(self, values: torch.Tensor) -> torch.Tensor:
        """[M, K] int8 -> [M, N] exact int32 accumulators."""
        return (values.to(self.exact) @ self.weight.to(self.exact).t()).to(torch.int32)

    def unscaled(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return (self.accumulate(values).float() * self.scale).to(dtype)

    def __call__(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.unscaled(values, scale.dtype).mul_(scale)


class OneDnnProduct(SeparateProducts):
    """oneDNN's int8 matrix product on AMX or VNNI units; weights expanded to int8 once, in the kernel's own layout.

    VNNI multiplies unsigned by signed bytes: without AMX, oneDNN would take signed activations through a plain loop, so
    they are shifted by 128 there, and oneDNN subtracts the shift from the accumulators.
    """

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor) -> None:
        if weight.device.type != "cpu":
            raise BackendError(f"backend onednn runs on the CPU, the weights are on {weight.device}")
        reason = onednn_unsupported()
        if reason:
            raise BackendError(f"backend onednn cannot run here: {reason}; use backend reference")
        self.packed = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
        self.scale = scale.float().contiguous()
        self.zero = torch.zeros(scale.shape, dtype=torch.int32)
        self.shift = 0 if torch.cpu._is_amx_tile_supported() else 128

    def _product(self, values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if self.shift:
            values = (values ^ -128).view(torch.uint8)  # values + 128
        return torch.ops.onednn.qlinear_pointwise(
            values, 1.0, self.shift, self.packed, scale, self.zero, None, 1.0, 0, dtype, "none", [], ""
        )

    def accumulate(self, values: torch.Tensor) -> torch.Tensor:
        """[M, K] int8 -> [M, N] float32 accumulators, exact while they are below 2^24."""
        return self._product(values, torch.ones_like(self.scale), torch.float32)

    def unscaled(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        parts = [self._product(values[rows], self.scale, dtype) for rows in row_parts(values.shape[0])]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __call__(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        parts = row_parts(values.shape[0])
        if len(parts) == 1:
            return self._product(values, self.scale, scale.dtype).mul_(scale)
        result = torch.empty(values.shape[0], self.scale.shape[0], dtype=scale.dtype)
        for rows in parts:
            torch.mul(self._product(values[rows], self.scale, scale.dtype), scale[rows], out=result[rows])
        return result


def row_parts(rows: int, rows_per_call: int = ROWS_PER_CALL) -> list[slice]:
    """Rows in calls of about equal size, at most `rows_per_call` each: a small rest would cost nearly a whole call."""
    calls = max(1, -(-rows // rows_per_call))
    size = -(-rows // (calls * ROWS_OF_A_TILE)) * ROWS_OF_A_TILE
    return [slice(start, min(start + size, rows)) for start in range(0, max(rows, 1), size or 1)]


def onednn_unsupported() -> str:
    """Why oneDNN's int8 kernels are not exact or not there on this machine; empty when they are fine."""
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch was built without oneDNN"
    if not torch.cpu._is_vnni_supported():
        return "the CPU has neither AVX512-VNNI nor AMX, without which int8 products may saturate"
    return ""


def amx_product(weight: torch.Tensor, scale: torch.Tensor) -> IntegerProduct:
    """int4-packed weights unpacked inside a kernel for AMX units, see `amx_product`."""
    if weight.device.type != "cpu":
        raise BackendError(f"backend amx runs on the CPU, the weights are on {weight.device}")
    from sqap_vla_ros.quantization.backends.amx import AmxProduct, amx_unsupported

    if amx_unsupported():
        raise BackendError(f"backend amx cannot run here: {amx_unsupported()}; use backend auto")
    return AmxProduct(weight, scale)


def triton_product(weight: torch.Tensor, scale: torch.Tensor) -> IntegerProduct:
    """int4-packed weights unpacked inside a GPU kernel, see `triton_product`."""
    if weight.device.type != "cuda":
        raise BackendError(f"backend triton runs on CUDA devices, the weights are on {weight.device}; use backend auto")
    try:
        from sqap_vla_ros.quantization.backends.triton import TritonProduct
    except ImportError as error:
        raise BackendError(f"backend triton needs the package triton ({error}); use backend reference") from error
    return TritonProduct(weight, scale)


BACKENDS: dict[str, Callable[[torch.Tensor, torch.Tensor], IntegerProduct]] = {
    "reference": ReferenceProduct,
    "amx": amx_product,
    "onednn": OneDnnProduct,
    "triton": triton_product,
}


def resolve_backend(name: str, device: torch.device) -> str:
    """`auto` becomes the fastest backend this device runs; other names are checked."""
    if name == "auto":
        if device.type == "cuda":
            return "triton" if importlib.util.find_spec("triton") else "reference"
        if device.type != "cpu":
            return "reference"
        from sqap_vla_ros.quantization.backends.amx import amx_unsupported

        if not amx_unsupported():
            return "amx"
        return "reference" if onednn_unsupported() else "onednn"
    if name not in BACKENDS:
        raise BackendError(f"no backend named {name!r}; there are: auto, {', '.join(BACKENDS)}")
    return name
