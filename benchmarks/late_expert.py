#!/usr/bin/env python3
"""Say how many tasks a scripted expert does through late chunks: what lateness costs a policy without any error.

    python benchmarks/late_expert.py           half a minute; writes results/late_expert.json

The expert reads the state of the world, so nothing is rendered. Ten seeds of each family in visual matching, which
`test_delay_alone_costs_the_expert_nothing` takes the first two of; eight actions between images.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import ActionChunk, Observation, PolicyInfo
from sqap_vla_ros.evaluation.closed_loop.episodes import Execution, run_episodes
from sqap_vla_ros.evaluation.closed_loop.statistics import wilson
from sqap_vla_ros.simulation.environment import CONTROL_DT_S, TabletopEnv
from sqap_vla_ros.simulation.experts import plan_actions
from sqap_vla_ros.simulation.vocabulary import TaskFamily

OUT = Path(__file__).parent / "results" / "late_expert.json"
SUITE, FIRST_SEED = "visual_matching", 1000
CELLS = {"synchronous": Execution(8)} | {
    f"{join}, {delay_s:g} s": Execution(8, latency_s=delay_s, join=join)
    for join in ("path", "clock")
    for delay_s in (0.4, 0.8, 1.6)
}


class BlindEnv(TabletopEnv):
    """Shows black pictures, which cost no time."""

    def render(self) -> NDArray[np.uint8]:
        """Return a black picture."""
        return np.zeros((480, 640, 3), np.uint8)


class Expert:
    """Answers with the rest of the task, planned from the world's state."""

    info = PolicyInfo("expert", "", "none", 0, 16, CONTROL_DT_S, 224, (16, 16), "none", "none")

    def __init__(self, env: TabletopEnv) -> None:
        self._env = env

    def reset(self) -> None:
        """Nothing is remembered."""

    def predict(self, observation: Observation, *, seed: int = 0) -> ActionChunk:
        """Return the expert's actions from here."""
        deltas = plan_actions(self._env.task, self._env.state)
        return ActionChunk(observation.stamp_ns, deltas, CONTROL_DT_S, deltas)


def measured(execution: Execution, seeds: int) -> dict[str, Any]:
    """Return how many episodes succeed, and which do not."""
    env = BlindEnv()
    expert = Expert(env)
    results = [
        run_episodes(expert, [env], SUITE, family, [seed], execution)[0]
        for family in TaskFamily
        for seed in range(FIRST_SEED, FIRST_SEED + seeds)
    ]
    failed = [{"family": str(r.family), "seed": r.seed, "reason": r.reason} for r in results if not r.success]
    return {"episodes": len(results), "successes": len(results) - len(failed), "failed": failed}


def main() -> int:
    """Run every cell, print and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="of each of the six families")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    report = {name: measured(execution, args.seeds) for name, execution in CELLS.items()}
    for name, cell in report.items():
        rate = wilson(cell["successes"], cell["episodes"])
        interval = f"[{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
        failed = ", ".join(f"{one['family']} {one['seed']} ({one['reason']})" for one in cell["failed"])
        print(f"{name:14s} {cell['successes']} of {cell['episodes']} {interval} {failed}".rstrip())
    args.out.write_text(json.dumps({"suite": SUITE, "first_seed": FIRST_SEED, "cells": report}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # the renderers' OpenGL contexts end with the process
