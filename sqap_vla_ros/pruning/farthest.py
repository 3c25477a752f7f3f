"""Farthest-point sampling over tokens (SQAP-VLA Eq. 5; Qi et al., PointNet++, 2017).

Each pick is the token farthest from everything kept so far. Ties go to the lowest index; a caller who wants another
precedence permutes the tokens first. There are two implementations with the same answer: NumPy for one image (the CPU
path), and a batched tensor loop of fixed length (the GPU path, no host synchronisation).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def farthest_points(
    distances: NDArray[np.number], kept: NDArray[np.bool_], count: int, first: int, *, from_kept: bool = True
) -> NDArray[np.int64]:
    """Pick `count` tokens that are not in `kept`. [count], in the order they were picked.

    distances: [N, N] between tokens, non-negative.
    kept: [N], never picked.
    first: token to begin with where there is nothing to be far from (it must not be in `kept`).
    from_kept: distances are from the kept tokens too; False ignores these, and sampling starts at `first`.
    """
    if not 0 <= count <= int(np.count_nonzero(~kept)):
        raise ValueError(f"cannot pick {count} tokens from the {int(np.count_nonzero(~kept))} that are not kept")
    picks = np.empty(count, dtype=np.int64)
    if count == 0:
        return picks
    start = 0
    if from_kept and kept.any():
        nearest = distances[kept].min(axis=0)
    else:
        nearest = distances[first].copy()
        picks[0] = first
        start = 1
    nearest[kept] = -1  # below every distance: neither kept tokens nor earlier picks can win again
    nearest[picks[:start]] = -1
    for step in range(start, count):
        pick = nearest.argmax()  # the first of equals
        picks[step] = pick
        np.minimum(nearest, distances[pick], out=nearest)
        nearest[pick] = -1
    return picks


def farthest_points_batched(
    distances: Tensor, kept: Tensor, budget: int, steps: int, first: Tensor, *, from_kept: bool = True
) -> Tensor:
    """Grow every row of `kept` to `budget` tokens, on the tensors' device. [B, N] bool

    distances: [N, N] or [B, N, N], integer or floating.
    kept: [B, N] bool, at most `budget` in each row.
    steps: number of picks that suffices for every row (`budget` minus the least number kept).
    first: [B] token to begin with where there is nothing to be far from.
    The loop's length is known on the host; rows that are complete ignore further picks.
    """
    batch, tokens = kept.shape
    rows = torch.arange(batch, device=kept.device)
    table = distances.expand(batch, tokens, tokens)
    far = torch.finfo(table.dtype).max if table.is_floating_point() else torch.iinfo(table.dtype).max
    index = torch.arange(tokens, device=kept.device)
    if from_kept:
        nearest = torch.where(kept[:, :, None], table, far).amin(dim=1)  # [B, N]
        nothing = ~kept.any(dim=1, keepdim=True)
    else:
        nearest = torch.full_like(table[:, 0], far)
        nothing = torch.ones(batch, 1, dtype=torch.bool, device=kept.device)
    # Where nothing is kept yet, every token but `first` is worth less than `first`.
    nearest = torch.where(nothing & (index != first[:, None]), 0, nearest).masked_fill(kept, -1)
    seeded = ~nothing[:, 0]
    chosen = kept.clone()
    count = kept.sum(dim=1)
    for _ in range(steps):
        best = nearest.amax(dim=1, keepdim=True)
        pick = torch.where(nearest == best, index, tokens).amin(dim=1)  # [B], the lowest of equals
        active = count < budget
        row = table[rows, pick]
        updated = torch.where(seeded[:, None], torch.minimum(nearest, row), row.masked_fill(chosen, -1))
        updated = updated.masked_fill(index == pick[:, None], -1)
        nearest = torch.where(active[:, None], updated, nearest)
        chosen = chosen | (active[:, None] & (index == pick[:, None]))
        count = count + active
        seeded = seeded | active
    return chosen
