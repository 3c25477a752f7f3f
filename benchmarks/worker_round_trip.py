"""Time between handing an observation to the worker process and having the chunk back, for a policy that takes no time.

Prints the median and the 95th percentile for three image sizes, and what encoding and decoding a result take of
it (CPU time, so that a busy computer does not count).
"""

from __future__ import annotations

import time
import timeit

import numpy as np

from sqap_vla_ros.contracts import ActionChunk, Observation, PolicyInfo, Reason, TokenSelection
from sqap_vla_ros.serving import wire
from sqap_vla_ros.serving.events import Ready, Result
from sqap_vla_ros.serving.worker import PolicyWorker, WorkerConfig

ROUNDS = 500
PERIOD_S = 0.01
SIZES = ((224, 224), (480, 640), (1080, 1920))
TOKENS = 154
STAGES = ("preprocess", "vision", "decoder", "diffusion", "total")


class Immediate:
    """Answers every observation with the same chunk, of the size that CogACT's have."""

    info = PolicyInfo("none", "0" * 64, "fp32", 0, 16, 0.2, 224, (16, 16), "none", "sqap")

    def predict(self, observation: Observation, *, seed: int = 0) -> ActionChunk:
        selection = TokenSelection(
            np.arange(TOKENS, dtype=np.int32), np.full(TOKENS, Reason.SPATIAL, np.uint8), (16, 16), "sqap", 2, (3, 4)
        )
        timings = dict.fromkeys(STAGES, 1.0)
        return ActionChunk(
            observation.stamp_ns, np.full((16, 7), 0.01), 0.2, np.full((16, 7), 0.1), selection, timings, seed
        )

    def reset(self) -> None:
        pass


def policy() -> Immediate:
    return Immediate()


def main() -> None:
    worker = PolicyWorker(WorkerConfig("none", factory="worker_round_trip:policy"))
    worker.start()

    def wait_for(kind: type[Ready | Result]) -> Ready | Result:
        while True:
            for event in worker.wait():
                if isinstance(event, kind):
                    return event

    wait_for(Ready)
    for height, width in SIZES:
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        taken_ms, submit_ms = [], []
        for number in range(ROUNDS):
            observation = Observation(image, number, "pick up the red cube", (3.0, 4.0), np.eye(4))
            begin = time.perf_counter()
            worker.submit(observation)
            submit_ms.append((time.perf_counter() - begin) * 1e3)
            result = wait_for(Result)
            taken_ms.append((time.perf_counter() - begin) * 1e3)
            time.sleep(PERIOD_S)
        (p50, p95), submit = np.percentile(taken_ms, (50, 95)), np.percentile(submit_ms, 50)
        print(f"{width:4d} x {height:4d}: round trip p50 {p50:.2f} ms, p95 {p95:.2f} ms; submit p50 {submit:.2f} ms")
    worker.close()

    packet = wire.encode(result)
    for name, function in (("encode", lambda: wire.encode(result)), ("decode", lambda: wire.decode(packet))):
        seconds = min(timeit.repeat(function, timer=time.process_time, number=200, repeat=5)) / 200
        print(f"{name} a result of {len(packet)} bytes: {seconds * 1e6:.0f} us of CPU")


if __name__ == "__main__":
    main()
