"""A day's abuse of `sqap-vla serve` in minutes: what it refuses, whether it lasts, and whether it answers as before.

    python benchmarks/serving_abuse.py [vla-eval openpi act native] [--frames 10000]

For each protocol a server of the shipped policy is started from the command line. 50 clients at once send 10,000
requests in four rounds: some are sound, the others have bytes changed or cut off, a value that is of another kind or
missing, or they break the rules of HTTP or of websockets. Meanwhile connections are cut, 20 clients do not read their
answers, and 20 send byte by byte. Before and after, 50 sound clients ask in turn with pictures and prompts of their
own.

An abuse passes if each request is answered, each refusal is a sentence without a word of Python, the log has no
traceback, memory is level in the last round and descriptors are after the first, and the 50 get what `load_policy`
predicts here, to the last bit. Memory rises before the last round: the policy keeps some for each length of prompt that
it has not met before, up to a bound. The longest prompt, which takes most, is asked before the first round.
Raw results: benchmarks/results/serving_abuse.json. Exit status 1 where an abuse does not pass.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from serving_misuse import (
    HANDSHAKES,
    HEAD,
    bad_frame,
    bad_message,
    bad_native,
    bad_request,
    form,
    instruction,
    observation,
    picture,
    png,
)
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.policies import load_policy
from sqap_vla_ros.serving.events import PredictFailed, Result
from sqap_vla_ros.serving.frames import unseal
from sqap_vla_ros.serving.remote import RemotePolicy
from sqap_vla_ros.serving.server.packing import pack, unpack
from sqap_vla_ros.serving.wire import decode

RESULT = Path(__file__).parent / "results" / "serving_abuse.json"
RECIPE = "sqap"
CLIENTS = 50
SLOW = 20  # clients that do not read, and as many that send byte by byte
ROUNDS = 4
CUTS = 250  # connections in a round
UNREAD = 10_000  # frames whose answers a slow reader leaves
LATE_S = 90.0  # by then a slow client is disconnected
LONGEST_PROMPT = 810 * "cube "  # 4,050 of the 4,096 bytes that are allowed
MOST_GROWTH_MB = 10.0  # in the last round
OPTIONS: dict[str, Any] = {"compression": None, "open_timeout": 60}
PYTHON = re.compile(
    r"Traceback|\w(Error|Exception)\b|NoneType|ndarray|object at 0x|codec|<class|<_io|__\w+__|\bb['\"]|\b(dict|str)\b"
)


class Answers:
    """Counts of what came back, and the sentences, with numbers and quotations left out."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.sentences: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def take(self, refusal: str, kind: str = "refused") -> None:
        """Count an answer. refusal: its sentence, "" for an action."""
        with self._lock:
            self.kinds[kind if refusal else "action"] += 1
            if not refusal:
                return
            bare = re.sub(r"(?<!\w)'[^']*'", "'...'", refusal)
            self.sentences[re.sub(r"\d+", "N", bare)[:160]] += 1
            if len(refusal.split()) < 3 or PYTHON.search(bare):
                self.wrong.append(refusal[:300])

    def note(self, kind: str) -> None:
        """Count what is no answer."""
        with self._lock:
            self.kinds[kind] += 1


class Server:
    """`sqap-vla serve` as a process of its own; its log is in `log`."""

    def __init__(self, log: Path) -> None:
        self.log = log
        options = ["--recipe", RECIPE, "--threads", "1", "--port", "0", "--clients", "120"]
        command = [sys.executable, "-m", "sqap_vla_ros.cli", "serve", *options]
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rsplit(":", 1)[1])
        RemotePolicy(f"ws://127.0.0.1:{self.port}", load_timeout_s=600.0).close()  # it is loaded now
        pid = self.process.pid
        self.worker = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def url(self, path: str) -> str:
        return f"ws://127.0.0.1:{self.port}{path}"

    def memory_mb(self) -> tuple[float, float]:
        """Return the resident memory of the server and of its policy's process."""
        time.sleep(1.0)
        resident = [Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in (self.process.pid, self.worker)]
        server, worker = (int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20 for pages in resident)
        return server, worker

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


