"""Ways to round weights to their grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from sqap_vla_ros.compression.layer_work import LayerWork
    from sqap_vla_ros.quantization.quantizers import QuantizedWeight


class Rounding(ABC):
    """Base class of the rounding schemes.

    needs_calibration, needs_hessian: it looks at a layer's inputs, and at their second moment.
    """

    needs_calibration: ClassVar[bool] = False
    needs_hessian: ClassVar[bool] = False

    @abstractmethod
    def round(self, work: LayerWork, name: str, weight: Tensor, hessian: Tensor | None) -> QuantizedWeight:
        """Round the weight [N, K] of a linear.

        hessian: [K, K] second moment of its inputs; None where it was not asked for or there is no calibration.
        """


class Nearest(Rounding):
    """Round every weight to the nearest value; a searched clipping weighs channels by their inputs where known."""

    def round(self, work: LayerWork, name: str, weight: Tensor, hessian: Tensor | None) -> QuantizedWeight:
        from sqap_vla_ros.quantization.quantizers import quantize_weight

        return quantize_weight(
            weight,
            work.settings.bits(name)[0],
            clip_search=work.settings.weight_clip,
            importance=None if hessian is None else hessian.diagonal(),
            group=work.group_size(weight.shape[1]),
            symmetric=work.settings.weight_symmetric,
        )


class Gptq(Rounding):
    """Feed the error of each column back into those that follow (Frantar et al. 2023, arXiv:2210.17323)."""

    needs_calibration = True
    needs_hessian = True

    def round(self, work: LayerWork, name: str, weight: Tensor, hessian: Tensor | None) -> QuantizedWeight:
        from sqap_vla_ros.quantization.gptq import gptq

        assert hessian is not None
        return gptq(
            weight,
            hessian,
            work.settings.bits(name)[0],
            clip_search=work.settings.weight_clip,
            group=work.group_size(weight.shape[1]),
            symmetric=work.settings.weight_symmetric,
        )


ROUNDINGS: Mapping[str, Rounding] = {"nearest": Nearest(), "gptq": Gptq()}
