#!/usr/bin/env python3
"""Film one episode under chunks that come late, entered by the clock and by the pose, side by side (docs/late.webp).

    python benchmarks/late_film.py [--family place_in_bowl] [--seed 2014] [--delay 0.8]

Scene, task and noise are the same on both sides; the line is where the tool has been. The film runs in real time.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sqap_vla_ros.compression.load import load_policy
from sqap_vla_ros.evaluation.closed_loop.episodes import EpisodeRun, Execution, predict_together
from sqap_vla_ros.shipped import SHIPPED
from sqap_vla_ros.simulation.environment import CONTROL_DT_S, StepResult, TabletopEnv
from sqap_vla_ros.simulation.vocabulary import TaskFamily

SIDES = {"clock": "entered by the clock", "path": "entered by pose"}
WIDTH, STRIP, GAP = 360, 26, 6  # of a side, of the line of text above it, and between the sides
LAST_S = 1.6  # how long the end is shown
COLOURS = {"clock": (213, 94, 0), "path": (0, 114, 178)}


class FilmedEnv(TabletopEnv):
    """Keeps a picture of every control step, and where the tool was seen."""

    def __init__(self, colour: tuple[int, int, int]) -> None:
        super().__init__(shadows=True, antialiasing=True)
        self._colour = colour
        self._trail: list[tuple[float, float]] = []
        self.frames: list[NDArray[np.uint8]] = []

    def step(self, action: NDArray[np.float64]) -> StepResult:
        """Do the step, then take a picture."""
        result = super().step(action)
        if self.gripper_pixel is not None:
            self._trail.append(self.gripper_pixel)
        picture = self.render().copy()
        points = np.array(self._trail, dtype=np.float64).round().astype(np.int32).reshape(-1, 1, 2)
        cv2.polylines(picture, [points], False, self._colour, 3, cv2.LINE_AA)
        self.frames.append(picture)
        return result


def filmed(policy: object, join: str, family: TaskFamily, seed: int, delay_s: float) -> tuple[FilmedEnv, EpisodeRun]:
    """Run the episode."""
    env = FilmedEnv(COLOURS[join])
    episode = EpisodeRun(env, "visual_matching", family, seed, Execution(8, latency_s=delay_s, join=join))
    while not episode.finished:
        ((chunk, inference_ms),) = predict_together(policy, [episode.observe()], [episode.noise_seed])
        episode.act(chunk, inference_ms)
    return env, episode


def side(picture: NDArray[np.uint8], title: str) -> NDArray[np.uint8]:
    """Return a picture made small, with a line of text above it."""
    height = round(WIDTH * picture.shape[0] / picture.shape[1])
    small = cv2.resize(picture, (WIDTH, height), interpolation=cv2.INTER_AREA)
    strip = np.full((STRIP, WIDTH, 3), 255, np.uint8)
    cv2.putText(strip, title, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([strip, small])


def main() -> int:
    """Run both, write the film."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(map(str, TaskFamily)), default=str(TaskFamily.PLACE_IN_BOWL))
    parser.add_argument("--seed", type=int, default=2014)
    parser.add_argument("--delay", type=float, default=0.8)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "late.webp")
    args = parser.parse_args()
    torch.set_num_threads(1)
    policy = load_policy("tabletop", "fp32", shipped=SHIPPED)
    runs = {join: filmed(policy, join, TaskFamily(args.family), args.seed, args.delay) for join in SIDES}
    longest = max(len(env.frames) for env, _ in runs.values())
    pages = []
    for index in range(longest + round(LAST_S / CONTROL_DT_S)):
        sides = []
        for join, (env, episode) in runs.items():
            over = index >= len(env.frames)
            shown = min(index, len(env.frames) - 1)
            state = {"success": "done", "time": "time is up"}.get(episode.reason, episode.reason) if over else ""
            title = f"{SIDES[join]}, {args.delay:g} s late   {(shown + 1) * CONTROL_DT_S:4.1f} s  {state}"
            sides.append(side(env.frames[shown], title))
        between = np.full((len(sides[0]), GAP, 3), 255, np.uint8)
        pages.append(Image.fromarray(np.concatenate([sides[0], between, sides[1]], axis=1)))
    duration_ms = round(1e3 * CONTROL_DT_S)
    pages[0].save(args.out, save_all=True, append_images=pages[1:], duration=duration_ms, loop=0, quality=60, method=5)
    print(f"{args.out}: {len(pages)} pictures, {args.out.stat().st_size / 1e6:.2f} MB")
    for join, (_, episode) in runs.items():
        print(f"{join}: {episode.result()}")
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # the renderers' OpenGL contexts end with the process
