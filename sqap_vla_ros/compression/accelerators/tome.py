"""Token merging inside the vision towers (Bolya et al., "Token merging: your ViT but faster", ICLR 2023).

CogACT concatenates the channels of two towers patch by patch, so both must merge the same patches: DINOv2 decides, and
SigLIP repeats its decisions, block by block, at the same relative depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqap_vla_ros.compression.accelerators.base import Accelerator, Savings
from sqap_vla_ros.contracts import Observation, Reason, SelectedTokens, SelectionContext
from sqap_vla_ros.policy.cogact import CogACTPolicy
from sqap_vla_ros.policy.vision import DINO_MEAN, DINO_STD, SIGLIP_MEAN, SIGLIP_STD, VisionTowers, normalised
from sqap_vla_ros.pruning.before_decoder import BeforeDecoder, keep_top


@dataclass(frozen=True)
class Tome(Accelerator):
    """Merge visual tokens inside the towers. ratio: share of them that is merged away; the default is SQAP's."""

    name: ClassVar[str] = "tome"
    ratio: float = 0.4

    @property
    def savings(self) -> Savings:
        """Return what is saved in the decoder; the towers save a little too, which is not counted."""
        return Savings(MergedTokensSelector(ratio=self.ratio))

    def install(self, policy: CogACTPolicy, calibration: Sequence[Observation] = ()) -> CogACTPolicy:
        """Replace the towers of `policy`, which is changed and returned."""
        selector = MergedTokensSelector(ratio=self.ratio)
        policy.model.vision = MergingTowers(policy.model.vision, selector.budget(policy.model.config.vision.tokens))  # type: ignore[assignment]
        policy.selector = selector
        return policy


@dataclass(frozen=True, kw_only=True)
class MergedTokensSelector(BeforeDecoder):
    """Keep one token for each group that `MergingTowers` merged.

    The towers hand over the sizes of the groups as `saliency` (0 for tokens that were merged into another).
    """

    name: str = "tome"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"saliency"})

    def select(self, context: SelectionContext) -> SelectedTokens:
        self.check(context)
        sizes = context.saliency
        assert sizes is not None
        groups = int((sizes[0] > 0).sum())
        if groups != self.budget(sizes.shape[1]):
            raise ValueError(
                f"tome: {groups} groups of tokens where {self.budget(sizes.shape[1])} are due: the towers are not "
                "`MergingTowers` with this selector's ratio"
            )
        return keep_top(sizes, groups, Reason.MERGED)


