"""Linear layers whose weights are integers.

`QuantizedLinear` has one meaning whatever the backend:

    y = (Q(x R) @ W_int^T) * s_w * s_x + b

Q is the dynamic symmetric quantiser of the activations, R an online rotation (often none), W_int the integer weights,
s_w one scale per output channel and s_x one per token. The product is exact integer arithmetic. `WeightOnlyLinear` is
for schemes that leave the activations at 16 bits: it dequantises its weights on every call.
"""

from __future__ import annotations

import weakref

import torch
from torch import nn

from sqap_vla_ros.quantization.backends.product import BackendError, IntegerProduct
from sqap_vla_ros.quantization.backends.table import FALLBACK, Backend, find_backend
from sqap_vla_ros.quantization.packing import PackedWeight, packed_columns
from sqap_vla_ros.quantization.quantizers import QuantizedWeight, TokenQuantizer, quantize_activation
from sqap_vla_ros.quantization.rotations import OrthogonalMix
from sqap_vla_ros.text_rows import text_row_count


class ActivationQuantizer:
    """Rotate and quantise the input of one or several linears; those that share an input share the result.

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
        self.token_quantizer: TokenQuantizer | None = None  # one kernel in place of the plain operations
        self.rms_eps: float | None = None  # of an RMSNorm that is applied here instead of before, see `layer_fusion`
        self._source: weakref.ref[torch.Tensor] | None = None
        self._result: tuple[torch.Tensor, torch.Tensor] | None = None
        self._left = 0

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Quantise x [..., S, K] to int8 [M, K] with scales [M, 1] in x's dtype, M the product of the leading axes.

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
        """Return int8 values shaped like x [..., S, K] and scales [..., S, 1]."""
        if self.token_quantizer is None or self.granularity != "token":
            return quantize_activation(x, bits, clip=clip, granularity=self.granularity, rms_eps=self.rms_eps)
        values, scale = self.token_quantizer(x.reshape(-1, x.shape[-1]), bits, clip, self.rms_eps)
        return values.view(x.shape), scale.view(*x.shape[:-1], 1)


class PackedLinear(nn.Module):
    """Base class of all linears with packed integer weights.

    weight: the packed weights, None once a backend holds a copy of its own.
    """

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    in_features: int
    out_features: int

    @property
    def stored_bytes(self) -> int:
        """Return the bytes that weights and their scales take as packed."""
        raise NotImplementedError

    def held_weight(self) -> torch.Tensor:
        """Return the packed weights. Raises RuntimeError when they are no longer held."""
        if self.weight is None:
            raise RuntimeError("the packed weights were given to a faster backend; load the policy again")
        return self.weight


class UniformLinear(PackedLinear):
    """Base class of linears whose weights have one width; a state dict holds them packed, scales and zero points."""

    def __init__(self, weight: PackedWeight, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits = weight.columns, weight.packed.shape[0], weight.bits
        self.weight_scale: torch.Tensor
        self.weight_zero: torch.Tensor | None
        self.register_buffer("weight", weight.packed)
        self.register_buffer("weight_scale", weight.scale)
        self.register_buffer("weight_zero", weight.zero_point)
        self.register_buffer("bias", None if bias is None else bias.detach())

    @property
    def stored_bytes(self) -> int:
        """Return the bytes that weights and their scales take as packed."""
        scales = self.weight_scale.numel() * (4 if self.weight_zero is None else 8)
        return self.out_features * packed_columns(self.in_features, self.bits) + scales

    def quantized_weight(self) -> QuantizedWeight:
        """Return the weights on their grid. Raises RuntimeError when the packed copy is no longer held."""
        packed = PackedWeight(self.held_weight(), self.weight_scale, self.weight_zero, self.bits, self.in_features)
        return packed.unpack()

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


class IntegerLinear(PackedLinear):
    """Base class of linears that multiply integers: it holds a product, which a backend prepares from the weights.

    A linear starts on the backend that multiplies from packed weights; `use_backend` gives them to a faster one.

    activation: quantises the inputs; None where they keep 16 bits.
    """

    activation: ActivationQuantizer | None = None
    backend: str = FALLBACK.name
    _product: IntegerProduct | None = None

    def make_product(self, backend: Backend) -> IntegerProduct:
        """Prepare the product from the packed weights."""
        raise NotImplementedError

    def use_backend(self, backend: Backend) -> None:
        """Hand the weights to a backend; those that prepare their own copy replace the packed one."""
        if backend.name == self.backend:
            return
        self._product = self.make_product(backend)
        self.backend = backend.name
        if not backend.keeps_packed:
            self.weight = None

    @property
    def product(self) -> IntegerProduct:
        """Return the integer product; until `use_backend` prepares it, the weights are unpacked on every call."""
        return self.make_product(FALLBACK) if self._product is None else self._product

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., S, K] to [..., S, N] in x's dtype."""
        assert self.activation is not None
        y = self.product(*self.activation(x))
        if self.bias is not None:
            y += self.bias.to(y.dtype)
        return y.view(*x.shape[:-1], self.out_features)


class QuantizedLinear(UniformLinear, IntegerLinear):
    """A linear of integer weights and integer activations; the module's docstring has the formula."""

    activation: ActivationQuantizer

    def __init__(self, weight: PackedWeight, activation: ActivationQuantizer, bias: torch.Tensor | None = None) -> None:
        if weight.zero_point is not None or weight.scale.shape[1] != 1:
            raise ValueError("an integer product needs symmetric weights with one scale per output channel")
        super().__init__(weight, bias)
        self.activation = activation

    def make_product(self, backend: Backend) -> IntegerProduct:
        """Prepare the product from the packed weights."""
        return backend.make(self.quantized_weight().values, self.weight_scale[:, 0], None)


class WeightOnlyLinear(UniformLinear):
    """A linear of integer weights, activations as they come; grouped scales and zero points are allowed."""

    def __init__(
        self, weight: PackedWeight, bias: torch.Tensor | None = None, rotation: OrthogonalMix | None = None
    ) -> None:
        super().__init__(weight, bias)
        self.rotation = rotation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., K] to [..., N] in x's dtype."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        x = x if self.rotation is None else self.rotation(x)
        return nn.functional.linear(x, self.quantized_weight().dequantize().to(x.dtype), bias)


def use_backend(model: nn.Module, name: str = "auto", *, fused: bool | None = None) -> Backend | None:
    """Give every `IntegerLinear` of a model to a backend; return that backend, None when there is no such linear.

    fused: quantise activations in one kernel, the backend's or a compiled one; None does so where the backend's row of
        the table says that it pays.
    Raises BackendError before anything is changed when this machine cannot run the backend or the kernel.
    """
    linears = [module for module in model.modules() if isinstance(module, IntegerLinear)]
    if not linears:
        return None
    backend = find_backend(name, next(linears[0].buffers()).device)
    if fused:
        backend.token_quantizer()
    for linear in linears:
        linear.use_backend(backend)
        if linear.activation is not None:
            linear.activation.token_quantizer = _token_quantizer(backend, linear.in_features, fused)
    return backend


def _token_quantizer(backend: Backend, inputs: int, fused: bool | None) -> TokenQuantizer | None:
    """Return the one kernel for activations of this many channels where it is asked for or pays, else None."""
    if fused is None:
        pays = backend.token_quantizer_from is not None and inputs >= backend.token_quantizer_from
        if not pays:
            return None
    elif not fused:
        return None
    try:
        return backend.token_quantizer()
    except BackendError:
        return None  # the plain operations give the same integers
