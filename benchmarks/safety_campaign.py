"""Thousands of seeded fault sequences against policy_node's engine, with every command judged.

The engine is the real one with a stand-in for ROS; around it a simulated arm, its sensors and a policy, all in
test/support/stepped. A sequence enables the node, lets it move, inflicts one to three faults at random times, stops it
in one of several ways, and then judges every command that was sent (command_checks.py): finite; within the limits of
joints and tool at the peak of the controller's cubic; started where the command was, or at rest where the arm stood;
nothing after a stop but coming to rest. Every fault that lasts is named by the node within a stated time, and every
goal gets its result once. Raw result: benchmarks/results/safety_campaign.json.

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "test" / "support")]

from std_msgs.msg import String  # noqa: E402
from stepped.command_checks import CommandChecks, Violation  # noqa: E402
from stepped.simulated_cell import TICK_NS, Cell  # noqa: E402

from sqap_vla_ros.contracts import NS_PER_S, ActionChunk  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "safety_campaign.json"
PARAMETERS = {
    "image_timeout_s": 0.4,
    "joint_states_timeout_s": 0.3,
    "prediction_timeout_s": 1.0,
    "max_open_loop_s": 1.5,
    "ramp_s": 0.3,
}
MODES = ("joint", "pose", "twist")
TICK_S = TICK_NS / NS_PER_S
Begin = Callable[[Cell, np.random.Generator], bool | None]  # False: it cannot happen now
Shows = Callable[[Cell, int], bool]


@dataclass(frozen=True)
class Fault:
    """A fault and its name in what the node says.

    begin: turns switches; what it turned is turned back at the end. lasts_s: drawn between the two.
    named: pattern of this fault alone that status, problems or log have within named_s of when it shows, if it lasts
    as long and the node works on a mission all the while; "" where a fault of this kind need not be named.
    modes: the output modes that it can happen in. shows: whether it can be noticed yet, by the steady time of its
    begin; at once by default.
    """

    name: str
    begin: Begin
    lasts_s: tuple[float, float]
    named: str = ""
    named_s: float = 0.0
    modes: Sequence[str] = MODES
    shows: Shows = lambda cell, begin_ns: True


def asked(cell: Cell, begin_ns: int) -> bool:
    """Return whether the policy was handed an observation since."""
    return bool(cell.asked_ns) and cell.asked_ns[-1] > begin_ns


def moved_on(cell: Cell, begin_ns: int) -> bool:
    """Return whether images were used for a second in which the tool moved by more than frozen_motion_m."""
    used_ns = [at_ns for at_ns in cell.asked_ns if at_ns > begin_ns]
    if not used_ns or used_ns[-1] - used_ns[0] < NS_PER_S:
        return False
    since = [position for at_ns, position in cell.way if used_ns[0] <= at_ns <= used_ns[-1]]
    return float(np.linalg.norm(np.subtract(since, since[0]), axis=1).max()) > 0.025


def left_behind(cell: Cell, begin_ns: int) -> bool:
    """Return whether a motion under way has left the arm behind by more than max_tracking_m."""
    return cell.loop.executive.moving and cell.left_behind_m() > 0.12


def watched(cell: Cell, begin_ns: int) -> bool:
    """Return whether the watchdog has to act when the executor stands still."""
    return cell.watchdog.armed


def switch(**values: Any) -> Begin:
    """A fault that sets switches of the cell."""

    def begin(cell: Cell, rng: np.random.Generator) -> None:
        cell.switches = replace(cell.switches, **values)

    return begin


def once(edit: Callable[[Any, np.random.Generator], Any], name: str) -> Begin:
    """A fault that changes one sample and then nothing any more."""

    def begin(cell: Cell, rng: np.random.Generator) -> None:
        left = [1]

        def edited(*values: Any) -> Any:
            if left[0] > 0:
                left[0] -= 1
                return edit(values if len(values) > 1 else values[0], rng)
            return values if len(values) > 1 else values[0]

        cell.switches = replace(cell.switches, **{name: edited})

    return begin


def always(edit: Callable[[Any, np.random.Generator], Any], name: str) -> Begin:
    """A fault that changes every sample."""

    def begin(cell: Cell, rng: np.random.Generator) -> None:
        cell.switches = replace(
            cell.switches, **{name: lambda *values: edit(values if len(values) > 1 else values[0], rng)}
        )

    return begin


def moved_tool(pose: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A pose far from the true one."""
    pose[:3, 3] += rng.normal(size=3) * 0.3
    return pose


