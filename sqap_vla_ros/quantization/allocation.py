"""The width of every row of many linears, so that the action errs least at a given average.

QVLA (Xu et al., "Not All Channels Are Equal in Vision-Language-Action Model's Quantization", Eq. 7 and 8): all rows
start at the largest width, and demotions are taken in the order of the error they add for each bit they save, until the
average is met. Rows that must share a width (gate and up, the rotary pairs of q and k, all rows of one linear) are one
unit: their errors and their sizes are added.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOST_PRUNED = 0.05  # share of the units that may get no bits


def narrow_units(
    errors: Tensor,
    sizes: Tensor,
    average: float,
    widths: Sequence[int],
    *,
    stages: bool = False,
    most_pruned: float = MOST_PRUNED,
) -> Tensor:
    """Return the width of every unit, [U] int64, whose size-weighted mean is `average` or a little less.

    errors: [U, len(widths)] expected squared error of the action with the unit at each width (Eq. 4).
    sizes: [U] what a bit of the unit costs: its parameters, or its rows where every row counts the same.
    widths: ascending, in the order of the errors' columns.
    stages: as the paper writes it: all units go to the next width before one goes further. False always takes the
        cheapest demotion anywhere, also across widths, which errs least at the average it reaches.
    most_pruned: share of the units that may get no bits, the least sensitive ones.
    Raises ValueError where the average cannot be met, with what can.
    """
    errors, bits = errors.double(), torch.tensor(widths)
    if list(widths) != sorted({*widths}) or errors.shape != (len(sizes), len(widths)):
        raise ValueError(f"errors must be [units, ascending widths], got {tuple(errors.shape)} for {widths}")
    if not torch.isfinite(errors).all():
        raise ValueError("errors of rows hold NaN or infinity: check the calibration observations")
    if not average <= widths[-1]:
        raise ValueError(f"an average of {average} bits is more than the largest width, {widths[-1]}")
    allowed = torch.ones_like(errors, dtype=torch.bool)
    if widths[0] == 0:
        allowed[:, 0] = _prunable(errors, sizes, bits, most_pruned)
    steps = _stages(errors, allowed) if stages else _hull(errors, bits, allowed)
    return bits[_demote(steps, errors, sizes, bits, average)]


def mean_width(bits: Tensor, sizes: Tensor) -> float:
    """Return the mean of widths [U], each unit weighted by its size [U]."""
    return float((bits.double() * sizes).sum() / sizes.sum())


def _prunable(errors: Tensor, sizes: Tensor, bits: Tensor, most: float) -> Tensor:
    """Return which units may get no bits: the share `most` that loses least for each bit between the lowest two."""
    order = torch.argsort((errors[:, 0] - errors[:, 1]) / (bits[1] * sizes), stable=True)
    chosen = torch.zeros(len(errors), dtype=torch.bool)
    chosen[order[: int(most * len(errors))]] = True
    return chosen


# One step of every unit's way down: the column it leaves, and the one it goes to (the same where it goes nowhere).
Step = tuple[Tensor, Tensor]


def _stages(errors: Tensor, allowed: Tensor) -> list[list[Step]]:
    """Return the steps from each width to the next, every one a stage of its own."""
    top, units = errors.shape[1] - 1, len(errors)
    ways = []
    for column in range(top, 0, -1):
        leaves = torch.full((units,), column)
        ways.append([(leaves, torch.where(allowed[:, column - 1], leaves - 1, leaves))])
    return ways


def _hull(errors: Tensor, bits: Tensor, allowed: Tensor) -> list[list[Step]]:
    """Return the steps along the lower convex hull of every unit's error over its width, all in one stage."""
    columns = torch.arange(errors.shape[1])
    at = torch.full((len(errors),), errors.shape[1] - 1)
    steps: list[Step] = []
    while len(columns) > 1 and (at > 0).any():
        saved = bits[at][:, None] - bits
        slope = (errors - errors.gather(1, at[:, None])) / saved.clamp_min(1)
        slope[(columns >= at[:, None]) | ~allowed] = torch.inf
        cheapest, to = slope.min(1)
        to = torch.where(torch.isfinite(cheapest), to, at)
        if torch.equal(to, at):
            break
        steps.append((at, to))
        at = to
    return [steps]


def _demote(ways: list[list[Step]], errors: Tensor, sizes: Tensor, bits: Tensor, average: float) -> Tensor:
    """Take steps, stage by stage and the cheapest of a stage first, until the average is met; return the columns."""
    at = torch.full((len(errors),), errors.shape[1] - 1)
    excess = float((bits[-1] * sizes).sum()) - average * float(sizes.sum())
    units = torch.arange(len(errors))
    for stage in ways:
        unit = torch.cat([units for _ in stage] or [units[:0]])
        leaves, to = (torch.cat([step[side] for step in stage] or [units[:0]]) for side in (0, 1))
        saved = (bits[leaves] - bits[to]) * sizes[unit]
        cost = (errors[unit, to] - errors[unit, leaves]) / saved.clamp_min(1)
        cost[saved == 0] = torch.inf
        order = torch.argsort(cost, stable=True)
        order = order[saved[order] > 0]
        total = saved[order].cumsum(0)
        taken = order[: int((total < excess).sum()) + 1] if excess > 0 else order[:0]
        # a unit's steps are taken in their order, the later ones being dearer
        at.scatter_reduce_(0, unit[taken], to[taken], "amin")
        excess -= float(saved[taken].sum())
    if excess > 0:
        least = mean_width(bits[at], sizes)
        raise ValueError(f"an average of {average} bits cannot be met: {least:.2f} is the least these widths allow")
    return at