class MergingTowers(nn.Module):
    """The vision towers with merging after the attention of each block, down to `budget` groups of patches.

    Stands in for `VisionTowers`: returns features for all N patches, equal within a group, and the group sizes
    [B, N] (0 for patches that are not the first of their group) where the plain towers return the saliency.
    """

    def __init__(self, towers: VisionTowers, budget: int) -> None:
        super().__init__()
        tokens, blocks = towers.config.tokens, len(towers.dino.encoder.layer)
        self.towers = towers
        self.config = towers.config
        removed = [round((tokens - budget) * (block + 1) / blocks) for block in range(blocks)]
        self.merges = [after - before for before, after in zip([0, *removed], removed, strict=False)]
        left = tokens
        for block, count in enumerate(self.merges):
            if count > left // 2:
                raise ValueError(
                    f"tome: cannot merge {tokens} tokens into {budget} in {blocks} blocks: block {block} would have to "
                    f"merge {count} of {left} and bipartite matching merges at most half; prune a smaller share"
                )
            left -= count

    @property
    def dtype(self) -> torch.dtype:
        return self.towers.dtype

    def forward(self, image: Tensor, *, with_saliency: bool = False) -> tuple[Tensor, Tensor | None]:
        """Turn images [B, 3, size, size] uint8 into features [B, N, dino + siglip] and group sizes [B, N] fp32."""
        unit = image.float() / 255.0
        batch, tokens = len(image), self.config.tokens
        dino, siglip = self.towers.dino, self.towers.siglip
        prefix = 1 + self.config.dino.registers

        hidden = dino.embeddings(normalised(unit, DINO_MEAN, DINO_STD, self.dtype))
        size = torch.ones(batch, tokens, device=image.device)
        group = torch.arange(tokens, device=image.device).expand(batch, tokens)  # of every patch
        decisions = []
        for layer, count in zip(dino.encoder.layer, self.merges, strict=True):
            mixed, keys = _attention(layer.attention, layer.attention.o_proj, layer.norm1(hidden), size, prefix)
            hidden = hidden + layer.layer_scale1(mixed)
            target = match(keys[:, prefix:], count) if count else None
            if target is not None:
                patches, merged_size = merge(hidden[:, prefix:], size, target, size.shape[1] - count)
                hidden, size = torch.cat((hidden[:, :prefix], patches), dim=1), merged_size
                group = target.gather(1, group)
            decisions.append(target)
            hidden = hidden + layer.layer_scale2(layer.mlp(layer.norm2(hidden)))
        features = [hidden[:, prefix:]]

        hidden = siglip.embeddings(normalised(unit, SIGLIP_MEAN, SIGLIP_STD, self.dtype))
        size = torch.ones(batch, tokens, device=image.device)
        blocks = len(siglip.encoder.layers)
        due = [-(-(index + 1) * blocks // len(decisions)) - 1 for index in range(len(decisions))]
        for index, layer in enumerate(siglip.encoder.layers):
            mixed, _ = _attention(layer.self_attn, layer.self_attn.out_proj, layer.layer_norm1(hidden), size, 0)
            hidden = hidden + mixed
            for block, target, count in zip(due, decisions, self.merges, strict=True):
                if block == index and target is not None:
                    hidden, size = merge(hidden, size, target, size.shape[1] - count)
            hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
        features.append(hidden)

        expanded = torch.cat([f.gather(1, group[:, :, None].expand(-1, -1, f.shape[2])) for f in features], dim=-1)
        if not with_saliency:
            return expanded, None
        patch = torch.arange(tokens, device=image.device).expand(batch, tokens)
        first = torch.full_like(size, tokens, dtype=torch.int64).scatter_reduce(1, group, patch, "amin")
        return expanded, torch.zeros(batch, tokens, device=image.device).scatter_(1, first, size)


def match(keys: Tensor, count: int) -> Tensor:
    """Return the new place, 0..T-count-1, of every token [B, T] when the `count` most similar pairs merge.

    This is bipartite soft matching.

    keys: [B, T, d] mean over heads. Even tokens each propose their most similar odd token (cosine); the `count` best
    proposals merge. The remaining tokens keep their order.
    """
    batch, tokens, _ = keys.shape
    unit = F.normalize(keys.float(), dim=-1)
    even, odd = unit[:, ::2], unit[:, 1::2]
    best, partner = (even @ odd.transpose(1, 2)).max(dim=-1)  # [B, T/2]
    merging = best.argsort(dim=1, descending=True, stable=True)[:, :count]  # among the even tokens
    leader = torch.arange(tokens, device=keys.device).repeat(batch, 1)
    leader.scatter_(1, 2 * merging, 2 * partner.gather(1, merging) + 1)
    stays = torch.ones(batch, tokens, dtype=torch.bool, device=keys.device).scatter_(1, 2 * merging, False)
    place = stays.cumsum(dim=1) - 1  # new position of the tokens that stay
    return place.gather(1, leader)


def merge(hidden: Tensor, size: Tensor, target: Tensor, left: int) -> tuple[Tensor, Tensor]:
    """Average the tokens [B, T, D] that share one of `left` targets, by size; return [B, left, D] and sizes."""
    batch, _, width = hidden.shape
    merged_size = torch.zeros(batch, left, device=size.device).scatter_add_(1, target, size)
    weighted = hidden.float() * size[:, :, None]
    total = torch.zeros(batch, left, width, device=hidden.device)
    total.scatter_add_(1, target[:, :, None].expand(-1, -1, width), weighted)
    return (total / merged_size[:, :, None]).to(hidden.dtype), merged_size


def _attention(attention: Any, output: nn.Module, normed: Tensor, size: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """Return attention in which a token of n patches weighs as n keys, and the mean of the keys over heads."""
    heads = (-1, attention.head_dim)
    query, key, value = (
        projection(normed).unflatten(-1, heads).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    bias = F.pad(size.log(), (prefix, 0))[:, None, None, :].to(query.dtype)  # the prefix stands for itself
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return output(mixed.transpose(1, 2).flatten(2)), key.mean(dim=1)
