"""Attention in bfloat16, for towers, decoder and action head."""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from sqap_vla_ros.quantization.backends.cpu.library import address, kernels, require
from sqap_vla_ros.quantization.backends.cpu.units import Unit


def attention(
    unit: Unit,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    *,
    causal: bool = False,
    key_bias: Tensor | None = None,
) -> Tensor:
    """Return softmax(q k^T / sqrt(d) + key_bias) v by head, [B, S, H d].

    query, key, value: [B, S, H d], whose rows may be parts of longer ones. key_bias: [B, S]. PyTorch computes other
    dtypes than bfloat16, heads of an odd number of channels, and on CPUs without AVX512-BF16.
    """
    batch, tokens, width = query.shape
    library, size = kernels(unit), width // heads
    rows = (tokens * query.stride(1), query.stride(1), 1)
    alike = all(each.stride()[batch == 1 :] == rows[batch == 1 :] for each in (query, key, value))
    if not library.has_attention() or query.dtype != torch.bfloat16 or size % 2 or not alike:
        q, k, v = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (query, key, value))
        mask = None
        if key_bias is not None:
            mask = key_bias[:, None, None, :].to(query.dtype)
            if causal:
                before = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril()
                mask, causal = torch.where(before, mask, -torch.inf), False
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).transpose(1, 2).flatten(2)
    for name, each in (("key", key), ("value", value)):
        require(name, each, (batch, tokens, width), query.dtype)
    require("key_bias", key_bias, (batch, tokens), torch.float32 if key_bias is None else key_bias.dtype)
    bias = None if key_bias is None else key_bias.float().contiguous()
    out = torch.empty(batch, tokens, width, dtype=query.dtype)
    sizes = map(ctypes.c_int64, (batch, heads, tokens, size, query.stride(1), causal))
    places = (None if each is None else address(each) for each in (query, key, value, bias, out))
    library.attention(*places, *sizes)
    return out
