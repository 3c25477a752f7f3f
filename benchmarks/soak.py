"""An hour of policy_node's life: do memory, descriptors, threads and its own containers stay level?

Stepped: the engine with a simulated arm and its sensors (test/support/stepped), an hour of simulated time as fast as
it computes. Every minute has a mission by topic, one by action, a silence of the images or of TF, and a stop or a
worker that dies; every tenth the clock is set. Live: policy_node, its worker and simulator_node as processes over DDS,
in simulated time. Both are sampled each simulated minute: resident memory, file descriptors, threads, and in the
stepped part the number of entries in every container that the engine reaches and that has no limit of its own. A
straight line through the samples after the first tenth must not rise by more than the stated bound. Raw results and
picture: benchmarks/results/soak.

    python benchmarks/soak.py [--minutes 60] [--mode joint] [--live-minutes 10]
"""

from __future__ import annotations

import argparse
import collections
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "test" / "support")]

from stepped.simulated_cell import Cell  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "soak"
MINUTE_S = 60.0
SETTLING = 0.1  # of the samples: caches fill, histories reach their length
# What a straight line through the samples may rise by, over the whole run.
BOUNDS = {"rss_mib": 4.0, "descriptors": 0.5, "threads": 0.5, "entries": 5.0, "transforms": 150.0}
LABELS = {
    "rss_mib": "resident memory (MiB)",
    "descriptors": "open descriptors",
    "threads": "threads",
    "entries": "entries of containers",
    "transforms": "entries of the tf buffer and of the last motions",
}
LOAD_TIMEOUT_S, ANSWER_TIMEOUT_S = 300.0, 60.0
TRANSFORMS = ("_Link", "_MovingLink", "Motion._executed")  # those of the last seconds; their number goes up and down
OWN = "sqap_vla_ros."


@dataclass(frozen=True)
class Trend:
    """rise: of a straight line through the samples, over the whole run. first, last: samples. level: within bound."""

    first: float
    last: float
    rise: float
    bound: float

    @property
    def level(self) -> bool:
        return self.rise <= self.bound


def trend(values: Sequence[float], bound: float) -> Trend:
    """Fit a straight line to the samples after settling; raises ValueError for fewer than three of them."""
    settled = np.asarray(values[max(round(SETTLING * len(values)), 1) :], dtype=np.float64)
    if len(settled) < 3:
        raise ValueError(f"a trend needs three samples after settling, got {len(settled)} of {len(values)}")
    slope = float(np.polyfit(np.arange(len(settled)), settled, 1)[0])
    return Trend(float(settled[0]), float(settled[-1]), slope * (len(settled) - 1), bound)


