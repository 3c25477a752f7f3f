"""The Llama-2 decoder as CogACT uses it: one prefill, no cache, no language head, visual tokens dropped on the way.

Layers are transformers' own, so every linear keeps its usual name (`layers.N.self_attn.q_proj`, …) and may be replaced;
the forward pass is ours because the token selection lives inside it.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from sqap_vla_ros.contracts import SelectedTokens, SelectionContext, TokenSelector
from sqap_vla_ros.policy.config import DecoderConfig

# queries, keys, values [B, heads, S, d], and None or [B, S] added to every query's logits -> [B, heads, S, d]
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
VISUAL_START = 1  # [BOS][visual …][text …]


@dataclass(frozen=True)
class DecoderOutput:
    """The result of a prefill.

    cognition: [B, D], final-norm output of each row's last true token.
    selected: the visual tokens that were kept; None without a selector.
    selection_s: seconds spent on choosing them.
    """

    cognition: Tensor
    selected: SelectedTokens | None = None
    selection_s: float = 0.0


def replace_parameter(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a parameter, which needs no gradient, into the place of one of another device or dtype."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))


class Decoder(nn.Module):
    """Computes the cognition feature [B, D] from embeddings [B, S, D].

    attend: computes causal attention where no row is padded, in place of PyTorch's.
    read: reads a parameter of a layer (`layers.0.mlp.up_proj.weight`) that is still in the checkpoint's file, where
        the layers were left there (`load_checkpoint`); see `layer_in_memory`.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.attend: Attend | None = None
        self.read: Callable[[str], Tensor] | None = None
        llama = LlamaConfig(
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            intermediate_size=config.mlp_width,
            vocab_size=config.vocabulary,
            rms_norm_eps=float(config.rms_eps),  # transformers refuses 1
            max_position_embeddings=config.max_positions,
            attn_implementation="sdpa",
        )
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(LlamaDecoderLayer(llama, index) for index in range(config.depth))
        self.norm = LlamaRMSNorm(config.width, eps=config.rms_eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as Llama does: normal with standard deviation 0.02, norms at one."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def layer_in_memory(self, index: int) -> LlamaDecoderLayer:
        """Return a layer; where the layers are still in the checkpoint's file, a copy of it that holds the weights."""
        layer: LlamaDecoderLayer = self.layers[index]
        if self.read is None:
            return layer
        copied: LlamaDecoderLayer = copy.deepcopy(layer)
        for name in layer.state_dict():
            replace_parameter(copied, name, self.read(f"layers.{index}.{name}"))
        return copied

    def forward(
        self,
        embeddings: Tensor,
        lengths: Tensor | None = None,
        *,
        selector: TokenSelector | None = None,
        context: SelectionContext | None = None,
    ) -> DecoderOutput:
        """Run one prefill.

        embeddings: [B, S, D], rows padded on the right: causal order hides padding from every true token.
        lengths: [B] true tokens of each row; None when no row is padded.
        context: grid, gripper patches and seed for the selector; attention and hidden states are filled in here.
        """
        if selector is not None and context is None:
            raise ValueError("a token selector needs a SelectionContext with the patch grid")
        if selector is not None and selector.prune_layer >= len(self.layers):
            raise ValueError(
                f"selector {selector.name!r} drops tokens before layer {selector.prune_layer}, "
                f"but the decoder has layers 0 to {len(self.layers) - 1}"
            )
        hidden = embeddings
        last = None if lengths is None else lengths - 1  # [B] index of the cognition token
        cos, sin = (table.unsqueeze(0) for table in self.rotary(embeddings.shape[1], hidden))  # [1, S, d]
        selected, selection_s = None, 0.0
        sizes_log: Tensor | None = None  # [B, S] log of the number of tokens that each one stands for
        for index, layer in enumerate(self.layers):
            query_start = None
            if selector is not None and context is not None:
                tokens = context.grid[0] * context.grid[1]
                visual = slice(VISUAL_START, VISUAL_START + tokens)
                if index == selector.prune_layer:
                    started = _now(hidden)
                    if "hidden" in selector.needs:
                        context = dataclasses.replace(context, hidden=hidden[:, visual])
                    on_device = context.gripper_on_device is not None
                    selected = selector.select_on_device(context) if on_device else selector.select(context)
                    selection_s = _now(hidden) - started
                    hidden, cos, sin = _drop_tokens(hidden, cos, sin, selected, tokens)
                    last = None if last is None else last - (tokens - selected.indices.shape[1])
                    if selected.sizes is not None:
                        behind = hidden.shape[1] - VISUAL_START - selected.sizes.shape[1]
                        sizes_log = F.pad(selected.sizes.log(), (VISUAL_START, behind))
                if index == selector.prune_layer - 1 and "attention" in selector.needs:
                    query_start = visual.stop if selector.query == "instruction" else -1
            final = index == len(self.layers) - 1
            hidden, attention = self._layer(
                layer, hidden, cos, sin, last, final=final, query_start=query_start, sizes_log=sizes_log
            )
            if attention is not None and context is not None:
                context = dataclasses.replace(context, attention=attention[:, visual])
        return DecoderOutput(self.norm(hidden).squeeze(1), selected, selection_s)

    def rotary(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin [length, head size] of positions 0 … length-1, computed in fp32, in `like`'s dtype."""
        size = self.config.width // self.config.heads
        exponent = torch.arange(0, size, 2, dtype=torch.float32, device=like.device) / size
        frequency = 1.0 / self.config.rope_theta**exponent
        angle = torch.arange(length, dtype=torch.float32, device=like.device)[:, None] * frequency
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos().to(like.dtype), angle.sin().to(like.dtype)

    def _layer(
        self,
        layer: Any,  # a LlamaDecoderLayer, its linears perhaps replaced
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        last: Tensor | None,
        *,
        final: bool,
        query_start: int | None,
        sizes_log: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute one decoder layer; in the final one, only the cognition token asks and goes on ([B, 1, D]).

        query_start: None, or the first token whose attention to all tokens is wanted (-1: the cognition token alone).
        It is returned as [B, S] fp32, mean over heads and over the tokens from `query_start` to the cognition token.
        sizes_log: [B, S] added to the attention's logits: a token that stands for n attracts as n equal ones would.
        """
        attention = layer.self_attn
        normed = layer.input_layernorm(hidden)
        if final:
            hidden, asked = _cognition_row(hidden, last), _cognition_row(normed, last)
            query_cos, query_sin = (_cognition_row(table.expand(len(hidden), -1, -1), last) for table in (cos, sin))
        else:
            asked, query_cos, query_sin = normed, cos, sin
        heads = (self.config.heads, -1)
        query = attention.q_proj(asked).unflatten(-1, heads).transpose(1, 2)
        key = attention.k_proj(normed).unflatten(-1, heads).transpose(1, 2)  # [B, heads, S, d]
        value = attention.v_proj(normed).unflatten(-1, heads).transpose(1, 2)
        query, key = _rotate(query, query_cos, query_sin), _rotate(key, cos, sin)
        if self.attend is not None and last is None and not final:
            mixed = self.attend(query, key, value, sizes_log)
        else:
            mask = _attention_mask(key, last, sizes_log, final=final)
            causal = mask is None and not final
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        weights = None if query_start is None else _attention_rows(query, key, last, query_start)
        hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden)), weights


def _cognition_row(values: Tensor, last: Tensor | None) -> Tensor:
    """Return each row's cognition token, [B, S, D] to [B, 1, D]."""
    if last is None:
        return values[:, -1:]
    return values[torch.arange(len(values), device=values.device), last].unsqueeze(1)


def _attention_mask(key: Tensor, last: Tensor | None, sizes_log: Tensor | None, *, final: bool) -> Tensor | None:
    """Return the mask of a layer's attention, bool or added to the logits; None where plain causal order is all.

    The final layer asks with the cognition token alone: [B, 1, 1, S], up to `last`. Others: [B, 1, S, S].
    """
    position = torch.arange(key.shape[2], device=key.device)
    visible = None
    if final and last is not None:
        visible = (position <= last[:, None])[:, None, None, :]
    elif not final and sizes_log is not None:
        visible = position <= position[:, None]
    if sizes_log is None:
        return visible
    logits = sizes_log[:, None, None, :].to(key.dtype)
    return logits if visible is None else torch.where(visible, logits, -torch.inf)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions in Llama's half-split layout. x: [B, heads, S, d]; cos, sin: [1 or B, S, d]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.unsqueeze(1) + torch.cat((-second, first), dim=-1) * sin.unsqueeze(1)


def _attention_rows(query: Tensor, key: Tensor, last: Tensor | None, start: int) -> Tensor:
    """Return softmax(q K^T / sqrt(d)) of a few queries over all tokens, fp32 [B, S], without computing the whole map.

    start: the queries are the tokens from `start` to the cognition token; -1 is the cognition token alone.
    """
    batch, heads, length, size = key.shape
    index = torch.full((batch,), length - 1, device=key.device) if last is None else last
    position = torch.arange(length, device=key.device)
    rows = index[:, None] if start < 0 else position[start:].expand(batch, -1)  # [B, Q]
    asked = query.gather(2, rows[:, None, :, None].expand(-1, heads, -1, size)).float()
    scores = asked @ key.float().transpose(-1, -2) * size**-0.5  # [B, heads, Q, S]
    scores = scores.masked_fill((position > rows[..., None])[:, None], float("-inf"))
    weights = scores.softmax(dim=-1).mean(dim=1)  # [B, Q, S]
    true = (rows <= index[:, None]).float()  # padding does not count
    return (weights * true.unsqueeze(-1)).sum(dim=1) / true.sum(dim=1, keepdim=True)


def _drop_tokens(
    hidden: Tensor, cos: Tensor, sin: Tensor, selected: SelectedTokens, tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep BOS, the selected visual tokens in order and all text, each with its original position."""
    batch, length, width = hidden.shape
    device = hidden.device
    before = torch.arange(VISUAL_START, device=device).expand(batch, -1)
    after = torch.arange(VISUAL_START + tokens, length, device=device).expand(batch, -1)
    keep = torch.cat((before, VISUAL_START + selected.indices.to(device), after), dim=1)  # [B, S']
    rows = keep.unsqueeze(-1)
    hidden = hidden.gather(1, rows.expand(-1, -1, width))
    if selected.merged is not None:
        budget = selected.indices.shape[1]
        hidden[:, VISUAL_START : VISUAL_START + budget] = selected.merged.to(hidden.dtype)
    cos, sin = (t.expand(batch, -1, -1).gather(1, rows.expand(-1, -1, t.shape[-1])) for t in (cos, sin))
    return hidden, cos, sin


def _now(tensor: Tensor) -> float:
    """Return the time in seconds, after waiting for the GPU (but not while a graph is captured)."""
    if tensor.is_cuda and not torch.cuda.is_current_stream_capturing():
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()
