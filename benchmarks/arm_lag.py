"""Measure what a lagging arm costs: chunks composed onto the measured tool, onto the commanded one, with a known lag.

The expert's chunks go through the node's own planning (control/motion.py, control/executive.py, inverse kinematics,
joint trajectories) to the simulated arm, without DDS and in simulated time, so that every run gives the same numbers.
A chunk takes effect `--latency` after its image. Each is done with the simulated arm as it is, which is stiff, and
with one that follows its commands through a low pass of `--lag` seconds, as slower arms do. Beside it: the same chunks
in TabletopEnv, which stops the world while it plans, and a straight motion whose length is known. Raw results:
benchmarks/results/arm_lag.json.

    python benchmarks/arm_lag.py [--episodes 10] [--latency 0.1] [--lag 0.1]
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import ActionChunk
from sqap_vla_ros.control.executive import Executive
from sqap_vla_ros.control.motion import Motion, UnsafeChunk
from sqap_vla_ros.nodes.policy import configuration, parameters
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.gripper.hysteresis import GripperHysteresis
from sqap_vla_ros.robot.joint_trajectory import JointTrajectoryArrays
from sqap_vla_ros.robot.kinematics import ArmKinematics, KinematicsError
from sqap_vla_ros.simulation.commander import ArmCommander
from sqap_vla_ros.simulation.environment import CONTROL_DT_S, TabletopEnv
from sqap_vla_ros.simulation.experts import plan_actions
from sqap_vla_ros.simulation.joint_path import accept_trajectory
from sqap_vla_ros.simulation.layout import sample_layout
from sqap_vla_ros.simulation.scene import ARM_JOINTS
from sqap_vla_ros.simulation.vocabulary import TaskFamily
from sqap_vla_ros.simulation.world import TabletopWorld

RESULT = Path(__file__).resolve().parent / "results" / "arm_lag.json"
IMAGE_NS, TICK_NS, GRIPPER_NS = 100_000_000, 8_000_000, 20_000_000
STRAIGHT_M_S, STRAIGHT_S = 0.1, (1.0, 3.0)  # measured between these two, the start behind it
DEMO = {"ensemble_chunks": 1, "ramp_s": 0.6, "max_angular_velocity": 2.5}  # of config/demo.yaml
REPLANS = {"action": {"replan": "continuous"}, "4 actions": {"replan": "horizon", "execution_horizon": 5}}
LEADS = ("measured tool", "commanded tool", "commanded tool, lag known")
LATE_S = 0.04  # the simulated arm itself, as /diagnostics tells it
Chunks = Callable[[TabletopWorld], NDArray[np.float64]]


class Arm:
    """The arm's half of policy_node and simulator_node around one world."""

    def __init__(self, world: TabletopWorld, latency_s: float, lag_s: float, **changed: Any) -> None:
        values = {**parameters.defaults(), **DEMO, **changed}
        self.world = world
        self.motion = Motion(configuration.motion_config(values), configuration.safety_limits(values))
        self.rejected = 0
        self._latency_ns = round(1e9 * latency_s)
        self._share = world.timestep_s / max(lag_s, world.timestep_s)  # of the way to its command, each step
        self._told = world.arm_position
        self._executive = Executive(configuration.executive_config(values), dry_run=False)
        self._executive.set_instruction("act")
        self._executive.enable()
        self._arm = ArmCommander(world, max_joint_velocity_rad_s=1.5, twist_timeout_s=0.2)
        urdf = share_path("config/robots/tabletop_arm.urdf").read_text("utf-8")
        self._kinematics = ArmKinematics.from_urdf(urdf, values["base_frame"], values["tool_frame"])
        self._gripper = GripperHysteresis()
        self._opening_m = {"open": values["gripper_open"], "close": values["gripper_closed"]}
        self._flight: tuple[ActionChunk, NDArray[np.float64]] | None = None
        self._joints: JointTrajectoryArrays | None = None
        self.now_ns = 0

    def run(self, seconds: float, chunks: Chunks, done: Callable[[], bool] = lambda: False) -> float | None:
        """Until `done` (the seconds it took) or the time is over (None)."""
        world = self.world
        while self.now_ns < 1e9 * seconds:
            self._plan(chunks)
            for _ in range(2):
                self.now_ns += TICK_NS // 2
                self._told += self._share * (self._arm.update(self.now_ns, world.timestep_s) - self._told)
                world.command_arm(self._told)
                world.step()
            if self._due(GRIPPER_NS) and self.motion.current is not None:
                opening = self.motion.current.sample(self.now_ns - self.motion.lag_ns)[1]
                decided = self._gripper.update(opening)
                if decided is not None:
                    world.command_fingers(self._opening_m[decided])
            if self._due(IMAGE_NS):
                world.refresh()
                if done():
                    return self.now_ns / 1e9
        return None

    def _due(self, period_ns: int) -> bool:
        return self.now_ns // period_ns > (self.now_ns - TICK_NS) // period_ns

    def _plan(self, chunks: Chunks) -> None:
        now_s = self.now_ns / 1e9
        self._executive.decide(self.now_ns, now_s)
        self._executive.take_step()
        if self._flight is None and self._due(IMAGE_NS) and self._executive.wants_prediction(self.now_ns):
            self.world.refresh()
            deltas = chunks(self.world)
            self._flight = ActionChunk(self.now_ns, deltas, CONTROL_DT_S, deltas), self.world.base_from_tool
        if self._flight is None or self.now_ns < self._flight[0].stamp_ns + self._latency_ns:
            return
        (chunk, tool), self._flight = self._flight, None
        self.world.refresh()
        latency_s = (self.now_ns - chunk.stamp_ns) / 1e9
        try:
            trajectory = self.motion.plan(chunk, tool, self.world.base_from_tool, self.now_ns).trajectory
            if self._joints is None:
                q_start = self._kinematics.inverse(trajectory.anchor, self.world.arm_position)
                joints = self._kinematics.joint_trajectory(trajectory, q_start)
            else:
                start = self._joints.state(trajectory.anchor_ns)
                joints = self._kinematics.joint_trajectory(trajectory, start.position, start.velocity)
        except (UnsafeChunk, KinematicsError) as error:
            self.rejected += 1
            self._executive.rejected(str(error), malformed=False, latency_s=latency_s)
            return
        position, velocity = self._arm.start_state()
        path = accept_trajectory(
            ARM_JOINTS,
            names=list(joints.joint_names),
            times_ns=(trajectory.anchor_ns + joints.times_from_stamp_ns).tolist(),
            positions=joints.positions.tolist(),
            velocities=joints.velocities.tolist(),
            now_ns=self.now_ns,
            position=position,
            velocity=velocity,
        )
        self._arm.follow(path)
        self._joints = joints
        self.motion.commit(trajectory)
        self._executive.accepted(chunk.stamp_ns, trajectory.end_ns, chunk.dt_s, latency_s, now_s)


