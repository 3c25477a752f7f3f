"""Measure what the way from a chunk to commands costs on the CPU: median, 95th percentile, minimum of 200 chunks of 16.

The minimum says what the code costs; the others also what else the computer does. Raw result:
benchmarks/results/robot_timings.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.ensemble import AdaptiveEnsemble
from sqap_vla_ros.robot.kinematics import ArmKinematics
from sqap_vla_ros.robot.safety import SafetyLimits
from sqap_vla_ros.robot.trajectory import anchor_chunk, blend

DT_S = 0.2
T = TypeVar("T")
READY = np.array([0.0, -0.5, 0.0, -2.2, 0.0, 1.7, 0.8])


def main() -> None:
    """Print and store the result."""
    arm = ArmKinematics.from_urdf(share_path("config/robots/tabletop_arm.urdf").read_text(), "base_link", "tool0")
    anchor = arm.forward(READY)
    rng = np.random.default_rng(0)
    limits, ensemble = SafetyLimits(), AdaptiveEnsemble(horizon=7)
    taken_ms: dict[str, list[float]] = {}

    def timed(name: str, function: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = function()
        taken_ms.setdefault(name, []).append((time.perf_counter() - start) * 1e3)
        return result

    old = anchor_chunk(np.zeros((16, 7)), anchor, 0, DT_S)
    for round_ in range(200):
        drift = rng.uniform(-1, 1, 6) * ([0.008] * 3 + [0.02] * 3)
        deltas = np.column_stack([drift + rng.uniform(-0.003, 0.003, (16, 6)), np.ones(16)])
        stamp_ns = round_ * NS_PER_S // 5
        now_ns = stamp_ns + NS_PER_S // 10
        averaged = timed("ensemble of 7", lambda d=deltas, s=stamp_ns: ensemble.update(d, s, DT_S))
        fresh = timed("anchor", lambda d=averaged, s=stamp_ns: anchor_chunk(d, anchor, s, DT_S))
        joined = timed("blend", lambda f=fresh, n=now_ns: blend(old, f, n, 0.2))
        assert joined is not None
        timed("safety check", lambda j=joined: limits.check(j, anchor))
        joints = timed("inverse kinematics", lambda f=fresh: arm.joint_trajectory(f, READY))
        timed("check of joints and of the tool between points", lambda j=joints: limits.check_joints(j, arm))
    whole = np.sum(list(taken_ms.values()), axis=0)
    result = {
        name: {
            "median_ms": round(float(np.median(values)), 2),
            "p95_ms": round(float(np.percentile(values, 95)), 2),
            "min_ms": round(float(np.min(values)), 2),
        }
        for name, values in [*taken_ms.items(), ("all of it", whole)]
    }
    print(json.dumps(result, indent=2))
    results = Path(__file__).resolve().parent / "results"
    results.mkdir(exist_ok=True)
    (results / "robot_timings.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
