"""Run Cartesian chunks through the inverse kinematics of fourteen real robot descriptions.

    python benchmarks/robots.py run --label after                       this checkout
    PYTHONPATH=<other checkout> python benchmarks/robots.py run --label before
    python benchmarks/robots.py judge                                   the independent search, for what did not run
    python benchmarks/robots.py table

A chunk is 16 poses, 0.2 s apart, about 10 cm and 15 degrees long, from a random posture in the middle half of the
joints' ranges. It runs when `ArmKinematics.joint_trajectory` finds joint values and `SafetyLimits.check_joints` accepts
them, slowed down where need be, as output mode `joint` does. What did not run after is judged by `independent_ik`:
has it a solution at all, with the residual that the robot's file allows? The URDFs are those of the data folder
($SQAP_VLA_DATA or ../shared/data), which states their sources.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from independent_ik import Chain, can_follow
from processor import processor

from sqap_vla_ros.robot.kinematics import ArmKinematics, KinematicsError
from sqap_vla_ros.robot.safety import Decision, SafetyLimits
from sqap_vla_ros.robot.trajectory import PoseTrajectory, anchor_chunk

ROBOTS: dict[str, tuple[str, str, str]] = {  # row: (URDF, base, tool)
    "FR3": ("fr3_hand", "fr3_link0", "fr3_hand_tcp"),
    "FR3 Duo, left": ("fr3_duo", "left_base", "left_fr3v2_hand_tcp"),
    "FR3 Duo, right": ("fr3_duo", "base", "right_fr3v2_hand_tcp"),
    "UR5e": ("ur5e", "base_link", "tool0"),
    "UR5e + 2F-85": ("ur5e_robotiq", "base_link", "tool0"),
    "ViperX 300s": ("vx300s", "vx300s/base_link", "vx300s/ee_gripper_link"),
    "WidowX 250s": ("wx250s", "wx250s/base_link", "wx250s/ee_gripper_link"),
    "xArm6": ("xarm6", "link_base", "link_tcp"),
    "xArm7": ("xarm7", "link_base", "link_tcp"),
    "Lite6": ("lite6", "link_base", "link_tcp"),
    "WidowX 200": ("wx200", "wx200/base_link", "wx200/ee_gripper_link"),
    "SO-101": ("so101", "base_link", "gripper_frame_link"),
    "SO-100": ("so100", "base", "gripper"),
    "xArm5": ("xarm5", "link_base", "link_tcp"),
}
RESIDUAL_RAD = {  # of five-joint arms, about the tool's axes: little about the axis that the wrist rolls about
    "WidowX 200": (0.05, 0.4, 0.4),
    "SO-101": (0.4, 0.4, 0.05),
    "SO-100": (0.4, 0.05, 0.4),
    "xArm5": (0.4, 0.4, 0.05),
}
DT_S, STEPS = 0.2, 16
# No box: the postures are random, and what is within reach is for the search to say.
LIMITS = SafetyLimits(workspace_min_m=(-5.0, -5.0, -5.0), workspace_max_m=(5.0, 5.0, 5.0))
FOLDER = Path(__file__).parent / "results" / "robots"


def data_folder() -> Path:
    """Return the folder with the URDFs."""
    return Path(os.environ.get("SQAP_VLA_DATA", Path(__file__).parents[2] / "shared" / "data")) / "robots"


def kinematics(row: str) -> ArmKinematics:
    """Return a row's kinematics, with its residual where this version of the package knows one."""
    urdf, base, tool = ROBOTS[row]
    text = (data_folder() / f"{urdf}.urdf").read_text()
    try:
        from sqap_vla_ros.robot.arm.inverse import InverseConfig
    except ImportError:
        return ArmKinematics.from_urdf(text, base, tool)
    residual_rad = RESIDUAL_RAD.get(row, (0.0, 0.0, 0.0))
    config = InverseConfig(orientation_residual_rad=residual_rad, joint_margin=LIMITS.joint_margin)
    return ArmKinematics.from_urdf(text, base, tool, config)


def chunks(arm: ArmKinematics, count: int) -> list[tuple[np.ndarray, PoseTrajectory]]:
    """Return (joint values, path of the tool from there on) of `count` chunks, the same for every version."""
    rng = np.random.default_rng(0)
    low = np.where(np.isfinite(arm.lower), arm.lower, -np.pi)
    high = np.where(np.isfinite(arm.upper), arm.upper, np.pi)
    made = []
    for _ in range(count):
        q = 0.5 * (low + high) + rng.uniform(-0.25, 0.25, len(low)) * (high - low)
        deltas = np.zeros((STEPS, 7))
        deltas[:, :3], deltas[:, 3:6] = rng.normal(size=3) * 0.004, rng.normal(size=3) * 0.01
        made.append((q, anchor_chunk(deltas, arm.forward(q), 0, DT_S)))
    return made


