"""Thousands of seeded fault sequences against policy_node's engine, with every command judged.

The engine is the real one with a stand-in for ROS; around it a simulated arm, its sensors and a policy, all in
test/support/stepped. A sequence enables the node, lets it move, inflicts one to three faults at random times, stops it
in one of several ways, and then judges every command that was sent (command_checks.py): finite; within the limits of
joints and tool at the peak of the controller's cubic; started where the command was, or at rest where the arm stood;
no further ahead of a blocked arm than the tracking check allows; nothing after a stop but coming to rest. Every fault
that lasts is named by the node within a stated time, and every goal gets its result once. Raw result:
benchmarks/results/safety_campaign.json.

    python benchmarks/safety_campaign.py [--sequences 10000] [--first 0] [--jobs 2]
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "test" / "support")]

from stepped.command_checks import CommandChecks, Violation  # noqa: E402
from stepped.faults import FAULTS, MODES, TICK_S, Fault  # noqa: E402
from stepped.simulated_cell import Cell  # noqa: E402

from sqap_vla_ros.contracts import JOINS, NS_PER_S  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "safety_campaign.json"
PARAMETERS = {
    "image_timeout_s": 0.4,
    "joint_states_timeout_s": 0.3,
    "prediction_timeout_s": 1.0,
    "ramp_s": 0.3,
}
STOPS: tuple[tuple[str, Callable[[Cell], Any]], ...] = (
    ("stop", lambda cell: cell.trigger("stop")),
    ("disable", lambda cell: cell.enable(False)),
    ("safety_stop", lambda cell: cell.safety_stop(True)),
    ("instruction cleared", lambda cell: (cell.instruct(""), cell.run(0.3), cell.enable(False))),
    ("deactivate", lambda cell: cell.loop.deactivate("deactivated")),
)


def sequence(seed: int) -> dict[str, Any]:
    """Run one sequence. Return its faults, counts and violations."""
    rng = np.random.default_rng(seed)
    mode = MODES[seed % len(MODES)]
    possible = [fault for fault in FAULTS if mode in fault.modes]
    chosen = [possible[int(i)] for i in rng.integers(len(possible), size=int(rng.integers(1, 4)))]
    parameters = {**PARAMETERS, "replan": str(rng.choice(["continuous", "horizon"]))}
    parameters["ensemble_chunks"] = int(rng.choice([1, 1, 2]))
    parameters["max_open_loop_s"] = float(rng.choice([1.5, 3.0]))
    parameters["chunk_join"] = str(rng.choice(JOINS))
    cell = Cell(mode, seed, lag_s=float(rng.uniform(0.02, 0.12)), parameters=parameters)
    cell.switches = replace(cell.switches, latency_s=float(rng.uniform(0.05, rng.choice([0.25, 1.2]))))
    how, stop = STOPS[int(rng.integers(len(STOPS)))]
    with cell:
        try:
            found = live(cell, chosen, stop, rng)
        except Exception:  # whatever ends the engine is what this looks for
            found = [Violation("exception", traceback.format_exc()[-1500:], cell.steady_ns / NS_PER_S)]
        counters = cell.loop.executive.counters
    return {
        "seed": seed,
        "mode": mode,
        "faults": [fault.name for fault in chosen],
        "stop": how,
        "commands": len(cell.commands),
        "holds": counters.holds,
        "violations": [[v.what, v.text, round(v.at_s, 3)] for v in found],
    }


def live(cell: Cell, faults: Sequence[Fault], stop: Callable[[Cell], Any], rng: np.random.Generator) -> list[Violation]:
    """Enable, move, suffer the faults, stop. Return everything that went wrong."""
    found: list[Violation] = []
    cell.run(0.2)
    cell.instruct("pick")
    cell.enable()
    cell.run(float(rng.uniform(0.3, 0.6)) + 2 * cell.switches.latency_s)  # something is commanded by then
    for fault in faults:
        found += inflict(cell, fault, rng)
        cell.run(float(rng.uniform(0.0, 0.2)))
    stop(cell)
    cell.run(0.8)
    found += CommandChecks(cell, cell.loop.commander.motion.limits).judge()
    for goal in cell.node.action.goals:
        if len(goal.results) != 1 or len(goal.ends) != 1:
            found.append(Violation("result", f"{len(goal.results)} results, ends {goal.ends}", 0.0))
    return found


def inflict(cell: Cell, fault: Fault, rng: np.random.Generator) -> list[Violation]:
    """Let a fault happen and end. Return whether it was not named in time."""
    before, lines, begin_ns = cell.switches, len(cell.node.log.lines), cell.steady_ns
    executive = cell.loop.executive
    due = fault.begin(cell, rng) is not False and fault.named != ""
    found: list[Violation] = []
    shows_ns: int | None = None
    for _ in range(round(float(rng.uniform(*fault.lasts_s)) / TICK_S)):
        due = due and executive.mission is not None and executive.enabled and not names(cell, fault, lines)
        if fault.unseen and re.search(fault.unseen, cell.told()):
            shows_ns = None
        elif shows_ns is None and fault.shows(cell, begin_ns):
            shows_ns = cell.steady_ns
        named_s = fault.named_s + before.latency_s  # a slow policy's chunk tells later
        if due and shows_ns is not None and cell.steady_ns - shows_ns > named_s * NS_PER_S:
            found.append(Violation("not named", f"{fault.name}: {cell.told()[:200]!r}", cell.steady_ns / NS_PER_S))
            due = False
        cell.run(TICK_S)
    cell.switches = before
    return found


def names(cell: Cell, fault: Fault, lines: int) -> bool:
    """Return True if the node says what the fault is, in its status, its problems or its log."""
    said = [cell.told(), *(text for _, text in cell.node.log.lines[lines:])]
    return any(re.search(fault.named, text) for text in said)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sequences", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument(
        "--merge", type=Path, nargs="+", help="results of runs with other seeds, to add up; runs nothing"
    )
    args = parser.parse_args()
    if args.merge:
        merged = merge([json.loads(path.read_text()) for path in args.merge])
        args.out.write_text(json.dumps(merged, indent=1) + "\n")
        return 1 if merged["violations"] else 0
    begin_s = time.perf_counter()
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(args.jobs) as pool:
        for row in pool.map(sequence, range(args.first, args.first + args.sequences), chunksize=20):
            rows.append(row)
            if row["violations"]:
                print(row, flush=True)
            if len(rows) % 200 == 0 or len(rows) == args.sequences:
                result = summary(rows) | {"seconds": round(time.perf_counter() - begin_s)}
                args.out.write_text(json.dumps(result, indent=1) + "\n")
                print(f"{len(rows)} sequences, {result['seconds']} s", flush=True)
    print(json.dumps({name: value for name, value in result.items() if name != "violations"}, indent=1))
    return 1 if result["violations"] else 0


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over all sequences, and every sequence with a violation."""
    faults = collections.Counter(name for row in rows for name in row["faults"])
    return {
        "sequences": len(rows),
        "first_seed": rows[0]["seed"],
        "commands": sum(row["commands"] for row in rows),
        "holds": sum(row["holds"] for row in rows),
        "modes": dict(collections.Counter(row["mode"] for row in rows)),
        "stops": dict(collections.Counter(row["stop"] for row in rows)),
        "faults": dict(sorted(faults.items())),
        "sequences_with_violations": sum(bool(row["violations"]) for row in rows),
        "violations": [row for row in rows if row["violations"]],
    }


def merge(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Add up results of runs with other seeds."""
    merged: dict[str, Any] = {"runs": [[result["first_seed"], result["sequences"]] for result in results]}
    for name in ("sequences", "commands", "holds", "sequences_with_violations", "seconds"):
        merged[name] = sum(result[name] for result in results)
    for name in ("modes", "stops", "faults"):
        counts = sum((collections.Counter(result[name]) for result in results), collections.Counter())
        merged[name] = dict(sorted(counts.items()))
    merged["violations"] = [row for result in results for row in result["violations"]]
    return merged


if __name__ == "__main__":
    raise SystemExit(main())
