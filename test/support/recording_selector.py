"""A selector that remembers what the decoder showed it."""

from dataclasses import dataclass, field

import torch

from sqap_vla_ros.contracts import Reason, SelectedTokens, SelectionContext
from sqap_vla_ros.pruning.base import Selector


@dataclass(frozen=True, kw_only=True)
class Recorder(Selector):
    """Keeps the most attended tokens (the first ones where it sees no attention) and appends each context to `seen`."""

    name: str = "recorder"
    needs: frozenset[str] = frozenset({"attention"})
    seen: list[SelectionContext] = field(default_factory=list)

    def select(self, context: SelectionContext) -> SelectedTokens:
        self.check(context)
        self.seen.append(context)
        tokens, batch = context.grid[0] * context.grid[1], len(context.gripper_patch)
        scores = torch.zeros(batch, tokens) if context.attention is None else context.attention
        kept = scores.argsort(dim=1, descending=True, stable=True)[:, : self.budget(tokens)].sort(dim=1).values
        return SelectedTokens(kept, torch.full(kept.shape, int(Reason.ATTENTION), dtype=torch.uint8))
