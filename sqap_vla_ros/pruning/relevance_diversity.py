"""EfficientVLA's token selection: a few key tokens, then half by relevance and half by diversity."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sqap_vla_ros.contracts import Reason, SelectedTokens, SelectionContext
from sqap_vla_ros.pruning.base import DROPPED, Selector, pack_batched, ranking_batched


@dataclass(frozen=True, kw_only=True)
class RelevanceDiversitySelector(Selector):
    """The token selection of EfficientVLA (Yang et al., NeurIPS 2025): 112 of 256 tokens kept from layer 2 on.

    The whole method, which also leaves out layers and caches the action head, is
    `compression.accelerators.efficient_vla`.

    key_tokens: the most relevant tokens, always kept (4 to 8 in the paper).
    relevance_share: of the rest of the budget, what goes by relevance; the remainder goes by diversity,
        1 - the largest cosine to a key token.

    Relevance is the attention of the task query to the visual tokens. The paper's Eq. 2 writes it the other way round,
    which under causal order is zero for text that follows the image.
    """

    name: str = "relevance_diversity"
    ratio: float = 144 / 256
    prune_layer: int = 2
    key_tokens: int = 8
    relevance_share: float = 0.5

    def __post_init__(self) -> None:
        if not (isinstance(self.key_tokens, int) and self.key_tokens >= 1):
            raise ValueError(f"{self.name}: key_tokens must be an integer >= 1, got {self.key_tokens!r}")
        if not 0.0 <= self.relevance_share <= 1.0:
            raise ValueError(f"{self.name}: relevance_share must be in [0, 1], got {self.relevance_share!r}")
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"attention", "hidden"})

    def select(self, context: SelectionContext) -> SelectedTokens:
        self.check(context)
        attention, hidden = context.attention, context.hidden
        assert attention is not None
        assert hidden is not None
        batch, tokens = attention.shape
        budget = self.budget(tokens)
        keys = min(self.key_tokens, budget)
        relevant = keys + math.floor(self.relevance_share * (budget - keys) + 0.5)
        order = ranking_batched(attention)
        unit = F.normalize(hidden.float(), dim=-1)
        key = unit.gather(1, order[:, :keys, None].expand(-1, -1, unit.shape[2]))
        diversity = 1.0 - (unit @ key.transpose(1, 2)).amax(dim=2)  # [B, N]
        diversity = diversity.scatter(1, order[:, :relevant], -torch.inf)
        diverse = ranking_batched(diversity)[:, : budget - relevant]
        reasons = torch.full((batch, tokens), DROPPED, dtype=torch.uint8, device=attention.device)
        reasons.scatter_(1, order[:, :relevant], int(Reason.ATTENTION)).scatter_(1, diverse, int(Reason.DIVERSITY))
        return pack_batched(reasons, budget)
