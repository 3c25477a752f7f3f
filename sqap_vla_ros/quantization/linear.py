"""Linear layers whose weights are integers.

`QuantizedLinear` has one meaning whatever the backend:

    y = (Q(x R) @ W_int^T) * s_w * s_x + b

Q the dynamic symmetric quantiser of the activations, R an online rotation (often none), W_int the integer weights, s_w
one scale per output channel, s_x one per token. The product is exact integer arithmetic. `WeightOnlyLinear` is for
schemes that leave the activations at 16 bits: it dequantises its weights on every call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import nn

from sqap_vla_ros.quantization.backends.table import BACKENDS, BackendError, IntegerProduct, resolve_backend
from sqap_vla_ros.quantization.fused import fused_unavailable, quantize_rows
from sqap_vla_ros.quantization.packing import PackedWeight, packed_columns
from sqap_vla_ros.quantization.quantizers import QuantizedWeight, quantize_activation
from sqap_vla_ros.quantization.rotations import OrthogonalMix
from sqap_vla_ros.text_rows import text_row_count

FUSED_FROM = 1024  # input channels from which a compiled quantiser repays its compilation
# x [M, K], bits, clip, rms_eps -> what `quantize_activation` gives per token
RowQuantizer = Callable[[torch.Tensor, int, float, float | None], tuple[torch.Tensor, torch.Tensor]]


class ActivationQuantizer:
    """Rotates and quantises the input of one or several linears; those that share an input share the result.

    bits: 4 or 8.
    clip: quantised range over the largest magnitude.
    granularity: `token` or `tensor`.
    rotation: applied first; None for none.
    consumers: how many linears read the same tensor (3 for q, k, v): the result is kept until the last one took it.
    text_bits: bits of the rows that are text, which the policy announces with `text_rows`; None for `bits` there too.
        Integers are eight bits wide in every product, so this costs next to no time. Text is a tenth of the tokens,
        and the last of them makes the action.
    """

    def __init__(
        self,
        bits: int,
        *,
        clip: float = 1.0,
        granularity: str = "token",
        rotation: OrthogonalMix | None = None,
        consumers: int = 1,
        text_bits: int | None = None,
    ) -> None:
        self.bits, self.clip, self.granularity = bits, clip, granularity
        self.rotation, self.consumers = rotation, consumers
        self.text_bits = text_bits
        self.row_quantizer: RowQuantizer | None = None  # one kernel for tokens' scales; the result is the same
        self.rms_eps: float | None = None  # of an RMSNorm that is applied here instead of before, see `streamline`
        self._source: weakref.ref[torch.Tensor] | None = None
        self._result: tuple[torch.Tensor, torch.Tensor] | None = None
        self._left = 0

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [..., S, K] -> int8 [M, K] and scales [M, 1] in x's dtype, M the product of the leading axes.

        The inputs of a sharing group must not be changed in place between its calls.
        """
        if self._result is not None and self._source is not None and self._source() is x:
            result = self._result
            self._left -= 1
            if not self._left:
                self._source = self._result = None
            return result
        rotated = x if self.rotation is None else self.rotation(x)
        values, scale = self._quantize_by_kind(rotated)
        result = values.reshape(-1, values.shape[-1]), scale.reshape(-1, 1)
        self._source = self._result = None
        if self.consumers > 1:
            self._source, self._result, self._left = weakref.ref(x), result, self.consumers - 1
        return result

    def _quantize_by_kind(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Quantise text rows to `text_bits` and the others to `bits`."""
        if self.text_bits is None:
            return self._quantize(x, self.bits, self.clip)
        try:
            text = text_row_count()
        except LookupError:
            raise RuntimeError(
                f"text rows are to be quantised to {self.text_bits} bits, but nothing says which rows are text: "
                "predict through the policy, or call the layers inside `with text_rows(n):`"
            ) from None
        if not text:
            return self._quantize(x, self.bits, self.clip)
        visual = x.shape[-2] - text
        if visual <= 0:
            return self._quantize(x, self.text_bits, 1.0)
        values, scale = self._quantize(x[..., :visual, :], self.bits, self.clip)
        text_values, text_scale = self._quantize(x[..., visual:, :], self.text_bits, 1.0)
        return torch.cat((values, text_values), dim=-2), torch.cat((scale, text_scale), dim=-2)

    def _quantize(self, x: torch.Tensor, bits: int, clip: float) -> tuple[torch.Tensor, torch.Tensor]:
        """int8 shaped like x [..., S, K], and scales [..., S, 1]."""
        if self.row_quantizer is None or self.granularity != "token":
            return quantize_activation(x, bits, clip=clip, granularity=self.granularity, rms_eps=self.rms_eps)
        values, scale = self.row_quantizer(x.reshape(-1, x.shape[-1]), bits, clip, self.rms_eps)
        return values.view(x.shape), scale.view(*x.shape[:-1], 1)


class PackedLinear(nn.Module):
    """What both kinds share: packed integer weights, their scales, and how a state dict describes them."""

    def __init__(self, weight: PackedWeight, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits = weight.columns, weight.packed.shape[0], weight.bits
        self.weight: torch.Tensor | None
        self.weight_scale: torch.Tensor
        self.weight_zero: torch.Tensor | None
        self.bias: torch.Tensor | None
        self.register_buffer("weight", weight.packed)
        self.register_buffer("weight_scale", weight.scale)
        self.register_buffer("weight_zero", weight.zero_point)
        self.register_buffer("bias", None if bias is None else bias.detach())

    @property
    def stored_bytes(self) -> int:
        """Bytes of weights and scales as packed."""
        scales = self.weight_scale.numel() * (4 if self.weight_zero is None else 8)
        return self.out_features * packed_columns(self.in_features, self.bits) + scales

    def quantized_weight(self) -> QuantizedWeight:
        """The weights on their grid; only while the packed copy is held."""
        if self.weight is None:
            raise RuntimeError("the packed weights were given to a faster backend; load the policy again")
        return PackedWeight(self.weight, self.weight_scale, self.weight_zero, self.bits, self.in_features).unpack()

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


class QuantizedLinear(PackedLinear):
    """Integer weights and integer activations; see the module's docstring for the formula.

    It starts on the `reference` backend with packed weights; `use_backend` gives them to a faster one.
    """

    def __init__(self, weight: PackedWeight, activation: ActivationQuantizer, bias: torch.Tensor | None = None) -> None:
        if weight.zero_point is not None or weight.scale.shape[1] != 1:
            raise ValueError("an integer product needs symmetric weights with one scale per output channel")
        super().__init__(weight, bias)
        self.activation = activation
        self.backend = "reference"
        self._product: IntegerProduct | None = None

    def use_backend(self, name: str) -> None:
        """Hand the weights to a backend (`auto` or one of `BACKENDS`); faster ones replace the packed copy."""
        name = resolve_backend(name, self.weight_scale.device)
        if name == self.backend:
            return
        self._product = BACKENDS[name](self.quantized_weight().values, self.weight_scale[:, 0])
        self.backend = name
        if name != "reference":
            self.weight = None

    @property
    def product(self) -> IntegerProduct:
        """What multiplies the integers."""
        if self._product is not None:
            return self._product
        return BACKENDS["reference"](self.quantized_weight().values, self.weight_scale[:, 0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., S, K] -> [..., S, N] in x's dtype."""
        y = self.product(*self.activation(x))
        if self.bias is not None:
            y += self.bias.to(y.dtype)
        return y.view(*x.shape[:-1], self.out_features)


class WeightOnlyLinear(PackedLinear):
    """Integer weights, activations as they come; grouped scales and zero points allowed."""

    def __init__(
        self, weight: PackedWeight, bias: torch.Tensor | None = None, rotation: OrthogonalMix | None = None
    ) -> None:
        super().__init__(weight, bias)
        self.rotation = rotation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N] in x's dtype."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        x = x if self.rotation is None else self.rotation(x)
        return nn.functional.linear(x, self.quantized_weight().dequantize().to(x.dtype), bias)


