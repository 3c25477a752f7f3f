"""Several instructions about one picture in one pass: [BOS][image][common words][instruction 1] … [instruction K].

Each instruction sees the shared prefix and itself, at the positions it would have alone, so its cognition feature is
the one a prediction computes; the picture is encoded once instead of K times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sqap_vla_ros.policy.cogact import CogACT
from sqap_vla_ros.policy.decoder import VISUAL_START

Block = Callable[..., tuple[Tensor, Tensor, Tensor]]
SUPERVISED_LAYER = 1  # whose attention from the cognition token is taught where to look; it knows the words by then


@dataclass(frozen=True)
class PackedPrompts:
    """Prompt ids, split into the prefix that all share and the rest of each.

    prefix: [P] int64. own: [B, K, L] int64, padded on the right; lengths: [B, K].
    """

    prefix: Tensor
    own: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class PackedOutput:
    """The outputs of a packed pass that the losses read.

    cognition: [B, K, D]. visual: [B, N, D], as given to the decoder. words: [B, K, D], the cognition tokens after the
    first layer. attention: [B, heads, K, N], log of the supervised layer's attention to the picture.
    """

    cognition: Tensor
    visual: Tensor
    words: Tensor
    attention: Tensor


def common_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Return the ids that all prompts begin with."""
    shared = []
    for ids in zip(*prompts, strict=False):
        if len(set(ids)) > 1:
            break
        shared.append(ids[0])
    return shared


def packed_forward(
    model: CogACT, image: Tensor, prompts: PackedPrompts, block_function: Block | None = None
) -> PackedOutput:
    """Compute cognition features of K instructions for each of B images [B, 3, size, size] (uint8, or float 0 … 255).

    block_function: `decoder_block`, or that compiled.
    """
    block_function = block_function or decoder_block
    visual = model.projector(model.vision(image)[0])
    decoder = model.decoder
    batch, tokens, _ = visual.shape
    count, length = prompts.own.shape[1:]
    prefix = decoder.embed_tokens(prompts.prefix).expand(batch, -1, -1)
    own = decoder.embed_tokens(prompts.own).flatten(1, 2)
    hidden = torch.cat((prefix[:, :VISUAL_START], visual, prefix[:, VISUAL_START:], own), dim=1)
    shared = tokens + prefix.shape[1]
    device = image.device
    positions = torch.cat((torch.arange(shared), (shared + torch.arange(length)).repeat(count))).to(device)
    block = torch.cat((torch.full((shared,), -1), torch.arange(count).repeat_interleave(length))).to(device)
    order = torch.arange(len(block), device=device)
    visible = (order[:, None] >= order) & ((block == -1) | (block[:, None] == block))
    bias = torch.zeros(visible.shape, device=device, dtype=visual.dtype).masked_fill_(~visible, -1e4)
    # row of each cognition token
    asked = shared + torch.arange(count, device=device) * length + prompts.lengths - 1  # [B, K]

    cos, sin = decoder.rotary(shared + length, visual)
    cos, sin = cos[positions], sin[positions]
    words = attention = None
    layers: list[Any] = list(decoder.layers)
    heads = decoder.config.heads
    for index, layer in enumerate(layers[:-1]):
        hidden, query, key = block_function(layer, heads, hidden, cos, sin, bias)
        if index == 0:
            words = _take(hidden, asked)
        if index == SUPERVISED_LAYER:
            rows = asked[:, None, :, None].expand(-1, heads, -1, query.shape[-1])
            logits = (query.gather(2, rows) @ key.transpose(-1, -2) + bias[asked].unsqueeze(1)).float()
            attention = logits.log_softmax(dim=-1)[..., VISUAL_START : VISUAL_START + tokens]
    if words is None or attention is None:
        raise ValueError(f"training needs a decoder of at least {SUPERVISED_LAYER + 2} layers, got {len(layers)}")
    return PackedOutput(decoder.norm(_last(layers[-1], heads, hidden, cos, sin, bias, asked)), visual, words, attention)


def decoder_block(
    layer: Any, heads: int, hidden: Tensor, cos: Tensor, sin: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one decoder layer; return hidden states, scaled queries and keys.

    Attention is written out: on a CPU its backward pass costs two thirds of the fused one's.
    """
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    query = _rotate(_split(attention.q_proj(normed), heads), cos, sin) * (hidden.shape[-1] // heads) ** -0.5
    key = _rotate(_split(attention.k_proj(normed), heads), cos, sin)
    weights = (query @ key.transpose(-1, -2) + bias).softmax(dim=-1)
    mixed = weights @ _split(attention.v_proj(normed), heads)
    hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden)), query, key


def _last(layer: Any, heads: int, hidden: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, rows: Tensor) -> Tensor:
    """Run the last layer for the cognition tokens alone."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    key = _rotate(_split(attention.k_proj(normed), heads), cos, sin)
    value = _split(attention.v_proj(normed), heads)
    query = _split(attention.q_proj(_take(normed, rows)), heads)
    query = _rotate(query, cos[rows].unsqueeze(1), sin[rows].unsqueeze(1)) * query.shape[-1] ** -0.5
    weights = (query @ key.transpose(-1, -2) + bias[rows].unsqueeze(1)).softmax(dim=-1)
    hidden = _take(hidden, rows) + attention.o_proj((weights @ value).transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def _split(values: Tensor, heads: int) -> Tensor:
    """Reshape [B, S, D] to [B, heads, S, d]."""
    return values.unflatten(-1, (heads, -1)).transpose(1, 2)


def _take(values: Tensor, rows: Tensor) -> Tensor:
    """Take rows [B, K] of values [B, S, D]."""
    return values.gather(1, rows.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
