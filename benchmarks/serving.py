"""Overhead of serving on loopback, by protocol, for a policy that takes no time.

    python benchmarks/serving.py

Raw results: benchmarks/results/serving.json. What the server withstands: serving_abuse.py.
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
from websockets.sync.client import connect

from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.serving.remote import RemotePolicy
from sqap_vla_ros.serving.server.packing import pack, unpack

ROUNDS = 300
RESULT = Path(__file__).parent / "results" / "serving.json"
IMAGE = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
SERVER = """
import asyncio, sys
from sqap_vla_ros.robot.interchange.action_space import ActionSpace
from sqap_vla_ros.serving.server.engine import Engine
from sqap_vla_ros.serving.server.episode import ChunkUse
from sqap_vla_ros.serving.server.observations import ObservationReader
from sqap_vla_ros.serving.server.protocols import Service
from sqap_vla_ros.serving.server.server import ServerConfig, listening
from sqap_vla_ros.serving.worker import PolicyWorker, WorkerConfig

async def main():
    times = dict(prediction_timeout_s=30, load_timeout_s=60, patience_s=25)
    config = WorkerConfig("none", factory="worker_round_trip:policy")
    engine = Engine(lambda notify: PolicyWorker(config, notify), **times)
    service = Service(engine, ObservationReader(), ActionSpace(), ChunkUse(horizon=1))
    async with listening(service, ServerConfig(port=0)) as port:
        print(port, flush=True)
        await engine.run()
asyncio.run(main())
"""


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        RemotePolicy(f"ws://127.0.0.1:{port}").close()  # it is loaded now
        write("overhead", overhead(port))
    finally:
        process.kill()
        process.wait()


def write(name: str, measured: dict[str, Any]) -> None:
    """Put the figures into the file of results, beside the others."""
    results = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    real_time = os.sched_getscheduler(0) != os.SCHED_OTHER  # started with chrt, because others were at work
    machine = {"cpus": os.cpu_count(), "load_average": os.getloadavg()[0], "real_time_priority": real_time}
    RESULT.write_text(json.dumps(results | {name: {"machine": machine, **measured}}) + "\n")


def overhead(port: int) -> dict[str, Any]:
    """Measure what a prediction takes beyond the policy's own time."""
    remote = RemotePolicy(f"ws://127.0.0.1:{port}")
    observation = Observation(IMAGE, 5, "pick up the red cube", (100.0, 120.0), np.eye(4))

    def native() -> float:
        remote.predict(observation)
        assert remote.round_trip is not None
        return (remote.round_trip.total_s - remote.round_trip.policy_s) * 1e3

    rows = {"native": report("native", [native() for _ in range(ROUNDS)])}
    with connect(f"ws://127.0.0.1:{port}/openpi", compression=None, proxy=None) as connection:
        connection.recv()
        frame = pack({"observation/image": IMAGE, "prompt": "pick"}, keys=bytes)
        rows["openpi"] = report("openpi", [_exchange(connection, frame) for _ in range(ROUNDS)])
    with connect(f"ws://127.0.0.1:{port}/vla-eval", compression=None, proxy=None) as connection:
        payload = {"images": {"agentview": IMAGE}, "task_description": "pick"}
        frame = pack({"type": "observation", "payload": payload, "seq": 1, "timestamp": 0.0}, keys=str)
        rows["vla-eval"] = report("vla-eval", [_exchange(connection, frame) for _ in range(ROUNDS)])
    return rows


def _exchange(connection, frame: bytes) -> float:
    begin = time.perf_counter()
    connection.send(frame)
    answer = unpack(connection.recv())
    assert "actions" in answer or "actions" in answer["payload"]
    return (time.perf_counter() - begin) * 1e3


def report(name: str, taken_ms: list[float]) -> dict[str, Any]:
    """Print and return the percentiles."""
    p50, p95 = np.percentile(taken_ms, (50, 95))
    print(f"{name:>8}: overhead of a 256 x 256 image p50 {p50:.2f} ms, p95 {p95:.2f} ms")
    time.sleep(0.2)
    return {"p50_ms": p50, "p95_ms": p95, "taken_ms": [round(ms, 3) for ms in taken_ms]}


if __name__ == "__main__":
    main()