def process_sample(pid: int) -> dict[str, float]:
    """Return resident memory (MiB), open descriptors and threads of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return {
        "rss_mib": resident_kib / 1024.0,
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
    }


def containers(root: object) -> dict[str, int]:
    """Return the number of entries in each container that `root` reaches through objects of this package, by name.

    A name is that of the class and the attribute; containers of one name, also within others, are added up. Histories
    with a length of their own (deques with `maxlen`) fill up to it and no further: they and their tuples are left out.
    """
    counted: collections.Counter[str] = collections.Counter()
    seen: set[int] = set()
    waiting: list[tuple[str, object]] = [(type(root).__name__, root)]
    while waiting:
        name, value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, (dict, list, tuple, set, frozenset, collections.deque)):
            bounded = isinstance(value, collections.deque) and value.maxlen is not None
            counted[name] += 0 if bounded else len(value)
            inside: Iterator[object] = iter(value.values() if isinstance(value, Mapping) else value)
            plain = (str, bytes, int, float, *((tuple,) if bounded else ()))
            waiting += [(name, entry) for entry in inside if not isinstance(entry, plain)]
        elif type(value).__module__.startswith(OWN):
            waiting += [(f"{type(value).__name__}.{key}", entry) for key, entry in _attributes(value)]
        elif callable(value) and (owner := getattr(value, "__self__", None)) is not None:
            waiting.append((type(owner).__name__, owner))
    return dict(counted)


def _attributes(value: object) -> list[tuple[str, object]]:
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    return [*getattr(value, "__dict__", {}).items(), *((n, getattr(value, n)) for n in slots if hasattr(value, n))]


def stepped(mode: str, minutes: float, every_s: float = MINUTE_S, seed: int = 0) -> list[dict[str, Any]]:
    """Run the engine; one sample each `every_s` of simulated time."""
    rng = np.random.default_rng(seed)
    samples: list[dict[str, Any]] = []
    with Cell(mode, seed) as cell:
        cell.run(0.2)
        for number in range(round(minutes * MINUTE_S / every_s)):
            _live_through(cell, rng, every_s, clock_set=number % 10 == 9)
            commands = _forget(cell)
            gc.collect()
            inside = containers(cell.loop)
            samples.append(
                {
                    **process_sample(os.getpid()),
                    "entries": sum(count for name, count in inside.items() if not name.startswith(TRANSFORMS)),
                    "transforms": sum(count for name, count in inside.items() if name.startswith(TRANSFORMS)),
                    "containers": {name: count for name, count in inside.items() if count},
                    "commands": commands,
                    "simulated_s": cell.steady_ns * 1e-9,
                }
            )
    return samples


def _live_through(cell: Cell, rng: np.random.Generator, seconds: float, *, clock_set: bool) -> None:
    """Let so much simulated time pass with everything that a mission brings."""
    begin_ns = cell.steady_ns
    cell.trigger("reset_fault")
    cell.instruct(str(rng.choice(["pick", "place", "push"])))
    cell.enable()
    cell.run(0.4 * seconds)
    fault = str(rng.choice(["image_silent", "tf_silent", "blocked"]))
    setattr(cell.switches, fault, True)
    cell.run(0.02 * seconds)
    setattr(cell.switches, fault, False)
    cell.run(0.1 * seconds)
    if rng.uniform() < 0.5:
        cell.trigger("stop")
        cell.run(0.02 * seconds)
        cell.trigger("reset_fault")
        cell.enable()
    elif not cell.worker.dead:
        cell.worker.die()
    if clock_set:
        cell.clock.set_ros(float(rng.choice([-1.0, 1.0])) * 2.0)
    cell.run(0.1 * seconds)
    cell.node.action.send("pick", 0.2 * seconds)
    cell.run(seconds - (cell.steady_ns - begin_ns) * 1e-9)


def _forget(cell: Cell) -> int:
    """Drop what the cell remembers of the run, so that only the engine's own memory is seen; return the commands."""
    commands = len(cell.commands)
    for kept in (cell.commands, cell.statuses, cell.setpoints, cell.way, cell.asked_ns, cell.stalls, cell.refusals):
        kept.clear()
    cell.node.log.lines.clear()
    cell.node.action.goals.clear()
    del cell.workers[:-1]
    return commands


def live(minutes: float, every_s: float, real_time_factor: float) -> dict[str, list[dict[str, Any]]]:
    """Run the nodes over DDS for so much simulated time; return the samples of each process, its children included.

    The policy is 'micro', whose motions lead nowhere in particular: an episode ends after a simulated minute.
    """
    import rclpy
    from rclpy.parameter import Parameter

    from sqap_vla_ros.nodes.launch.bringup import NodeProcesses
    from sqap_vla_ros.nodes.launch.table import BRINGUPS
    from sqap_vla_ros.nodes.recorder.run_control import RunControl
    from sqap_vla_ros.nodes.spinning import SpinThread
    from sqap_vla_ros.resources import share_path

    rclpy.init()
    node = rclpy.create_node("soak", parameter_overrides=[Parameter("use_sim_time", value=True)])
    control = RunControl(node)
    spinning = SpinThread(node)
    samples: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    given = {"checkpoint": "micro", "params_file": str(share_path("config/demo.yaml")), "use_sim_time": "true"}
    given |= {"seed": "0", "log_level": "error"}

    def now_s() -> float:
        return node.get_clock().now().nanoseconds * 1e-9

    with tempfile.TemporaryDirectory() as folder:
        given["simulator_params_file"] = str(Path(folder) / "simulator.yaml")
        parameters = {"real_time_factor": real_time_factor}
        Path(given["simulator_params_file"]).write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}))
        try:
            with NodeProcesses(BRINGUPS["simulation"], given) as nodes:

                def check() -> None:
                    if ended := nodes.ended():
                        raise RuntimeError(f"ended by itself: {ended}; its messages are above")

                control.enable(True, LOAD_TIMEOUT_S, check=check)
                begin_s, begin_wall_s = now_s(), time.monotonic()
                for number in range(1, round(minutes * MINUTE_S / every_s) + 1):
                    while now_s() - begin_s < number * every_s:
                        check()
                        time.sleep(0.05)
                    for name, process in nodes.processes.items():
                        for index, pid in enumerate(_family(process.pid)):
                            passed = {"simulated_s": now_s() - begin_s, "wall_s": time.monotonic() - begin_wall_s}
                            called = name if index == 0 else f"worker of {name}"
                            samples[called].append({**process_sample(pid), **passed})
                    control.enable(False, ANSWER_TIMEOUT_S, check=check)
                    control.reset(ANSWER_TIMEOUT_S, check=check)
                    control.enable(True, ANSWER_TIMEOUT_S, check=check)
        finally:
            spinning.close()
            rclpy.shutdown()
    return dict(samples)


