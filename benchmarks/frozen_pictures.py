"""Counts how often the camera is called frozen: while it shows the simulated arm, and while it shows what was.

The rules of `control/camera/frozen.py` are fed with the pictures of simulated tasks at 5 Hz, as the scripted expert
solves them: as they are, with a sensor's noise, late by what a camera may be late, and then wrong in several ways.

    python benchmarks/frozen_pictures.py [--episodes 20] [--first 0] [--size 640 480]
    python benchmarks/frozen_pictures.py --films FILM…       the least share of cells that change within half a second
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.control.camera.image_gate import ImageGate, ImageGateConfig
from sqap_vla_ros.control.camera.pictures import Picture, ToolView, changed_cells
from sqap_vla_ros.robot.conventions import invert_pose
from sqap_vla_ros.simulation import layout
from sqap_vla_ros.simulation.camera import camera_model
from sqap_vla_ros.simulation.environment import CONTROL_NS, TabletopEnv
from sqap_vla_ros.simulation.experts import expert

Image = NDArray[np.uint8]
REST = 10  # pictures before the arm moves


@dataclass(frozen=True)
class Episode:
    """Pictures [n] at 5 Hz, where the tool was, and the geometry of each."""

    images: list[Image]
    views: list[ToolView]


def episodes(variation: layout.Variation, seeds: range, width: int, height: int) -> Iterator[Episode]:
    """Tasks that the scripted expert solves, after two seconds of rest."""
    with TabletopEnv(variation=variation, width=width, height=height) as tabletop:
        for seed in seeds:
            task = tabletop.reset(seed)
            world = tabletop.world
            camera = camera_model(world.camera_fovy_rad, width, height)
            optical = invert_pose(world.base_from_optical)
            images, views, ended = [], [], False
            while not ended:
                resting = len(images) < REST
                images.append(tabletop.render())
                views.append(ToolView(camera, optical, world.base_from_tool.copy()))
                if not resting:
                    result = tabletop.step(expert(task, tabletop.state))
                    ended = result.terminated or result.truncated
            yield Episode(images, views)


def noisy(deviation: float) -> Callable[[Episode], list[Image]]:
    """As they are, with a sensor's noise."""

    def pictures(episode: Episode) -> list[Image]:
        rng = np.random.default_rng(0)
        return [_noise(image, deviation, rng) for image in episode.images]

    return pictures


def late(steps: int) -> Callable[[Episode], list[Image]]:
    """Pictures of before under fresh stamps, with a sensor's noise."""

    def pictures(episode: Episode) -> list[Image]:
        rng = np.random.default_rng(0)
        return [_noise(episode.images[max(0, n - steps)], 2.0, rng) for n in range(len(episode.images))]

    return pictures


def frozen(change: Callable[[Image, Image, int], Image], after: int = REST + 5) -> Callable[[Episode], list[Image]]:
    """One picture for ever, from a moment of the task on. change: (frozen, live, number) to what is shown."""
    return lambda episode: [
        image if n < after else change(episode.images[after], image, n) for n, image in enumerate(episode.images)
    ]


def _noise(image: Image, deviation: float, rng: np.random.Generator) -> Image:
    return np.clip(np.rint(image + rng.normal(0.0, deviation, image.shape)), 0, 255).astype(np.uint8)


def _clock(still: Image, live: Image, n: int) -> Image:
    shown = still.copy()
    height, width = still.shape[:2]
    shown[: height // 24, : width // 6] = 255 * (n % 2)
    return shown


def _halves(still: Image, live: Image, n: int) -> Image:
    half = len(still) // 2
    return np.concatenate([live[:half], still[half:]])


CASES: dict[str, Callable[[Episode], list[Image]]] = {
    "as it is": lambda episode: episode.images,
    "noise of 2 levels": noisy(2.0),
    "noise of 8 levels": noisy(8.0),
    "late by 0.2 s": late(1),
    "late by 0.4 s": late(2),
    "late by 0.6 s": late(3),
    "late by 1.0 s": late(5),
    "late by 2.0 s": late(10),
    "frozen": frozen(lambda still, live, n: still),
    "frozen, a clock": frozen(_clock),
    "frozen, noise of 2 levels": frozen(lambda still, live, n: _noise(still, 2.0, np.random.default_rng(n))),
    "frozen, noise of 8 levels": frozen(lambda still, live, n: _noise(still, 8.0, np.random.default_rng(n))),
    "its lower half frozen": frozen(_halves),
}


def named(episode: Episode, change: Callable[[Episode], list[Image]], *, breaks: bool) -> bool:
    """Return whether the gate names the camera; the arm goes on as if it did not.

    The task is done twice, as by an arm that has worked before. breaks: the first time the camera is well.
    """
    gate = ImageGate(ImageGateConfig())
    changed, found = change(episode), False
    for time_ns, images in ((0, episode.images if breaks else changed), (len(episode.images) * CONTROL_NS, changed)):
        gate.begin()
        for n, (image, view) in enumerate(zip(images, episode.views, strict=True)):
            verdict = gate.frozen(image, time_ns + n * CONTROL_NS, view.base_from_tool[:3, 3], view)
            found |= verdict is not None
    return found


def least_change(film: Path) -> float:
    """Return the least share of cells that change within half a second of a film; where noise hides it, it is 1."""
    reader = cv2.VideoCapture(str(film))
    images = []
    while (read := reader.read())[0]:
        images.append(Picture(read[1], 0, np.zeros(3)))
    gap = max(1, round(0.5 * reader.get(cv2.CAP_PROP_FPS)))
    changed = [changed_cells(then, now) for then, now in zip(images, images[gap:], strict=False)]
    return min(1.0 if cells is None else float(cells.mean()) for cells in changed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="seed of the first task")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--films", type=Path, nargs="+", default=())
    arguments = parser.parse_args()
    if arguments.films:
        for film in arguments.films:
            print(f"{film.name:36s} {least_change(film):.3f}")
        return
    seeds = range(arguments.first, arguments.first + arguments.episodes)
    for name in ("VISUAL_MATCHING", "VARIANT_AGGREGATION", "RANDOMISED"):
        found: Counter[str] = Counter()
        pictures = 0
        for episode in episodes(getattr(layout, name), seeds, *arguments.size):
            pictures += len(episode.images)
            for case, change in CASES.items():
                found[case] += named(episode, change, breaks="frozen" in case)
        print(f"{name.lower()}: {arguments.episodes} tasks, {pictures} pictures")
        for case in CASES:
            print(f"  {case:28s} named in {found[case]:3d}")


if __name__ == "__main__":
    main()
