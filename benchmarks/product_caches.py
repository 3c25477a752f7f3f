"""Measure what bounding PyTorch's caches of compiled products saves in memory, and whether it costs time.

A process for each capacity loads `tabletop` with `sqap` on one thread, predicts prompts of 1 to 29 words and batches of
up to four of them, and is measured then: memory, and medians of a prompt asked again and again, of one prompt of each
length, and of four random ones together. 1,024 is the libraries' default, 128 that of the policy's process.

    python benchmarks/product_caches.py
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.policies import load_policy
from sqap_vla_ros.policy.cogact import CogACTPolicy
from sqap_vla_ros.serving.worker_process import PRODUCT_CACHES

RESULT = Path(__file__).parent / "results" / "product_caches.json"
CAPACITIES = (1024, 128, 64, 16)
LENGTHS = range(1, 30)  # words
REPEATS = 25


def measure() -> dict[str, float]:
    """Return memory in MB and times in ms of this process."""
    policy = cast(CogACTPolicy, load_policy("tabletop", "sqap"))
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    draw = random.Random(0)

    def prompt(words: int) -> Observation:
        return Observation.of(image, "cube " * words)

    def some(count: int) -> list[Observation]:
        return [prompt(draw.choice(LENGTHS)) for _ in range(count)]

    def median_ms(calls: Sequence[Callable[[], object]]) -> float:
        times = []
        for call in calls:
            begin_s = time.perf_counter()
            call()
            times.append((time.perf_counter() - begin_s) * 1e3)
        return round(statistics.median(times), 1)

    for words in LENGTHS:
        policy.predict(prompt(words))
    for _ in range(60):
        policy.predict_batch(some(draw.randint(1, 4)))
    again = [lambda: policy.predict(prompt(6))] * (REPEATS + 5)
    found = {
        "one prompt again, ms": median_ms(again[5:]),
        "each length, ms": median_ms([partial(policy.predict, prompt(words)) for words in LENGTHS]),
        "four random together, ms": median_ms([lambda: policy.predict_batch(some(4))] * REPEATS),
    }
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return found | {"memory, MB": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)}


def main() -> None:
    """Measure each capacity in a process of its own, print, store."""
    if sys.argv[1:] == ["here"]:
        print(json.dumps(measure()))
        return
    rows = {}
    for capacity in CAPACITIES:
        environment = os.environ | dict.fromkeys(PRODUCT_CACHES, str(capacity)) | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "here"]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        rows[capacity] = json.loads(done.stdout.splitlines()[-1])
        print(capacity, rows[capacity], flush=True)
    RESULT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