def _family(pid: int) -> list[int]:
    """Return a process and its children."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def judge(samples: Sequence[Mapping[str, Any]]) -> dict[str, Trend]:
    """Return the trend of each number that the samples have."""
    return {name: trend([s[name] for s in samples], bound) for name, bound in BOUNDS.items() if name in samples[0]}


def draw(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw every number of every run against simulated time, with the line through it."""
    from matplotlib.figure import Figure

    names = list(BOUNDS)
    figure = Figure(figsize=(13.0, 2.6 * len(runs)), layout="constrained")
    axes = figure.subplots(len(runs), len(names), squeeze=False)
    for row, (run, samples) in zip(axes, runs.items(), strict=True):
        trends = judge(samples)
        for axis, name in zip(row, names, strict=True):
            if name not in trends:
                axis.axis("off")
                continue
            minutes = np.array([s["simulated_s"] for s in samples]) / MINUTE_S
            values = np.array([s[name] for s in samples], dtype=np.float64)
            axis.plot(minutes, values, ".", markersize=4, color="tab:blue")
            skipped = max(round(SETTLING * len(values)), 1)
            line = np.polyval(np.polyfit(minutes[skipped:], values[skipped:], 1), minutes[skipped:])
            axis.plot(minutes[skipped:], line, color="tab:orange")
            middle, room = float(values.mean()), max(2.0 * BOUNDS[name], 1.1 * float(np.ptp(values)))
            axis.set_ylim(middle - 0.6 * room, middle + 0.6 * room)
            axis.set_title(f"{run}: {LABELS[name]}\n{trends[name].rise:+.2f} (bound {BOUNDS[name]:g})", fontsize=8)
            axis.set_xlabel("simulated minutes", fontsize=8)
            axis.tick_params(labelsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="of simulated time, stepped")
    parser.add_argument("--mode", default="joint", choices=("joint", "pose", "twist"))
    parser.add_argument("--live-minutes", type=float, default=0.0, help="of simulated time, over DDS")
    parser.add_argument("--live-every-s", type=float, default=20.0, help="simulated seconds between samples over DDS")
    parser.add_argument("--real-time-factor", type=float, default=2.0, help="asked of the simulator over DDS")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    raw = args.out / "soak.json"
    results = json.loads(raw.read_text()) if raw.exists() else {}
    begin_s = time.monotonic()
    if args.minutes:
        results[f"engine, {args.mode}"] = stepped(args.mode, args.minutes)
    if args.live_minutes:
        os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        results |= live(args.live_minutes, args.live_every_s, args.real_time_factor)
    raw.write_text(json.dumps(results) + "\n")
    draw(results, args.out / "soak.png")
    level = True
    for run, samples in results.items():
        print(f"{run}: {len(samples)} samples in {samples[-1]['simulated_s'] / MINUTE_S:.1f} simulated minutes")
        for name, found in judge(samples).items():
            level = level and found.level
            word = "level" if found.level else "RISES"
            print(
                f"  {LABELS[name]:28s} {found.first:9.2f} -> {found.last:9.2f}, line {found.rise:+8.3f}, bound "
                f"{found.bound:g}: {word}"
            )
    print(f"{time.monotonic() - begin_s:.0f} s; raw results and picture: {args.out}")
    return 0 if level else 1


if __name__ == "__main__":
    sys.exit(main())
