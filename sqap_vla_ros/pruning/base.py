"""The base class of all selectors: the budget, the checks of the context, and the packing of the answer."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sqap_vla_ros.contracts import Query, Reason, SelectedTokens, SelectionContext
from sqap_vla_ros.pruning.grid import check_patch

DROPPED = 255  # no `Reason`: the token is not kept


@dataclass(frozen=True, kw_only=True)
class Selector(abc.ABC):
    """Base of the selectors: drops a share `ratio` of the visual tokens before decoder layer `prune_layer`.

    A new selector is a subclass with a `name`, `needs` and `select`, and a row in `registry.py`. The members
    are explained in `contracts.TokenSelector`; the defaults suit a deterministic selector without memory that runs on
    the host.
    """

    name: str = ""
    ratio: float = 0.4
    prune_layer: int = 3
    query: Query = "cognition"

    def __post_init__(self) -> None:
        if not (isinstance(self.ratio, int | float) and 0.0 <= self.ratio < 1.0):
            raise ValueError(f"{self.name}: ratio must be in [0, 1), the share of tokens pruned, got {self.ratio!r}")
        if not (isinstance(self.prune_layer, int) and self.prune_layer >= 0):
            raise ValueError(f"{self.name}: prune_layer must be an integer >= 0, got {self.prune_layer!r}")
        if self.query not in get_args(Query):
            raise ValueError(f"{self.name}: query must be 'cognition' or 'instruction', got {self.query!r}")
        if "attention" in self.needs and self.prune_layer == 0:
            raise ValueError(
                f"{self.name}: there is no decoder attention before layer 0; choose prune_layer >= 1, got 0"
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def draws_at_random(self) -> bool:
        return False

    @property
    def stateful(self) -> bool:
        return False

    @property
    def runs_on_device(self) -> bool:
        return False

    def budget(self, tokens: int) -> int:
        """Return the number of tokens kept: `round((1 - ratio) * tokens)`, halves rounded up, at least 1."""
        return max(1, math.floor((1.0 - self.ratio) * tokens + 0.5 + 1e-9))

    @abc.abstractmethod
    def select(self, context: SelectionContext) -> SelectedTokens:
        """Choose the tokens of every image. Raises ValueError where the context lacks something (`check`)."""

    def select_on_device(self, context: SelectionContext) -> SelectedTokens:
        """Make the same choice without the host; only where `runs_on_device`."""
        raise NotImplementedError(f"selector {self.name!r} chooses its tokens on the host")

    def reset(self) -> None:
        """Forget earlier frames; a choice without memory has nothing to forget."""
        return

    def check(self, context: SelectionContext) -> None:
        """Raise ValueError where the context lacks something or does not fit the grid."""
        tokens = context.grid[0] * context.grid[1]
        batch = len(context.gripper_patch)
        for patch in context.gripper_patch:
            if patch is not None:
                check_patch(patch, context.grid)
        for field in sorted(self.needs):
            value = getattr(context, field)
            if value is None:
                raise ValueError(f"{self.name} needs `{field}`, which the decoder did not compute")
            if tuple(value.shape[:2]) != (batch, tokens):
                raise ValueError(
                    f"{self.name}: {field} must be [{batch}, {tokens}, ...] for {batch} gripper patches and a grid of "
                    f"{context.grid[0]} x {context.grid[1]}, got {tuple(value.shape)}"
                )
            if value.device.type == "cpu" and not bool(torch.isfinite(value).all()):
                raise ValueError(
                    f"{self.name}: {field} is not finite: the model overflowed, nothing can be ranked by it"
                )


def device_of(context: SelectionContext) -> torch.device:
    """Return the device of what the decoder computed, the CPU where it computed nothing."""
    for value in (context.attention, context.hidden, context.saliency):
        if value is not None:
            return value.device
    return torch.device("cpu")


def ranking(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the tokens from the largest score to the smallest, equals in ascending index. [N]"""
    return np.argsort(-scores, kind="stable")


def ranking_batched(scores: Tensor) -> Tensor:
    """Rank each row as `ranking` does, on the tensor's device; NaN ranks last. [B, N]"""
    return torch.argsort(torch.nan_to_num(scores, nan=-torch.inf), dim=1, descending=True, stable=True)


def pack(reasons: NDArray[np.uint8], device: torch.device) -> SelectedTokens:
    """Turn a `Reason` or `DROPPED` for every token [B, N], with equal counts in each row, into a selector's answer."""
    kept = reasons != DROPPED
    batch = len(reasons)
    indices = np.flatnonzero(kept.reshape(-1)).reshape(batch, -1) - np.arange(batch)[:, None] * reasons.shape[1]
    return SelectedTokens(
        torch.from_numpy(indices).to(device), torch.from_numpy(np.take_along_axis(reasons, indices, axis=1)).to(device)
    )


def pack_batched(reasons: Tensor, budget: int) -> SelectedTokens:
    """Do what `pack` does without leaving the device; `budget` must be the count in each row."""
    tokens = reasons.shape[1]
    index = torch.arange(tokens, device=reasons.device)
    indices = torch.where(reasons != DROPPED, index, tokens).sort(dim=1).values[:, :budget]
    return SelectedTokens(indices, reasons.gather(1, indices))


def keep_same(indices: NDArray[np.integer], reason: Reason, context: SelectionContext) -> SelectedTokens:
    """Answer with the same tokens, kept for one reason, for every image of the batch."""
    device = device_of(context)
    batch = len(context.gripper_patch)
    row = torch.from_numpy(np.sort(indices).astype(np.int64)).to(device)
    return SelectedTokens(
        row.expand(batch, -1).contiguous(),
        torch.full((batch, len(indices)), int(reason), dtype=torch.uint8, device=device),
    )
