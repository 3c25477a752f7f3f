"""Batches for training, and the protocol of the demonstrations that give them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sqap_vla_ros.policy.actions import ActionStatistics
from sqap_vla_ros.training.packed import PackedPrompts


@dataclass(frozen=True)
class ReadOuts:
    """Sizes of the auxiliary losses' labels; an empty one has no labels in the data, and no loss.

    words: classes of each word that an instruction may name. segments: kinds of things that a patch may show. place:
    numbers that tell where the thing is that a patch shows. pose: numbers about the state. attention: whether it is
    known where to look.
    """

    words: tuple[int, ...] = ()
    segments: int = 0
    place: int = 0
    pose: int = 0
    attention: bool = False


@dataclass(frozen=True)
class Batch:
    """A batch of B pictures with K instructions each.

    image: [B, 3, size, size] uint8. chunk: [B, K, 16, 7] normalised. The others are labels of the auxiliary losses, in
    the sizes of `ReadOuts`. words: [B, K, W] class numbers of what the instruction names. segments: [B, N, segments] in
    0 … 1. look: [B, K, 3, N] where three heads should look (target, hand, goal), each summing to one; looked: [B, K, 3]
    1 where there is something to see. pose, posed: [B, K, pose] numbers and which of them are known. place, placed:
    [B, N, place] where the thing is that a patch shows, and a weight for each number.
    """

    image: Tensor
    prompts: PackedPrompts
    chunk: Tensor
    words: Tensor
    segments: Tensor
    look: Tensor
    looked: Tensor
    pose: Tensor
    posed: Tensor
    place: Tensor
    placed: Tensor

    def to(self, device: str) -> Batch:
        """Return the batch on another device."""
        moved = {name: getattr(self, name).to(device) for name in self.__dataclass_fields__ if name != "prompts"}
        prompts = self.prompts
        moved["prompts"] = PackedPrompts(prompts.prefix.to(device), prompts.own.to(device), prompts.lengths.to(device))
        return Batch(**moved)

    @staticmethod
    def joined(parts: Sequence[Batch]) -> Batch:
        """Join batches of the same prefix and padding."""
        names = [name for name in Batch.__dataclass_fields__ if name != "prompts"]
        together = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        prompts = PackedPrompts(
            parts[0].prompts.prefix,
            torch.cat([part.prompts.own for part in parts]),
            torch.cat([part.prompts.lengths for part in parts]),
        )
        return Batch(prompts=prompts, **together)


class Demonstrations(Protocol):
    """Frames with instructions and an expert's chunks. dataset: the name under which `statistics` are kept."""

    dataset: str
    read_outs: ReadOuts
    statistics: ActionStatistics

    def batches(self, size: int, steps: int, seed: int) -> Iterator[Batch]:
        """Yield `steps` batches of `size` frames drawn with replacement."""
        ...
