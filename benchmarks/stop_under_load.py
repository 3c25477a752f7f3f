"""Is a stop answered in time on a computer that has no time? And how old are the images that commands come from?

policy_node commands poses from a camera of 1920x1080 at 60 Hz, while every core is kept busy by a process that does
nothing else. Again and again it is enabled, runs, and is stopped through ~/stop: the time to the answer, and to the
last command after it, are measured from outside. Each command is compared with the newest image that a chunk was
published for before it. Raw results: benchmarks/results/stop_under_load.json.

    python benchmarks/stop_under_load.py [--stops 20] [--hogs 2]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
from node_overhead import GRID, HERE, KEPT, StandIn
from processor import processor

from sqap_vla_ros.contracts import NS_PER_S, ActionChunk, Observation, Reason, TokenSelection
from sqap_vla_ros.nodes.launch.table import dds_environment

RESULT = HERE / "results" / "stop_under_load.json"
SIZE, RATE_HZ = (1920, 1080), 60.0
ANSWER_LIMIT_S = 0.3
MAX_OPEN_LOOP_S = 1.0  # motion ends when its image is so old
LATE_S = 0.1  # the last pose of a motion may be sent by a timer that comes late
RUN_S = 1.5
POLICY_S = 0.05


class ToAndFro(StandIn):
    """Moves the tool a few millimetres to and fro, so that the node always has something to command."""

    def __init__(self) -> None:
        self._wait_s = POLICY_S

    def predict(self, observation: Observation, *, seed: int = 0) -> ActionChunk:
        time.sleep(self._wait_s)
        deltas = np.zeros((16, 7))
        deltas[:, 0] = np.where(np.arange(16) % 8 < 4, 5e-4, -5e-4)
        deltas[:, 6] = 1.0
        reasons = np.full(KEPT, Reason.RING, np.uint8)
        kept = TokenSelection(np.arange(KEPT, dtype=np.int32), reasons, GRID, "sqap", 3, (8, 8))
        return ActionChunk(observation.stamp_ns, deltas, 0.2, deltas, kept, {"total": 1e3 * self._wait_s}, seed)


def to_and_fro() -> ToAndFro:
    return ToAndFro()


class Watcher:
    """The process that listens: commands, chunks and states with the time they came."""

    def __init__(self) -> None:
        import rclpy
        from geometry_msgs.msg import PoseStamped
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from sqap_vla_ros.msg import ActionChunk as ChunkMessage
        from sqap_vla_ros.msg import PolicyStatus
        from std_msgs.msg import String
        from std_srvs.srv import SetBool, Trigger

        from sqap_vla_ros.nodes.spinning import SpinThread

        rclpy.init()
        self.node = rclpy.create_node("watcher")
        self.commands: list[tuple[float, tuple[float, ...]]] = []
        self.ages_s: list[float] = []
        self.state = -1
        self._chunk_ns = 0
        many = QoSProfile(depth=1000)
        self.node.create_subscription(PoseStamped, "target_pose", self._command, many)
        self.node.create_subscription(ChunkMessage, "policy_node/action_chunk", self._chunk, many)
        self.node.create_subscription(PolicyStatus, "policy_node/status", self._status, many)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.node.create_publisher(String, "instruction", latched).publish(String(data="to and fro"))
        self._enable = self.node.create_client(SetBool, "policy_node/enable")
        self._triggers = {n: self.node.create_client(Trigger, f"policy_node/{n}") for n in ("stop", "reset_fault")}
        self._requests = (SetBool.Request(data=True), Trigger.Request())
        self._spinning = SpinThread(self.node)

    def _command(self, message: Any) -> None:
        from sqap_vla_ros.msg import PolicyStatus

        place, turn = message.pose.position, message.pose.orientation
        pose = (place.x, place.y, place.z, turn.x, turn.y, turn.z, turn.w)
        moves = bool(self.commands) and self.commands[-1][1] != pose
        self.commands.append((time.monotonic(), pose))
        if moves and self.state == PolicyStatus.RUNNING and self._chunk_ns:  # holds have no image
            sent_ns = message.header.stamp.sec * NS_PER_S + message.header.stamp.nanosec
            self.ages_s.append((sent_ns - self._chunk_ns) / NS_PER_S)

    def _chunk(self, message: Any) -> None:
        self._chunk_ns = message.header.stamp.sec * NS_PER_S + message.header.stamp.nanosec

    def _status(self, message: Any) -> None:
        self.state = message.state

    def enable(self, timeout_s: float) -> bool:
        """Enable the node; False where it refused or did not answer."""
        if not self._enable.wait_for_service(timeout_sec=timeout_s):
            return False
        future = self._enable.call_async(self._requests[0])
        return self._answer(future, timeout_s) is not None and future.result().success

    def call(self, name: str) -> float:
        """Call a trigger and return the seconds to its answer. Raises RuntimeError without one."""
        begin = time.monotonic()
        answered = self._answer(self._triggers[name].call_async(self._requests[1]), 10.0)
        if answered is None:
            raise RuntimeError(f"~/{name} was not answered within 10 s")
        return answered - begin

    @staticmethod
    def _answer(future: Any, timeout_s: float) -> float | None:
        done = threading.Event()
        moment: list[float] = []
        future.add_done_callback(lambda _: (moment.append(time.monotonic()), done.set()))
        return moment[0] if done.wait(timeout_s) else None

    def close(self) -> None:
        """Stop listening."""
        import rclpy

        self._spinning.close()
        rclpy.shutdown()


def measure(stops: int, hogs: int) -> dict[str, Any]:
    """Run the processes; the times of each stop in seconds, and the ages of the commands' images."""
    watcher = Watcher()
    parameters = {"dry_run": "false", "output_mode": "pose", "max_open_loop_s": str(MAX_OPEN_LOOP_S)}
    parameters |= {"image_timeout_s": "2.0", "tf_timeout_s": "1.0", "task_deadline_s": "600.0"}
    arguments = ["--ros-args", "--log-level", "error"]
    for name, value in parameters.items():
        arguments += ["-p", f"{name}:={value}"]
    code = "import sys; from sqap_vla_ros.nodes.policy.node import main; "
    code += "sys.exit(main(worker_factory='stop_under_load:to_and_fro'))"
    seconds = 120.0 + stops * (RUN_S + 3.0)
    options = ["--camera", "--seconds", str(seconds), "--size", *map(str, SIZE), "--rate", str(RATE_HZ)]
    processes = [
        subprocess.Popen([sys.executable, "-c", code, *arguments]),
        subprocess.Popen(
            [sys.executable, str(HERE / "node_overhead.py"), *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ),
        *(subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(hogs)),
    ]
    policy, source = processes[0], processes[1]
    assert source.stdin is not None
    assert source.stdout is not None
    answers_s, quiet_s, moved = [], [], 0
    try:
        source.stdout.readline()
        source.stdin.write(b"go\n")
        source.stdin.flush()
        deadline = time.monotonic() + 100.0
        while not watcher.enable(5.0):
            if time.monotonic() > deadline or policy.poll() is not None:
                raise RuntimeError("policy_node could not be enabled")
            time.sleep(0.5)
        for number in range(stops):
            if number:
                watcher.call("reset_fault")
                while not watcher.enable(5.0):
                    time.sleep(0.1)
            until = time.monotonic() + 20.0
            watcher.commands.clear()
            while len({pose for _, pose in watcher.commands}) < 5 and time.monotonic() < until:
                time.sleep(0.05)
            moved += bool(watcher.commands)
            time.sleep(RUN_S)
            begin = time.monotonic()
            answers_s.append(watcher.call("stop"))
            time.sleep(1.0)
            later = [(moment, pose) for moment, pose in watcher.commands if moment > begin]
            changes = [moment for (moment, pose), (_, other) in zip(later[1:], later, strict=False) if pose != other]
            quiet_s.append(max(changes, default=begin) - begin)
    finally:
        policy.terminate()
        for process in processes[1:]:  # they have nothing to put in order
            process.kill()
        for process in processes:
            process.wait(30)
        watcher.close()
    return {"answer_s": answers_s, "last_motion_s": quiet_s, "image_age_s": watcher.ages_s, "runs_that_moved": moved}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--hogs", type=int, default=2, help="processes that keep a core busy")
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.update(dds_environment(os.environ))
    raw = measure(args.stops, args.hogs)
    print(f"{os.cpu_count()} CPUs, {args.hogs} hogs, camera {SIZE[0]}x{SIZE[1]} at {RATE_HZ:g} Hz, {args.stops} stops")
    summary = {}
    for name, words in (
        ("answer_s", "~/stop to its answer"),
        ("last_motion_s", "~/stop to the last command that moves"),
        ("image_age_s", "age of a command's image"),
    ):
        values = raw[name] or [float("nan")]
        summary[name] = {"p50": float(np.median(values)), "max": float(np.max(values)), "count": len(raw[name])}
        print(f"{words:40s} p50 {summary[name]['p50']:6.3f} s   max {summary[name]['max']:6.3f} s   n {len(raw[name])}")
    fine = (
        raw["runs_that_moved"] == args.stops
        and summary["answer_s"]["max"] <= ANSWER_LIMIT_S
        and summary["image_age_s"]["max"] <= MAX_OPEN_LOOP_S + LATE_S
    )
    print("within the limits" if fine else f"NOT within the limits ({raw['runs_that_moved']} runs moved)")
    machine = {"cpus": os.cpu_count(), "processor": processor(), "load_average": os.getloadavg()[0]}
    result = {"machine": machine, "hogs": args.hogs, "summary": summary, "raw": raw}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