def nan_tool(pose: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A pose with a number that is none."""
    pose[int(rng.integers(3)), 3] = np.nan
    return pose


def zero_joints(state: Any, rng: np.random.Generator) -> Any:
    """All joints at zero, as a joint_state_publisher without a driver publishes them."""
    return state[0], [0.0] * len(state[0])


def nan_joint(state: Any, rng: np.random.Generator) -> Any:
    """One joint that is no number."""
    values = list(state[1])
    values[int(rng.integers(len(values)))] = float(rng.choice([np.nan, np.inf]))
    return state[0], values


def moved_joint(state: Any, rng: np.random.Generator) -> Any:
    """One joint far from the true one."""
    values = list(state[1])
    values[int(rng.integers(len(values)))] += float(rng.choice([-1.0, 1.0]))
    return state[0], values


def double_name(state: Any, rng: np.random.Generator) -> Any:
    """A joint named twice, with two values."""
    return [*state[0], state[0][2]], [*state[1], 0.0]


def short_joints(state: Any, rng: np.random.Generator) -> Any:
    """More names than positions."""
    return state[0], state[1][:-1]


def chunk_with(change: Callable[[np.ndarray, np.random.Generator], Any]) -> Callable[[Any, np.random.Generator], Any]:
    """A chunk whose deltas are changed in place, or the answer that `change` returns instead."""

    def edit(chunk: ActionChunk, rng: np.random.Generator) -> Any:
        deltas = chunk.deltas.copy()
        answer = change(deltas, rng)
        return replace(chunk, deltas=deltas) if answer is None else answer

    return edit


def nan_chunk(deltas: np.ndarray, rng: np.random.Generator) -> None:
    """One number that is none."""
    deltas[int(rng.integers(len(deltas))), int(rng.integers(7))] = float(rng.choice([np.nan, np.inf, -np.inf]))


def wild_chunk(deltas: np.ndarray, rng: np.random.Generator) -> None:
    """Motions that are too fast by a little or a lot, or that lead out of the workspace."""
    deltas[:, :3] *= float(rng.choice([5.0, 30.0, 1e6, 1e300]))
    deltas[:, 3:6] += rng.normal(size=3) * float(rng.choice([0.0, 0.3, 3.0]))


def impossible_chunk(deltas: np.ndarray, rng: np.random.Generator) -> None:
    """Motions that no arm can make."""
    deltas[:, :3] *= float(rng.choice([30.0, 1e6, 1e300]))
    deltas[:, 3:6] += rng.normal(size=3) * float(rng.choice([0.0, 0.3, 3.0]))


def hangs(cell: Cell, rng: np.random.Generator) -> None:
    """The policy never answers again."""
    cell.switches = replace(cell.switches, chunk_edit=lambda _: None)


def dies(cell: Cell, rng: np.random.Generator) -> bool:
    """The worker process is gone, unless there is none."""
    if cell.worker.dead:
        return False
    cell.worker.die()
    return True


def jumps(cell: Cell, rng: np.random.Generator) -> None:
    """Somebody sets the system's clock."""
    cell.clock.set_ros(float(rng.choice([-1.0, 1.0])) * float(rng.choice([0.4, 2.0, 30.0, 3600.0])))


def jumps_a_little(cell: Cell, rng: np.random.Generator) -> None:
    """The system's clock is stepped, as by a time synchronisation that finds it a little wrong."""
    cell.clock.set_ros(float(rng.choice([-1.0, 1.0])) * float(rng.uniform(0.06, 0.24)))


def other_arm(cell: Cell, rng: np.random.Generator) -> bool:
    """Another robot_description comes: broken, or of an arm with other lengths. The same once more is no fault."""
    same = cell.urdf + "<!-- again -->"
    text = str(rng.choice([same, "<robot name='broken'>", cell.urdf.replace("0.316", "0.416")]))
    cell.publish("robot_description", String(data=text))
    return text != same


def second_joints(cell: Cell, rng: np.random.Generator) -> None:
    """A second publisher of joint_states, with zeros."""
    cell.switches = replace(cell.switches, second_joints=np.zeros(7))


def second_tf(cell: Cell, rng: np.random.Generator) -> None:
    """A second publisher of the tool's transform."""
    pose = cell.tool.copy()
    pose[:3, 3] += (0.0, 0.2, 0.1)
    cell.switches = replace(cell.switches, second_tf=pose)


def storm(cell: Cell, rng: np.random.Generator) -> None:
    """People and nodes that want everything at once."""
    goals = cell.node.action.goals
    for _ in range(int(rng.integers(3, 12))):
        match int(rng.integers(9)):
            case 0:
                cell.enable(bool(rng.integers(2)))
            case 1:
                cell.trigger(str(rng.choice(["stop", "reset_fault", "reset_policy"])))
            case 2:
                cell.instruct(str(rng.choice(["pick", "place", "", "x" * 5000])))
            case 3 | 4:
                cell.node.action.send(str(rng.choice(["pick", "", "push"])), float(rng.integers(3)))
            case 5 | 6 if goals:
                cell.node.action.cancel(goals[int(rng.integers(len(goals)))])
            case 7:
                cell.safety_stop(bool(rng.integers(2)))
            case _:
                cell.run(TICK_S * int(rng.integers(1, 4)))
    cell.safety_stop(False)
    cell.trigger("reset_fault")
    cell.instruct("pick")
    cell.enable()


JOINT = ("joint",)
NO_INFO = r"camera_info stopped coming|no camera_info has the stamp of the newest image"
NO_IMAGE, NO_TRANSFORM = r"no new image for", r"no transform base_link <- tool0|the tool's transform is stale"
TWO_TF = r"the tool jumped by .* second publisher|a glitch, or two publishers|alternates between two"
LEAPT = r"joint_states: joint\d leapt from .* second publisher"
WILD = r"chunk rejected: (step|linear|angular)|is absurd|unusable chunks in a row"
FAULTS = (
    Fault("image silent", switch(image_silent=True), (0.1, 1.1), NO_IMAGE, 0.6),
    Fault("camera_info silent", switch(info_silent=True), (0.1, 1.1), NO_INFO, 0.9),
    Fault("TF silent", switch(tf_silent=True), (0.1, 1.1), NO_TRANSFORM, 1.0),
    Fault("joint_states silent", switch(joints_silent=True), (0.1, 1.1), "joint_states are stale", 0.5, JOINT),
    Fault("image old", switch(image_age_s=0.8), (0.1, 1.5), "the image is stale: stamped", 1.1),
    Fault("TF old", switch(tf_age_s=1.5), (0.1, 1.1), NO_TRANSFORM, 1.0),
    Fault("joint_states old", switch(joints_age_s=2.0), (0.1, 1.1), "joint_states are stale", 0.5, JOINT),
    Fault(
        "joint_states from the future",
        switch(joints_age_s=-3.0),
        (0.1, 1.1),
        "are stamped .* in the future",
        0.2,
        JOINT,
    ),
    Fault("image stamped zero", switch(image_stamp=0), (0.1, 1.1), "images are stamped zero", 0.3),
    Fault("image frozen", switch(image_frozen=True), (0.1, 2.0), "the camera is frozen", 0.5, shows=moved_on),
    Fault("TF glitch", once(moved_tool, "tf_edit"), (0.1, 0.3)),
    Fault("TF not finite once", once(nan_tool, "tf_edit"), (0.1, 0.3)),
    Fault("TF not finite", always(nan_tool, "tf_edit"), (0.1, 1.1), NO_TRANSFORM, 1.0),
    Fault("TF at random", always(moved_tool, "tf_edit"), (0.1, 1.1), TWO_TF, 0.5),
    Fault("two TF publishers", second_tf, (0.1, 1.1), TWO_TF, 0.5),
    Fault("joint_states zero once", once(zero_joints, "joints_edit"), (0.1, 0.3), modes=JOINT),
    Fault("joint_states zero", always(zero_joints, "joints_edit"), (0.1, 1.1), LEAPT, 0.3, JOINT),
    Fault("joint_states not finite once", once(nan_joint, "joints_edit"), (0.1, 0.3), modes=JOINT),
    Fault("joint_states not finite", always(nan_joint, "joints_edit"), (0.1, 1.1), "non-finite position", 0.2, JOINT),
    Fault("joint glitch", once(moved_joint, "joints_edit"), (0.1, 0.3), modes=JOINT),
    Fault("joint named twice", always(double_name, "joints_edit"), (0.1, 1.1), r"name joint\d twice", 0.2, JOINT),
    Fault("positions missing", always(short_joints, "joints_edit"), (0.1, 1.1), "7 names and 6 positions", 0.2, JOINT),
    Fault("two joint_states publishers", second_joints, (0.1, 1.1), LEAPT, 0.3, JOINT),
    Fault("arm blocked", switch(blocked=True), (0.1, 1.5), "tracking error", 0.3, shows=left_behind),
    Fault("chunk not finite once", once(chunk_with(nan_chunk), "chunk_edit"), (0.1, 0.3)),
    Fault(
        "chunks not finite",
        always(chunk_with(nan_chunk), "chunk_edit"),
        (0.3, 1.5),
        "is not finite",
        0.4,
        shows=asked,
    ),
    Fault("chunk wild once", once(chunk_with(wild_chunk), "chunk_edit"), (0.1, 0.3)),
    Fault("chunks wild", always(chunk_with(impossible_chunk), "chunk_edit"), (0.3, 1.5), WILD, 0.4, shows=asked),
    Fault("prediction fails once", once(chunk_with(lambda *_: "out of memory"), "chunk_edit"), (0.1, 0.3)),
    Fault("predictions late", switch(latency_s=0.7), (0.3, 1.2)),
    Fault("policy hangs", hangs, (1.5, 1.8), "a prediction took longer than", 1.1, shows=asked),
    Fault("worker dies", dies, (0.3, 0.3), "the worker process ended", 0.2),
    Fault("clock set", jumps, (0.1, 0.3), "clock jumped by", 0.1),
    Fault("clock stepped a little", jumps_a_little, (0.1, 0.3), "clock jumped by", 0.1),
    Fault("another robot_description", other_arm, (0.1, 0.3), "robot_description", 0.1, JOINT),
    Fault("executor stands still", switch(stalled=True), (0.05, 1.0), "executor stands still", 0.54, shows=watched),
    Fault("storm of requests", storm, (0.1, 0.3)),
)
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
    parameters = {**PARAMETERS, "replan": str(rng.choice(["continuous", "horizon"])), "ensemble_chunks": 1}
    cell = Cell(mode, seed, lag_s=float(rng.uniform(0.02, 0.12)), parameters=parameters)
    cell.switches = replace(cell.switches, latency_s=float(rng.uniform(0.05, 0.25)))
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
    cell.run(float(rng.uniform(0.3, 0.6)))
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
        if shows_ns is None and fault.shows(cell, begin_ns):
            shows_ns = cell.steady_ns
        if due and shows_ns is not None and cell.steady_ns - shows_ns > fault.named_s * NS_PER_S:
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
