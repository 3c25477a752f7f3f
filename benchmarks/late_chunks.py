#!/usr/bin/env python3
"""Measure how much success lateness costs, and what regains it: closed loop on paired episodes, none used for tuning.

A cell is a recipe, a suite, a delay and a way to deal with late chunks (`WAYS`): the seeds of every family are the
same in all of them, so cells are compared pair by pair with the synchronous one and with each other. The world's seeds
begin at 2000: neither the policy nor the weights of the join were chosen on them.

    python benchmarks/late_chunks.py                       go on with benchmarks/results/late_chunks, print the table
    python benchmarks/late_chunks.py --only fp32_vm_path0.8   some cells
    python benchmarks/late_chunks.py --table               print the table of what is there

Episodes are appended to one file a cell as they end, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from sqap_vla_ros.compression.load import load_policy
from sqap_vla_ros.contracts import ActionChunk
from sqap_vla_ros.evaluation.closed_loop.episodes import EpisodeRun, Execution, run_episodes
from sqap_vla_ros.evaluation.closed_loop.statistics import PairedOutcomes, wilson
from sqap_vla_ros.robot.trajectory import PoseTrajectory
from sqap_vla_ros.shipped import SHIPPED
from sqap_vla_ros.simulation.environment import CONTROL_DT_S, TabletopEnv
from sqap_vla_ros.simulation.vocabulary import TaskFamily

RESULTS = Path(__file__).parent / "results" / "late_chunks"
FIRST_SEED = 2000
SUITES = {"vm": "visual_matching", "va": "variant_aggregation"}
RECIPES = ("fp32", "coverage_w4a8", "sqap_w4a8", "sqap_qvla")
COMPRESSED_WAYS = ("path", "path_h6")  # of the recipes behind the first: whether compression makes lateness worse
DELAYS_S = (0.4, 0.8, 1.6)
# a prediction of the 7B geometry, image to chunk (results/full_geometry_*.json), and the recipe that takes so long
LATENCIES_S = {
    "AVX512-VNNI": (("fp32", "bf16"), ("sqap", "sqap"), ("coverage_w4a8_full", "coverage_w4a8_full")),
    "AMX": (("fp32", "bf16"), ("sqap", "sqap")),
}


class DroppedAsPast(EpisodeRun):
    """Drops a first chunk's actions as past although the arm stood still meanwhile, as the executor once did."""

    def _joining_action(self, motion: PoseTrajectory) -> int:
        return self._execution.delay_steps


class Stopped(EpisodeRun):
    """Stands still until the chunk is there, then does its first actions: synchronous, and slower."""

    wait_steps = 0

    def act(self, chunk: ActionChunk, inference_ms: float = 0.0) -> None:
        for _ in range(self.wait_steps):
            if not self._step(self._planned(self._env.commanded_pose, self._env.steps)):
                return
        super().act(chunk, inference_ms)


def stopped(wait_s: float) -> type[EpisodeRun]:
    """Return the executor that stands still for so long before every chunk."""
    return type("Stopped", (Stopped,), {"wait_steps": math.ceil(wait_s / CONTROL_DT_S - 1e-9)})


class LongerLimit(EpisodeRun):
    """Has `allowed_steps` before the episode ends for want of time."""

    def allowed_steps(self) -> int:
        """Return the limit: the task's own, and the steps that pass before the first chunk is there."""
        return self._env.task.max_steps + self._execution.delay_steps

    def _step(self, action: NDArray[np.float64]) -> bool:
        super()._step(action)
        if self.reason == "time" and self._env.steps < self.allowed_steps():
            self.reason = ""
        return not self.finished


class DoubledLimit(LongerLimit):
    """Has twice the time."""

    def allowed_steps(self) -> int:
        return 2 * self._env.task.max_steps


@dataclass(frozen=True)
class Way:
    """A way to deal with late chunks. horizon, ensemble, join, continuation: as in `Execution`.

    horizon None: an image whenever the policy is free, as policy_node's `replan: continuous` has it.
    """

    label: str
    horizon: int | None = 8
    join: str = "path"
    continuation: str = "none"
    runs: type[EpisodeRun] = EpisodeRun
    ensemble: str = "none"
    delays_s: tuple[float, ...] = DELAYS_S

    def execution(self, delay_s: float) -> Execution | None:
        """Return how chunks that are late by so much are executed, None where the way is not for such chunks."""
        horizon = self.horizon or math.ceil(delay_s / CONTROL_DT_S - 1e-9)
        if delay_s not in self.delays_s or delay_s > horizon * CONTROL_DT_S:
            return None
        return Execution(horizon, self.ensemble, delay_s, self.join, self.continuation)


