"""Print what a reset and a step of LIBERO cost, with vla-eval's own benchmark and with libero_benchmark.py.

    python benchmarks/outside/libero_costs.py [--steps 32] [--suite libero_object]      in LIBERO's own environment

Times are the process's own seconds of CPU, which other programs disturb less than the clock; no policy is asked.
"""

import argparse
import io
import os
import sys
from time import process_time
from typing import Any

import numpy as np

os.environ.update(MUJOCO_GL="osmesa", PYOPENGL_PLATFORM="osmesa", LP_NUM_THREADS="0")
sys.stdin = io.StringIO("n\n")  # LIBERO asks once where its files are to be


def costs(world: Any, steps: int) -> tuple[float, float]:
    """Return the seconds of the second episode's reset, and of a step of it on average."""
    from vla_eval.recording import NullEpisodeRecorder

    world._recorder = NullEpisodeRecorder()
    task, rng = world.get_tasks()[0], np.random.default_rng(0)
    world.reset({**task, "episode_idx": 0})
    start = process_time()
    seen = world.reset({**task, "episode_idx": 1})
    began = process_time()
    for _ in range(steps):
        world.make_obs(seen, task)
        seen = world.step({"actions": rng.uniform(-1, 1, 7)}).obs
    ended = process_time()
    world.cleanup()
    return began - start, (ended - began) / steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--suite", default="libero_object")
    args = parser.parse_args()
    from libero_benchmark import OneCamera
    from vla_eval.benchmarks.libero_pro.benchmark import LIBEROProBenchmark

    print("| | reset with settling, s | step, ms |\n|---|---|---|")
    for name, world in (
        ("vla-eval's, two cameras", LIBEROProBenchmark(suite=args.suite, send_state=True)),
        ("one camera, every step", OneCamera(suite=args.suite, send_state=True, picture_every=1)),
        ("one camera, every eighth step", OneCamera(suite=args.suite, send_state=True, picture_every=8)),
    ):
        reset, step = costs(world, args.steps)
        print(f"| {name} | {reset:.2f} | {1e3 * step:.1f} |", flush=True)


if __name__ == "__main__":
    main()
