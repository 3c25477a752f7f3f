"""Baselines: selectors without a measure of importance (random, uniform grid) and with attention alone (FastV)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sqap_vla_ros.contracts import Reason, SelectedTokens, SelectionContext
from sqap_vla_ros.pruning import grid as patch_grid
from sqap_vla_ros.pruning.base import Selector, keep_same
from sqap_vla_ros.pruning.sqap import SqapSelector


@dataclass(frozen=True, kw_only=True)
class RandomSelector(Selector):
    """A uniformly random subset, drawn from the context's seed; the same for every image of a batch and every device.

    The default budget is SQAP's (154 of 256): what a random choice achieves at the same cost.
    """

    name: str = "random_same_budget"

    @property
    def draws_at_random(self) -> bool:
        return True

    def select(self, context: SelectionContext) -> SelectedTokens:
        self.check(context)
        tokens = context.grid[0] * context.grid[1]
        order = np.random.default_rng(context.seed).permutation(tokens)
        return keep_same(order[: self.budget(tokens)], Reason.RANDOM, context)


@dataclass(frozen=True, kw_only=True)
class RandomDropSelector(RandomSelector):
    """Random dropping as in the tables of EfficientVLA and SQAP-VLA: 112 of 256 kept."""

    name: str = "random_drop"
    ratio: float = 144 / 256


@dataclass(frozen=True, kw_only=True)
class UniformGridSelector(Selector):
    """A uniform grid of exactly the budget's size, which uses no information: farthest points have to beat it."""

    name: str = "uniform_grid"

    def select(self, context: SelectionContext) -> SelectedTokens:
        self.check(context)
        tokens = context.grid[0] * context.grid[1]
        return keep_same(patch_grid.uniform_order(context.grid)[: self.budget(tokens)], Reason.GRID, context)


@dataclass(frozen=True, kw_only=True)
class FastvSelector(SqapSelector):
    """FastV (Chen et al., ECCV 2024): the tokens the last query attends to most, dropped before layer K = 2.

    The papers' row of 42 % operations keeps 56 of 256. It is SQAP's first strategy with the whole budget.
    """

    name: str = "fastv"
    ratio: float = 200 / 256
    prune_layer: int = 2
    attention_share: float = field(default=1.0, init=False)
    ring_radius: int | None = field(default=None, init=False)
    fill: str = field(default="attention", init=False)
    metric: str = field(default="grid", init=False)
    start: str = field(default="kept", init=False)
    ties: str = field(default="uniform", init=False)
