"""Measure what the simulator costs: pictures, physics, kinematics, and the delay of physics while rendering.

Prints the table and stores it. Rounds are interleaved; the best is what the code costs, the median what this machine
gave it.

    OMP_NUM_THREADS=1 python benchmarks/simulator.py
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from processor import processor

from sqap_vla_ros.simulation.camera import SceneRenderer
from sqap_vla_ros.simulation.environment import TabletopEnv
from sqap_vla_ros.simulation.experts import expert, plan_actions
from sqap_vla_ros.simulation.layout import sample_layout
from sqap_vla_ros.simulation.scene import build_model

RESULTS = Path(__file__).parent / "results" / "simulator.json"
TICK_S = 0.008  # as in simulator_node


def interleaved(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Best, median and 95th percentile of each case, milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for step in range(rounds + 2):
        for name, run in cases.items():
            started = time.perf_counter()
            run()
            if step >= 2:
                times[name].append((time.perf_counter() - started) * 1e3)
    return {
        name: {
            "best_ms": round(min(values), 3),
            "median_ms": round(float(np.median(values)), 3),
            "p95_ms": round(float(np.percentile(values, 95)), 3),
        }
        for name, values in times.items()
    }


def render_cases(env: TabletopEnv) -> tuple[dict[str, Callable[[], object]], list[SceneRenderer], str]:
    """One renderer for each size, with and without shadows and antialiasing."""
    model, renderers, cases = env.world.model, [], {}
    for width, height in ((224, 224), (320, 240), (640, 480)):
        for shadows, smooth in ((False, False), (False, True), (True, True)):
            renderer = SceneRenderer(model, width, height, shadows=shadows, antialiasing=smooth)
            renderers.append(renderer)
            looks = " plain" if not smooth else " antialiasing, shadows" if shadows else " antialiasing"
            cases[f"render {width}x{height}{looks}"] = lambda renderer=renderer: renderer.render(env.world.data)
    return cases, renderers, renderers[0].backend


def lateness(env: TabletopEnv, seconds: float, rate_hz: float, *, shadows: bool) -> dict[str, float]:
    """Measure how late a loop at the node's tick wakes while another thread renders at `rate_hz` (0: not at all)."""
    stopped = threading.Event()

    def camera() -> None:
        with SceneRenderer(env.world.model, 640, 480, shadows=shadows) as renderer:
            while not stopped.wait(1 / rate_hz):
                renderer.render(env.world.data)

    thread = threading.Thread(target=camera)
    if rate_hz:
        thread.start()
        time.sleep(1.0)  # the context is made once, before anything moves
    late = []
    due = time.monotonic()
    while len(late) < seconds / TICK_S:
        due += TICK_S
        time.sleep(max(0.0, due - time.monotonic()))
        env.world.step(2)
        late.append((time.monotonic() - due) * 1e3)
    stopped.set()
    if rate_hz:
        thread.join()
    values = {f"p{p}_ms": round(float(np.percentile(late, p)), 2) for p in (50, 95, 99)}
    return {**values, "max_ms": round(max(late), 2)}


def main() -> None:
    """Measures, prints and stores the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement of lateness")
    args = parser.parse_args()
    env = TabletopEnv()
    task = env.reset(0, "place_in_drawer")
    layout = sample_layout(1, "pick")
    cases, renderers, backend = render_cases(env)
    cases |= {
        "build the model": build_model,
        "reset an episode": lambda: env.world.reset(layout),
        "physics, 1 s of 250 steps": lambda: env.world.step(250),
        "environment step, 0.2 s with the expert": lambda: env.step(expert(task, env.state)),
        "plan, a label of 16 actions": lambda: plan_actions(task, env.state, 16),
        "inverse kinematics, 3 cm away": lambda: env.world.inverse(_moved(env), env.world.arm_position),
    }
    rows = interleaved(cases, args.rounds)
    for renderer in renderers:
        renderer.close()
    late = {
        "no camera": lateness(env, args.seconds, 0.0, shadows=False),
        "camera 10 Hz": lateness(env, args.seconds, 10.0, shadows=False),
        "camera 10 Hz, shadows": lateness(env, args.seconds, 10.0, shadows=True),
    }
    for name, row in rows.items():
        print(f"{name:<42} best {row['best_ms']:8.3f}  median {row['median_ms']:8.3f}  p95 {row['p95_ms']:8.3f} ms")
    for name, row in late.items():
        print(
            f"physics tick late, {name:<23} "
            + "  ".join(f"{key[:-3]} {value:.2f}" for key, value in row.items())
            + " ms"
        )
    machine = {
        "processor": processor(),
        "opengl": backend,
        "load_average": os.getloadavg()[0],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine, "times": rows, "tick_lateness": late}, indent=2) + "\n")


def _moved(env: TabletopEnv) -> np.ndarray:
    pose = env.world.base_from_tool
    pose[:3, 3] += (0.02, 0.02, -0.01)
    return pose


if __name__ == "__main__":
    main()
