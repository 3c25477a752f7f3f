"""Does the shipped policy do as well through ROS as in-process? The same episodes in both loops, paired by layout.

In-process is the loop of the benchmark (evaluation/closed_loop/episodes.py): the world stands still while the policy
thinks, eight actions of each chunk are executed. Over ROS the chunks of policy_node (config/demo.yaml) reach
simulator_node as joint trajectories over DDS, and the world goes on meanwhile. Time is simulated (/clock):
`--real-time-factor` below 1 makes the result independent of how busy the computer is, but for the policy's own
latency, which is counted and reported in simulated time. Both have the time limit of the task. Layouts are those of
seeds 0, 1, ..., which draw the family too. Raw results: benchmarks/results/ros_agreement.json, written after every
episode. With `--delay-s` the policy over ROS answers as late as that, in simulated time (delayed_policy.py).

    python benchmarks/ros_agreement.py [--episodes 60] [--recipe sqap] [--real-time-factor 0.2]
    python benchmarks/ros_agreement.py --delay-s 0.8 --chunk-join path --out ros_late_path.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from sqap_vla_ros.evaluation.closed_loop.episodes import Execution, lockstep_width, run_episodes
from sqap_vla_ros.evaluation.closed_loop.statistics import PairedOutcomes, wilson
from sqap_vla_ros.nodes.launch.bringup import NodeProcesses
from sqap_vla_ros.nodes.launch.table import BRINGUPS, Bringup, dds_environment
from sqap_vla_ros.nodes.policy.parameters import defaults
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.simulation.environment import CONTROL_DT_S, TabletopEnv
from sqap_vla_ros.simulation.layout import VARIATIONS, sample_layout
from sqap_vla_ros.simulation.tasks import Task
from sqap_vla_ros.simulation.vocabulary import TaskFamily

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "ros_agreement.json"
LOAD_TIMEOUT_S, ANSWER_TIMEOUT_S = 900.0, 60.0
STALLED_S = 120.0  # by the steady clock: simulated time does not go on
LOCKSTEP = 5
# Limits of policy_node on the steady clock; in slowed time they are as much longer.
STEADY = ("tf_timeout_s", "image_timeout_s", "joint_states_timeout_s", "task_deadline_s", "input_lost_s")


def task_of(suite: str, seed: int) -> Task:
    return sample_layout(seed, None, VARIATIONS[suite]).task


def in_process(checkpoint: str, recipe: str, suite: str, episodes: int) -> list[dict[str, Any]]:
    """One row for each seed."""
    from sqap_vla_ros.compression.load import load_policy
    from sqap_vla_ros.shipped import SHIPPED

    policy = load_policy(checkpoint, recipe, shipped=SHIPPED)
    by_family: dict[TaskFamily, list[int]] = {}
    for seed in range(episodes):
        by_family.setdefault(task_of(suite, seed).family, []).append(seed)
    width = lockstep_width(policy, LOCKSTEP)
    envs = [TabletopEnv(variation=VARIATIONS[suite]) for _ in range(width)]
    rows = []
    for family, seeds in by_family.items():
        for first in range(0, len(seeds), width):
            results = run_episodes(policy, envs, suite, family, seeds[first : first + width], Execution())
            rows += [
                {"seed": r.seed, "family": r.family, "success": r.success, "seconds": r.steps * CONTROL_DT_S}
                for r in results
            ]
    for env in envs:
        env.close()
    return sorted(rows, key=lambda row: row["seed"])


def late_bringup(
    delay_s: float, real_time_factor: float, checkpoint: str, recipe: str
) -> tuple[Bringup, dict[str, str]]:
    """The simulation with a policy that answers late, and the environment that it needs."""
    bringup = BRINGUPS["simulation"]
    if delay_s == 0.0:
        return bringup, {}
    nodes = tuple(replace(n, module="delayed_policy") if n.executable == "policy_node" else n for n in bringup.nodes)
    path = os.pathsep.join([str(Path(__file__).parent), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {"PYTHONPATH": path, "DELAYED_CHECKPOINT": checkpoint, "DELAYED_RECIPE": recipe}
    return replace(bringup, nodes=nodes), environment | {"DELAYED_WALL_S": str(delay_s / real_time_factor)}


def over_ros(
    given: dict[str, str], suite: str, episodes: int, real_time_factor: float, delay_s: float, changed: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """One row for each seed, as they come. changed: parameters of policy_node other than in the file."""
    import rclpy
    from rclpy.parameter import Parameter
    from rclpy.qos import QoSProfile
    from sqap_vla_ros.msg import PolicyStatus

    from sqap_vla_ros.nodes.recorder.run_control import RunControl
    from sqap_vla_ros.nodes.spinning import SpinThread

    rclpy.init()
    node = rclpy.create_node("ros_agreement", parameter_overrides=[Parameter("use_sim_time", value=True)])
    statuses: list[PolicyStatus] = []
    node.create_subscription(PolicyStatus, "policy_node/status", statuses.append, QoSProfile(depth=100))
    control = RunControl(node)
    spinning = SpinThread(node)
    given = {**given, "seed": "0", "variation": suite, "use_sim_time": "true"}
    with tempfile.TemporaryDirectory() as folder:
        values = yaml.safe_load(Path(given["params_file"]).read_text())["/**"]["ros__parameters"]
        values |= changed
        values |= {name: max(1.0, 1.0 / real_time_factor) * values.get(name, defaults()[name]) for name in STEADY}
        files = {"params_file": values, "simulator_params_file": {"real_time_factor": float(real_time_factor)}}
        for argument, parameters in files.items():
            given[argument] = str(Path(folder) / f"{argument}.yaml")
            Path(given[argument]).write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}))
        bringup, environment = late_bringup(delay_s, real_time_factor, given["checkpoint"], given["recipe"])
        try:
            with NodeProcesses(bringup, given, environment=environment) as nodes:

                def check() -> None:
                    if ended := nodes.ended():
                        raise RuntimeError(f"ended by itself: {ended}; its messages are above")

                for seed in range(episodes):
                    if seed:
                        control.reset(ANSWER_TIMEOUT_S, check=check)
                    control.enable(True, LOAD_TIMEOUT_S, check=check)
                    row = watch(node, control, statuses, task_of(suite, seed), check)
                    control.enable(False, ANSWER_TIMEOUT_S, check=check)
                    yield {"seed": seed, **row}
        finally:
            spinning.close()
            rclpy.shutdown()


def watch(node: Any, control: Any, statuses: list[Any], task: Task, check: Callable[[], None]) -> dict[str, Any]:
    """Until the task is done or its time is over, in simulated time."""
    if control.instruction != task.instruction:
        raise RuntimeError(f"the simulator's task is {control.instruction!r}, expected {task.instruction!r}")
    before = statuses[-1] if statuses else None
    statuses.clear()
    start_ns = now_ns = node.get_clock().now().nanoseconds
    limit_ns = start_ns + round(task.max_steps * CONTROL_DT_S * 1e9)
    begin_s = changed_s = time.monotonic()
    while control.done_ns is None and now_ns < limit_ns:
        check()
        time.sleep(0.01)
        earlier_ns, now_ns = now_ns, node.get_clock().now().nanoseconds
        changed_s = time.monotonic() if now_ns != earlier_ns else changed_s
        if time.monotonic() - changed_s > STALLED_S:
            raise RuntimeError(f"simulated time stands at {now_ns * 1e-9:.1f} s")
    done = control.done_ns is not None and control.done_ns <= limit_ns
    seen = list(statuses)
    last = seen[-1] if seen else before
    ages_s = {(s.observation_stamp.sec, s.observation_stamp.nanosec): s.observation_age_s for s in seen if s.stage_ms}
    rejected = last.chunks_rejected - (before.chunks_rejected if before is not None else 0) if last is not None else 0
    return {
        "family": str(task.family),
        "success": done,
        "seconds": ((control.done_ns if done else limit_ns) - start_ns) * 1e-9,
        "wall_s": time.monotonic() - begin_s,
        "image_to_chunk_s": statistics.median(ages_s.values()) if ages_s else None,
        "chunks": len(ages_s),
        "chunks_rejected": int(rejected),
        "reasons": dict(Counter(s.reason for s in seen if s.reason).most_common(3)),
    }


def report(results: dict[str, Any]) -> None:
    """Success of both, family by family and together, and the paired difference."""
    loops = {name: {row["seed"]: row for row in results[name]} for name in ("in_process", "ros")}
    seeds = sorted(set(loops["in_process"]) & set(loops["ros"]))
    for family in [*TaskFamily, None]:
        chosen = [seed for seed in seeds if family is None or loops["ros"][seed]["family"] == family]
        if not chosen:
            continue
        cells = []
        for rows in loops.values():
            done = sum(rows[seed]["success"] for seed in chosen)
            rate = wilson(done, len(chosen))
            cells.append(f"{done:3d}/{len(chosen):<3d} {rate.value:6.1%} [{rate.low:5.1%}, {rate.high:6.1%}]")
        print(f"{family or 'all':16s} in-process {cells[0]}   over ROS {cells[1]}")
    pairs = PairedOutcomes.of(*([rows[seed]["success"] for seed in seeds] for rows in reversed(loops.values())))
    difference = pairs.difference()
    print(
        f"over ROS minus in-process: {difference.value:+.1%} [{difference.low:+.1%}, {difference.high:+.1%}]; "
        f"only over ROS {pairs.ours_only}, only in-process {pairs.reference_only}, both {pairs.both}, "
        f"neither {pairs.neither}; McNemar p = {pairs.mcnemar():.3f}"
    )
    results["difference"] = {"value": difference.value, "low": difference.low, "high": difference.high}
    ages = [row["image_to_chunk_s"] for row in results["ros"] if row["image_to_chunk_s"] is not None]
    if ages:
        print(f"image to chunk over ROS: median {1e3 * statistics.median(ages):.0f} ms of simulated time")
    print(f"chunks rejected over ROS: {sum(row['chunks_rejected'] for row in results['ros'])}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--checkpoint", default="tabletop")
    parser.add_argument("--recipe", default="sqap")
    parser.add_argument("--suite", default="visual_matching", choices=sorted(VARIATIONS))
    parser.add_argument("--real-time-factor", type=float, default=0.2)
    parser.add_argument("--params-file", default=str(share_path("config/demo.yaml")), help="of policy_node")
    parser.add_argument("--delay-s", type=float, default=0.0, help="from an image to its chunk, in simulated time")
    parser.add_argument("--chunk-join", default="", help="of policy_node; what the parameter file says by default")
    parser.add_argument("--reuse", action="store_true", help="take the in-process episodes that were stored before")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.update(dds_environment(os.environ))
    shown = {**vars(args), "params_file": os.path.relpath(args.params_file, ROOT)}
    results: dict[str, Any] = {
        "command": {name: str(value) for name, value in shown.items() if name not in ("out", "reuse")},
        "execution": vars(Execution()),
    }
    begin_s = time.monotonic()
    stored = next((path for path in (args.out, RESULT) if path.exists()), None)
    before = json.loads(stored.read_text()) if stored is not None else {}
    if args.reuse and len(before.get("in_process", [])) >= args.episodes:
        results["in_process"] = before["in_process"][: args.episodes]
    else:
        results["in_process"] = in_process(args.checkpoint, args.recipe, args.suite, args.episodes)
        print(f"in-process: {args.episodes} episodes in {time.monotonic() - begin_s:.0f} s", flush=True)
    given = {"checkpoint": args.checkpoint, "recipe": args.recipe, "params_file": args.params_file, "log_level": "warn"}
    results["ros"] = []
    changed = {"chunk_join": args.chunk_join} if args.chunk_join else {}
    for row in over_ros(given, args.suite, args.episodes, args.real_time_factor, args.delay_s, changed):
        results["ros"].append(row)
        outcome = f"done in {row['seconds']:.1f} s" if row["success"] else "not done"
        print(f"{row['seed']:3d} {row['family']:16s} {outcome}, {row['wall_s']:.0f} s by the clock", flush=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    report(results)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"raw results: {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