def use_backend(model: nn.Module, name: str = "auto", *, fused: bool | None = None) -> str:
    """Switch every `QuantizedLinear` of a model; returns the name of the backend in use ("" when there is none).

    fused: quantise activations in one kernel, compiled (see `fused`) or the backend's own; None does so where it pays:
        always on backends triton and amx, otherwise for wide layers on a machine with a compiler.
    Raises `BackendError` before anything is changed when this machine cannot run the backend.
    """
    linears = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    if not linears:
        return ""
    used = resolve_backend(name, linears[0].weight_scale.device)
    if fused and used not in ("triton", "amx") and fused_unavailable():
        raise BackendError(f"activation quantisation cannot be compiled here: {fused_unavailable()}")
    for linear in linears:
        linear.use_backend(name)
        linear.activation.row_quantizer = None if fused is False else _row_quantizer(linear, needed=bool(fused))
    return linears[0].backend


def _row_quantizer(linear: QuantizedLinear, needed: bool) -> RowQuantizer | None:
    """One kernel for a linear's activations where that pays or is needed."""
    if linear.backend == "triton":
        from sqap_vla_ros.quantization.backends import triton_activations

        return triton_activations.quantize_rows
    if linear.backend == "amx":
        from sqap_vla_ros.quantization.backends import amx as amx_product

        return amx_product.quantize_rows
    pays = linear.backend == "onednn" and linear.in_features >= FUSED_FROM and not fused_unavailable()
    return quantize_rows if needed or pays else None
