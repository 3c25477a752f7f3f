"""The rounding whose damage is scored."""

from __future__ import annotations

import torch
from torch import Tensor

from sqap_vla_ros.compression.recipe import QuantizationSpec
from sqap_vla_ros.compression.sensitivity.backward import LinearMoments
from sqap_vla_ros.quantization.gptq import blended_hessian, inverse_factor
from sqap_vla_ros.quantization.mixed import quantize_mixed


def rounding_hessian(moments: LinearMoments, spec: QuantizationSpec) -> Tensor:
    """Return the second moment [K, K] that a linear is rounded on.

    Raises ValueError where rounding needs it and it is not finite.
    """
    assert moments.plain is not None
    if spec.hessian == "weighted":
        assert moments.weighted is not None
        return blended_hessian(moments.weighted.sum, moments.plain.sum)
    if spec.rounding_scheme.needs_hessian and not torch.isfinite(trace := moments.plain.sum.trace()):
        raise ValueError(f"the second moment of its inputs must be finite, got a trace of {trace:.3g}")
    return moments.plain.matrix


def rounding_changes(weight: Tensor, hessian: Tensor, spec: QuantizationSpec) -> dict[int, Tensor]:
    """Round the rows of a weight [N, K] at every width and return the changes, bits -> [N, K]."""
    assert spec.row_bits is not None
    with_hessian = spec.rounding_scheme.needs_hessian
    factor = inverse_factor(hessian) if with_hessian else None
    made = {}
    for width in spec.row_bits.widths:
        if width < 16:
            every = torch.full((len(weight),), width)
            rounded = quantize_mixed(
                weight,
                every,
                hessian=hessian if with_hessian else None,
                factor=factor,
                clip_search=spec.weight_clip,
            )
            made[width] = rounded.dequantize() - weight
    return made
