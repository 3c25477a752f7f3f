"""Measure how fast and in how much memory recordings are replayed, without the policy's own time.

    python benchmarks/replay_throughput.py                   # frames per second, raw and JPEG, 640 x 480
    python benchmarks/replay_throughput.py --minutes 30      # and the peak memory of a whole replay of a long bag

Frames per second are of the way from the file to the observation: reading, pairing with camera_info, transforms,
projection of the gripper, conversion to RGB. The long replay goes through a policy that answers at once, in the worker
process, twice (as a reference and as a recipe), and ends with the report; its peak is ru_maxrss of the replaying
process. The bags are made here, in a temporary folder. Results: benchmarks/results/replay_throughput.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, CompressedImage
from std_msgs.msg import String
from tf2_msgs.msg import TFMessage

from sqap_vla_ros.contracts import ActionChunk, Observation, PolicyInfo, Reason, TokenSelection
from sqap_vla_ros.evaluation.replay.jobs import ReplayJob, run_job
from sqap_vla_ros.nodes.bags.bag import Bag
from sqap_vla_ros.nodes.bags.observations import BagObservations
from sqap_vla_ros.nodes.bags.spec import ReplaySpec
from sqap_vla_ros.nodes.bags.writer import BagWriter
from sqap_vla_ros.nodes.images import rgb_to_message
from sqap_vla_ros.nodes.messages import header, time_message, transform_message
from sqap_vla_ros.serving.worker import WorkerConfig

WIDTH, HEIGHT, FOCAL = 640, 480, 500.0
RATE_HZ = 10
START_NS = 1_700_000_000_000_000_000
RESULT = Path(__file__).parent / "results" / "replay_throughput.json"
_TOPICS = {"raw": "/camera/image_raw", "jpeg": "/camera/image_raw/compressed"}


class Instant:
    """A policy that answers at once, with a chunk and a selection as large as a real one's."""

    def __init__(self) -> None:
        self.info = PolicyInfo("instant", "", "instant", 0, 16, 0.2, 224, (16, 16), "none", "sqap")
        self._generator = np.random.default_rng(0)

    def reset(self) -> None:
        """Nothing is kept."""

    def predict(self, observation: Observation, *, seed: int = 0) -> ActionChunk:
        deltas = self._generator.normal(0.0, 0.01, (16, 7))
        indices = np.sort(self._generator.permutation(256)[:154]).astype(np.int32)
        selection = TokenSelection(indices, np.full(154, Reason.ATTENTION, np.uint8), (16, 16), "sqap", 3, (8, 8))
        timings = dict.fromkeys(("preprocess", "vision", "projector", "decoder", "selection", "action_head"), 0.1)
        return ActionChunk(observation.stamp_ns, deltas, 0.2, deltas, selection, {**timings, "total": 0.6}, seed)


def write_bag(path: Path, frames: int, coding: str) -> None:
    """A camera at 10 Hz, TF at 20 Hz, a tool that moves through the view."""
    generator = np.random.default_rng(0)
    pictures = [cv2.resize(generator.integers(0, 255, (24, 32, 3), dtype=np.uint8), (WIDTH, HEIGHT)) for _ in range(20)]
    jpegs = [cv2.imencode(".jpg", picture)[1].tobytes() for picture in pictures]
    info = CameraInfo(width=WIDTH, height=HEIGHT, distortion_model="plumb_bob", d=[0.1, -0.05, 0.0, 0.0, 0.0])
    info.k = [FOCAL, 0.0, WIDTH / 2, 0.0, FOCAL, HEIGHT / 2, 0.0, 0.0, 1.0]
    info.r = np.eye(3).ravel().tolist()
    info.p = [FOCAL, 0.0, WIDTH / 2, 0.0, 0.0, FOCAL, HEIGHT / 2, 0.0, 0.0, 0.0, 1.0, 0.0]
    optical = np.diag([1.0, -1.0, -1.0, 1.0])
    optical[2, 3] = 1.0
    with BagWriter(path, latched=("/tf_static", "/instruction")) as bag:
        camera = transform_message(optical, START_NS, "base_link", "camera")
        bag.write("/tf_static", START_NS, TFMessage(transforms=[camera]))
        bag.write("/instruction", START_NS, String(data="pick up the can"))
        for number in range(frames):
            stamp_ns = START_NS + number * 1_000_000_000 // RATE_HZ
            for offset_ns in (0, 50_000_000):
                tool = _tool(number / RATE_HZ + offset_ns * 1e-9)
                moving = transform_message(tool, stamp_ns + offset_ns, "base_link", "tool0")
                bag.write("/tf", stamp_ns + offset_ns, TFMessage(transforms=[moving]))
            info.header = header(stamp_ns, "camera")
            bag.write("/camera/camera_info", stamp_ns + 60_000_000, info)
            if coding == "jpeg":
                image = CompressedImage(header=info.header, format="rgb8; jpeg compressed bgr8")
                image.data.frombytes(jpegs[number % len(jpegs)])
            else:
                image = rgb_to_message(
                    pictures[number % len(pictures)], stamp=time_message(stamp_ns), frame_id="camera"
                )
            bag.write(_TOPICS[coding], stamp_ns + 60_000_000, image)


