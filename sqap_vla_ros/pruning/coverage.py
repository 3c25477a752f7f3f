"""Coverage: keep tokens that represent the rest, and let each weigh as many as it represents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sqap_vla_ros.contracts import Reason, SelectedTokens, SelectionContext
from sqap_vla_ros.pruning.base import DROPPED, Selector, pack_batched
from sqap_vla_ros.pruning.farthest import farthest_points, farthest_points_batched
from sqap_vla_ros.pruning.merging import feature_distances, merge_into_kept
from sqap_vla_ros.pruning.ring import gripper_tensor, in_ring, ring_distance


@dataclass(frozen=True, kw_only=True)
class CoverageSelector(Selector):
    """The ring around the gripper, then farthest points in feature space; every other token merges into the nearest.

    Not from a paper. SQAP-VLA spends half of its budget on the tokens that one layer attends to most, and drops the
    rest; here the whole budget beyond the ring covers the features, so that a dropped token has a kept one like it,
    whose features become their mean and whose attention counts for both (`SelectedTokens.sizes`).
    `benchmarks/selection_error.py` compares the two.

    ring_radius: as in `sqap.SqapSelector`; None leaves the ring out. Where the ring alone exceeds the budget, the
        patches nearest to the gripper stay.
    merge: False drops the other tokens instead of merging them.
    """

    name: str = "coverage"
    ring_radius: int | None = 2
    merge: bool = True

    def __post_init__(self) -> None:
        if self.ring_radius is not None and not (isinstance(self.ring_radius, int) and self.ring_radius >= 0):
            raise ValueError(f"{self.name}: ring_radius must be an integer >= 0 or None, got {self.ring_radius!r}")
        if not isinstance(self.merge, bool):
            raise ValueError(f"{self.name}: merge must be true or false, got {self.merge!r}")
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"hidden"})

    @property
    def runs_on_device(self) -> bool:
        return True

    def select(self, context: SelectionContext) -> SelectedTokens:
        self.check(context)
        assert context.hidden is not None
        return self._choose(context, gripper_tensor(context.gripper_patch, context.hidden.device))

    def select_on_device(self, context: SelectionContext) -> SelectedTokens:
        if context.gripper_on_device is None:
            raise ValueError(f"{self.name} needs `gripper_on_device` to choose on the device, got None")
        return self._choose(context, context.gripper_on_device)

    def _choose(self, context: SelectionContext, gripper: Tensor) -> SelectedTokens:
        hidden = context.hidden
        assert hidden is not None
        batch, tokens = hidden.shape[:2]
        budget = self.budget(tokens)
        reach = ring_distance(gripper, context.grid)
        protected = in_ring(reach, self.ring_radius)
        order = (reach * tokens + torch.arange(tokens, device=hidden.device)).argsort(dim=1)
        nearest = torch.zeros_like(protected).scatter(1, order[:, :budget], True)
        ring = protected & nearest
        distances = feature_distances(hidden)
        kept = self._grow(distances, ring, budget)
        reasons = torch.full((batch, tokens), DROPPED, dtype=torch.uint8, device=hidden.device)
        reasons = reasons.masked_fill(kept, int(Reason.DIVERSITY)).masked_fill(ring, int(Reason.RING))
        chosen = pack_batched(reasons, budget)
        if not self.merge:
            return chosen
        merged, sizes = merge_into_kept(hidden, distances, chosen.indices)
        return SelectedTokens(chosen.indices, chosen.reasons, merged, sizes)

    def _grow(self, distances: Tensor, ring: Tensor, budget: int) -> Tensor:
        """Add farthest points to `ring` up to `budget` tokens in each row. [B, N] bool

        Without a ring the first point is the token farthest from the mean of all.
        """
        first = distances.sum(dim=2).argmax(dim=1)
        if distances.device.type != "cpu":
            return farthest_points_batched(distances, ring, budget, budget, first)
        kept = ring.numpy().copy()
        for row, table in enumerate(distances.numpy()):
            missing = budget - int(np.count_nonzero(kept[row]))
            kept[row, farthest_points(table, kept[row], missing, int(first[row]))] = True
        return torch.from_numpy(kept)
