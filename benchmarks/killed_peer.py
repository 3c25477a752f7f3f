"""Count how often a ROS node's process crashes when it shuts down beside a peer that was killed by SIGKILL.

In each round a node starts, hears images of a peer in another process, and ends: after the peer was killed, before it
is killed, or after the peer has ended by itself. Each order runs in a process beside others that compute, which is
started again after a crash. Also says what a killed peer leaves in shared memory. With Fast DDS 3.2.3 the crash is a
segmentation fault in its SharedMemChannelResource::release.

    python benchmarks/killed_peer.py
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import rclpy
from rclpy.node import Node
from sensor_msgs.msg import Image
from tqdm import tqdm

from sqap_vla_ros.nodes.launch.table import dds_environment
from sqap_vla_ros.nodes.spinning import SpinThread

RESULT = Path(__file__).parent / "results" / "killed_peer.json"
ORDERS = ("after the peer was killed", "before the peer is killed", "after the peer has ended")
DOMAIN = 97  # of DDS, with nobody else in it
TOPICS = 9  # of the peer
MESSAGE = Image(height=120, width=160, step=480, data=bytes(120 * 480))
IMAGES = 20  # heard before a round goes on
START_S = 20.0
SHARED = Path("/dev/shm")


def started(name: str) -> tuple[rclpy.Context, Node]:
    context = rclpy.Context()
    rclpy.init(context=context)
    return context, Node(name, context=context)


def peer() -> None:
    """Publish images until standard input ends."""
    context, node = started("peer")
    publishers = [node.create_publisher(Image, f"image_{number}", 5) for number in range(TOPICS)]
    node.create_subscription(Image, "back", lambda message: None, 5)
    node.create_timer(0.002, lambda: [publisher.publish(MESSAGE) for publisher in publishers])
    with SpinThread(node):
        sys.stdin.read()
    context.try_shutdown()


def rounds(order: str, first: int, last: int) -> None:
    """Run rounds, and print a line after each that ended well."""
    delays = np.random.default_rng(0).uniform(0.0, 0.1, last)
    for number in range(first, last):
        context, node = started("survivor")
        heard: list[Image] = []
        for topic in range(TOPICS):
            node.create_subscription(Image, f"image_{topic}", heard.append, 5)
        back = node.create_publisher(Image, "back", 5)
        node.create_timer(0.01, functools.partial(back.publish, MESSAGE))
        spinning = SpinThread(node)
        other = subprocess.Popen([sys.executable, __file__, "--peer"], stdin=subprocess.PIPE)
        assert other.stdin is not None
        deadline_s = time.monotonic() + START_S
        while len(heard) < IMAGES:
            assert time.monotonic() < deadline_s, f"the peer was not heard within {START_S:g} s"
            time.sleep(0.01)
        time.sleep(delays[number])
        if order == ORDERS[0]:
            other.kill()
            other.wait()
        elif order == ORDERS[2]:
            other.stdin.close()
            other.wait()
        spinning.close()
        context.try_shutdown()
        other.kill()
        other.wait()
        print(number, flush=True)


def segments() -> dict[str, int]:
    return {path.name: path.stat().st_size for path in SHARED.glob("fastdds_*") if "port" not in path.name}


def measure(count: int, results: dict[str, dict[str, object]]) -> None:
    for order in ORDERS:
        before = segments()
        done, crashes = 0, []
        with tqdm(total=count, desc=order, unit="round") as bar:
            while done < count:
                command = [sys.executable, __file__, "--one", order, str(done), str(count)]
                with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
                    assert process.stdout is not None
                    for _ in process.stdout:
                        done += 1
                        bar.update()
                if process.returncode:
                    crashes.append(process.returncode)
                    done += 1
                    bar.update()
        left = [size for name, size in segments().items() if name not in before]
        largest_mb = round(max(left, default=0) / 1e6)
        results[order] = {"rounds": count, "crashes": crashes, "largest_left_mb": largest_mb}
        said = f"{len(crashes)} crashes in {count} rounds (exit status {sorted(set(crashes))})"
        print(f"{order}: {said}, largest segment left {largest_mb} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="of each order (40)")
    parser.add_argument("--busy", type=int, default=4, help="processes that compute meanwhile (4)")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.update(ROS_DOMAIN_ID=str(DOMAIN), ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST")
    os.environ.update(dds_environment(os.environ))
    if args.peer:
        return peer()
    if args.one:
        return rounds(args.one[0], int(args.one[1]), int(args.one[2]))
    results: dict[str, dict[str, object]] = {}
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.busy)]
    try:
        measure(args.rounds, results)
    finally:
        for process in busy:
            process.kill()
    RESULT.write_text(json.dumps({"busy": args.busy, **results}, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