# Sound clients


def expected() -> list[np.ndarray]:
    """Return the chunk [16, 7] of each sound client, predicted here."""
    torch.set_num_threads(1)
    policy = load_policy("tabletop", RECIPE)
    return [policy.predict(Observation.of(picture(n), instruction(n))).deltas for n in range(CLIENTS)]


def ask_in_turn(server: Server, target: str, chunks: list[np.ndarray]) -> int:
    """Return how many of the sound clients get exactly what is expected."""
    exact = 0
    for number, chunk in enumerate(chunks):
        got = ASK[target](server, number)
        wanted = chunk[0] if target == "act" else chunk[0].astype(np.float32) if target == "vla-eval" else chunk
        exact += got.dtype == wanted.dtype and np.array_equal(got, wanted)
    return exact


def ask_vla_eval(server: Server, number: int) -> np.ndarray:
    with connect(server.url("/vla-eval"), **OPTIONS) as connection:
        connection.send(pack(observation("vla-eval", number), keys=str))
        actions: np.ndarray = unpack(connection.recv(60))["payload"]["actions"]
        return actions


def ask_openpi(server: Server, number: int) -> np.ndarray:
    with connect(server.url("/openpi"), **OPTIONS) as connection:
        connection.recv(60)
        connection.send(pack(observation("openpi", number), keys=bytes))
        actions: np.ndarray = unpack(connection.recv(60))["actions"]
        return actions


def ask_act(server: Server, number: int) -> np.ndarray:
    body = form(png(number), json.dumps({"task_description": instruction(number)}).encode())
    status, text = post(server.port, HEAD % len(body) + body)
    assert status == 200, text
    return np.array(json.loads(text))


def ask_native(server: Server, number: int) -> np.ndarray:
    with contextlib.closing(RemotePolicy(server.url(""))) as policy:
        deltas: np.ndarray = policy.predict(Observation.of(picture(number), instruction(number))).deltas
        return deltas


ASK: Mapping[str, Callable[[Server, int], np.ndarray]] = {
    "vla-eval": ask_vla_eval,
    "openpi": ask_openpi,
    "act": ask_act,
    "native": ask_native,
}


# Unsound clients


def misuse_websocket(server: Server, target: str, count: int, answers: Answers, seed: int) -> None:
    """Send bad messages, on connections that are opened again where one is closed, and frames against the rules."""
    draw = random.Random(seed)
    sent = 0
    while sent < count:
        with connect(server.url(f"/{target}"), **OPTIONS) as connection:
            if target in ("openpi", "native"):
                connection.recv(60)  # what the policy is
            while sent < count:
                sent += 1
                if draw.random() < 0.1:
                    answers.take(break_rules(server, target, draw), "closed with a reason")
                    continue
                try:
                    connection.send(bad_native(draw) if target == "native" else bad_message(draw, target))
                    answers.take(refusal(connection, target))
                except ConnectionClosed as closed:
                    if closed.rcvd is not None and closed.rcvd.reason:
                        answers.take(f"closed: {closed.rcvd.reason}", "closed with a reason")
                    break


def refusal(connection: ClientConnection, target: str) -> str:
    """Receive an answer; return its sentence, "" for an action."""
    frame = connection.recv(60)
    if target == "openpi":
        return frame if isinstance(frame, str) else ""
    assert isinstance(frame, bytes)
    if target == "native":
        result = decode(bytes(unseal(frame)))
        assert isinstance(result, (Result, PredictFailed))
        return result.text if isinstance(result, PredictFailed) else ""
    answer = unpack(frame)
    return "" if answer["type"] == "action" else str(answer["payload"]["error"])


