"""Demonstrations: expert episodes (or the policy's own, for corrections) in shards on disk.

Every episode is fixed by its seed, every shard by its number, so collecting is parallel and resumes where it stopped.
Expert episodes are disturbed (Laskey et al., "DART", 2017): noise on the actions, wrong gripper commands, sudden jumps
and changes of mind show states that a policy gets itself into. The labels are always the undisturbed expert's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sqap_vla_ros.policy.config import TABLETOP
from sqap_vla_ros.policy.preprocessing import ImageTransform
from sqap_vla_ros.processes import worker_pool
from sqap_vla_ros.simulation.camera import SceneRenderer, intrinsics
from sqap_vla_ros.simulation.environment import TabletopEnv
from sqap_vla_ros.simulation.experts import expert
from sqap_vla_ros.simulation.layout import VARIATIONS, Variation
from sqap_vla_ros.simulation.scene import COLOURS, SHAPES, SLOTS
from sqap_vla_ros.simulation.vocabulary import VariationName
from sqap_vla_ros.training.labels import FAMILIES, Asked, draw_tasks, expert_chunk, sensible_tasks

FIRST_SEED = 1_000_000  # layouts below are for calibration and evaluation
LABELS = 6  # instructions a picture
IMAGE, GRID = TABLETOP.vision.image_size, TABLETOP.vision.grid[0]
# Columns of `cover`: how much of a patch shows what.
COVER = (*(f"object{i}" for i in range(SLOTS)), "hand", "arm", "drawer", "cabinet", "bowl", "handle")
_COLOURS, _SHAPES = tuple(COLOURS), tuple(SHAPES)
_SEGMENTED = (320, 240)


@dataclass(frozen=True)
class CollectionConfig:
    """Settings of the collection. frames: per shard; kept: frames kept of an episode; variations: taken in turn."""

    shards: int = 84
    frames: int = 768
    kept: int = 5
    variations: tuple[str, ...] = (VariationName.VISUAL_MATCHING, VariationName.RANDOMISED)
    noise_m: tuple[float, ...] = (0.0, 0.008, 0.016)
    jump: float = 0.04
    flip: float = 0.015
    change_of_mind: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.variations or not set(self.variations) <= set(VARIATIONS):
            given = ", ".join(self.variations) or "none"
            raise ValueError(f"variations must be some of {', '.join(VARIATIONS)}, got {given}")
        if min(self.shards, self.frames, self.kept) < 1:
            raise ValueError(f"shards, frames and kept must be positive, got {self.shards}, {self.frames}, {self.kept}")

    def variation(self, shard: int) -> Variation:
        """Return the variation of the scenes of one shard."""
        return VARIATIONS[self.variations[shard % len(self.variations)]]


class Recorder:
    """Turns the world's present state into frames of a shard."""

    def __init__(self, env: TabletopEnv) -> None:
        self.env = env
        self._transform = ImageTransform(IMAGE)
        self._renderer = SceneRenderer(env.world.model, *_SEGMENTED, shadows=False, antialiasing=False)
        model = env.world.model
        self._column = np.full(model.nbody, -1)
        for body in range(model.nbody):
            name = model.body(body).name
            if name in COVER:
                self._column[body] = COVER.index(name)
            elif name in ("hand", "left_finger", "right_finger"):
                self._column[body] = COVER.index("hand")
            elif name.startswith("link"):
                self._column[body] = COVER.index("arm")
        self.frames: list[dict[str, NDArray]] = []  # type: ignore[type-arg]

    def record(self, asked: list[Asked], image: NDArray[np.uint8] | None = None) -> None:
        """Keep the present picture with the expert's chunk for each of `asked`."""
        world = self.env.world
        assert world.layout is not None
        kinds = np.full((SLOTS, 2), -1, np.int8)
        xyz = np.zeros((SLOTS, 4), np.float32)
        for slot, placed in enumerate(world.layout.objects):
            kinds[slot] = _COLOURS.index(placed.kind.colour), _SHAPES.index(placed.kind.shape)
            placed_now = world.state(slot, (slot + 1) % len(world.layout.objects)).target
            xyz[slot] = (*placed_now.xyz_m, placed_now.yaw_rad)
        state = world.state()
        bowl = np.full(3, np.nan) if state.bowl_xyz_m is None else state.bowl_xyz_m
        self.frames.append(
            {
                "image": self._transform.apply(self.env.render() if image is None else image),
                "cover": self._cover(),
                "asked": np.array([(FAMILIES.index(a.family), a.target, a.reference) for a in asked], np.int8),
                "chunk": np.stack([expert_chunk(world, a) for a in asked]),
                "kinds": kinds,
                "objects": xyz,
                "scene": np.array(
                    [*state.tool_xyz_m, state.tool_yaw_rad, state.finger_m, state.drawer_m, *state.handle_xyz_m, *bowl],
                    np.float32,
                ),
            }
        )

    def _cover(self) -> NDArray[np.uint8]:
        """Return the share [256, len(COVER)] of each patch, 0 … 255; the handle is a bump around its projection."""
        column = self._column[self._renderer.segmentation(self.env.world.data)]
        width, height = _SEGMENTED
        patches = column.reshape(GRID, height // GRID, GRID, width // GRID).swapaxes(1, 2).reshape(GRID * GRID, -1)
        cover = np.stack([(patches == i).mean(axis=1) for i in range(len(COVER))], axis=1)
        world = self.env.world
        optical = np.linalg.inv(world.base_from_optical) @ np.append(world.state().handle_xyz_m, 1.0)
        u, v, _ = intrinsics(world.camera_fovy_rad, width, height) @ (optical[:3] / optical[2])
        row, col = np.divmod(np.arange(GRID * GRID), GRID)
        gap = (row + 0.5 - (v + 0.5) * GRID / height) ** 2 + (col + 0.5 - (u + 0.5) * GRID / width) ** 2
        cover[:, COVER.index("handle")] = np.exp(-gap / 2)
        return np.round(255 * cover).astype(np.uint8)

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()


def expert_shard(config: CollectionConfig, shard: int) -> dict[str, NDArray]:  # type: ignore[type-arg]
    """Return the frames of one shard from disturbed expert episodes."""
    rng = np.random.default_rng((config.seed, shard))
    with TabletopEnv(variation=config.variation(shard)) as env:
        recorder = Recorder(env)
        try:
            episode = 0
            while len(recorder.frames) < config.frames:
                seed = FIRST_SEED + (config.seed * 1000 + shard) * 10_000 + episode
                _expert_episode(env, recorder, config, seed, FAMILIES[episode % len(FAMILIES)], rng)
                episode += 1
        finally:
            recorder.close()
    return stack(recorder.frames[: config.frames])


def _expert_episode(
    env: TabletopEnv, recorder: Recorder, config: CollectionConfig, seed: int, family: str, rng: np.random.Generator
) -> None:
    env.reset(seed, family)
    layout = env.world.layout
    assert layout is not None
    asked = Asked(layout.task.family, 0, 1)
    noise_m = rng.choice(config.noise_m)
    steps = int(rng.integers(20, 30))
    kept = set(rng.choice(steps, min(config.kept, steps), replace=False).tolist())
    switch = int(rng.integers(4, 18)) if rng.random() < config.change_of_mind else -1
    done = 0
    for step in range(steps):
        if step == switch and (possible := sensible_tasks(env.world)):
            asked = possible[rng.integers(len(possible))]
        if step in kept:
            recorder.record(draw_tasks(env.world, asked, LABELS, rng))
        state = env.world.state(asked.target, asked.reference)
        action = expert(asked.task(layout), state)
        action[:3] += rng.normal(0.0, noise_m, 3)
        action[5] += rng.normal(0.0, 4.0 * noise_m)
        if rng.random() < config.flip:
            action[6] = 1.0 - action[6]
        if rng.random() < config.jump:
            action[:3] += rng.normal(0.0, 0.035, 3)
        env.step(action)
        done += asked.task(layout).succeeded(env.world.state(asked.target, asked.reference))
        if done > 2:
            return


def stack(frames: list[dict[str, NDArray]]) -> dict[str, NDArray]:  # type: ignore[type-arg]
    """Stack frames into arrays with a leading axis."""
    return {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}


def collect_shards(
    folder: Path,
    config: CollectionConfig,
    *,
    jobs: int = 2,
    make: Callable[[CollectionConfig, int], dict[str, NDArray]] = expert_shard,  # type: ignore[type-arg]
    show: bool = True,
) -> list[Path]:
    """Write the shards that `folder` does not hold yet; each appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [folder / f"shard{number:04d}" for number in range(config.shards)]
    missing = [number for number, path in enumerate(wanted) if not path.is_dir()]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with worker_pool(jobs) as pool:
        futures = [pool.submit(_write, make, config, number, wanted[number]) for number in missing]
        for future in tqdm(as_completed(futures), total=len(futures), unit="shard", disable=not show):
            future.result()
    return wanted


def _write(
    make: Callable[[CollectionConfig, int], dict[str, NDArray]],  # type: ignore[type-arg]
    config: CollectionConfig,
    number: int,
    path: Path,
) -> None:
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir()
    try:
        for name, values in make(config, number).items():
            np.save(partial / f"{name}.npy", values)
        partial.rename(path)
    except OSError as error:  # of NumPy without a reason: "1000 requested and 500 written"
        raise OSError(f"{path} cannot be written ({error}): is the disk full?") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
