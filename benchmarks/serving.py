"""Overhead of serving on loopback, and a day's abuse of the server in minutes.

    python benchmarks/serving.py                      overhead by protocol, for a policy that takes no time
    python benchmarks/serving.py --abuse [openpi …]   10,000 malformed frames or requests each of vla-eval, openpi and
                                                      POST /act, cut connections, slow readers and senders, 50 clients

Exit status 1 when an abuse is not answered as it should be, or memory grows.
Raw results: benchmarks/results/serving.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import select
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.serving.remote import RemotePolicy
from sqap_vla_ros.serving.server.packing import pack, unpack

ROUNDS = 300
FRAMES = 10_000
CLIENTS = 50
OPEN: dict[str, Any] = {"compression": None, "open_timeout": 60}
SLOW_READERS = SLOW_SENDERS = 20
UNREAD = 10_000  # frames whose answers a slow reader leaves
RESULT = Path(__file__).parent / "results" / "serving.json"
MOST_GROWTH_MB = 20.0
IMAGE = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
HANDSHAKE = (
    b"GET /openpi HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
HEAD = b"POST /act HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=XX\r\nContent-Length: %d\r\n\r\n"
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
    async with listening(service, ServerConfig(port=0, most_clients=120, send_s=2.0, request_s=10.0)) as port:
        print(port, flush=True)
        await engine.run()
asyncio.run(main())
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--abuse", nargs="*", choices=list(MISTREAT), help="what is abused; all by default")
    args = parser.parse_args()
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        RemotePolicy(f"ws://127.0.0.1:{port}").close()  # it is loaded now
        if args.abuse is None:
            write("overhead", overhead(port))
            return 0
        failed = False
        for target in args.abuse or MISTREAT:
            measured = abuse(port, process.pid, target)
            write(f"abuse of {target}", measured)
            failed = failed or measured["failed"]
        return int(failed)
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
    with connect(f"ws://127.0.0.1:{port}/openpi", compression=None) as connection:
        connection.recv()
        frame = pack({"observation/image": IMAGE, "prompt": "pick"}, keys=bytes)
        rows["openpi"] = report("openpi", [_exchange(connection, frame) for _ in range(ROUNDS)])
    with connect(f"ws://127.0.0.1:{port}/vla-eval", compression=None) as connection:
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


def abuse(port: int, pid: int, target: str) -> dict[str, Any]:
    """Abuse the server by way of one of its protocols; return what came of it."""
    mistreat = MISTREAT[target]
    answers: Counter[str] = Counter()
    mistreat(port, FRAMES // 10, answers, 0)  # what is allocated once
    cut(port, 100)
    in_threads([threading.Thread(target=read_nothing, args=(port, answers)) for _ in range(SLOW_READERS)])
    before_mb = memory_mb(pid)
    answers.clear()
    threads = [threading.Thread(target=mistreat, args=(port, FRAMES // CLIENTS, answers, n)) for n in range(CLIENTS)]
    begin = time.monotonic()
    threads.append(threading.Thread(target=cut, args=(port, 500)))
    threads += [threading.Thread(target=read_nothing, args=(port, answers)) for _ in range(SLOW_READERS)]
    threads += [threading.Thread(target=send_slowly, args=(port, answers)) for _ in range(SLOW_SENDERS)]
    in_threads(threads)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30) as response:
        health = json.load(response)["status"]
    grown_mb = memory_mb(pid) - before_mb
    fds = len(os.listdir(f"/proc/{pid}/fd"))
    taken_s = time.monotonic() - begin
    frames = sum(count for kind, count in answers.items() if not kind.startswith("slow "))
    print(f"{target}: {frames} frames in {taken_s:.0f} s: {dict(answers)}; health {health}")
    print(f"memory {before_mb:.0f} MB, grown by {grown_mb:.1f} MB; {fds} descriptors open")
    kept = answers["slow reader kept"] + answers["slow sender kept"]
    bad = health != "ok" or answers["no sentence"] or kept or frames != FRAMES or grown_mb > MOST_GROWTH_MB
    return {
        "frames": frames,
        "seconds": taken_s,
        "answers": dict(answers),
        "health": health,
        "memory_mb": before_mb,
        "grown_mb": grown_mb,
        "descriptors": fds,
        "failed": bool(bad),
    }


def in_threads(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def damaged(good: bytes, draw: random.Random) -> bytes:
    """Return the bytes with a few of them changed, most near the beginning, half the time cut off, or as they are."""
    if draw.random() < 0.05:
        return good
    frame = bytearray(good)
    for _ in range(draw.randint(1, 8)):
        frame[draw.randrange(min(120, len(frame)) if draw.random() < 0.8 else len(frame))] = draw.randrange(256)
    return bytes(frame[: draw.choice((len(frame), draw.randrange(len(frame))))])


def mistreat_vla_eval(port: int, count: int, answers: Counter[str], seed: int) -> None:
    """Send damaged frames; every one must be answered, and with a sentence where it is refused."""
    payload = {"images": {"agentview": IMAGE[:16, :16]}, "task_description": "pick"}
    good = pack({"type": "observation", "payload": payload, "seq": 1, "timestamp": 0.0}, keys=str)
    for frame in exchange_damaged(port, "/vla-eval", good, count, seed):
        answer = unpack(frame)
        count_answer(answers, "" if answer["type"] == "action" else answer["payload"]["error"])


def mistreat_openpi(port: int, count: int, answers: Counter[str], seed: int) -> None:
    """Do the same as an openpi client, which gets its sentences as text."""
    good = pack({"observation/image": IMAGE[:16, :16], "prompt": "pick"}, keys=bytes)
    for frame in exchange_damaged(port, "/openpi", good, count, seed, greeted=True):
        count_answer(answers, frame if isinstance(frame, str) else "")


def mistreat_act(port: int, count: int, answers: Counter[str], seed: int) -> None:
    """Do the same with `POST /act`, each request on a connection of its own, a fifth of them with a damaged head."""
    draw = random.Random(seed)
    picture = io.BytesIO()
    Image.fromarray(IMAGE[:16, :16]).save(picture, "PNG")
    parts = (("images", picture.getvalue()), ("json", b'{"task_description": "pick"}'))
    disposition = 'Content-Disposition: form-data; name="{}"; filename="f"\r\n\r\n'
    body = b"".join(b"--XX\r\n" + disposition.format(name).encode() + part + b"\r\n" for name, part in parts)
    body += b"--XX--\r\n"
    for _ in range(count):
        sent = damaged(body, draw)
        head = HEAD % len(sent)
        head_damaged = draw.random() < 0.2
        if head_damaged:
            head = b"POST " + damaged(head[5:], draw)
        with socket.create_connection(("127.0.0.1", port), timeout=60.0) as raw:
            answer = b""
            with contextlib.suppress(ConnectionError):  # it was refused before all of it was sent
                raw.sendall(head + sent)
                if head_damaged:
                    raw.shutdown(socket.SHUT_WR)  # it may announce more than comes
            with contextlib.suppress(ConnectionError):
                while data := raw.recv(65_536):
                    answer += data
        status, _, rest = answer.partition(b"\r\n")
        if not answer:
            answers["left, no answer" if head_damaged else "no sentence"] += 1
        elif b" 200 " in status:
            count_answer(answers, "")
        else:
            text = rest.partition(b"\r\n\r\n")[2]
            count_answer(answers, json.loads(text)["error"] if text.startswith(b"{") else "?")


def exchange_damaged(
    port: int, path: str, good: bytes, count: int, seed: int, *, greeted: bool = False
) -> Iterator[str | bytes]:
    """Send damaged frames over websockets, opened again where one is closed; yield the answers."""
    draw = random.Random(seed)
    sent = 0
    while sent < count:
        with contextlib.suppress(ConnectionClosed), connect(f"ws://127.0.0.1:{port}{path}", **OPEN) as connection:
            if greeted:
                connection.recv(timeout=60)
            while sent < count:
                sent += 1
                connection.send(damaged(good, draw))
                yield connection.recv(timeout=60)


def count_answer(answers: Counter[str], refusal: str) -> None:
    """Count an answer. refusal: the sentence of a refused frame, "" for an action."""
    answers["action" if not refusal else "sentence" if len(refusal) > 10 else "no sentence"] += 1


MISTREAT: dict[str, Callable[[int, int, Counter[str], int], None]] = {
    "vla-eval": mistreat_vla_eval,
    "openpi": mistreat_openpi,
    "act": mistreat_act,
}


def send_slowly(port: int, answers: Counter[str]) -> None:
    """Send a request byte by byte; the server must not wait for its end."""
    begin_s = time.monotonic()
    kept = True
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.5) as raw:
        for byte in HEAD % 1_000 + bytes(1_000):
            raw.sendall(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                if not raw.recv(1_000):
                    break
            if time.monotonic() - begin_s > 40.0:
                raise TimeoutError
        kept = False
    kept = kept and time.monotonic() - begin_s > 40.0
    answers["slow sender kept" if kept else "slow sender ended"] += 1


def read_nothing(port: int, answers: Counter[str]) -> None:
    """Ask for answers and read none; the server must end the connection."""
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        raw.settimeout(60.0)
        raw.connect(("127.0.0.1", port))
        raw.sendall(HANDSHAKE)
        try:
            raw.sendall(UNREAD * b"\x82\x80\x00\x00\x00\x00")
            events = select.poll()
            events.register(raw, select.POLLERR)
            ended = bool(events.poll(60_000))
        except ConnectionError:
            ended = True
        except TimeoutError:
            ended = False
    answers["slow reader ended" if ended else "slow reader kept"] += 1


def cut(port: int, count: int) -> None:
    """Open connections and break them off at any point."""
    head = HANDSHAKE + b"\x82\xff" + bytes(50)
    for number in range(count):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(head[: number * 7 % len(head)])


def memory_mb(pid: int) -> float:
    time.sleep(1.0)
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    sys.exit(main())
