"""Decoder layers with fewer passes over memory between their integer products.

An RMSNorm whose weight was folded away becomes one factor in the scale of the quantiser that follows, and the scales of
gate and up join the SiLU product. Both change the result by roundings of the activations' dtype only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from sqap_vla_ros.quantization.backends.product import split_rows
from sqap_vla_ros.quantization.backends.table import Backend
from sqap_vla_ros.quantization.linear import ActivationQuantizer, IntegerLinear, use_backend


class IntegerMlp(nn.Module):
    """The MLP down(silu(gate(x)) * up(x)) of three integer linears, [..., S, D] -> [..., S, D]."""

    def __init__(self, gate: IntegerLinear, up: IntegerLinear, down: IntegerLinear) -> None:
        super().__init__()
        assert gate.activation is not None
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down
        self.activation = gate.activation  # gate's and up's, asked once for both
        self.activation.consumers = 1

    def forward(self, x: Tensor) -> Tensor:
        values, scale = self.activation(x)
        gate, up = self.gate_proj.product, self.up_proj.product
        inner_quantizer = self.down_proj.activation
        if inner_quantizer is not None and inner_quantizer.text_bits is not None:  # it must see which rows are text
            inner = gate.gated(up, values, scale)
            return self.down_proj(inner.view(*x.shape[:-1], inner.shape[-1]))
        parts = []
        for rows in split_rows(len(values), gate.rows_per_call):
            parts.append(self.down_proj(gate.gated(up, values[rows], scale[rows])))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(x.shape)


class AppliedElsewhere(nn.Module):
    """A norm that the next quantiser applies: passes its input on. Its weight of ones still counts as a parameter."""

    def __init__(self, norm: LlamaRMSNorm) -> None:
        super().__init__()
        self.weight = norm.weight

    def forward(self, x: Tensor) -> Tensor:
        return x


def prepare_inference(model: nn.Module, backend: str = "auto") -> Backend | None:
    """Give a model's integer linears to a backend, and fuse the decoder layers whose tokens one kernel quantises.

    Returns the backend in use, None for a model without integer linears. Raises BackendError, see `use_backend`.
    """
    used = use_backend(model, backend)
    for layer in model.modules():
        if isinstance(layer, LlamaDecoderLayer):
            query = layer.self_attn.q_proj
            quantizer = query.activation if isinstance(query, IntegerLinear) else None
            if quantizer is not None and quantizer.token_quantizer is not None:
                fuse_layer(layer)
    return used


def fuse_layer(layer: LlamaDecoderLayer) -> None:
    """Join what can be joined in a Llama decoder layer, in place. What cannot (other schemes) stays as it is."""
    attention, mlp = layer.self_attn, layer.mlp
    linears: list[nn.Module] = [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    for name, readers in (
        ("input_layernorm", [attention.q_proj, attention.k_proj, attention.v_proj]),
        ("post_attention_layernorm", linears[:2]),
    ):
        norm, shared = getattr(layer, name), _shared_quantizer(readers)
        if shared is not None and isinstance(norm, LlamaRMSNorm) and bool((norm.weight == 1).all()):
            shared.rms_eps = norm.variance_epsilon
            setattr(layer, name, AppliedElsewhere(norm))
    integer = [linear for linear in linears if isinstance(linear, IntegerLinear) and linear.bias is None]
    if len(integer) == 3 and _shared_quantizer(linears[:2]) is not None:
        layer.mlp = IntegerMlp(*integer)


def _shared_quantizer(linears: list[nn.Module]) -> ActivationQuantizer | None:
    """Return the quantiser all these linears read through, if it works token by token on the tensor as it comes."""
    quantizers = {linear.activation if isinstance(linear, IntegerLinear) else None for linear in linears}
    (first, *others) = quantizers
    if others or first is None or first.granularity != "token" or first.rotation is not None:
        return None
    return first
