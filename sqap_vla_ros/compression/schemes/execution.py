"""Ways to hold and multiply linears, by the bits of their activations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from sqap_vla_ros.compression.layer_work import Settings
    from sqap_vla_ros.quantization.linear import PackedLinear
    from sqap_vla_ros.quantization.mixed import MixedRowsLinear, PackedMixedWeight
    from sqap_vla_ros.quantization.packing import PackedWeight
    from sqap_vla_ros.quantization.rotations import OrthogonalMix

    CompressedLinear = PackedLinear | MixedRowsLinear


@dataclass(frozen=True)
class SharedInput:
    """The tensor that a group of linears reads: its bits, its clipping, and the rotation that is applied to it."""

    bits: int
    clip: float
    rotation: OrthogonalMix | None


class Execution(ABC):
    """Base class of the execution schemes.

    quantizes_activations: False leaves activations as they come, which lets weights have groups and zero points.
    """

    quantizes_activations: ClassVar[bool]

    @abstractmethod
    def build(
        self,
        settings: Settings,
        shared: SharedInput,
        weights: Sequence[PackedWeight | PackedMixedWeight],
        biases: Sequence[Tensor | None],
    ) -> Sequence[CompressedLinear]:
        """Make the modules of linears that read the same tensor."""


class QuantizedExecution(Execution):
    """Multiply integers by integers; the input is quantised once for all that read it."""

    quantizes_activations = True

    def build(
        self,
        settings: Settings,
        shared: SharedInput,
        weights: Sequence[PackedWeight | PackedMixedWeight],
        biases: Sequence[Tensor | None],
    ) -> Sequence[CompressedLinear]:
        from sqap_vla_ros.quantization.linear import ActivationQuantizer, QuantizedLinear
        from sqap_vla_ros.quantization.mixed import MixedLinear, PackedMixedWeight

        text_bits = settings.text_activation_bits
        quantizer = ActivationQuantizer(
            shared.bits,
            clip=shared.clip,
            granularity=settings.activation_granularity,
            rotation=shared.rotation,
            consumers=len(weights),
            text_bits=None if text_bits is None else max(shared.bits, text_bits),
        )
        return [
            MixedLinear(weight, quantizer, bias)
            if isinstance(weight, PackedMixedWeight)
            else QuantizedLinear(weight, quantizer, bias)
            for weight, bias in zip(weights, biases, strict=True)
        ]


class WeightOnlyExecution(Execution):
    """Keep 16-bit activations: smaller, but not faster where many tokens are computed at once.

    Rows of one width are dequantised on every call; rows of mixed widths go through the integer product twice.
    """

    quantizes_activations = False

    def build(
        self,
        settings: Settings,
        shared: SharedInput,
        weights: Sequence[PackedWeight | PackedMixedWeight],
        biases: Sequence[Tensor | None],
    ) -> Sequence[CompressedLinear]:
        from sqap_vla_ros.quantization.linear import WeightOnlyLinear
        from sqap_vla_ros.quantization.mixed import MixedWeightOnlyLinear, PackedMixedWeight

        return [
            MixedWeightOnlyLinear(weight, bias, shared.rotation)
            if isinstance(weight, PackedMixedWeight)
            else WeightOnlyLinear(weight, bias, shared.rotation)
            for weight, bias in zip(weights, biases, strict=True)
        ]


EXECUTIONS: Mapping[int, Execution] = {**dict.fromkeys((2, 3, 4, 8), QuantizedExecution()), 16: WeightOnlyExecution()}
