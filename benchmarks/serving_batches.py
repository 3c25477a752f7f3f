"""Predictions a second of `sqap-vla serve` for 1 to 8 clients, with and without batches.

    python benchmarks/serving_batches.py [--recipes fp32 sqap] [--threads 1] [--rounds 6]
    python benchmarks/serving_batches.py --bits [--recipes …]     in which batches a bit of a chunk differs; no server,
                                                                  and every recipe that docs/serving.md speaks of

Two servers of the shipped policy stand side by side, one with `--max-batch 1` and one with batches. Clients ask without
a pause and the servers take turns, a second each, so that a busy machine slows both. The CPU time of the policy's
process for each prediction is given too, as others hardly change that. Every chunk is compared with the one that was
predicted alone. fp32 gets a tolerance, without which it is predicted alone.

Raw results: benchmarks/results/serving_batches.json; recipes that are not measured keep their rows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sqap_vla_ros.contracts import BatchPolicy, Observation
from sqap_vla_ros.policies import load_policy
from sqap_vla_ros.serving.defaults import MAX_BATCH
from sqap_vla_ros.serving.remote import RemotePolicy
from sqap_vla_ros.shipped import SHIPPED

RESULT = Path(__file__).parent / "results" / "serving_batches.json"
CLIENTS = (1, 2, 4, 8)
BLOCK_S = 1.0
TOLERANCE = {"fp32": 1e-3}
MEASURED = ("fp32", "sqap")
INTEGERS = ("w4a4", "w4a8", "sqap", "sqap_w4a8", "coverage_w4a8", "qvla_w4a8")
BITS = (*INTEGERS, "fp32", "bf16", "w4a16_awq", "rtn_w8a8")
PROMPTS = ("go", "push the cube", "pick up the red cube", "put the blue cylinder on the left of the green plate")
COLOURS = ("blue", "pink", "grey", "gold", "teal", "lime", "cyan", "rust")


class Side:
    """One server and its clients, and what was measured with them."""

    def __init__(self, recipe: str, max_batch: int, threads: int, stack: contextlib.ExitStack) -> None:
        options = ["--recipe", recipe, "--port", "0", "--threads", str(threads), "--max-batch", str(max_batch)]
        if max_batch > 1:
            options += ["--batch-tolerance", str(TOLERANCE.get(recipe, 0.0))]
        command = [sys.executable, "-m", "sqap_vla_ros.cli", "serve", *options]
        server = stack.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        )
        stack.callback(server.terminate)
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        self.clients = [RemotePolicy(address, load_timeout_s=600.0) for _ in range(max(CLIENTS))]
        for client in self.clients:
            stack.callback(client.close)
        self._worker = int(Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()[0])
        self.alone = [self.clients[0].predict(one, seed=seed).normalized for seed, one in enumerate(observations())]
        self.latencies_s: list[float] = []
        self.seconds = self.cpu_s = self.largest = 0.0
        self.differ = 0

    def forget(self) -> None:
        """Begin the row of another number of clients."""
        self.latencies_s, self.seconds, self.cpu_s, self.largest, self.differ = [], 0.0, 0.0, 0.0, 0

    def block(self, count: int) -> None:
        """Let `count` clients ask for `BLOCK_S`."""
        begin_s, begin_cpu_s = time.monotonic(), cpu_s(self._worker)
        threads = [threading.Thread(target=self._ask, args=(number, begin_s + BLOCK_S)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.seconds += time.monotonic() - begin_s
        self.cpu_s += cpu_s(self._worker) - begin_cpu_s

    def row(self) -> dict[str, Any]:
        """Return the figures since `forget`."""
        count = len(self.latencies_s)
        return {
            "predictions": count,
            "predictions_per_s": count / self.seconds,
            "cpu_ms": self.cpu_s / count * 1e3,
            "p50_ms": statistics.median(self.latencies_s) * 1e3,
            "p95_ms": float(np.percentile(self.latencies_s, 95)) * 1e3,
            "differ": self.differ,
            "largest_difference": self.largest,
        }

    def _ask(self, number: int, end_s: float) -> None:
        observation = observations()[number]
        while time.monotonic() < end_s:
            begin_s = time.monotonic()
            chunk = self.clients[number].predict(observation, seed=number)
            self.latencies_s.append(time.monotonic() - begin_s)
            difference = float(np.abs(chunk.normalized - self.alone[number]).max())
            self.differ += difference != 0.0
            self.largest = max(self.largest, difference)


def observations() -> list[Observation]:
    """Return an observation for each client; the prompts have one length."""
    draw = np.random.default_rng(0)
    return [
        Observation(draw.integers(0, 256, (256, 256, 3), np.uint8), 0, f"pick up the {colour} cube", (120.0, 99.0))
        for colour in COLOURS
    ]


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(recipe: str, threads: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each number of clients."""
    with contextlib.ExitStack() as stack:
        sides = {name: Side(recipe, most, threads, stack) for name, most in (("off", 1), ("on", MAX_BATCH))}
        for count in CLIENTS:
            for side in sides.values():
                side.block(count)  # the first batch of each shape is also predicted one by one
                side.forget()
            for _ in range(rounds):
                for side in sides.values():
                    side.block(count)
            yield {"recipe": recipe, "threads": threads, "clients": count} | {n: s.row() for n, s in sides.items()}


