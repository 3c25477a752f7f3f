"""Demonstrations from any other world, in shards that some script wrote; docs/training.md gives the format.

What a shard lacks (which thing each patch shows, where things are, the state) has no auxiliary loss.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sqap_vla_ros.policy.actions import GRIPPER, ActionStatistics
from sqap_vla_ros.policy.checkpoints.writing import written_aside
from sqap_vla_ros.policy.config import TABLETOP
from sqap_vla_ros.policy.prompt import PromptTokenizer
from sqap_vla_ros.training.batch import Batch, ReadOuts
from sqap_vla_ros.training.packed import PackedPrompts, common_prefix

DESCRIPTION = "dataset.json"
STATISTICS = "dataset_statistics.json"
_SHAPE = (TABLETOP.vision.image_size, TABLETOP.vision.image_size, 3)
_PATCHES, _HORIZON, _CHANNELS = TABLETOP.vision.tokens, TABLETOP.head.horizon, TABLETOP.head.channels
_FARTHEST = 4.0  # standard deviations: what is farther away fell down, and where it lies teaches nothing


@dataclass(frozen=True)
class Description:
    """`dataset.json`: name, seconds between actions, instructions, and what the auxiliary labels name.

    things: columns of `cover` and rows of `places`; tool: which of them is the hand. asked: for each instruction, the
    numbers of the thing it is about and of the one that that is brought to; -1 for none.
    """

    name: str
    dt_s: float
    instructions: tuple[str, ...]
    things: tuple[str, ...] = ()
    tool: str = ""
    asked: tuple[tuple[int, int], ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Description:
        """Read the description of a folder of shards. Raises ValueError that names the file and what is wrong."""
        path = folder / DESCRIPTION
        try:
            values: dict[str, Any] = json.loads(path.read_text())
            made = cls(
                str(values["name"]),
                float(values["dt_s"]),
                tuple(map(str, values["instructions"])),
                tuple(map(str, values.get("things", ()))),
                str(values.get("tool", "")),
                tuple((int(target), int(goal)) for target, goal in values.get("asked", ())),
            )
        except FileNotFoundError as error:
            raise ValueError(f"{folder} holds no {DESCRIPTION}: it is no folder of demonstrations") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not describe demonstrations ({error!r}); see docs/training.md") from error
        if not made.instructions or made.dt_s <= 0 or len(made.asked) not in (0, len(made.instructions)):
            raise ValueError(f"{path} needs instructions, a dt_s above 0, and as many `asked` as instructions or none")
        if (made.tool and made.tool not in made.things) or any(n >= len(made.things) for a in made.asked for n in a):
            raise ValueError(f"{path}: `tool` and `asked` must name `things`, got {made.tool!r} and {made.asked}")
        return made

    @property
    def looked_at(self) -> NDArray[np.int64]:
        """Return the things [instructions, 3] that three heads look at: target, hand, goal; -1 for none."""
        hand = self.things.index(self.tool) if self.tool else -1
        asked = self.asked or ((-1, -1),) * len(self.instructions)
        return np.array([(target, hand, goal) for target, goal in asked])


def action_statistics(folder: Path, shards: Sequence[Path]) -> ActionStatistics:
    """Return the percentiles of the actions; the first call writes them beside the shards, and all others read them.

    So the scale stays the same when a training goes on with more shards than it began with.
    """
    description, path = Description.read(folder), folder / STATISTICS
    if not path.is_file():
        actions = np.concatenate([np.load(shard / "chunk.npy").reshape(-1, _CHANNELS) for shard in shards])
        mask = np.arange(_CHANNELS) != GRIPPER
        low, high = np.quantile(actions.astype(np.float64), (0.01, 0.99), axis=0)
        found = ActionStatistics(low, high, mask, description.dt_s)
        with written_aside(path) as partial:
            partial.write_text(json.dumps({description.name: found.to_dict()}, indent=1) + "\n")
    return ActionStatistics.from_dataset(description.name, json.loads(path.read_text())[description.name])


class RecordedDemonstrations:
    """All frames of some shards of one folder; `batches` draws from them. Pictures stay on disk until then."""

    def __init__(self, folder: Path, shards: Sequence[Path], tokenize: PromptTokenizer) -> None:
        if not shards:
            raise ValueError(f"{folder} holds no finished shards of demonstrations: collect some first")
        self._about = Description.read(folder)
        self.dataset = self._about.name
        self.statistics = action_statistics(folder, shards)
        self._images = [np.load(path / "image.npy", mmap_mode="r") for path in shards]
        counts = [len(images) for images in self._images]
        self._shard = np.repeat(np.arange(len(shards)), counts)
        self._row = np.concatenate([np.arange(count) for count in counts])
        self._instruction = self._stacked(shards, "instruction").astype(np.int64)
        self._chunk = self.statistics.normalize(self._stacked(shards, "chunk")).astype(np.float32)
        self._cover, self._places, self._state = (
            self._stacked(shards, name) if all((path / f"{name}.npy").is_file() for path in shards) else None
            for name in ("cover", "places", "state")
        )
        self._check(folder)
        self._looked_at = self._about.looked_at
        self._middles = self._scales()
        things = len(self._about.things)
        self.read_outs = ReadOuts(
            words=(len(self._about.instructions),),
            segments=0 if self._cover is None else things,
            place=0 if self._cover is None or self._places is None else 3,
            pose=(0 if self._places is None else 9) + (0 if self._state is None else self._state.shape[1]),
            attention=self._cover is not None and bool((self._looked_at >= 0).any()),
        )
        prompts = [tokenize(words) for words in self._about.instructions]
        prefix = common_prefix(prompts) if len(prompts) > 1 else prompts[0][:1]
        own = [ids[len(prefix) :] for ids in prompts]
        self._prefix, self._lengths = torch.tensor(prefix), np.array([len(ids) for ids in own])
        self._own = np.full((len(own), max(self._lengths)), tokenize.config.pad, np.int64)
        for row, ids in zip(self._own, own, strict=True):
            row[: len(ids)] = ids

    def __len__(self) -> int:
        return len(self._row)

    @staticmethod
    def _stacked(shards: Sequence[Path], name: str) -> NDArray[Any]:
        return np.concatenate([np.load(path / f"{name}.npy") for path in shards])

    def _check(self, folder: Path) -> None:
        """Refuse shards of other shapes than the model's and the description's."""
        frames, labels = self._instruction.shape
        things = len(self._about.things)
        wanted = {
            "chunk": (self._chunk, (frames, labels, _HORIZON, _CHANNELS)),
            "cover": (self._cover, (frames, _PATCHES, things)),
            "places": (self._places, (frames, things, 3)),
        }
        for name, (values, shape) in wanted.items():
            if values is not None and values.shape != shape:
                raise ValueError(f"{folder}: {name} has the shape {values.shape}, not {shape}")
        for images in self._images:
            if images.shape[1:] != _SHAPE or images.dtype != np.uint8:
                raise ValueError(f"{folder}: images are {images.shape[1:]} of {images.dtype}, not {_SHAPE} of uint8")
        if self._instruction.min() < 0 or self._instruction.max() >= len(self._about.instructions):
            raise ValueError(f"{folder}: instructions must be numbers below {len(self._about.instructions)}")
        if not np.isfinite(self._chunk).all():
            raise ValueError(f"{folder}: chunks must be finite")

    def _scales(self) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
        """Return mean and spread of places and state, so that regression targets are of order one."""
        found = {}
        if self._places is not None:
            axes = [_without_outliers(values[np.isfinite(values)]) for values in self._places.reshape(-1, 3).T]
            # one for all axes, so that a centimetre counts alike on each
            spread = max(1e-3, *(float(values.std()) for values in axes))
            found["places"] = np.array([values.mean() for values in axes]), np.full(3, spread)
        if self._state is not None:
            found["state"] = self._state.mean(axis=0), np.maximum(self._state.std(axis=0), 1e-3)
        return found

    def batches(self, size: int, steps: int, seed: int) -> Iterator[Batch]:
        """Yield `steps` batches of `size` frames drawn with replacement."""
        rng = np.random.default_rng(seed)
        for _ in range(steps):
            yield self.batch(rng.choice(len(self), size))

    def batch(self, index: NDArray[np.int64]) -> Batch:
        """Return the frames at `index` as a batch."""
        image = np.stack([self._images[self._shard[i]][self._row[i]] for i in index])
        instruction = self._instruction[index]
        cover = np.zeros((len(index), _PATCHES, 0), np.float32)
        if self._cover is not None:
            cover = self._cover[index].astype(np.float32) / 255.0
        look, looked = self._look(cover, instruction)
        pose, posed = self._pose(index, instruction)
        place, placed = self._place(index, cover)
        values = {
            "chunk": self._chunk[index],
            "words": instruction[..., None],
            "segments": cover,
            "look": look,
            "looked": looked,
            "pose": pose,
            "posed": posed,
            "place": place,
            "placed": placed,
        }
        prompts = PackedPrompts(
            self._prefix,
            torch.from_numpy(self._own[instruction]),
            torch.from_numpy(self._lengths[instruction]),
        )
        return Batch(
            image=torch.from_numpy(image).permute(0, 3, 1, 2),
            prompts=prompts,
            **{name: torch.from_numpy(value) for name, value in values.items()},
        )

    def _look(self, cover: NDArray[np.float32], instruction: NDArray[np.int64]) -> tuple[NDArray[np.float32], ...]:
        column = self._looked_at[instruction]  # [B, K, 3]
        if not cover.shape[-1]:
            return np.zeros((*column.shape, _PATCHES), np.float32), np.zeros(column.shape, np.float32)
        frames = np.arange(len(cover))[:, None, None]
        look = cover.transpose(0, 2, 1)[frames, np.maximum(column, 0)]  # [B, K, 3, N]
        total = look.sum(axis=-1)
        seen = (total > 0.1) & (column >= 0)
        return look / np.maximum(total, 1e-3)[..., None], seen.astype(np.float32)

    def _placed(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return where things are [B, things, 3], of order one; NaN for those that are not there or fell away."""
        assert self._places is not None
        middle, spread = self._middles["places"]
        scaled: NDArray[np.float32] = ((self._places[index] - middle) / spread).astype(np.float32)
        near = (np.abs(scaled) <= _FARTHEST).all(axis=-1, keepdims=True)
        return np.where(near, scaled, np.float32(np.nan))

    def _pose(self, index: NDArray[np.int64], instruction: NDArray[np.int64]) -> tuple[NDArray[np.float32], ...]:
        """Return the places of target, hand and goal, then the state, [B, K, pose], and which of them are known."""
        shape = (*instruction.shape, 0)
        parts, known = [np.zeros(shape, np.float32)], [np.zeros(shape, np.float32)]
        if self._places is not None:
            column = self._looked_at[instruction]
            places = self._placed(index)[np.arange(len(index))[:, None, None], np.maximum(column, 0)]  # [B, K, 3, 3]
            there = np.isfinite(places) & (column >= 0)[..., None]
            parts.append(np.where(there, places, 0.0).reshape(*instruction.shape, 9))
            known.append(there.reshape(*instruction.shape, 9))
        if self._state is not None:
            middle, spread = self._middles["state"]
            state = np.clip((self._state[index] - middle) / spread, -_FARTHEST, _FARTHEST)
            parts.append(np.repeat(state[:, None], instruction.shape[1], axis=1))
            known.append(np.ones_like(parts[-1]))
        return np.concatenate(parts, axis=-1).astype(np.float32), np.concatenate(known, axis=-1).astype(np.float32)

    def _place(self, index: NDArray[np.int64], cover: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        if self._places is None or not cover.shape[-1]:
            nothing = np.zeros((len(index), _PATCHES, 0), np.float32)
            return nothing, nothing
        places = self._placed(index)
        most = cover.argmax(axis=-1)
        shown = places[np.arange(len(index))[:, None], most]  # [B, N, 3]
        share = cover.max(axis=-1)
        weight = np.where(share > 0.05, np.sqrt(share), 0.0)[..., None] * np.isfinite(shown)
        return np.nan_to_num(shown), weight.astype(np.float32)


def _without_outliers(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the values but those farther than `_FARTHEST` standard deviations of the others from their mean."""
    while True:
        kept = values[np.abs(values - values.mean()) <= _FARTHEST * values.std()]
        if len(kept) == len(values):
            return values
        values = kept
