"""Widths for rows: the least expected damage within an average (QVLA, Eq. 7 and 8)."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sqap_vla_ros.quantization.mixed import WIDTHS

Linear = tuple[int, str]  # decoder layer, linear; VISION and the path of a linear of the vision towers
VISION = -1
Scores = Mapping[Linear, Mapping[int, Tensor]]  # linear -> bits -> [N] damage of every row
_FEW_UNITS = 1000  # of which the sums are gone through; of more, some come near to any sum
UNZEROABLE = ("q_proj", "k_proj")  # a head whose scores are all equal saturates: sums of row scores do not see it


class AllocationError(ValueError):
    """A budget or a set of widths that cannot be met; the message says why and what to do."""


@dataclass(frozen=True)
class Budget:
    """The average that the widths keep to.

    average: bits; the rows' average never exceeds it.
    by_parameters: weighs a row by its input channels, as memory does; False counts rows, as the paper does.
    widths: that a row may take.
    zero_share: at most this share may take 0 bits, where `widths` has 0, weighed as the average is; the paper leaves it
        open.
    """

    average: float
    by_parameters: bool = True
    widths: tuple[int, ...] = (2, 4, 8)
    zero_share: float = 0.05

    @property
    def ladder(self) -> list[int]:
        """Return the widths, the lowest first, each once."""
        return sorted({*self.widths})

    def __post_init__(self) -> None:
        if {*self.widths} - {*WIDTHS} or len({*self.widths}) < 2:
            raise AllocationError(f"widths must be two or more of {', '.join(map(str, WIDTHS))}, got {self.widths}")
        if not 0.0 <= self.zero_share <= 1.0:
            raise AllocationError(f"zero_share must be within 0 to 1, got {self.zero_share}")
        zeros = self.zero_share if 0 in self.widths else 0.0
        lowest = (1.0 - zeros) * min(width for width in self.widths if width)
        if not lowest <= self.average <= max(self.widths):
            share = f" and a zero_share of {zeros:g}" if zeros else ""
            raise AllocationError(
                f"an average of {self.average:g} bits cannot be met with widths {', '.join(map(str, self.widths))}"
                f"{share}: it must be within {lowest:g} to {max(self.widths)}"
            )


@dataclass
class Units:
    """Rows that take the same width, with their joint damage and cost.

    of: linear -> [N] index of each row's unit. damage: [U, W], by the sorted widths. cost: [U] per bit.
    may_be_zero: [U].
    """

    of: dict[Linear, Tensor]
    damage: Tensor
    cost: Tensor
    may_be_zero: Tensor


Tie = Callable[[Mapping[Linear, int], int], Mapping[Linear, Tensor]]  # rows by linear, head width -> unit of each row


def untied(rows: Mapping[Linear, int], head_width: int) -> dict[Linear, Tensor]:
    """Give every row a unit of its own."""
    units, start = {}, 0
    for linear, count in rows.items():
        units[linear] = torch.arange(start, start + count)
        start += count
    return units


def tied(rows: Mapping[Linear, int], head_width: int) -> dict[Linear, Tensor]:
    """Tie rows so that no permutation is needed at run time.

    Row r of gate_proj and of up_proj; in q_proj and k_proj the two rows that a rotary position turns into each other;
    all rows of o_proj, and all of down_proj.
    """
    units: dict[Linear, Tensor] = {}
    start = 0
    for layer in dict.fromkeys(layer for layer, _ in rows):
        query = rows[layer, "q_proj"]
        row = torch.arange(query)
        pair = row // head_width * (head_width // 2) + row % (head_width // 2)
        for names, of in (
            (("q_proj", "k_proj"), pair),
            (("v_proj",), torch.arange(rows[layer, "v_proj"])),
            (("gate_proj", "up_proj"), torch.arange(rows[layer, "gate_proj"])),
            (("o_proj",), torch.zeros(rows[layer, "o_proj"], dtype=torch.int64)),
            (("down_proj",), torch.zeros(rows[layer, "down_proj"], dtype=torch.int64)),
        ):
            units |= {(layer, name): start + of for name in names}
            start += int(of.max()) + 1
    return units


def by_linear(rows: Mapping[Linear, int], head_width: int) -> dict[Linear, Tensor]:
    """Give all rows of a linear one width: the layer-wise allocation that the paper's Table 3 compares with."""
    return {linear: torch.full((count,), unit) for unit, (linear, count) in enumerate(rows.items())}


