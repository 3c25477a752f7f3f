"""SQAP-VLA's token selection: attention, the ring around the gripper, and farthest-point samples (Eq. 1-5)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sqap_vla_ros.contracts import Reason, SelectedTokens, SelectionContext
from sqap_vla_ros.pruning import grid as patch_grid
from sqap_vla_ros.pruning.base import DROPPED, Selector, device_of, pack, pack_batched, ranking, ranking_batched
from sqap_vla_ros.pruning.farthest import farthest_points, farthest_points_batched
from sqap_vla_ros.pruning.ring import gripper_tensor, in_ring, ring_distance

FILL_REASON = {
    "farthest": Reason.SPATIAL,
    "attention": Reason.ATTENTION,
    "grid": Reason.GRID,
    "random": Reason.RANDOM,
}


@dataclass(frozen=True, kw_only=True)
class SqapSelector(Selector):
    """K_attn | K_ring | K_fps of SQAP-VLA (Fang et al., 2025, section 3.2), always exactly `budget` tokens.

    attention_share: |K_attn| as a share of the budget (Eq. 1); 0 leaves the strategy out.
    ring_radius: R_t in patches (Eq. 4), clipped at the border; None leaves the strategy out. Without a gripper in view
        there is no ring and its quota goes to the fill.
    fill: what takes the rest of the quota. "farthest" is the paper's Eq. 5; "attention" continues down the attention
        ranking (the ablation without strategy 3); "grid" and "random" are the baselines farthest points must beat.
    metric: "grid": distance between patches; "cosine": 1 - cosine between hidden states.
    start: "kept": farthest from what is kept already; "remainder": as if nothing were kept.
    ties: which of equally far tokens is picked: the first in the "uniform" order of the grid, or the "lowest" index.
        Distances on a grid are small integers: once every gap is one patch wide, all that is left is tied, and the
        lowest index would spend the rest of the quota on the top of the image.
    query: whose attention is read: the "cognition" token (last) or the mean over the "instruction" tokens.

    A token of both K_ring and K_attn carries the reason RING. Where ring and attention exceed the budget, the ring
    stays (nearest to the gripper first) and the tail of the attention ranking goes.
    """

    name: str = "sqap"
    attention_share: float = 0.5
    ring_radius: int | None = 2
    fill: str = "farthest"
    metric: str = "grid"
    start: str = "kept"
    ties: str = "uniform"

    def __post_init__(self) -> None:
        if not 0.0 <= self.attention_share <= 1.0:
            raise ValueError(f"{self.name}: attention_share must be in [0, 1], got {self.attention_share!r}")
        if self.ring_radius is not None and not (isinstance(self.ring_radius, int) and self.ring_radius >= 0):
            raise ValueError(f"{self.name}: ring_radius must be an integer >= 0 or None, got {self.ring_radius!r}")
        for field, allowed in (
            ("fill", FILL_REASON),
            ("metric", ("grid", "cosine")),
            ("start", ("kept", "remainder")),
            ("ties", ("uniform", "lowest")),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{self.name}: {field} must be one of {list(allowed)}, got {getattr(self, field)!r}")
        super().__post_init__()

    @property
    def draws_at_random(self) -> bool:
        return self.fill == "random"

    @property
    def runs_on_device(self) -> bool:
        return self.fill in ("farthest", "attention")

    @property
    def needs(self) -> frozenset[str]:
        fields = set()
        if self.attention_share > 0 or self.fill == "attention":
            fields.add("attention")
        if self.fill == "farthest" and self.metric == "cosine":
            fields.add("hidden")
        return frozenset(fields)

    def top_k(self, tokens: int) -> int:
        """Return |K_attn| (k of Eq. 1) for `tokens` visual tokens."""
        return math.floor(self.attention_share * self.budget(tokens) + 0.5 + 1e-9)

    def select(self, context: SelectionContext) -> SelectedTokens:
        """Choose the tokens of every image; see `contracts.TokenSelector`. One image at a time on the CPU."""
        self.check(context)
        device = device_of(context)
        gripper = gripper_tensor(context.gripper_patch, device)
        if device.type != "cpu":
            return self.select_on_device(dataclasses.replace(context, gripper_on_device=gripper))
        attention = None if context.attention is None else context.attention.detach().numpy()
        distance = ring_distance(gripper, context.grid)
        protected = in_ring(distance, self.ring_radius).numpy()
        reasons = np.stack(
            [
                self._select_one(
                    context,
                    None if attention is None else attention[image],
                    None if context.hidden is None else context.hidden[image],
                    distance[image].numpy(),
                    protected[image],
                )
                for image in range(len(gripper))
            ]
        )
        return pack(reasons, device)

    def _select_one(
        self,
        context: SelectionContext,
        attention: NDArray[np.float32] | None,
        hidden: Tensor | None,
        distance: NDArray[np.int64],
        protected: NDArray[np.bool_],
    ) -> NDArray[np.uint8]:
        """Return a `Reason` or `DROPPED` for every token of one image. [N]

        distance: [N] to the gripper's patch; protected: [N], in the ring.
        """
        grid = context.grid
        tokens = grid[0] * grid[1]
        budget = self.budget(tokens)
        reasons = np.full(tokens, DROPPED, dtype=np.uint8)
        order = None if attention is None else ranking(attention)
        if order is not None:
            reasons[order[: self.top_k(tokens)]] = Reason.ATTENTION
        reasons[protected] = Reason.RING
        if np.count_nonzero(reasons != DROPPED) > budget:
            place = np.empty(tokens, dtype=np.int64)
            place[np.arange(tokens) if order is None else order] = np.arange(tokens)
            worth = np.where(protected, distance * tokens + np.arange(tokens), tokens * tokens + place)
            worth[reasons == DROPPED] = np.iinfo(np.int64).max
            reasons[np.argsort(worth, kind="stable")[budget:]] = DROPPED
        kept = reasons != DROPPED
        missing = budget - int(np.count_nonzero(kept))
        reasons[self._fill(context, order, hidden, kept, missing)] = FILL_REASON[self.fill]
        return reasons

    def _fill(
        self,
        context: SelectionContext,
        order: NDArray[np.int64] | None,
        hidden: Tensor | None,
        kept: NDArray[np.bool_],
        missing: int,
    ) -> NDArray[np.integer]:
        """Choose the `missing` tokens that take the rest of the quota."""
        if missing == 0:
            return np.empty(0, dtype=np.int64)
        if self.fill == "farthest":
            uniform = self.ties == "uniform"
            walk = patch_grid.uniform_order(context.grid) if uniform else np.arange(len(kept))
            centre = np.where(kept, np.iinfo(np.int32).max, patch_grid.distance_to_centre(context.grid))[walk]
            if self.metric == "cosine" and hidden is not None:
                distances = _cosine_distances(hidden).numpy()[np.ix_(walk, walk)]
            elif uniform:
                distances = patch_grid.squared_distances_in_uniform_order(context.grid)
            else:
                distances = patch_grid.squared_distances(context.grid)
            first, from_kept = int(centre.argmin()), self.start == "kept"
            return walk[farthest_points(distances, kept[walk], missing, first, from_kept=from_kept)]
        fixed = order if self.fill == "attention" and order is not None else self._fixed_order(context)
        return fixed[~kept[fixed]][:missing]

    def _fixed_order(self, context: SelectionContext) -> NDArray[np.integer]:
        """Return the order in which "grid" and "random" fill, the same for every image of the batch. [N]"""
        if self.fill == "grid":
            return patch_grid.uniform_order(context.grid)
        return np.random.default_rng(context.seed).permutation(context.grid[0] * context.grid[1])

    def select_on_device(self, context: SelectionContext) -> SelectedTokens:
        """Make the same choice in tensor operations alone; see `contracts.TokenSelector`.

        With the fills "grid" and "random" the order is copied from the host, so a graph cannot capture it.
        """
        gripper = context.gripper_on_device
        if gripper is None:
            raise ValueError(f"{self.name} needs `gripper_on_device` to choose on the device, got None")
        grid, device = context.grid, gripper.device
        batch, tokens = len(gripper), grid[0] * grid[1]
        budget, k = self.budget(tokens), self.top_k(tokens)
        index = torch.arange(tokens, device=device)
        place = index.expand(batch, tokens)  # [B, N] rank of each token by attention
        if context.attention is not None:
            order = ranking_batched(context.attention)
            place = torch.empty_like(order).scatter_(1, order, index.expand(batch, tokens))
        top = place < (k if context.attention is not None else 0)
        walk, distances, centre = _tables_on_device(grid, self.ties == "uniform", device)
        distance = ring_distance(gripper, grid)
        protected = in_ring(distance, self.ring_radius)
        worth = torch.where(protected, distance * tokens + index, tokens * tokens + place)
        worth = worth.masked_fill(~(protected | top), 3 * tokens * tokens)
        rank = torch.empty_like(place).scatter_(1, worth.argsort(dim=1, stable=True), index.expand(batch, tokens))
        kept = (protected | top) & (rank < budget)
        reasons = torch.where(protected, int(Reason.RING), int(Reason.ATTENTION)).to(torch.uint8)
        reasons = reasons.masked_fill(~kept, DROPPED)

        if self.fill == "farthest":
            if self.metric == "cosine" and context.hidden is not None:
                distances = _cosine_distances(context.hidden)[:, walk][:, :, walk]
            centre = centre * tokens + index  # unique: ties to the first
            first = torch.where(kept[:, walk], torch.iinfo(centre.dtype).max, centre).argmin(dim=1)
            steps = budget - (k if context.attention is not None else 0)
            from_kept = self.start == "kept"
            walked = farthest_points_batched(distances, kept[:, walk], budget, steps, first, from_kept=from_kept)
            grown = torch.empty_like(walked).index_copy_(1, walk, walked)
        else:
            if self.fill != "attention":
                fixed = torch.from_numpy(np.ascontiguousarray(self._fixed_order(context), dtype=np.int64)).to(device)
                place = torch.empty_like(fixed).scatter_(0, fixed, index).expand(batch, tokens)
            rank = place.masked_fill(kept, -1).argsort(dim=1, stable=True).argsort(dim=1)
            grown = kept | (rank < budget)
        reasons = torch.where(grown & ~kept, int(FILL_REASON[self.fill]), reasons)
        return pack_batched(reasons, budget)


@lru_cache(maxsize=16)
def _tables_on_device(grid: tuple[int, int], uniform: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return walk [N], and squared distances [N, N] and distances to the centre [N] in the walk's order, int64."""
    tokens = grid[0] * grid[1]
    order = patch_grid.uniform_order(grid) if uniform else np.arange(tokens)
    distances = patch_grid.squared_distances(grid)[np.ix_(order, order)]
    tables = (order, distances, patch_grid.distance_to_centre(grid)[order])
    walk, table, centre = (torch.tensor(value, dtype=torch.int64, device=device) for value in tables)
    return walk, table, centre


def _cosine_distances(hidden: Tensor) -> Tensor:
    """Return 1 - cosine between tokens, [..., N, D] to [..., N, N] fp32, clamped at 0."""
    wide = hidden.float()
    length = wide.norm(dim=-1).clamp_min(1e-12)
    cosine = wide @ wide.transpose(-1, -2) / (length[..., :, None] * length[..., None, :])
    return (1.0 - cosine).clamp_min(0.0)
