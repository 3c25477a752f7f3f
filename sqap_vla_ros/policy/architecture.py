"""Policy architectures: how a checkpoint becomes a policy, and which linears of a decoder layer may be compressed.

CogACT is the only one. A second one is a second row of `ARCHITECTURES`; whoever adds it lets its checkpoints say which
one they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import nn

    from sqap_vla_ros.policy.cogact import CogACTPolicy


class Loader(Protocol):
    """Loads a checkpoint; the options are those of `policy.checkpoints.load.load_checkpoint`."""

    def __call__(self, path: str | Path, **options: Any) -> CogACTPolicy: ...


@dataclass(frozen=True)
class LinearGroup:
    """Linears of a decoder layer that read the same tensor.

    holder: name of the layer's module that holds them. names: of the linears in it.
    """

    holder: str
    names: tuple[str, ...]

    @property
    def first(self) -> str:
        """The linear under whose name the group's input is known."""
        return self.names[0]


@dataclass(frozen=True)
class Architecture:
    """One family of policies.

    load: makes the policy from a checkpoint. groups: the linears of a decoder layer, in the order of execution.
    """

    name: str
    load: Loader
    groups: tuple[LinearGroup, ...]

    @property
    def linears(self) -> tuple[str, ...]:
        """Names of all linears of a decoder layer that may be compressed."""
        return tuple(name for group in self.groups for name in group.names)

    def holder(self, layer: nn.Module, linear: str) -> nn.Module:
        """Return the module of a decoder layer that holds one of `linears`."""
        (group,) = (group for group in self.groups if linear in group.names)
        return layer.get_submodule(group.holder)

    def linear(self, layer: nn.Module, name: str) -> nn.Linear:
        """Return one of `linears` of a decoder layer that is not compressed yet."""
        found: nn.Linear = getattr(self.holder(layer, name), name)
        return found


def _load_cogact(path: str | Path, **options: Any) -> CogACTPolicy:
    from sqap_vla_ros.policy.checkpoints.load import load_checkpoint  # loads torch

    return load_checkpoint(path, **options)


COGACT = Architecture(
    "cogact",
    _load_cogact,
    (
        LinearGroup("self_attn", ("q_proj", "k_proj", "v_proj")),
        LinearGroup("self_attn", ("o_proj",)),
        LinearGroup("mlp", ("gate_proj", "up_proj")),
        LinearGroup("mlp", ("down_proj",)),
    ),
)
ARCHITECTURES: Mapping[str, Architecture] = {COGACT.name: COGACT}