TIES: Mapping[str, Tie] = {"none": untied, "layout": tied, "linear": by_linear}


def make_units(
    scores: Scores,
    columns: Mapping[Linear, int],
    budget: Budget,
    tie: Tie,
    head_width: int,
    never_zero: Collection[Linear] = (),
) -> Units:
    """Sum rows into units. columns: input channels by linear. Damage at 16 bits counts as none."""
    rows = {linear: len(next(iter(by_bits.values()))) for linear, by_bits in scores.items()}
    units = _without_damage(rows, columns, budget, tie, head_width, never_zero)
    for linear, of in units.of.items():
        for index, width in enumerate(budget.ladder):
            if width < 16:
                units.damage[:, index].index_add_(0, of, scores[linear][width].double())
    return units


def _without_damage(
    rows: Mapping[Linear, int],
    columns: Mapping[Linear, int],
    budget: Budget,
    tie: Tie,
    head_width: int,
    never_zero: Collection[Linear] = (),
) -> Units:
    of = dict(tie(rows, head_width))
    count = 1 + max(int(units.max()) for units in of.values())
    damage = torch.zeros(count, len(budget.ladder), dtype=torch.float64)
    cost = torch.zeros(count, dtype=torch.float64)
    may_be_zero = torch.ones(count, dtype=torch.bool)
    for linear, units in of.items():
        per_row = columns[linear] if budget.by_parameters else 1
        cost.index_add_(0, units, torch.full((len(units),), per_row, dtype=torch.float64))
        if linear[1] in UNZEROABLE or linear in never_zero:
            may_be_zero[units] = False
    return Units(of, damage, cost, may_be_zero)


def require_reachable(
    rows: Mapping[Linear, int], columns: Mapping[Linear, int], budget: Budget, *, ties: str, head_width: int
) -> None:
    """Raise AllocationError where no scores whatever would let the widths keep to the average.

    rows, columns: output and input channels by linear. Scores may still forbid zeros that are allowed here.
    """
    if 0 not in budget.widths:
        return  # rows that all take the lowest width keep to it
    units = _without_damage(rows, columns, budget, TIES[ties], head_width)
    total, lowest = float(units.cost.sum()), budget.ladder[1]
    zeroed = _most_within(units.cost[units.may_be_zero], budget.zero_share * total)
    least = lowest * (1.0 - zeroed / total)
    if least > budget.average + 1e-9:
        counted, never = "weights" if budget.by_parameters else "rows", " and ".join(UNZEROABLE)
        raise AllocationError(
            f"an average of {budget.average:g} bits cannot be met: {least:.3f} is the least, as at most "
            f"{zeroed / total:.1%} of the {counted} can take 0 bits (zero_share is {budget.zero_share:g}, ties is "
            f"{ties} and {never} never take 0); ask for more bits or leave 0 out of widths"
        )


