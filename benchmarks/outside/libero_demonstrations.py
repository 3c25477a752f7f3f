"""Demonstrations of libero_object by the scripted expert of libero_expert.py, for `sqap-vla train --demonstrations`.

Runs in LIBERO's own environment, which libero_environment.sh makes:

    python benchmarks/outside/libero_demonstrations.py check   --out expert.json        success by LIBERO's own test
    python benchmarks/outside/libero_demonstrations.py collect --out demonstrations     shards; goes on where it was
    python benchmarks/outside/libero_demonstrations.py collect --out corrections --policy ws://localhost:8000/vla-eval

`check` uses LIBERO's initial states. `collect` never does: it draws from the environment's own placement sampler with
other seeds, and in every other episode the objects trade places. What is executed is disturbed; the labels are the
expert's next commands, for up to four of the objects in the picture. With `--policy` the policy that `sqap-vla serve`
serves acts, and the expert labels the states that it gets itself into (Ross et al., "DAgger", 2011). The format of the
shards: docs/training.md.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from libero_expert import MAX_MOVE_M, MAX_TURN_RAD, Array, expert, plan
from libero_world import World, class_of, instruction_for, suite_of
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation
from tqdm import tqdm

SUITE = "libero_object"
CLASSES = (
    "alphabet_soup",
    "cream_cheese",
    "salad_dressing",
    "bbq_sauce",
    "ketchup",
    "tomato_sauce",
    "butter",
    "milk",
    "chocolate_pudding",
    "orange_juice",
)
THINGS = (*CLASSES, "basket", "hand", "arm")  # columns of `cover` and rows of `places`
HORIZON, DT_S, SIZE = 16, 0.05, 224
LABELS = 4  # instructions a picture
MOST_STEPS = 280
FIRST_SEED = 1_000_000

KEPT = 0.11  # share of the steps whose picture is kept: some 14 of an episode
POLICY_KEPT = 0.7  # share of the policy's decisions
NOISE = (0.0, 0.15, 0.3)  # standard deviation as a share of FULL, drawn for each episode
FULL = (MAX_MOVE_M, MAX_MOVE_M, MAX_MOVE_M, 0.1, 0.1, 0.25)  # of a command: metres, radians
SHOVE, SHOVE_STEPS = 0.02, (3, 8)  # chance in a step of a random motion, and how long it lasts
FLIP, FLIP_STEPS = 0.01, (1, 6)  # the same of a wrong gripper command
CHANGE_OF_MIND = 0.2  # share of episodes in which another object is asked for midway


@contextmanager
def workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Provide a pool of processes, which end at once when this one is interrupted or receives SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # in the pool's processes too
    pool = ProcessPoolExecutor(jobs)
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def collect(out: Path, shards: int, frames: int, jobs: int, seed: int, policy: str, horizon: int) -> None:
    """Write the shards that are missing in `out`; each appears whole or not at all.

    policy: address of the policy that acts, empty for the expert; horizon: actions that it uses of each chunk.
    """
    out.mkdir(parents=True, exist_ok=True)
    description = {
        "name": SUITE,
        "dt_s": DT_S,
        "things": THINGS,
        "tool": "hand",
        "instructions": [instruction_for(name) for name in CLASSES],
        "asked": [[n, THINGS.index("basket")] for n in range(len(CLASSES))],
    }
    (out / "dataset.json").write_text(json.dumps(description, indent=1) + "\n")
    missing = [n for n in range(shards) if not (out / f"shard{n:04d}").is_dir()]
    with workers(jobs) as pool:
        futures = [pool.submit(write_shard, out, n, frames, seed, policy, horizon) for n in missing]
        for future in tqdm(as_completed(futures), total=shards, initial=shards - len(missing), unit="shard"):
            future.result()


def write_shard(out: Path, number: int, frames: int, seed: int, policy: str, horizon: int) -> None:
    """Write one shard, of the task number % 10."""
    partial = out / f"shard{number:04d}.partial{os.getpid()}"
    partial.mkdir()
    try:
        values, episodes = asyncio.run(shard(number, frames, seed, policy, horizon))
        for name, value in values.items():
            np.save(partial / f"{name}.npy", value)
        (partial / "episodes.json").write_text(json.dumps(episodes) + "\n")
        partial.rename(out / f"shard{number:04d}")
    finally:
        shutil.rmtree(partial, ignore_errors=True)


async def shard(
    number: int, frames: int, seed: int, policy: str, horizon: int
) -> tuple[dict[str, NDArray[Any]], list[dict[str, Any]]]:
    """Return the frames of a shard, and what became of its episodes."""
    rng = np.random.default_rng((FIRST_SEED, seed, number, int(bool(policy))))
    suite = suite_of(SUITE)
    found: list[dict[str, NDArray[Any]]] = []
    episodes = []
    with World(suite, number % suite.n_tasks) as world:
        while len(found) < frames:
            permuted = len(episodes) % 2 == 1
            world.begin_anew(rng, permuted=permuted)
            if policy:
                done, steps = await episode_of_the_policy(world, rng, found, policy, horizon)
            else:
                done, steps = disturbed_episode(world, rng, found)
            episodes.append({"target": class_of(world.target), "permuted": permuted, "done": done, "steps": steps})
    return {name: np.stack([frame[name] for frame in found[:frames]]) for name in found[0]}, episodes


async def episode_of_the_policy(
    world: World, rng: np.random.Generator, found: list[dict[str, NDArray[Any]]], url: str, horizon: int
) -> tuple[bool, int]:
    """Let the policy act, and append what it sees, with the expert's labels, to `found`."""
    from vla_eval.connection import Connection

    name = class_of(world.target)
    task = {"name": instruction_for(name), "suite": SUITE, "task_id": 0, "episode_idx": 0}
    noise = rng.choice((0.0, 0.1))
    first = int(rng.integers(horizon))  # actions made by the expert, so that any phase of the motion is decided in
    for _ in range(first):
        world.step(expert(world.scene(world.target)))
    async with Connection(url) as connection:
        await connection.start_episode({"task": task})
        done, step = False, 0
        while step < MOST_STEPS and not done and world.in_reach(world.target):
            if step % horizon == 0:  # the server looks at the picture when its chunk is used up
                picture = world.picture()
                if rng.random() < POLICY_KEPT:
                    found.append(frame(world, world.target, rng, picture))
            seen = {"images": {"agentview": picture}, "task_description": task["name"]}
            action = np.asarray((await connection.act(seen))["actions"], np.float64)
            command = np.array([*action[:3] * MAX_MOVE_M, *action[3:6] * MAX_TURN_RAD, float(action[6] <= 0)])
            command[:3] += MAX_MOVE_M * rng.normal(0.0, noise, 3)
            done = world.step(command)
            step += 1
        await connection.end_episode({"metrics": {"success": done}, "steps": step, "elapsed_sec": 0.0})
    return done, step


