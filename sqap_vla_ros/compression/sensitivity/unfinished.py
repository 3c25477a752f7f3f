"""Scoring that was interrupted: what is finished of it, and where that is kept.

Scoring takes most of a compression's time, so it goes on at the layer where it stopped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import MutableMapping
from dataclasses import dataclass, field

from torch import Tensor

from sqap_vla_ros.compression.sensitivity.allocation import Linear
from sqap_vla_ros.compression.sensitivity.scores import RowScores

Cotangents = list[list[Tensor]]  # by observation and probe, [1, S, D]


@dataclass
class Scoring:
    """Layers scored so far, from the last one down.

    left: layers that are not scored yet. to_fit, to_judge: cotangents at the inputs of the lowest layer that is, for
    the observations that rounding is fitted to and for those that judge it.
    """

    left: int
    to_fit: Cotangents
    to_judge: Cotangents
    scores: dict[Linear, RowScores] = field(default_factory=dict)


class ScoringStore(ABC):
    """A place for what scoring has finished. hessians: what linears are rounded on."""

    hessians: MutableMapping[Linear, Tensor]

    @abstractmethod
    def read(self) -> Scoring | None:
        """Return what an earlier run left, None where there is nothing."""

    @abstractmethod
    def write(self, scoring: Scoring) -> None:
        """Keep what is finished, in place of what was written before."""


class KeptInMemory(ScoringStore):
    """Holds the Hessians; an interruption loses everything."""

    def __init__(self) -> None:
        self.hessians = {}

    def read(self) -> Scoring | None:
        return None

    def write(self, scoring: Scoring) -> None:
        pass
