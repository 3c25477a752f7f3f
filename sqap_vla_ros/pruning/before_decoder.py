"""Selectors that act before the decoder, on the tower's attention and on the projected tokens.

All of them drop at layer 0, where the decoder has no attention to offer yet. Their papers report several budgets; the
default here is SQAP's, so that they are compared at equal cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sqap_vla_ros.contracts import Reason, SelectedTokens, SelectionContext
from sqap_vla_ros.pruning.base import DROPPED, Selector, pack, pack_batched, ranking_batched
from sqap_vla_ros.pruning.farthest import farthest_points, farthest_points_batched


@dataclass(frozen=True, kw_only=True)
class BeforeDecoder(Selector):
    """Base of the selectors that drop tokens at layer 0."""

    prune_layer: int = 0

    def __post_init__(self) -> None:
        if self.prune_layer != 0:
            raise ValueError(
                f"{self.name} drops tokens before the decoder: prune_layer must be 0, got {self.prune_layer}"
            )
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class FasterVlmSelector(BeforeDecoder):
    """FasterVLM (Zhang et al., 2024): the patches the vision tower's CLS token attends to most (DINOv2's CLS here)."""

    name: str = "fastervlm"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"saliency"})

    def select(self, context: SelectionContext) -> SelectedTokens:
        self.check(context)
        assert context.saliency is not None
        return keep_top(context.saliency, self.budget(context.saliency.shape[1]), Reason.ATTENTION)


@dataclass(frozen=True, kw_only=True)
class DivPruneSelector(BeforeDecoder):
    """DivPrune (Alvar et al., CVPR 2025): greedy max-min cosine distance between the projected visual tokens.

    The first token is the one farthest from its nearest neighbour. Uses no attention and no instruction.
    """

    name: str = "divprune"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"hidden"})

    def select(self, context: SelectionContext) -> SelectedTokens:
        self.check(context)
        assert context.hidden is not None
        unit = F.normalize(context.hidden.float(), dim=-1)
        distances = (1.0 - unit @ unit.transpose(1, 2)).clamp_min(0.0)  # [B, N, N]
        batch, tokens = distances.shape[:2]
        budget = self.budget(tokens)
        itself = torch.eye(tokens, dtype=torch.bool, device=distances.device)
        isolation = distances.masked_fill(itself, torch.inf).amin(dim=2)  # [B, N]
        first = ranking_batched(isolation)[:, 0]
        if distances.device.type != "cpu":
            nothing = torch.zeros(batch, tokens, dtype=torch.bool, device=distances.device)
            kept = farthest_points_batched(distances, nothing, budget, budget, first)
            return pack_batched(torch.where(kept, int(Reason.DIVERSITY), DROPPED).to(torch.uint8), budget)
        reasons = np.full((batch, tokens), DROPPED, dtype=np.uint8)
        for image, table in enumerate(distances.numpy()):
            picks = farthest_points(table, np.zeros(tokens, dtype=bool), budget, int(first[image]))
            reasons[image, picks] = Reason.DIVERSITY
        return pack(reasons, distances.device)


@dataclass(frozen=True, kw_only=True)
class VisionZipSelector(BeforeDecoder):
    """VisionZip (Yang et al., CVPR 2025): dominant tokens by CLS attention, the rest merged into contextual ones.

    dominant_share: share of the budget for dominant tokens; the paper's 54 of 64, 108 of 128, 162 of 192.

    The contextual targets are every n-th of the remaining tokens; each of the others joins the target it is most
    similar to (cosine). Published code compares the tower's keys and adds the mean of the joined to the target; here
    the projected tokens are compared and averaged with their target, which keeps their scale.
    """

    name: str = "visionzip"
    dominant_share: float = 27 / 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.dominant_share <= 1.0:
            raise ValueError(f"visionzip: dominant_share must be in (0, 1], got {self.dominant_share!r}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"saliency", "hidden"})

    def select(self, context: SelectionContext) -> SelectedTokens:
        self.check(context)
        hidden, saliency = context.hidden, context.saliency
        assert hidden is not None
        assert saliency is not None
        batch, tokens, width = hidden.shape
        budget = self.budget(tokens)
        dominant_count = max(1, math.floor(self.dominant_share * budget + 0.5))
        contextual_count = budget - dominant_count
        order = ranking_batched(saliency)
        dominant = order[:, :dominant_count]
        if contextual_count == 0:
            return keep_top(saliency, budget, Reason.ATTENTION)
        rest = order[:, dominant_count:].sort(dim=1).values  # [B, R], row-major
        step = rest.shape[1] // contextual_count
        place = torch.arange(contextual_count, device=hidden.device) * step
        targets = rest[:, place]  # [B, C]

        vectors = hidden.float().gather(1, rest[:, :, None].expand(-1, -1, width))
        unit = F.normalize(vectors, dim=-1)
        joins = (unit @ unit[:, place].transpose(1, 2)).argmax(dim=2)  # [B, R] target of each remaining token
        joins[:, place] = torch.arange(contextual_count, device=hidden.device)
        groups = F.one_hot(joins, contextual_count).float()  # [B, R, C]
        merged = groups.transpose(1, 2) @ vectors / groups.sum(dim=1)[:, :, None]  # [B, C, D]

        content = hidden.clone()
        content.scatter_(1, targets[:, :, None].expand(-1, -1, width), merged.to(hidden.dtype))
        reasons = torch.full((batch, tokens), DROPPED, dtype=torch.uint8, device=hidden.device)
        reasons.scatter_(1, dominant, int(Reason.ATTENTION)).scatter_(1, targets, int(Reason.MERGED))
        answer = pack_batched(reasons, budget)
        kept = content.gather(1, answer.indices[:, :, None].expand(-1, -1, width))
        return SelectedTokens(answer.indices, answer.reasons, kept)


def keep_top(scores: Tensor, budget: int, reason: Reason) -> SelectedTokens:
    """Keep the `budget` largest scores of each row, equals in ascending index, all for one reason."""
    indices = ranking_batched(scores)[:, :budget].sort(dim=1).values
    return SelectedTokens(indices, torch.full_like(indices, int(reason), dtype=torch.uint8))
