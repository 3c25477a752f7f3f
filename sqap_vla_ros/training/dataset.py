"""Shards of the embedded simulator as batches for training. Images stay on disk until they are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sqap_vla_ros.policy.actions import ActionStatistics
from sqap_vla_ros.policy.prompt import PromptTokenizer
from sqap_vla_ros.simulation.environment import CONTROL_DT_S
from sqap_vla_ros.simulation.experts import MAX_MOVE_M, MAX_TURN_RAD
from sqap_vla_ros.simulation.scene import COLOURS, SHAPES, ObjectKind
from sqap_vla_ros.simulation.tasks import Task, every_instruction
from sqap_vla_ros.simulation.vocabulary import TaskFamily
from sqap_vla_ros.training.batch import Batch, ReadOuts
from sqap_vla_ros.training.collection import COVER
from sqap_vla_ros.training.labels import FAMILIES
from sqap_vla_ros.training.packed import PackedPrompts, common_prefix

DATASET = "tabletop"
_COLOURS, _SHAPES = tuple(COLOURS), tuple(SHAPES)
_NAMES_TARGET = np.array([f not in (TaskFamily.OPEN_DRAWER, TaskFamily.CLOSE_DRAWER) for f in FAMILIES])
_MOVE_NEAR = FAMILIES.index(TaskFamily.MOVE_NEAR)
# Columns of COVER that the hand brings things to; -1: none in particular.
_GOAL = np.array(
    [
        {
            TaskFamily.OPEN_DRAWER: COVER.index("drawer"),
            TaskFamily.CLOSE_DRAWER: COVER.index("drawer"),
            TaskFamily.PLACE_IN_DRAWER: COVER.index("drawer"),
            TaskFamily.PLACE_IN_BOWL: COVER.index("bowl"),
        }.get(family, -1)
        for family in FAMILIES
    ]
)
_HANDLE, _HAND = COVER.index("handle"), COVER.index("hand")
WORDS = (len(FAMILIES), len(_COLOURS) + 1, len(_SHAPES) + 1, len(_COLOURS) + 1, len(_SHAPES) + 1)
SEGMENTS = len(_COLOURS) + len(_SHAPES) + len(COVER) - COVER.index("hand")
POSE = 18  # numbers in `Batch.pose`
PLACE = 5  # numbers in `Batch.place`
# the middle and half width of where things are, so that regression targets are of order one
_XYZ_MIDDLE, _XYZ_SCALE = np.array([0.45, -0.08, 0.05]), 0.1
_FARTHEST = 4.0  # in that scale: an object that fell off the table must not outweigh all others


def tabletop_statistics() -> ActionStatistics:
    """Return the range of the experts' actions, with which chunks of the shipped policy are scaled."""
    bound = np.array([MAX_MOVE_M] * 3 + [0.0, 0.0, MAX_TURN_RAD, 1.0])
    return ActionStatistics(-bound, bound, np.array([True] * 6 + [False]), dt_s=CONTROL_DT_S)


