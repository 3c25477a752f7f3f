"""Policy architectures: how a checkpoint becomes a policy, and which linears of a decoder layer may be compressed.

CogACT is the only one. A second one is a second row of `ARCHITECTURES`; whoever adds it lets its checkpoints say which
one they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import nn

    from sqap_vla_ros.policy.cogact import CogACTPolicy
    from sqap_vla_ros.policy.config import PolicyConfig


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
class BlockLayout:
    """The names of a pre-norm transformer block's modules, in a tower or in the action head.

    blocks: path of the list of blocks. heads: of a policy's configuration. inputs: linears that read the first norm.
    scales: of both branches' results, where there are. gelu: its approximation, as PyTorch names it.
    """

    blocks: str
    heads: Callable[[PolicyConfig], int]
    norms: tuple[str, str]
    inputs: tuple[str, ...]
    out: str
    inner: str = "mlp.fc1"
    outer: str = "mlp.fc2"
    scales: tuple[str, str] | None = None
    gelu: Literal["none", "tanh"] = "none"

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Names of linears that read the same tensor, in the order of execution."""
        return self.inputs, (self.out,), (self.inner,), (self.outer,)


@dataclass(frozen=True)
class Part:
    """A part of a policy beside its decoder. layouts: of its blocks. linears: paths of single linears."""

    layouts: tuple[BlockLayout, ...] = ()
    linears: tuple[str, ...] = ()

    def groups(self, model: nn.Module) -> Iterator[tuple[str, ...]]:
        """Yield the paths of linears that read the same tensor, in the order of execution."""
        yield from ((path,) for path in self.linears)
        for layout in self.layouts:
            for index, _ in enumerate(model.get_submodule(layout.blocks).children()):
                for group in layout.groups:
                    yield tuple(f"{layout.blocks}.{index}.{name}" for name in group)


@dataclass(frozen=True)
class Architecture:
    """One family of policies.

    load: makes the policy from a checkpoint. groups: the linears of a decoder layer, in the order of execution. parts:
    what may be compressed beside the decoder, by name: `vision`, `projector` and `action_head`.
    """

    name: str
    load: Loader
    groups: tuple[LinearGroup, ...]
    parts: Mapping[str, Part] = field(default_factory=dict)

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
    {
        "vision": Part(
            (
                BlockLayout(
                    "vision.dino.encoder.layer",
                    lambda config: config.vision.dino.heads,
                    ("norm1", "norm2"),
                    ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
                    "attention.o_proj",
                    scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
                ),
                BlockLayout(
                    "vision.siglip.encoder.layers",
                    lambda config: config.vision.siglip.heads,
                    ("layer_norm1", "layer_norm2"),
                    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                    "self_attn.out_proj",
                ),
            )
        ),
        "projector": Part(linears=("projector.0", "projector.2", "projector.4")),
        "action_head": Part(
            (
                BlockLayout(
                    "action_head.blocks",
                    lambda config: config.head.heads,
                    ("norm1", "norm2"),
                    ("attn.qkv",),
                    "attn.proj",
                    gelu="tanh",
                ),
            )
        ),
    },
)
ARCHITECTURES: Mapping[str, Architecture] = {COGACT.name: COGACT}