WAYS = {
    "path": Way("entered by pose"),
    "clock": Way("entered by the clock", join="clock"),
    "path_h6": Way("entered by pose, six actions between images", horizon=6),
    "replace": Way("Real-Time Chunking, replaced only", join="clock", continuation="replace"),
    "guided": Way("Real-Time Chunking, guided", join="clock", continuation="guided"),
    "best": Way("by pose, best of eight noises", continuation="best_of_8"),
    "waited": Way("by pose, the first wait is not counted", runs=LongerLimit),
    "doubled": Way("by pose, twice the time", runs=DoubledLimit),
    "stop": Way("stop while thinking", runs=Stopped),
    "plain": Way("by the clock, first actions dropped too", join="clock", runs=DroppedAsPast),
    # 1.6 s are eight actions, which the others have between images anyway
    "free": Way("by pose, an image whenever the policy is free", None, delays_s=(0.2, 0.4, 0.8)),
    "averaged": Way("the same, chunks averaged by time", None, ensemble="by_time", delays_s=(0.2, 0.4, 0.8)),
    "averaged_h8": Way("by pose, chunks averaged by time", ensemble="by_time"),
    "original": Way("by pose, averaged as published", None, ensemble="original", delays_s=(0.2,)),
}


@dataclass(frozen=True)
class Cell:
    """What one file of episodes holds."""

    recipe: str
    suite: str
    execution: Execution
    runs: type[EpisodeRun] = EpisodeRun


def cell_name(recipe: str, short: str, way: str, delay_s: float) -> str:
    """Return the name of a cell: `fp32_vm_path0.8_h6`."""
    name, _, more = way.partition("_h")
    return f"{recipe}_{short}_{name}{delay_s:g}" + (f"_h{more}" if more else "")


def latency_cells() -> dict[str, Cell]:
    """Return the cells of the 7B geometry's latencies; their names hold the seconds.

    Up to the 16 actions of a chunk the arm goes on while the policy computes, with an image for each prediction; the
    slower ones leave it without a plan, so it stops, and does 8 or all actions of a chunk.
    """
    table = {}
    for processor, recipes in LATENCIES_S.items():
        file = Path(__file__).parent / "results" / f"full_geometry_{processor.split('-')[-1].lower()}_2_threads.json"
        medians = json.loads(file.read_text())["median_ms"]
        for recipe, timed in recipes:
            wait_s = medians[timed]["total"] / 1e3
            steps = math.ceil(wait_s / CONTROL_DT_S)
            suite = SUITES["vm"]
            if steps <= 16:
                execution = Execution(max(8, steps), "none", wait_s, "path")
                table[f"{recipe}_vm_7b_path{wait_s:.2f}"] = Cell(recipe, suite, execution)
            for horizon in (8, 16):
                name = f"{recipe}_vm_7b_stop{wait_s:.2f}_h{horizon}"
                table[name] = Cell(recipe, suite, Execution(horizon), stopped(wait_s))
    return table


def cells() -> dict[str, Cell]:
    """Return the cells by name; the synchronous cell of a recipe and suite comes first."""
    table = {}
    for recipe in RECIPES:
        for short, suite in SUITES.items():
            table[f"{recipe}_{short}_sync"] = Cell(recipe, suite, Execution(8))
            for delay_s in (CONTROL_DT_S, *DELAYS_S):
                for key in WAYS if recipe == RECIPES[0] else COMPRESSED_WAYS:
                    way, name = WAYS[key], cell_name(recipe, short, key, delay_s)
                    execution = way.execution(delay_s)
                    if execution is not None and way.runs is Stopped:
                        table[name] = Cell(recipe, suite, Execution(execution.horizon), stopped(delay_s))
                    elif execution is not None:
                        table[name] = Cell(recipe, suite, execution, way.runs)
    for recipe in sorted({recipe for recipes in LATENCIES_S.values() for recipe, _ in recipes} - set(RECIPES)):
        table[f"{recipe}_vm_sync"] = Cell(recipe, SUITES["vm"], Execution(8))
    return table | latency_cells()


def read(name: str, folder: Path = RESULTS) -> dict[tuple[str, int], dict[str, Any]]:
    """The stored episodes of a cell by family and seed."""
    path = folder / f"{name}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {(row["family"], row["seed"]): row for row in rows}


def run(name: str, seeds: int, lockstep: int, checkpoint: str = "tabletop", folder: Path = RESULTS) -> None:
    """Add the missing episodes of a cell."""
    cell, done = cells()[name], read(name, folder)
    groups = []
    for first in range(FIRST_SEED, FIRST_SEED + seeds, lockstep):
        wanted = range(first, min(first + lockstep, FIRST_SEED + seeds))
        groups += [(family, [s for s in wanted if (str(family), s) not in done]) for family in TaskFamily]
    groups = [(family, missing) for family, missing in groups if missing]
    if not groups:
        return
    policy = load_policy(checkpoint, cell.recipe, shipped=SHIPPED)
    envs = [TabletopEnv() for _ in range(lockstep)]
    with (folder / f"{name}.jsonl").open("a") as file:
        for family, missing in tqdm(groups, desc=name):
            for result in run_episodes(policy, envs, cell.suite, family, missing, cell.execution, cell.runs):
                file.write(json.dumps(result.to_dict()) + "\n")
            file.flush()


Rows = Mapping[tuple[str, int], Mapping[str, Any]]


