"""Pre-norm transformer blocks with eight-bit linears, computed with few passes over memory.

    h = x + s1 * out(attention(in(norm1(x))));    y = h + s2 * outer(gelu(inner(norm2(h))))

On the backends that can, a norm joins the quantiser that follows it, and bias, GELU, scale and residual join the
product before them. The steps round as separate operations do, so a fused block differs by roundings of the norm and of
the GELU alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sqap_vla_ros.quantization.backends.cpu.activations import NORM_BITS, normalise_tokens
from sqap_vla_ros.quantization.backends.cpu.attention import attention
from sqap_vla_ros.quantization.backends.cpu.product import Gelu, TileProduct
from sqap_vla_ros.quantization.linear import ActivationQuantizer, IntegerLinear


@dataclass(frozen=True)
class BlockParts:
    """The modules of a pre-norm block.

    inputs: the linears that make queries, keys and values, three or one for all. scales: [D] of both branches, if any.
    """

    norms: tuple[nn.LayerNorm, nn.LayerNorm]
    inputs: tuple[nn.Module, ...]
    out: nn.Module
    inner: nn.Module
    outer: nn.Module
    heads: int
    gelu: Gelu
    scales: tuple[Tensor, Tensor] | None = None

    @property
    def linears(self) -> tuple[nn.Module, ...]:
        return (*self.inputs, self.out, self.inner, self.outer)


def fuse_block(block: nn.Module, parts: BlockParts) -> bool:
    """Let a block compute with few passes; return whether its linears and their backend allow it."""
    linears = [_TileLinear.of(linear) for linear in parts.linears]
    able = [linear for linear in linears if linear is not None]
    if len(able) < len(linears):
        return False
    block.forward = FusedForward(block, parts, able)  # type: ignore[method-assign, assignment]
    return True


@dataclass(frozen=True)
class _TileLinear:
    """An integer linear on a backend with tile products, its input quantised as `normalise_tokens` does it."""

    product: TileProduct
    quantizer: ActivationQuantizer
    bias: Tensor | None

    @classmethod
    def of(cls, linear: nn.Module) -> _TileLinear | None:
        """Return what such a linear consists of; None for another one."""
        if not isinstance(linear, IntegerLinear) or linear.weight is not None:  # no backend has taken its weights
            return None
        product, quantizer = linear.product, linear.activation
        if not isinstance(product, TileProduct) or quantizer is None:
            return None
        plain = quantizer.rotation is None and quantizer.text_bits is None and quantizer.granularity == "token"
        return cls(product, quantizer, linear.bias) if plain and quantizer.bits == NORM_BITS else None


class FusedForward:
    """The forward pass of a block of tile linears, [B, S, D] bfloat16 -> [B, S, D].

    Other dtypes take the block's own steps.
    """

    def __init__(self, block: nn.Module, parts: BlockParts, linears: list[_TileLinear]) -> None:
        self._plain: Callable[..., Tensor] = block.forward
        self._heads, self._gelu, self._scales = parts.heads, parts.gelu, parts.scales or (None, None)
        *self._inputs, self._out, self._inner, self._outer = linears
        self._norms = [(norm.eps, _widened(norm.weight), _widened(norm.bias)) for norm in parts.norms]

    def __call__(self, x: Tensor, *others: object, **named: object) -> Tensor:
        if x.dtype != torch.bfloat16:
            return self._plain(x, *others, **named)
        rows = x.reshape(-1, x.shape[-1])
        out, inner, outer = self._out, self._inner, self._outer

        normed = self._normalised(rows, 0, self._inputs[0])
        mixed = [linear.product.finished(*normed, bias=linear.bias) for linear in self._inputs]
        query, key, value = (
            each.view(*x.shape[:2], -1) for each in (mixed if len(mixed) == 3 else mixed[0].chunk(3, dim=-1))
        )
        attended = attention(out.product.unit, query, key, value, self._heads)
        quantized = out.quantizer(attended.view(rows.shape))
        hidden = out.product.finished(*quantized, bias=out.bias, factor=self._scales[0], residual=rows)

        opened = inner.product.finished(*self._normalised(hidden, 1, inner), bias=inner.bias, gelu=self._gelu)
        quantized = outer.quantizer(opened)
        y = outer.product.finished(*quantized, bias=outer.bias, factor=self._scales[1], residual=hidden)
        return y.view(x.shape)

    def _normalised(self, rows: Tensor, norm: int, reader: _TileLinear) -> tuple[Tensor, Tensor]:
        return normalise_tokens(reader.product.unit, rows, reader.quantizer.clip, *self._norms[norm])


def _widened(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.float()


def causal_attention(model: nn.Module) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] | None:
    """Return causal attention of the unit that a model's linears compute on; None where they are on no such backend."""
    units = {
        linear.product.unit
        for linear in model.modules()
        if isinstance(linear, IntegerLinear) and linear.weight is None and isinstance(linear.product, TileProduct)
    }
    if not units:
        return None
    (unit,) = units

    def attend(query: Tensor, key: Tensor, value: Tensor, key_bias: Tensor | None) -> Tensor:
        q, k, v = (each.transpose(1, 2).flatten(2) for each in (query, key, value))
        mixed = attention(unit, q, k, v, query.shape[1], causal=True, key_bias=key_bias)
        return mixed.unflatten(-1, (query.shape[1], -1)).transpose(1, 2)

    return attend