def straight(latency_s: float, lag_s: float, **changed: Any) -> float:
    """Return the distance that the tool covers, as a share of what the chunks ask for."""
    world = TabletopWorld()
    world.reset(sample_layout(0, TaskFamily.PICK))
    deltas = np.zeros((16, 7))
    deltas[:, 1], deltas[:, 6] = STRAIGHT_M_S * CONTROL_DT_S, 1.0
    arm = Arm(world, latency_s, lag_s, **changed)
    places = []
    for seconds in STRAIGHT_S:
        arm.run(seconds, lambda _: deltas.copy())
        world.refresh()
        places.append(world.base_from_tool[1, 3])
    return float((places[1] - places[0]) / (STRAIGHT_M_S * (STRAIGHT_S[1] - STRAIGHT_S[0])))


def episode(family: TaskFamily, seed: int, latency_s: float, lag_s: float, **changed: Any) -> dict[str, Any]:
    """One task under the expert's chunks, through the node's planning."""
    world = TabletopWorld()
    layout = sample_layout(seed, family)
    world.reset(layout)
    task = layout.task
    arm = Arm(world, latency_s, lag_s, **changed)
    limit_s = task.max_steps * CONTROL_DT_S
    seconds = arm.run(limit_s, lambda w: plan_actions(task, w.state()), lambda: task.succeeded(world.state()))
    return {"success": seconds is not None, "seconds": seconds, "rejected": arm.rejected}


def in_process(family: TaskFamily, seed: int, horizon: int) -> dict[str, Any]:
    """The same in TabletopEnv: `horizon` actions of every chunk, the world stands while it is planned."""
    env = TabletopEnv()
    task = env.reset(seed, family)
    actions: list[NDArray[np.float64]] = []
    while env.steps < task.max_steps:
        actions = actions or list(plan_actions(task, env.state)[:horizon])
        if env.step(actions.pop(0)).terminated:
            return {"success": True, "seconds": env.steps * CONTROL_DT_S, "rejected": 0}
    return {"success": False, "seconds": None, "rejected": 0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--episodes", type=int, default=10, help="of each task family")
    parser.add_argument("--latency", type=float, default=0.1, help="from image to chunk, seconds")
    parser.add_argument("--lag", type=float, default=0.1, help="time constant of the slower arm, seconds")
    args = parser.parse_args()
    results: dict[str, Any] = {"latency_s": args.latency, "straight": {}, "episodes": {}}
    runs: dict[str, Callable[[TaskFamily, int], dict[str, Any]]] = {
        f"in-process, {n} a chunk": lambda family, seed, n=n: in_process(family, seed, n) for n in (1, 4)
    }
    print(f"share of a straight motion that the tool made, latency {args.latency} s")
    for lag_s, (replan, how), lead in itertools.product((0.0, args.lag), REPLANS.items(), LEADS):
        name = f"lag {lag_s:g} s, new chunk every {replan}, onto the {lead}"
        changed = {"lag_s": lag_s, **how}
        if lead == "measured tool":
            changed |= {"max_lead_m": 0.0, "max_lead_rad": 0.0}
        elif lead.endswith("known"):
            changed["arm_lag_s"] = lag_s + LATE_S
        share = results["straight"][name] = straight(args.latency, **changed)
        print(f"  {name:72s} {share:.3f}")
        runs[name] = lambda family, seed, changed=changed: episode(family, seed, args.latency, **changed)
    print(f"the expert's chunks, {args.episodes} episodes of each task family")
    for name, run in runs.items():
        rows = [
            {"family": str(family), "seed": seed, **run(family, seed)}
            for family in TaskFamily
            for seed in range(args.episodes)
        ]
        results["episodes"][name] = rows
        done = [row for row in rows if row["success"]]
        seconds = np.mean([row["seconds"] for row in done]) if done else float("nan")
        rejected = sum(row["rejected"] for row in rows)
        print(f"  {name:72s} {len(done)}/{len(rows)} done, {seconds:.2f} s on average, {rejected} chunks rejected")
    RESULT.write_text(json.dumps(results, indent=1) + "\n")
    print(f"raw results: {RESULT}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
