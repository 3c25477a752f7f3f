"""Measure what the node costs: image received to chunk published, minus the policy's time; frames lost in transport.

Three processes over DDS: a camera (640x480 rgb8 at 30 Hz with camera_info and TF at the stamps), policy_node, and this
one, which listens. Every image is numbered by its stamp, so what the node did not receive is known. By default the
policy is a stand-in that takes `--policy-ms` without using the CPU, so that every image gets a chunk and the clock sees
the node alone; `--checkpoint micro` runs the real micro policy. Raw results: benchmarks/results/node_overhead.json.

    python benchmarks/node_overhead.py [--seconds 30] [--policy-ms 15] [--checkpoint micro]

On a computer that is busy with other things, `chrt -f 20` before it (as root) measures as on a free one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from processor import processor

from sqap_vla_ros.contracts import ActionChunk, Observation, PolicyInfo, Reason, TokenSelection
from sqap_vla_ros.nodes.launch.table import dds_environment

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "node_overhead.json"
WIDTH, HEIGHT, RATE_HZ, FOCAL = 640, 480, 30.0, 500.0
READOUT_S = 0.005  # from a camera's stamp to its image; the arm's transforms come meanwhile. Cameras take longer
GRID, KEPT = (16, 16), 154
POLICY_MS = "SQAP_BENCHMARK_POLICY_MS"
# The tool points down half a metre below a camera that looks straight down.
DOWN = np.diag([1.0, -1.0, -1.0, 1.0])


class StandIn:
    """A policy that only waits."""

    info = PolicyInfo("stand-in", "", "none", 0, 16, 0.2, 224, GRID, "none", "sqap")

    def __init__(self) -> None:
        self._wait_s = float(os.environ[POLICY_MS]) / 1e3

    def predict(self, observation: Observation, *, seed: int = 0) -> ActionChunk:
        begin = time.perf_counter()
        time.sleep(self._wait_s)
        deltas = np.zeros((16, 7))
        deltas[:, 0], deltas[:, 6] = 1e-3, 1.0
        indices = np.arange(KEPT, dtype=np.int32)
        selection = TokenSelection(indices, np.full(KEPT, Reason.ATTENTION, np.uint8), GRID, "sqap", 3, (8, 8))
        total_ms = (time.perf_counter() - begin) * 1e3
        return ActionChunk(observation.stamp_ns, deltas, 0.2, deltas, selection, {"total": total_ms}, seed)

    def reset(self) -> None:
        """Nothing is kept."""


def stand_in() -> StandIn:
    return StandIn()


def camera(seconds: float, width: int = WIDTH, height: int = HEIGHT, rate_hz: float = RATE_HZ) -> None:
    """The camera process: waits for the node, publishes, and prints how many images were sent."""
    import rclpy
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import CameraInfo, Image

    from sqap_vla_ros.nodes import messages
    from sqap_vla_ros.nodes.images import rgb_to_message
    from sqap_vla_ros.nodes.tf.api import StaticTransformBroadcaster, TransformBroadcaster

    rclpy.init()
    node = rclpy.create_node("camera")
    images = node.create_publisher(Image, "image", qos_profile_sensor_data)
    infos = node.create_publisher(CameraInfo, "camera_info", qos_profile_sensor_data)
    moving, static = TransformBroadcaster(node), StaticTransformBroadcaster(node)
    base_from_camera, base_from_tool = DOWN.copy(), DOWN.copy()
    base_from_camera[:3, 3], base_from_tool[:3, 3] = (0.4, 0.0, 0.8), (0.4, 0.0, 0.3)
    static.sendTransform(messages.transform_message(base_from_camera, 0, "base_link", "camera"))
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (8, height, width, 3), np.uint8)
    info = CameraInfo(width=width, height=height, distortion_model="plumb_bob", d=[0.0] * 5)
    info.k = np.array([FOCAL, 0, width / 2, 0, FOCAL, height / 2, 0, 0, 1])
    info.p = np.array([FOCAL, 0, width / 2, 0, 0, FOCAL, height / 2, 0, 0, 0, 1, 0])
    while not (images.get_subscription_count() and infos.get_subscription_count()):
        time.sleep(0.01)
    print("connected", flush=True)
    sys.stdin.readline()
    begin = time.monotonic()
    count = round(seconds * rate_hz)
    for index in range(count):
        time.sleep(max(0.0, begin + index / rate_hz - time.monotonic()))
        stamp_ns = node.get_clock().now().nanoseconds
        info.header = messages.header(stamp_ns, "camera")
        moving.sendTransform(messages.transform_message(base_from_tool, stamp_ns, "base_link", "tool0"))
        time.sleep(READOUT_S)
        infos.publish(info)
        images.publish(rgb_to_message(pictures[index % 8], stamp=info.header.stamp, frame_id="camera"))
    print(count, flush=True)
    sys.stdin.readline()  # leave the messages in flight their time
    rclpy.shutdown()


def node_process(checkpoint: str) -> subprocess.Popen[bytes]:
    """policy_node, in dry run: what it would command is computed and published, and not sent."""
    parameters = {"dry_run": "true", "output_mode": "pose", "image_timeout_s": "5.0", "task_deadline_s": "600.0"}
    parameters["image_depth"] = "30"  # nothing is overwritten while it waits: what is missing, the transport lost
    if checkpoint:
        parameters["checkpoint"] = checkpoint
    arguments = ["--ros-args", "--log-level", "warn"]
    for name, value in parameters.items():
        arguments += ["-p", f"{name}:={value}"]
    factory = "" if checkpoint else "node_overhead:stand_in"
    code = f"import sys; from sqap_vla_ros.nodes.policy.node import main; sys.exit(main(worker_factory={factory!r}))"
    return subprocess.Popen([sys.executable, "-c", code, *arguments])


def measure(seconds: float, checkpoint: str) -> dict[str, Any]:
    """Run the three processes; raw overheads in ms and the counts of frames."""
    import rclpy
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from sqap_vla_ros.msg import ActionChunk as ChunkMessage
    from sqap_vla_ros.msg import PolicyStatus
    from std_msgs.msg import String
    from std_srvs.srv import SetBool

    from sqap_vla_ros.nodes.spinning import SpinThread

    rclpy.init()
    node = rclpy.create_node("overhead")
    statuses: list[PolicyStatus] = []
    stamps: list[tuple[int, int]] = []
    node.create_subscription(PolicyStatus, "policy_node/status", statuses.append, QoSProfile(depth=1000))
    node.create_subscription(
        ChunkMessage,
        "policy_node/action_chunk",
        lambda m: stamps.append((m.header.stamp.sec, m.header.stamp.nanosec)),
        QoSProfile(depth=1000),
    )
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node.create_publisher(String, "instruction", latched).publish(String(data="measure"))
    spinning = SpinThread(node)
    policy = node_process(checkpoint)
    source = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), "--camera", "--seconds", str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert source.stdin is not None
    assert source.stdout is not None
    try:
        enable = node.create_client(SetBool, "policy_node/enable")
        deadline = time.monotonic() + 120
        while True:
            if time.monotonic() > deadline or policy.poll() is not None:
                raise RuntimeError("policy_node did not become ready; its messages are above")
            if enable.wait_for_service(timeout_sec=0.5):
                future = enable.call_async(SetBool.Request(data=True))
                while not future.done() and time.monotonic() < deadline:
                    time.sleep(0.01)
                if future.done() and future.result().success:
                    break
                time.sleep(0.2)
        assert source.stdout.readline().strip() == "connected"
        cpu_s = _cpu_seconds(policy.pid)
        source.stdin.write("go\n")
        sent = int(source.stdout.readline())
        cpu_s = _cpu_seconds(policy.pid) - cpu_s
        time.sleep(2.0)  # two heartbeats of the status: the final counts
        source.stdin.write("done\n")
        source.wait(30)
    finally:
        for process in (source, policy):
            if process.poll() is None:
                process.terminate()
            process.wait(30)
        spinning.close()
        rclpy.shutdown()
    first: dict[tuple[int, int], PolicyStatus] = {}
    for status in statuses:
        if status.stage_names:
            first.setdefault((status.observation_stamp.sec, status.observation_stamp.nanosec), status)
    last = statuses[-1]
    ordered = [first[stamp] for stamp in sorted(first)]
    return {
        "sent": sent,
        "received": int(last.images_received),
        "superseded": int(last.images_superseded),
        "chunks": int(last.chunks_published),
        "chunks_heard": len(stamps),
        "node_cpu_s": cpu_s,
        "overhead_ms": [status.overhead_ms for status in ordered],
        "queued_ms": [status.stage_ms[list(status.stage_names).index("queued")] for status in ordered],
        "age_ms": [status.observation_age_s * 1e3 for status in ordered],
    }


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process, without its children: a measure that other load changes little."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--policy-ms", type=float, default=15.0, help="how long the stand-in takes")
    parser.add_argument("--checkpoint", default="", help="measure with this policy instead of the stand-in")
    parser.add_argument("--camera", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, nargs=2, default=(WIDTH, HEIGHT), help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, default=RATE_HZ, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.camera:
        camera(args.seconds, *args.size, args.rate)
        return 0
    os.environ[POLICY_MS] = str(args.policy_ms)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.update(dds_environment(os.environ))
    raw = measure(args.seconds, args.checkpoint)
    load = os.getloadavg()[0]
    priority = os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR)
    lost = raw["sent"] - raw["received"]
    print(f"policy: {args.checkpoint or f'stand-in of {args.policy_ms:g} ms'}; {os.cpu_count()} CPUs, load {load:.1f}")
    print(
        f"frames: {raw['sent']} sent, {raw['received']} received, {lost} lost in transport, "
        f"{raw['superseded']} superseded by newer ones, {raw['chunks']} chunks"
    )
    percentiles = {}
    for name in ("overhead_ms", "queued_ms", "age_ms"):
        p50, p95, p99 = np.percentile(raw[name][5:], [50, 95, 99])
        percentiles[name] = {"p50": p50, "p95": p95, "p99": p99}
        print(f"{name:12s} p50 {p50:6.2f}   p95 {p95:6.2f}   p99 {p99:6.2f}")
    print(f"CPU of policy_node without its worker: {1e3 * raw['node_cpu_s'] / raw['sent']:.2f} ms an image")
    key = args.checkpoint or "stand-in"
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    results[key] = {
        "machine": {
            "cpus": os.cpu_count(),
            "processor": processor(),
            "load_average": load,
            "real_time_priority": priority,
        },
        "lost_in_transport": lost,
        "percentiles": percentiles,
        **{k: [round(x, 3) for x in v] if isinstance(v, list) else v for k, v in raw.items()},
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(results) + "\n")
    print(f"raw results: {RESULT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