def disturbed_episode(world: World, rng: np.random.Generator, found: list[dict[str, NDArray[Any]]]) -> tuple[bool, int]:
    """Run an episode, append some of its frames to `found`; return whether LIBERO's test was passed, and the steps."""
    asked = world.target
    noise = rng.choice(NOISE)
    switch = int(rng.integers(10, 100)) if rng.random() < CHANGE_OF_MIND else -1
    shoved = flipped = over = 0
    push = np.zeros(6)
    if rng.random() < 0.5:  # from anywhere around the first pose
        shoved, push = int(rng.integers(5, 25)), _push(rng)
    for step in range(MOST_STEPS):
        if step == switch and not world.held():
            asked = str(rng.choice(_to_be_fetched(world) or [asked]))
        if not world.in_reach(asked):
            break
        if rng.random() < KEPT:
            found.append(frame(world, asked, rng))
        command = expert(world.scene(asked))
        if shoved == 0 and rng.random() < SHOVE:
            shoved, push = int(rng.integers(*SHOVE_STEPS)), _push(rng)
        if flipped == 0 and rng.random() < FLIP:
            flipped = int(rng.integers(*FLIP_STEPS))
        command[:6] += rng.normal(0.0, noise, 6) * FULL
        if shoved:
            command[:6] = push
            shoved -= 1
        if flipped:
            command[6] = 1.0 - command[6]
            flipped -= 1
        world.step(command)
        over += world.inside(asked) and asked not in world.held()
        if over > 6:  # a few frames of what comes after
            break
    return bool(world.env.check_success()), step + 1


def _to_be_fetched(world: World) -> list[str]:
    return [name for name in world.objects if world.in_reach(name) and not world.inside(name)]


def _push(rng: np.random.Generator) -> Array:
    direction = rng.normal(size=3) * (1.0, 1.0, 0.6)
    push: Array = np.append(MAX_MOVE_M * direction / np.linalg.norm(direction), (0.0, 0.0, rng.normal(0.0, 0.15)))
    return push