class TabletopDemonstrations:
    """All frames of some shards of the embedded simulator; `batches` draws from them."""

    dataset = DATASET
    read_outs = ReadOuts(WORDS, SEGMENTS, PLACE, POSE, attention=True)

    def __init__(self, shards: Sequence[Path], tokenize: PromptTokenizer) -> None:
        if not shards:
            raise ValueError("no shards of demonstrations: collect some first (`sqap-vla train` does)")
        self._images = [np.load(path / "image.npy", mmap_mode="r") for path in shards]
        self._shard = np.concatenate([np.full(len(im), i) for i, im in enumerate(self._images)])
        self._row = np.concatenate([np.arange(len(im)) for im in self._images])
        self._cover, self._asked, self._kinds, self._objects, self._scene, chunks = (
            np.concatenate([np.load(path / f"{name}.npy") for path in shards])
            for name in ("cover", "asked", "kinds", "objects", "scene", "chunk")
        )
        self.statistics = tabletop_statistics()
        self._chunk = self.statistics.normalize(chunks).astype(np.float32)
        self._kind_words = self._kinds_of_asked()
        self._tokenize_all(tokenize)

    def __len__(self) -> int:
        return len(self._row)

    def batches(self, size: int, steps: int, seed: int) -> Iterator[Batch]:
        """Yield `steps` batches of `size` frames drawn with replacement."""
        rng = np.random.default_rng(seed)
        for _ in range(steps):
            yield self.batch(rng.choice(len(self), size))

    def batch(self, index: NDArray[np.int64]) -> Batch:
        """Return the frames at `index` as a batch."""
        image = np.stack([self._images[self._shard[i]][self._row[i]] for i in index])
        cover = self._cover[index].astype(np.float32) / 255.0
        asked = self._asked[index].astype(np.int64)
        look, looked = _look(cover, asked)
        pose, posed = self._pose(index, asked)
        place, placed = self._place(index, cover)
        return Batch(
            image=torch.from_numpy(image).permute(0, 3, 1, 2),
            prompts=PackedPrompts(
                self._prefix, torch.from_numpy(self._word_ids[index]), torch.from_numpy(self._word_lengths[index])
            ),
            chunk=torch.from_numpy(self._chunk[index]),
            words=torch.from_numpy(self._kind_words[index]),
            segments=torch.from_numpy(_segments(cover, self._kinds[index])),
            look=torch.from_numpy(look),
            looked=torch.from_numpy(looked),
            pose=torch.from_numpy(pose),
            posed=torch.from_numpy(posed),
            place=torch.from_numpy(place),
            placed=torch.from_numpy(placed),
        )

    def _kinds_of_asked(self) -> NDArray[np.int64]:
        """Return what the words of each instruction name, [F, K, 5]."""
        family, target, reference = self._asked.astype(np.int64).transpose(2, 0, 1)
        frames = np.arange(len(family))[:, None]
        names_target, names_reference = _NAMES_TARGET[family], family == _MOVE_NEAR
        words = np.empty((*family.shape, 5), np.int64)
        words[..., 0] = family
        for column, slot, named in ((1, target, names_target), (3, reference, names_reference)):
            kind = self._kinds[frames, slot]  # [F, K, 2]
            words[..., column] = np.where(named, kind[..., 0], len(_COLOURS))
            words[..., column + 1] = np.where(named, kind[..., 1], len(_SHAPES))
        return words

    def _tokenize_all(self, tokenize: PromptTokenizer) -> None:
        known: dict[tuple[int, ...], list[int]] = {}
        flat = self._kind_words.reshape(-1, 5)
        for words in map(tuple, np.unique(flat, axis=0).tolist()):
            known[words] = tokenize(_instruction(words))
        every = [tokenize(words) for words in every_instruction()]  # the same split for all shards
        prefix = common_prefix(every)
        longest = max(map(len, every)) - len(prefix)
        self._prefix = torch.tensor(prefix)
        ids = np.full((len(flat), longest), tokenize.config.pad, np.int64)
        lengths = np.empty(len(flat), np.int64)
        for i, words in enumerate(map(tuple, flat.tolist())):
            own = known[words][len(prefix) :]
            ids[i, : len(own)], lengths[i] = own, len(own)
        self._word_ids = ids.reshape(*self._kind_words.shape[:2], longest)
        self._word_lengths = lengths.reshape(self._kind_words.shape[:2])

    def _pose(self, index: NDArray[np.int64], asked: NDArray[np.int64]) -> tuple[NDArray[np.float32], ...]:
        """Return the pose targets [B, K, POSE] and which of them are known.

        They are target xyz and cos, sin of twice its yaw, reference xyz, bowl xy, tool xyz, cos, sin of the tool's yaw,
        finger, drawer, handle x.
        """
        count = asked.shape[1]
        frames = np.arange(len(index))[:, None]
        objects, scene = self._objects[index], self._scene[index]
        family = asked[..., 0]
        target, reference = objects[frames, asked[..., 1]], objects[frames, asked[..., 2]]
        own = np.repeat(scene[:, None], count, axis=1)
        pose = np.zeros((len(index), count, POSE), np.float32)
        pose[..., 0:3] = (target[..., :3] - _XYZ_MIDDLE) / _XYZ_SCALE
        pose[..., 3], pose[..., 4] = np.cos(2 * target[..., 3]), np.sin(2 * target[..., 3])
        pose[..., 5:8] = (reference[..., :3] - _XYZ_MIDDLE) / _XYZ_SCALE
        bowl = own[..., 9:11]
        pose[..., 8:10] = np.nan_to_num((bowl - _XYZ_MIDDLE[:2]) / _XYZ_SCALE)
        pose[..., 10:13] = (own[..., :3] - _XYZ_MIDDLE) / _XYZ_SCALE
        pose[..., 13], pose[..., 14] = np.cos(own[..., 3]), np.sin(own[..., 3])
        pose[..., 15] = own[..., 4] / 0.02 - 1.0
        pose[..., 16] = own[..., 5] / 0.075 - 1.0
        pose[..., 17] = (own[..., 6] - 0.45) / 0.05
        posed = np.zeros_like(pose)
        posed[..., 10:] = 1.0
        posed[..., 0:3] = _NAMES_TARGET[family][..., None]
        kind = self._kinds[index][frames, asked[..., 1]]
        turned = _NAMES_TARGET[family] & (kind[..., 1] == _SHAPES.index("bar"))
        posed[..., 3:5] = turned[..., None]
        posed[..., 5:8] = (family == _MOVE_NEAR)[..., None]
        to_bowl = family == FAMILIES.index(TaskFamily.PLACE_IN_BOWL)
        posed[..., 8:10] = (to_bowl & np.isfinite(bowl[..., 0]))[..., None]
        return np.clip(pose, -_FARTHEST, _FARTHEST), posed

    def _place(
        self, index: NDArray[np.int64], cover: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        objects, scene = self._objects[index], self._scene[index]
        slots = objects.shape[1]
        things = np.zeros((len(index), slots + 3, 5), np.float32)  # the objects, the tool, the bowl, the handle
        turned = np.zeros((len(index), slots + 3), np.float32)
        things[:, :slots, :3], things[:, slots, :3] = objects[..., :3], scene[:, :3]
        things[:, slots + 1, :3], things[:, slots + 2, :3] = np.nan_to_num(scene[:, 9:12]), scene[:, 6:9]
        yaw = np.concatenate((objects[..., 3], scene[:, 3:4]), axis=1)
        things[:, : slots + 1, 3], things[:, : slots + 1, 4] = np.cos(2 * yaw), np.sin(2 * yaw)
        turned[:, :slots] = self._kinds[index][..., 1] == _SHAPES.index("bar")
        turned[:, slots] = 1.0
        things[..., :3] = (things[..., :3] - _XYZ_MIDDLE) / _XYZ_SCALE
        shown = cover[..., [*range(slots), _HAND, COVER.index("bowl"), _HANDLE]]  # [B, N, things]
        most = shown.argmax(axis=-1)
        frames = np.arange(len(index))[:, None]
        weight = shown.max(axis=-1)
        weight = np.where(weight > 0.05, np.sqrt(weight), 0.0)[..., None].repeat(5, axis=-1)
        weight[..., 3:] *= turned[frames, most][..., None]
        return np.clip(things, -_FARTHEST, _FARTHEST)[frames, most], weight.astype(np.float32)


def _instruction(words: tuple[int, ...]) -> str:
    family, colour, shape, other_colour, other_shape = words

    def kind(colour: int, shape: int) -> ObjectKind:
        return ObjectKind(_COLOURS[colour % len(_COLOURS)], _SHAPES[shape % len(_SHAPES)])

    return Task(FAMILIES[family], kind(colour, shape), kind(other_colour, other_shape)).instruction


def _segments(cover: NDArray[np.float32], kinds: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return [B, N, SEGMENTS]: patches by colour, by shape, then hand, arm, drawer, cabinet, bowl, handle."""
    slots = kinds.shape[1]
    colour = (kinds[:, :, :1] == np.arange(len(_COLOURS))).astype(np.float32)
    shape = (kinds[:, :, 1:] == np.arange(len(_SHAPES))).astype(np.float32)
    objects = cover[..., :slots]
    return np.concatenate((objects @ colour, objects @ shape, cover[..., slots:]), axis=-1)


def _look(cover: NDArray[np.float32], asked: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    family, target, reference = asked.transpose(2, 0, 1)
    first = np.where(_NAMES_TARGET[family], target, _HANDLE)
    goal = np.where(family == _MOVE_NEAR, reference, _GOAL[family])
    column = np.stack((first, np.full_like(first, _HAND), goal), axis=-1)  # [B, K, 3]
    frames = np.arange(len(cover))[:, None, None]
    look = cover.transpose(0, 2, 1)[frames, np.maximum(column, 0)]  # [B, K, 3, N]
    total = look.sum(axis=-1)
    seen = (total > 0.1) & (column >= 0)
    look = look / np.maximum(total, 1e-3)[..., None]
    return look.astype(np.float32), seen.astype(np.float32)
