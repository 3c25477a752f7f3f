"""An opened checkpoint, whatever its format: configuration, statistics, and tensors under this package's names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqap_vla_ros.policy.config import PolicyConfig

if TYPE_CHECKING:
    from torch import Tensor


class CheckpointError(ValueError):
    """A file is not the checkpoint it should be. The message names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class Contents:
    """The header of a checkpoint, and its tensors by their names in `CogACT.state_dict()`.

    format: the file's format, in words.
    datasets: as in `dataset_statistics.json`.
    names: the tensors that the file holds.
    form: returns the shape, dtype and layout of one tensor, as a tensor on the meta device.
    read: returns one tensor, still in the file's dtype. Raises CheckpointError where the file has changed.
    stored_name: what a tensor is called in the file, for messages.
    tokenizer: name and content of the tokenizer's file, None where none came with the checkpoint.
    crop: see `ImageTransform`.
    notes: sentences about what is left out or assumed.
    unused: how many tensors of the file no prediction uses. unused_names: which kinds, in words.
    """

    path: Path
    format: str
    config: PolicyConfig
    datasets: dict[str, Any]
    names: frozenset[str]
    form: Callable[[str], Tensor]
    read: Callable[[str], Tensor]
    stored_name: Callable[[str], str]
    tokenizer: tuple[str, bytes] | None
    crop: str = "none"
    notes: tuple[str, ...] = ()
    unused: int = 0
    unused_names: str = ""
