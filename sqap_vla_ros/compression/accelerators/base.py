"""The base class of all accelerators. Each is one class and one row in `table.ACCELERATORS`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from sqap_vla_ros.contracts import Observation, Policy, TokenSelector
from sqap_vla_ros.policy.cogact import CogACTPolicy


@dataclass(frozen=True)
class Savings:
    """The operations that an accelerator leaves out of every prediction, whatever the scene.

    selector: drops visual tokens. removed_layers: number of decoder layers taken out.
    head_interval: the action head's blocks are computed every so many denoising steps.
    """

    selector: TokenSelector | None = None
    removed_layers: int = 0
    head_interval: int = 1


class Accelerator(ABC):
    """A method with its parameters (a frozen dataclass). Quantise first: a compressed file holds the plain model.

    name: as in recipes. shows_tokens: its prediction reports a choice of visual tokens that can be drawn.
    """

    name: ClassVar[str]
    shows_tokens: ClassVar[bool] = True

    @property
    def needs_calibration(self) -> bool:
        """Return whether `install` looks at observations."""
        return False

    def depth_problem(self, depth: int) -> str:
        """Return why it cannot be installed on a decoder of `depth` layers, "" where it can."""
        return ""

    @abstractmethod
    def install(self, policy: CogACTPolicy, calibration: Sequence[Observation] = ()) -> Policy:
        """Change `policy` in place and return the policy that predicts. Raises ValueError where it cannot work."""

    @property
    def savings(self) -> Savings:
        """Return the operations left out, for the accounting in `compression.bops`."""
        return Savings()