def attempt(arm: ArmKinematics, q: np.ndarray, path: PoseTrajectory) -> str:
    """Return why a chunk does not run, empty if it does."""
    for _ in range(6):
        try:
            joints = arm.joint_trajectory(path, q)
        except KinematicsError as error:
            return str(error)
        verdict = LIMITS.check_joints(joints, arm)
        if verdict.decision is not Decision.SLOW_DOWN:
            return "" if verdict.decision is Decision.ACCEPT else f"rejected: {verdict.text}"
        path = path.slowed(verdict.time_scale)
    return f"rejected: {verdict.text}"


def run(label: str, rows: list[str], count: int) -> None:
    """Run the robots' chunks and store the outcome of each, with the CPU time of its solution in ms."""
    file = FOLDER / f"{label}.json"
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for row in rows or list(ROBOTS):
        try:
            arm = kinematics(row)
        except ValueError as error:
            result[row] = {"loads": False, "error": str(error)}
            continue
        taken, refused = [], {}
        for index, (q, path) in enumerate(chunks(arm, count)):
            start = time.process_time()
            with contextlib.suppress(KinematicsError):
                arm.joint_trajectory(path, q)
            taken.append(round(1e3 * (time.process_time() - start), 2))
            if why := attempt(arm, q, path):
                refused[index] = why
        result[row] = {"loads": True, "chunks": count, "taken_ms": taken, "refused": refused}
        print(row, count - len(refused), "of", count, f"p95 {np.percentile(taken, 95):.1f} ms", flush=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result | {"machine": processor()}) + "\n")


def judge(rows: list[str]) -> None:
    """Search independently for what did not run after, and store which of it has a solution."""
    file = FOLDER / "independent_search.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    refused = json.loads((FOLDER / "after.json").read_text())
    for row in rows or list(ROBOTS):
        urdf, base, tool = ROBOTS[row]
        chain = Chain((data_folder() / f"{urdf}.urdf").read_text(), base, tool)
        arm, allowed = kinematics(row), np.array(RESIDUAL_RAD.get(row, (0.0, 0.0, 0.0)))
        made = chunks(arm, refused[row]["chunks"])
        entry = found.setdefault(row, {})
        for index in (int(text) for text in refused[row]["refused"] if text not in entry):
            q, path = made[index]
            entry[str(index)] = can_follow(chain, path.poses, q, allowed, np.random.default_rng(index))
        print(row, sum(entry.values()), "of", len(entry), "that did not run have a solution", flush=True)
        file.write_text(json.dumps(found, indent=1) + "\n")


def table() -> None:
    """Print the table, and store it."""
    before, after, search = (
        json.loads((FOLDER / f"{name}.json").read_text()) for name in ("before", "after", "independent_search")
    )
    lines = [
        "| robot | joints | loads | chunks that run | that have a solution | of these run | p95, ms of one core |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ROBOTS:
        both = [version[row] for version in (before, after)]
        judged = search.get(row, {})
        if missing := set(both[1]["refused"]) - set(judged):
            print(f"{row}: {len(missing)} chunks are not judged yet, and count as without a solution")
        count = both[1]["chunks"]
        runs = [count - len(entry["refused"]) if entry["loads"] else 0 for entry in both]
        # What runs is a solution; of the rest, what the search found. What ran before and not after counts as well.
        solvable = set(map(str, range(count))) - set(both[1]["refused"])
        solvable |= {index for index, has in judged.items() if has}
        share = [len(solvable - set(entry.get("refused", solvable))) / max(len(solvable), 1) for entry in both]
        late = [f"{np.percentile(entry['taken_ms'], 95):.1f}" if entry["loads"] else "–" for entry in both]
        loads = ["yes" if entry["loads"] else "no" for entry in both]
        joints = len(kinematics(row).joint_names)
        lines.append(
            f"| {row} | {joints} | {loads[0]} → {loads[1]} | {runs[0]} → {runs[1]} of {count} | "
            f"{len(solvable)} | {100 * share[0]:.0f} → {100 * share[1]:.0f} % | {late[0]} → {late[1]} |"
        )
    text = "\n".join(lines) + "\n"
    print(text, end="")
    (FOLDER / "table.md").write_text(text)


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="run the chunks of every robot")
    runs.add_argument("--label", required=True, choices=("before", "after"))
    runs.add_argument("--count", type=int, default=100)
    runs.add_argument("robots", nargs="*", help=f"of {', '.join(ROBOTS)}; all by default")
    judges = commands.add_parser("judge", help="search for solutions of what did not run after")
    judges.add_argument("robots", nargs="*", help=f"of {', '.join(ROBOTS)}; all by default")
    commands.add_parser("table", help="print before and after")
    args = parser.parse_args()
    if args.command == "run":
        run(args.label, args.robots, args.count)
    elif args.command == "judge":
        judge(args.robots)
    else:
        table()


if __name__ == "__main__":
    main()