def frames_per_second(path: Path, repeats: int) -> dict[str, float]:
    """Measure reading alone, and the whole way to observations; the best of `repeats`, on one thread."""
    with Bag(path) as bag:
        count = BagObservations(bag, ReplaySpec()).image.count
    read_s = min(_seconds(lambda: _read(path)) for _ in range(repeats))
    observe_s = min(_seconds(lambda: _observe(path, count)) for _ in range(repeats))
    return {
        "frames": count,
        "reading_only_per_s": round(count / read_s, 1),
        "observations_per_s": round(count / observe_s, 1),
        "ms_per_observation": round(1e3 * observe_s / count, 3),
    }


def replay_long(path: Path, out: Path, *, video: bool) -> dict[str, float]:
    """Replay and report in this process; its peak memory, MB."""
    started_s = time.perf_counter()
    worker = WorkerConfig("", factory="replay_throughput:Instant", warmup=0)
    run_job(ReplayJob(path, ReplaySpec(), ("fp32", "sqap"), worker, out, video=video), show=False)
    return {
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "seconds": round(time.perf_counter() - started_s, 1),
        "frames_jsonl_mb": round((out / "sqap" / "frames.jsonl").stat().st_size / 1e6, 1),
        "report_html_mb": round((out / "report.html").stat().st_size / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=300, help="of the short bags (default 300); 0 leaves them out")
    parser.add_argument("--repeats", type=int, default=3, help="of every timing; the best counts (default 3)")
    parser.add_argument("--minutes", type=float, default=0.0, help="length of the long bag; 0 leaves it out")
    parser.add_argument("--video", action="store_true", help="with the overlay video of the long bag")
    parser.add_argument("--replay", nargs=2, type=Path, metavar=("BAG", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.replay:  # the measured process of the long replay: nothing else was ever loaded into it
        print(json.dumps(replay_long(*args.replay, video=args.video)))
        return
    cv2.setNumThreads(1)
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        for coding in _TOPICS if args.frames else ():
            path = Path(scratch) / coding
            write_bag(path, args.frames, coding)
            results[coding] = frames_per_second(path, args.repeats)
            print(f"{coding}: {results[coding]}")
        if args.minutes > 0:
            path = Path(scratch) / "long"
            frames = round(args.minutes * 60 * RATE_HZ)
            write_bag(path, frames, "jpeg")
            size_mb = round(sum(file.stat().st_size for file in path.iterdir()) / 1e6, 1)
            command = [sys.executable, __file__, "--replay", str(path), str(Path(scratch) / "out")]
            paths = os.pathsep.join(path for path in sys.path if path)
            done = subprocess.run(
                [*command, *(["--video"] if args.video else [])],
                env={**os.environ, "PYTHONPATH": paths},
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
            measured = json.loads(done.stdout.splitlines()[-1])
            results["long"] = {"minutes": args.minutes, "frames": frames, "bag_mb": size_mb, "video": args.video}
            results["long"] |= measured
            print(f"long: {results['long']}")
    RESULT.write_text(json.dumps(results, indent=1) + "\n")


def _tool(seconds: float) -> NDArray[np.float64]:
    pose = np.eye(4)
    pose[:3, 3] = (0.1 * np.sin(seconds), 0.1 * np.cos(seconds), 0.2)
    return pose


def _seconds(work: Callable[[], None]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def _read(path: Path) -> None:
    with Bag(path) as bag:
        for _ in bag.messages(set(bag.topics)):
            pass


def _observe(path: Path, count: int) -> None:
    with Bag(path) as bag:
        observed = sum(
            frame.observation is not None and frame.observation.gripper_pixel is not None
            for frame in BagObservations(bag, ReplaySpec())
        )
    assert observed == count, f"{observed} of {count} frames were observed with the gripper in view"


if __name__ == "__main__":
    main()
