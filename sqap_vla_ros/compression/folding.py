"""Rotations and norms are folded into a policy's weights, so that most of them cost nothing at run time.

QuaRot (Ashkboos et al. 2024, arXiv:2404.00456) for the decoder of a CogACT model:

* RMSNorm commutes with rotations once its weight is folded into the linears that follow;
* R1 turns the residual stream: embeddings **and the projector's output** enter it turned, q/k/v/gate/up undo it in
  their weights, o/down write turned. The cognition feature leaves the stream through `UnrotatedNorm`;
* R2 turns every attention head's values, and o_proj's input back;
* before o_proj (across heads) and down_proj a rotation is applied online, see `online_rotation`.

Everything is computed in float64 and stored in the weights' own dtype.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from sqap_vla_ros.policy.decoder import Decoder
from sqap_vla_ros.quantization.rotations import OrthogonalMix, random_signs

SEED = 0  # of R1's random signs; a compressed file depends on it


class UnrotatedNorm(nn.Module):
    """The decoder's final RMSNorm for a turned stream: normalise, turn back, scale. [..., D] -> [..., D].

    It sees one token, so it turns in float32 whatever the stream's dtype.
    """

    def __init__(self, norm: LlamaRMSNorm, rotation: OrthogonalMix) -> None:
        super().__init__()
        self.norm, self.rotation = norm, rotation
        self.weight = nn.Parameter(norm.weight.detach().clone(), requires_grad=False)
        norm.weight.data.fill_(1.0)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        turned_back = self.rotation.inverse(self.norm(hidden).float())
        return (turned_back * self.weight.float()).to(hidden.dtype)


def residual_rotation(width: int) -> OrthogonalMix:
    """Return R1 of a decoder: a randomly signed orthogonal mix, the same on every machine."""
    return OrthogonalMix(width, signs=random_signs(width, SEED))


def online_rotation(linear: str, heads: int, head_width: int, mlp_width: int) -> OrthogonalMix | None:
    """Return the rotation of the input of `linear` at run time; None for linears whose rotation is folded."""
    if linear == "o_proj":
        return OrthogonalMix(heads, stride=head_width)
    if linear == "down_proj":
        return OrthogonalMix(mlp_width)
    return None


def _turn_input(linear: nn.Linear, mix: OrthogonalMix) -> None:
    """Replace W by W R: the linear now takes x R for x."""
    linear.weight.data = mix(linear.weight.data.double()).to(linear.weight.dtype)


def turn_input_online(linear: nn.Linear, mix: OrthogonalMix) -> None:
    """Rotate a linear's weight and, from now on, its input: its output stays the same."""
    _turn_input(linear, mix)
    linear.register_forward_pre_hook(lambda _, inputs: (mix(inputs[0]),))


def _turn_output(linear: nn.Linear, mix: OrthogonalMix) -> None:
    """Rotate the output: the linear now gives y R for y."""
    linear.weight.data = mix(linear.weight.data.double().t()).t().to(linear.weight.dtype).contiguous()
    if linear.bias is not None:
        linear.bias.data = mix(linear.bias.data.double()).to(linear.bias.dtype)


def _per_head(mix: OrthogonalMix, matrix: torch.Tensor) -> torch.Tensor:
    """Turn every head's block of the last axis [..., heads * head_width]."""
    return mix(matrix.reshape(*matrix.shape[:-1], -1, mix.size)).reshape(matrix.shape)


def fold_norm(norm: LlamaRMSNorm, linears: list[nn.Linear]) -> None:
    """Move an RMSNorm's weight into the linears that read it."""
    for linear in linears:
        linear.weight.data = (linear.weight.data.double() * norm.weight.data.double()).to(linear.weight.dtype)
    norm.weight.data.fill_(1.0)


def rotate_stream_ends(decoder: Decoder, projector: nn.Module) -> None:
    """Turn what enters the residual stream (embeddings, visual tokens) and turn back what leaves it."""
    rotation = residual_rotation(decoder.embed_tokens.weight.shape[1])
    embeddings = decoder.embed_tokens.weight
    for start in range(0, embeddings.shape[0], 4096):  # the 32 k x 4 k table in float64 would be 1 GB
        rows = embeddings.data[start : start + 4096]
        rows.copy_(rotation(rows.double()))
    last = [module for module in projector.modules() if isinstance(module, nn.Linear)][-1]
    _turn_output(last, rotation)
    decoder.norm = UnrotatedNorm(decoder.norm, rotation)


def rotate_layer(layer: LlamaDecoderLayer, head_width: int) -> None:
    """Fold a decoder layer's norms and turn its seven linears. The layer still computes the same function."""
    attention, mlp = layer.self_attn, layer.mlp
    fold_norm(layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj])
    fold_norm(layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj])
    stream = residual_rotation(attention.q_proj.in_features)
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
        _turn_input(linear, stream)
    head = OrthogonalMix(head_width)
    value, output, down = attention.v_proj, attention.o_proj, mlp.down_proj
    value.weight.data = _per_head(head, value.weight.data.double().t()).t().to(value.weight.dtype).contiguous()
    output.weight.data = _per_head(head, output.weight.data.double()).to(output.weight.dtype)
    heads = output.in_features // head_width
    for name, linear in (("o_proj", output), ("down_proj", down)):
        online = online_rotation(name, heads, head_width, down.in_features)
        assert online is not None
        turn_input_online(linear, online)
        _turn_output(linear, stream)
