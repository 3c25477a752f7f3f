"""The backends, fastest first. Adding one is a class that is an `IntegerProduct` and a row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sqap_vla_ros.quantization.backends import compiled, onednn, reference
from sqap_vla_ros.quantization.backends.cpu import activations, library
from sqap_vla_ros.quantization.backends.cpu.product import (
    AmxProduct,
    Avx2Product,
    AvxVnniProduct,
    DotprodProduct,
    I8mmProduct,
    NeonProduct,
    TileProduct,
    VnniProduct,
)
from sqap_vla_ros.quantization.backends.onednn import OneDnnProduct
from sqap_vla_ros.quantization.backends.product import BackendError, IntegerProduct
from sqap_vla_ros.quantization.backends.reference import ReferenceProduct
from sqap_vla_ros.quantization.backends.triton import entry as triton
from sqap_vla_ros.quantization.quantizers import TokenQuantizer


def _compiled_quantizer() -> TokenQuantizer:
    if reason := compiled.compilation_unavailable():
        raise BackendError(f"activation quantisation cannot be compiled here: {reason}")
    return compiled.quantize_tokens


def _cpu(product: type[TileProduct]) -> Backend:
    unit = product.unit
    return Backend(
        unit.name,
        product,
        lambda device: library.unsupported(unit, device),
        lambda: activations.token_quantizer(unit),
        token_quantizer_from=0,
    )


@dataclass(frozen=True)
class Backend:
    """One way to multiply integers, and what the rest of the package needs to know about it.

    name: as users give it.
    make: int8 weights [N, K], their scales [N], and the width of every row [N], None for one width -> the prepared
        product. It may use the widths to keep the weights small.
    unsupported: device of the weights -> why this machine cannot run the backend, empty when it can.
    token_quantizer: returns a token quantiser that is one kernel; raises BackendError where it cannot be had.
    token_quantizer_from: input channels from which that kernel is used without being asked for; None for never.
    keeps_packed: it multiplies from the layer's packed weights, which therefore stay.
    """

    name: str
    make: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], IntegerProduct]
    unsupported: Callable[[torch.device], str]
    token_quantizer: Callable[[], TokenQuantizer] = _compiled_quantizer
    token_quantizer_from: int | None = None
    keeps_packed: bool = False


# It runs everywhere, and every layer starts with it.
FALLBACK = Backend("reference", ReferenceProduct, reference.unsupported, keeps_packed=True)
BACKENDS: tuple[Backend, ...] = (
    Backend("triton", triton.product, triton.unsupported, triton.token_quantizer, token_quantizer_from=0),
    _cpu(AmxProduct),
    _cpu(VnniProduct),
    _cpu(AvxVnniProduct),
    # narrower layers do not repay the compilation
    Backend("onednn", OneDnnProduct, onednn.unsupported, token_quantizer_from=1024),
    _cpu(Avx2Product),
    _cpu(I8mmProduct),
    _cpu(DotprodProduct),
    _cpu(NeonProduct),
    FALLBACK,
)


def find_backend(name: str, device: torch.device) -> Backend:
    """Return the backend of that name; for `auto` the fastest that runs on `device`, where the weights are.

    Raises BackendError for an unknown name, and where this machine cannot run the backend.
    """
    if name == "auto":
        return next(backend for backend in BACKENDS if not backend.unsupported(device))
    for backend in BACKENDS:
        if backend.name == name:
            if reason := backend.unsupported(device):
                instead = find_backend("auto", device).name
                raise BackendError(f"backend {name} cannot run here: {reason}; use backend auto (here: {instead})")
            return backend
    names = ", ".join(backend.name for backend in BACKENDS)
    raise BackendError(f"no backend named {name!r}; there are: auto, {names}")