def success_text(rows: Rows) -> str:
    """Return success in percent with its interval, and the mean jerk in m/s³."""
    rate = wilson(sum(bool(row["success"]) for row in rows.values()), len(rows))
    jerk = [float(row["jerk_m_s3"]) for row in rows.values() if row["jerk_m_s3"] is not None]
    return (
        f"{100 * rate.value:5.1f} [{100 * rate.low:4.1f}, {100 * rate.high:4.1f}]{sum(jerk) / max(1, len(jerk)):8.2f}"
    )


def difference_text(rows: Rows, against: Rows) -> str:
    """Return the difference of success in points on the episodes that both have, "" where there are none."""
    shared = sorted(rows.keys() & against.keys())
    if not shared:
        return ""
    d = PairedOutcomes.of(
        [bool(rows[key]["success"]) for key in shared], [bool(against[key]["success"]) for key in shared]
    ).difference()
    return f"{100 * d.value:+5.1f} [{100 * d.low:+5.1f}, {100 * d.high:+5.1f}] ({len(shared)})"


def table() -> None:
    """Success and jerk, and differences on the same episodes: from the synchronous cell, from path join, and from fp32.

    The last two are of the same suite and delay.
    """
    print(f"{'cell':36s}{'n':>5s}  success [95 %]       jerk  {'minus sync':29s}{'minus path':29s}minus fp32")
    for name, cell in cells().items():
        rows = read(name)
        if not rows:
            continue
        short = next(key for key, value in SUITES.items() if value == cell.suite)
        late = name.removeprefix(f"{cell.recipe}_{short}_").partition("_h")[0]
        late = late.lstrip("abcdefghijklmnopqrstuvwxyz")  # the seconds, unless it is of the 7B's latencies
        others = {
            "sync": f"{cell.recipe}_{short}_sync",
            "path": cell_name(cell.recipe, short, "path", float(late)) if late.replace(".", "").isdigit() else "",
            "fp32": RECIPES[0] + name.removeprefix(cell.recipe),
        }
        texts = ["" if other in ("", name) else difference_text(rows, read(other)) for other in others.values()]
        print(f"{name:36s}{len(rows):5d}  {success_text(rows)}  {texts[0]:29s}{texts[1]:29s}{texts[2]}".rstrip())


def points_of(recipe: str, short: str, way: str) -> list[tuple[float, float, float, float, int]]:
    """Return delay, success, interval and episodes of every cell of a way that was run; success in percent."""
    points = []
    for delay_s in (0.0, *DELAYS_S):
        if rows := read(f"{recipe}_{short}_sync" if delay_s == 0.0 else cell_name(recipe, short, way, delay_s)):
            rate = wilson(sum(bool(row["success"]) for row in rows.values()), len(rows))
            points.append((delay_s, 100 * rate.value, 100 * rate.low, 100 * rate.high, len(rows)))
    return points


def figure() -> None:
    """Draw success over the delay, one line for each way to deal with late chunks, with 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    styles = {
        ("fp32", "path"): ("#0072b2", "o", "-"),
        ("coverage_w4a8", "path"): ("#56b4e9", "P", "-"),
        ("fp32", "clock"): ("#d55e00", "s", "-"),
        ("fp32", "guided"): ("#009e73", "^", "--"),
        ("fp32", "stop"): ("#cc79a7", "v", "--"),
        ("fp32", "plain"): ("#7f7f7f", "D", ":"),
    }
    panels, axes = plt.subplots(1, len(SUITES), figsize=(9.6, 4.2), sharey=True, constrained_layout=True)
    for axis, (short, suite) in zip(axes, SUITES.items(), strict=True):
        for index, ((recipe, way), (colour, marker, line)) in enumerate(styles.items()):
            points = points_of(recipe, short, way)
            if len(points) < 2:
                continue
            x, y, low, high, episodes = (list(column) for column in zip(*points, strict=True))
            errors = [[b - a for a, b in zip(low, y, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
            moved = [value + 0.014 * (index - 2) for value in x]
            label = WAYS[way].label + ("" if recipe == RECIPES[0] else f", {recipe}")
            if min(episodes) != max(episodes):
                label += f" (from {min(episodes)} episodes)"
            axis.errorbar(moved, y, errors, label=label, color=colour, marker=marker, linestyle=line, capsize=3)
        axis.set_title(suite.replace("_", " "))
        axis.set_xticks((0.0, *DELAYS_S))
        axis.set_xlabel("a chunk takes effect so long after its image [s]")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("success [%]")
    axes[0].set_ylim(0, 100)
    axes[0].legend(loc="lower left", frameon=False, fontsize=8)
    panels.savefig(RESULTS / "late_chunks.png", dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40, help="of each of the six families (default 40: 240 episodes)")
    parser.add_argument("--only", nargs="*", default=[], metavar="CELL", help="cells to run (default: all)")
    parser.add_argument("--lockstep", type=int, default=10, help="episodes that share a prediction")
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    args = parser.parse_args()
    if unknown := sorted(set(args.only) - set(cells())):
        parser.error(f"no cell {', '.join(unknown)}; there are: {', '.join(cells())}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in () if args.table else args.only or cells():
        run(name, args.seeds, args.lockstep)
    if args.only:
        return 0
    table()
    figure()
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # the renderers' OpenGL contexts end with the process