def compare_bits(recipe: str, threads: int) -> dict[str, Any]:
    """Compare batches of 2 to `MAX_BATCH` rows, two for each prompt, with predictions made alone; print and return."""
    torch.set_num_threads(threads)
    policy = load_policy("tabletop", recipe)
    assert isinstance(policy, BatchPolicy)
    draw = np.random.default_rng(0)
    batches, differ, largest = 0, 0, 0.0
    for prompt in PROMPTS:
        pictures = SHIPPED["tabletop"].observations(3 * MAX_BATCH)
        asked = [Observation(one.image, 0, prompt, one.gripper_pixel, one.base_from_tool) for one in pictures]
        alone = [policy.predict(one, seed=seed) for seed, one in enumerate(asked)]
        for rows in 2 * list(range(2, MAX_BATCH + 1)):
            chosen = draw.choice(len(asked), rows, replace=False).tolist()
            chunks = policy.predict_batch([asked[at] for at in chosen], seeds=chosen)
            difference = max(
                float(np.abs(chunk.normalized - alone[at].normalized).max())
                for chunk, at in zip(chunks, chosen, strict=True)
            )
            batches, differ, largest = batches + 1, differ + (difference != 0.0), max(largest, difference)
    print(f"{recipe:15s} {threads} threads: {differ} of {batches} batches differ, by at most {largest:.2g}", flush=True)
    return {"recipe": recipe, "threads": threads, "batches": batches, "differ": differ, "largest_difference": largest}


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    print(
        "recipe  clients | predictions/s: one by one, batches | CPU ms each | p50 ms | chunks that differ, by at most"
    )
    for row in rows:
        off, on = row["off"], row["on"]
        print(
            f"{row['recipe']:8s}{row['clients']:7d} |"
            f" {off['predictions_per_s']:6.1f} {on['predictions_per_s']:6.1f}"
            f" ({on['predictions_per_s'] / off['predictions_per_s']:.2f} x) |"
            f" {off['cpu_ms']:5.1f} {on['cpu_ms']:5.1f} | {off['p50_ms']:5.0f} {on['p50_ms']:5.0f} |"
            f" {on['differ']} of {on['predictions']}, {on['largest_difference']:.2g}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+")
    parser.add_argument("--bits", action="store_true", help="compare predictions without a server")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    results = json.loads(RESULT.read_text()) if RESULT.is_file() else {"rows": [], "bits": []}
    kind = "bits" if args.bits else "rows"
    for recipe in args.recipes or (BITS if args.bits else MEASURED):
        if args.bits:
            rows = [compare_bits(recipe, args.threads)]
        else:
            rows = list(measure(recipe, args.threads, args.rounds))
            show(rows)
            results["machine"] = {"cpus": os.cpu_count(), "load_average": os.getloadavg()[0]}
            results["max_batch"] = MAX_BATCH
        kept = [row for row in results[kind] if (row["recipe"], row["threads"]) != (recipe, args.threads)]
        results[kind] = kept + rows
        RESULT.write_text(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