def _most_within(costs: Tensor, limit: float) -> float:
    """Return the most that some of the costs, whole numbers, add up to within a limit; not above, where many are."""
    most = min(float(costs.sum()), limit)
    if len(costs) > _FEW_UNITS:
        return most
    step = math.gcd(*map(int, costs.tolist()))
    sums = 1  # the bit n is set where n steps can be made
    for cost in costs.tolist():
        sums |= sums << (int(cost) // step)
    return step * float((sums & ((1 << (int(most / step + 1e-9) + 1)) - 1)).bit_length() - 1)


def cheapest_first(units: Units, budget: Budget) -> Tensor:
    """Lower widths one step at a time, always where a saved bit costs least anywhere (Eq. 8 on a heap). [U] bits.

    A step may skip widths, which follows the lower convex hull of a unit's damage.
    """
    widths = budget.ladder
    damage, cost = units.damage.tolist(), units.cost.tolist()
    may_be_zero = units.may_be_zero.tolist()
    level = [len(widths) - 1] * len(cost)
    excess, zeros_left = _excess(units, budget), budget.zero_share * sum(cost)

    def step(unit: int, at: int, lowest: int) -> tuple[float, int, int, int] | None:
        options = [
            ((damage[unit][to] - damage[unit][at]) / ((widths[at] - widths[to]) * cost[unit]), unit, at, to)
            for to in range(lowest, at)
        ]
        return min(options, default=None)

    def lowest(unit: int) -> int:
        return 1 if widths[0] == 0 and (not may_be_zero[unit] or cost[unit] > zeros_left) else 0

    heap = [found for unit in range(len(cost)) if (found := step(unit, level[unit], lowest(unit)))]
    heapq.heapify(heap)
    while excess > 0 and heap:
        _, unit, at, to = heapq.heappop(heap)
        if widths[to] == 0 and lowest(unit) > 0:  # the share of zeros was used up meanwhile
            if found := step(unit, at, 1):
                heapq.heappush(heap, found)
            continue
        level[unit] = to
        excess -= (widths[at] - widths[to]) * cost[unit]
        zeros_left -= cost[unit] if widths[to] == 0 else 0
        if found := step(unit, to, lowest(unit)):
            heapq.heappush(heap, found)
    return torch.tensor([widths[at] for at in level])


def strict_stages(units: Units, budget: Budget) -> Tensor:
    """Lower all units from width to width, the cheapest of a stage first, until the average is met: the paper's words.

    At an average that is one of the widths this gives every row that width.
    """
    widths = budget.ladder
    level = torch.full((len(units.cost),), len(widths) - 1)
    excess, zeros_left = _excess(units, budget), budget.zero_share * float(units.cost.sum())
    for at in range(len(widths) - 1, 0, -1):
        saved = widths[at] - widths[at - 1]
        ratio = (units.damage[:, at - 1] - units.damage[:, at]) / (saved * units.cost)
        for unit in ratio.argsort(stable=True).tolist():
            if excess <= 0:
                return torch.tensor(widths)[level]
            if widths[at - 1] == 0:
                if not units.may_be_zero[unit] or units.cost[unit] > zeros_left:
                    continue
                zeros_left -= float(units.cost[unit])
            level[unit] = at - 1
            excess -= saved * float(units.cost[unit])
    return torch.tensor(widths)[level]


ALLOCATIONS: Mapping[str, Callable[[Units, Budget], Tensor]] = {"heap": cheapest_first, "stages": strict_stages}


def _excess(units: Units, budget: Budget) -> float:
    """Bits, weighed by cost, that must go when every unit has the largest width."""
    return float(units.cost.sum()) * (max(budget.widths) - budget.average)


def allocate(
    scores: Scores,
    columns: Mapping[Linear, int],
    budget: Budget,
    *,
    method: str = "heap",
    ties: str = "none",
    head_width: int = 1,
    never_zero: Collection[Linear] = (),
) -> dict[Linear, Tensor]:
    """Choose the width of every row, [N] int64 by linear.

    columns: input channels by linear. method: one of `ALLOCATIONS`. ties: one of `TIES`. head_width: for tied q and k.
    never_zero: linears whose rows may not take 0 bits, beside those of queries and keys.
    Raises AllocationError for a method or a tie that does not exist, and where too few rows may be zero to keep to the
    average.
    """
    for kind, name, known in (("method", method, ALLOCATIONS), ("ties", ties, TIES)):
        if name not in known:
            raise AllocationError(f"{kind} must be one of {', '.join(known)}, got {name!r}")
    units = make_units(scores, columns, budget, TIES[ties], head_width, never_zero)
    bits = ALLOCATIONS[method](units, budget)
    reached = float((bits * units.cost).sum() / units.cost.sum())
    if reached > budget.average + 1e-9:
        raise AllocationError(
            f"an average of {budget.average:g} bits cannot be met: {reached:.3f} is the least, as too few rows may "
            "take 0 bits without harm; ask for more bits or leave 0 out of widths"
        )
    return {linear: bits[of] for linear, of in units.of.items()}


def averages(bits: Mapping[Linear, Tensor], columns: Mapping[Linear, int]) -> tuple[float, float]:
    """Return the average width (per parameter, per channel)."""

    def mean(weights: Iterable[int], sums: Sequence[float]) -> float:
        weighed = list(zip(weights, sums, bits.values(), strict=True))
        return sum(w * s for w, s, _ in weighed) / sum(w * len(b) for w, _, b in weighed)

    sums = [float(each.sum()) for each in bits.values()]
    return mean((columns[linear] for linear in bits), sums), mean((1 for _ in bits), sums)