def break_rules(server: Server, target: str, draw: random.Random) -> str:
    """Send what is no websocket frame; return the reason with which the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60.0) as raw:
        raw.sendall(HANDSHAKES[target])
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += raw.recv(65_536)
        raw.sendall(bad_frame(draw))
        with contextlib.suppress(ConnectionError):
            while data := raw.recv(65_536):
                answer += data
    frames = answer.partition(b"\r\n\r\n")[2]
    while len(frames) > 2 and frames[0] != 0x88:  # to the frame that closes
        short = frames[1] < 126
        frames = frames[2 + frames[1] :] if short else frames[4 + int.from_bytes(frames[2:4], "big") :]
    return "closed: " + frames[4 : 2 + frames[1]].decode() if len(frames) > 4 else "?"


def misuse_act(server: Server, target: str, count: int, answers: Answers, seed: int) -> None:
    """Send bad requests, each on a connection of its own."""
    draw = random.Random(seed)
    for _ in range(count):
        status, text = post(server.port, bad_request(draw), half_close=True)
        if status == 200:
            answers.take("")
        elif text.startswith("{"):
            answers.take(json.loads(text)["error"])
        else:
            answers.take(text.strip() or "?")


def post(port: int, sent: bytes, *, half_close: bool = False) -> tuple[int, str]:
    """Send a request; return status and body of the first answer. half_close: some announce more than comes."""
    with socket.create_connection(("127.0.0.1", port), timeout=60.0) as raw:
        answer = b""
        with contextlib.suppress(ConnectionError):  # it was refused before all of it was sent
            raw.sendall(sent)
            if half_close:
                raw.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while data := raw.recv(65_536):
                answer += data
    head, _, body = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]) if head else 0, body.decode(errors="replace")


def send_slowly(server: Server, sent: bytes, answers: Answers) -> None:
    """Send a request byte by byte; the server must not wait for its end."""
    begin_s, told, answer = time.monotonic(), False, b""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=60.0) as raw:
        raw.settimeout(0.5)
        for byte in sent:
            raw.sendall(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                while data := raw.recv(1_000):
                    answer += data
                break
            if time.monotonic() - begin_s > LATE_S:
                return answers.note("slow sender kept")
        told = b"408 " in answer
    return answers.note("slow sender told and ended" if told else "slow sender ended")


def read_nothing(server: Server, path: str, answers: Answers) -> None:
    """Ask for answers and read none; the server must end the connection."""
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        raw.settimeout(LATE_S)
        raw.connect(("127.0.0.1", server.port))
        raw.sendall(HANDSHAKES[path])
        try:
            raw.sendall(UNREAD * (b"\x82\x84" + bytes(8)))  # four zeros are a native frame of nothing
            events = select.poll()
            events.register(raw, select.POLLERR | select.POLLRDHUP)  # reset, or all was delivered and then the end
            ended = bool(events.poll(LATE_S * 1e3))
        except ConnectionError:
            ended = True
        except TimeoutError:
            ended = False
    answers.note("slow reader ended" if ended else "slow reader kept")


def cut(server: Server, requests: list[bytes], count: int) -> None:
    """Open connections and break them off at any point."""
    for number in range(count):
        request = requests[number % len(requests)]
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(request[: number * 7 % len(request)])


MISUSE: Mapping[str, Callable[[Server, str, int, Answers, int], None]] = {
    "vla-eval": misuse_websocket,
    "openpi": misuse_websocket,
    "act": misuse_act,
    "native": misuse_websocket,
}


def abuse(server: Server, target: str, frames: int, chunks: list[np.ndarray]) -> dict[str, Any]:
    """Abuse the server by way of one of its protocols, in rounds; return what came of it."""
    answers = Answers()
    exact_before = ask_in_turn(server, target, chunks)
    with contextlib.closing(RemotePolicy(server.url(""))) as policy:
        policy.predict(Observation.of(picture(0), LONGEST_PROMPT))
    begin_s = time.monotonic()
    memory, descriptors = [server.memory_mb()], []
    for number in range(ROUNDS):
        clients = unsound(server, target, frames // ROUNDS, number * CLIENTS, answers)
        in_threads(clients + slow(server, target, answers, 0 if number else SLOW))
        memory.append(server.memory_mb())
        descriptors.append(server.descriptors())
    taken_s = time.monotonic() - begin_s
    left = descriptors[-1] - descriptors[0]  # threads and buffers are there after the first round
    directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with directly.open(f"http://127.0.0.1:{server.port}/health", timeout=30) as response:
        health = json.load(response)["status"]
    exact_after = ask_in_turn(server, target, chunks)
    answered = sum(answers.kinds[kind] for kind in ("action", "refused", "closed with a reason"))
    kept = answers.kinds["slow reader kept"] + answers.kinds["slow sender kept"]
    untold = SLOW - answers.kinds["slow sender told and ended"]
    grown = [after - before for before, after in zip(*memory[-2:], strict=True)]
    log = server.log.read_text()
    failures = {
        "requests without an answer": frames - answered,
        "refusals that are no sentence": len(answers.wrong),
        "slow clients kept, or not told why they are not": kept + untold,
        "sound clients answered otherwise": 2 * CLIENTS - exact_before - exact_after,
        "tracebacks in the log": log.count("Traceback"),
        "memory grown above the bound in the last round": int(max(grown) > MOST_GROWTH_MB),
        "descriptors left": max(left, 0),
        "unhealthy": int(health != "ok"),
    }
    return {
        "requests": frames,
        "seconds": round(taken_s, 1),
        "answers": dict(answers.kinds),
        "failures": failures,
        "memory_mb": {"before, after each round": {"server": [m[0] for m in memory], "policy": [m[1] for m in memory]}},
        "sound_clients": {"before": exact_before, "after": exact_after},
        "log_lines": len(log.splitlines()),
        "wrong": answers.wrong[:20],
        "sentences": dict(answers.sentences.most_common(80)),
    }


Job = tuple[Callable[..., Any], tuple[Any, ...]]


def unsound(server: Server, target: str, frames: int, seed: int, answers: Answers) -> list[Job]:
    """Return the clients that send so many requests together."""
    each = frames // CLIENTS
    return [(MISUSE[target], (server, target, each, answers, seed + number)) for number in range(CLIENTS)]


def slow(server: Server, target: str, answers: Answers, senders: int) -> list[Job]:
    """Return the clients that leave, do not read, or send byte by byte."""
    path = "openpi" if target == "act" else target
    begun = [HEAD % 1_000 + bytes(1_000), HANDSHAKES[path] + b"\x82\xff" + bytes(50)]
    jobs: list[Job] = [(cut, (server, begun, CUTS))]
    jobs += [(read_nothing, (server, path, answers)) for _ in range(SLOW)]
    return jobs + [(send_slowly, (server, begun[number % 2], answers)) for number in range(senders)]


def in_threads(jobs: list[Job]) -> None:
    threads = [threading.Thread(target=function, args=arguments) for function, arguments in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=list(MISUSE), help="vla-eval, openpi, act, native; default: all")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    if unknown := set(args.targets) - set(MISUSE):
        parser.error(f"abused are {', '.join(MISUSE)}, got {', '.join(sorted(unknown))}")
    if args.frames <= 0 or args.frames % (ROUNDS * CLIENTS):
        parser.error(f"--frames must be a multiple of {ROUNDS * CLIENTS}, got {args.frames}")
    chunks = expected()
    failed = False
    for target in args.targets:
        with tempfile.TemporaryDirectory() as folder:
            server = Server(Path(folder) / "log")
            try:
                measured = abuse(server, target, args.frames, chunks)
            finally:
                server.process.terminate()
                server.process.wait()
        results = json.loads(args.out.read_text()) if args.out.is_file() else {}
        machine = {"cpus": os.cpu_count(), "load_average": os.getloadavg()[0]}
        args.out.write_text(json.dumps(results | {target: {"machine": machine, **measured}}) + "\n")
        print(f"{target}: {measured['requests']} requests in {measured['seconds']} s: {measured['answers']}")
        print(f"  failures: {measured['failures']}; memory {measured['memory_mb']}", flush=True)
        failed = failed or any(measured["failures"].values())
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
