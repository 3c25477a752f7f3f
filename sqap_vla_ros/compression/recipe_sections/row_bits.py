"""The part of a recipe that gives the rows of weights widths of their own (QVLA)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sqap_vla_ros.compression.recipe_sections.errors import RecipeError, require_one_of
from sqap_vla_ros.field_types import build

if TYPE_CHECKING:
    from sqap_vla_ros.compression.sensitivity.allocation import Budget

_OWNER = "quantization.row_bits"


@dataclass(frozen=True)
class RowBits:
    """Widths for the rows of the decoder's weights, chosen by what their rounding does to the action (QVLA).

    average: bits a weight, which the widths keep to. widths: that a row may take, of 0, 2, 4, 8 and 16.
    metric: of the damage, one of `sensitivity.scores.METRICS`; `epsilon` where rows may take 0 bits.
    probes: random directions it samples an observation.
    method: `heap` (always the cheapest step anywhere) or `stages` (the paper's words).
    by_parameters: the average is over weights; False: over rows, as in the paper.
    ties: `none`; `layout` for rows that need no permutation where the order of rows matters; `linear` for one width a
        linear.
    zero_share: at most this share of rows may take 0 bits.
    vision: average of the vision towers' rows, which then take widths too; None leaves the towers to `parts`.
    """

    ALWAYS_STORED: ClassVar = (
        "average",
        "widths",
        "metric",
        "probes",
        "method",
        "by_parameters",
        "ties",
        "zero_share",
    )

    average: float
    widths: Sequence[int] = (2, 4, 8)
    metric: str = "epsilon"
    probes: int = 4
    method: str = "heap"
    by_parameters: bool = True
    ties: str = "none"
    zero_share: float = 0.0
    vision: float | None = None

    def __post_init__(self) -> None:
        from sqap_vla_ros.compression.sensitivity.allocation import ALLOCATIONS, TIES, AllocationError
        from sqap_vla_ros.compression.sensitivity.scores import METRICS

        object.__setattr__(self, "widths", tuple(self.widths))  # a list where it comes from a file
        require_one_of(_OWNER, "metric", self.metric, METRICS)
        require_one_of(_OWNER, "method", self.method, ALLOCATIONS)
        require_one_of(_OWNER, "ties", self.ties, TIES)
        if self.probes < 1:
            raise RecipeError(f"{_OWNER}.probes must be at least 1, got {self.probes}")
        if 0 in self.widths and self.metric != "epsilon":
            raise RecipeError(
                f"{_OWNER}: rows of 0 bits are checked together against the sum of their scores, which needs metric: "
                f"epsilon, got {self.metric!r}; leave 0 out of widths"
            )
        for place, limits in ((_OWNER, "limits"), (f"{_OWNER}.vision", "vision_limits")):
            try:
                getattr(self, limits)
            except AllocationError as error:
                raise RecipeError(f"{place}: {error}") from error

    @property
    def limits(self) -> Budget:
        """Return the budget that widths are allocated within."""
        from sqap_vla_ros.compression.sensitivity.allocation import Budget

        return Budget(self.average, self.by_parameters, tuple(self.widths), self.zero_share)

    @property
    def vision_limits(self) -> Budget | None:
        """Return the budget of the vision towers' rows, which are never zero; None where they take no widths."""
        if self.vision is None:
            return None
        widths = tuple(width for width in self.widths if width)
        if len({*widths}) < 2:
            left, given = (", ".join(map(str, each)) for each in (widths, self.widths))
            raise RecipeError(
                f"{_OWNER}.vision: the towers' rows cannot have 0 bits, which leaves them {left} of widths {given}; "
                "give another width, or leave vision out"
            )
        return dataclasses.replace(self.limits, average=self.vision, widths=widths)

    @property
    def scored_widths(self) -> set[int]:
        """Return the widths that rows are rounded at to score them; 16 bits count as no damage."""
        return {width for width in self.widths if width < 16}


def rows_from_dict(owner: str, content: object) -> RowBits:
    """Make the section of a recipe from plain containers. Raises `RecipeError`; owner: what it calls the section."""
    if not isinstance(content, Mapping):
        raise RecipeError(f"{owner} must be a mapping with an average, such as {{average: 3.0}}, got {content!r}")
    if isinstance(content.get("vision"), bool):
        raise RecipeError(
            f"{owner}.vision must be the mean bits of the vision towers' rows, such as 4.0, or null where they take no "
            f"widths, got {str(content['vision']).lower()}"
        )
    return build(RowBits, owner, content, RecipeError)


def require_no_contradiction(
    rows: RowBits, weight_bits: int, default_bits: int, overrides: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raise `RecipeError` for keys of a quantisation that `row_bits` would silently pass over.

    Files of earlier versions may hold such a recipe. So this is asked of what is to be done, not of what was.
    """
    both = "both say how wide weights are"
    for linear, widths in overrides.items():
        if "weight_bits" in widths:
            raise RecipeError(f"quantization: row_bits and overrides.{linear}.weight_bits {both}; keep one")
    if weight_bits != default_bits:
        raise RecipeError(
            f"quantization: row_bits and weight_bits: {weight_bits} {both}; leave weight_bits out, or write "
            f"{default_bits} where the recipe extends one that has it"
        )
    twice = sorted({width for width in rows.widths if rows.widths.count(width) > 1})
    if twice:
        raise RecipeError(f"{_OWNER}.widths must differ from each other, got {', '.join(map(str, rows.widths))}")
    if rows.zero_share and 0 not in rows.widths:
        raise RecipeError(
            f"{_OWNER}.zero_share is {rows.zero_share:g}, and widths {', '.join(map(str, rows.widths))} have no 0; "
            "add it, or leave zero_share out"
        )