def frame(
    world: World, asked: str, rng: np.random.Generator, picture: NDArray[np.uint8] | None = None
) -> dict[str, NDArray[Any]]:
    """Return the present picture, the expert's next commands for several objects, and what the simulator knows."""
    others = [] if world.held() else [name for name in _to_be_fetched(world) if name != asked]
    chosen = [asked, *rng.permutation(others)[: LABELS - 1].tolist()]
    chosen = [chosen[i % len(chosen)] for i in range(LABELS)]
    plans = {name: as_chunk(plan(world.scene(name), HORIZON)) for name in set(chosen)}
    cover = np.zeros((256, len(THINGS)), np.uint8)
    places = np.full((len(THINGS), 3), np.nan, np.float32)
    shares = world.cover()
    for column, name in enumerate((*world.objects, world.basket)):
        row = THINGS.index(class_of(name))
        cover[:, row] = shares[:, column]
        places[row] = world.thing(name).centre
    cover[:, -2:] = shares[:, -2:]
    tool = world.tool()
    closing = tool.closing_rad
    places[THINGS.index("hand")] = tool.position
    shown = Image.fromarray(world.picture() if picture is None else picture)
    return {
        "image": np.asarray(shown.resize((SIZE, SIZE), Image.Resampling.BICUBIC)),
        "instruction": np.array([CLASSES.index(class_of(name)) for name in chosen], np.int16),
        "chunk": np.stack([plans[name] for name in chosen]),
        "cover": cover,
        "places": places,
        "state": np.array([np.cos(2 * closing), np.sin(2 * closing), tool.finger_m], np.float32),
    }


def as_chunk(commands: Array) -> NDArray[np.float32]:
    """Return commands as the package has them, with extrinsic Euler angles instead of a rotation vector."""
    chunk = commands.copy()
    chunk[:, 3:6] = Rotation.from_rotvec(commands[:, 3:6]).as_euler("xyz")
    return chunk.astype(np.float32)


def check(task: int, episodes: int) -> dict[str, Any]:
    """Return how many of the first initial states of a task the undisturbed expert solves, by LIBERO's own test."""
    import torch

    torch.load = functools.partial(torch.load, weights_only=False)  # LIBERO's files hold NumPy arrays
    suite = suite_of(SUITE)
    states = suite.get_task_init_states(task)
    steps, failed = [], []
    with World(suite, task) as world:
        for number in range(episodes):
            world.begin(states[number])
            for step in range(MOST_STEPS):
                if world.step(expert(world.scene(world.target))):
                    steps.append(step + 1)
                    break
            else:
                failed.append(number)
    return {"task": suite.get_task(task).language, "solved": len(steps), "steps": steps, "failed": failed}


def wilson(solved: int, tried: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a rate."""
    z = 1.96
    rate, scale = solved / tried, 1 + z * z / tried
    middle = (rate + z * z / (2 * tried)) / scale
    half = z / scale * np.sqrt(rate * (1 - rate) / tried + z * z / (4 * tried * tried))
    return round(float(middle - half), 3), round(float(middle + half), 3)


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("check", help="success of the expert on LIBERO's initial states")
    checking.add_argument("--episodes", type=int, default=3, help="of each task, at most 50")
    collecting = commands.add_parser("collect", help="write shards of demonstrations; goes on where it was interrupted")
    collecting.add_argument("--shards", type=int, default=80)
    collecting.add_argument("--frames", type=int, default=512, help="of a shard")
    collecting.add_argument("--seed", type=int, default=0)
    collecting.add_argument("--policy", default="", metavar="URL", help="let the policy served there act")
    collecting.add_argument("--horizon", type=int, default=8, help="the server's --execution-horizon")
    for one in (checking, collecting):
        one.add_argument("--out", type=Path, required=True)
        one.add_argument("--jobs", type=int, default=1, help="processes; each takes 1 to 2 GB")
    args = parser.parse_args()
    if args.command == "collect":
        collect(args.out, args.shards, args.frames, args.jobs, args.seed, args.policy, args.horizon)
        return
    with workers(args.jobs) as pool:
        work = [pool.submit(check, task, args.episodes) for task in range(len(CLASSES))]
        tasks = [future.result() for future in tqdm(work, unit="task")]
    solved, tried = sum(task["solved"] for task in tasks), len(tasks) * args.episodes
    report = {"solved": solved, "tried": tried, "wilson_95": wilson(solved, tried), "tasks": tasks}
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{solved} of {tried}")


if __name__ == "__main__":
    main()
