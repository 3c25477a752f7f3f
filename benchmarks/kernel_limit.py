"""The share of the processor's limit that each kernel for CPUs reaches on the linears of a 7B decoder.

The limit is measured in the same run: a loop of the kernel's own instruction on registers alone (kernel_limit.cpp,
compiled here), before and after the products of each round; the best of these counts. A product is given quantised
activations and writes bfloat16: it packs the activations, unpacks the weights, multiplies, scales and writes. Weights
come from memory: between two turns of a product all others have had theirs. For avx2, which has no instruction for it,
the limit is that of the four that it takes.

With one thread the clock is the process's CPU time, which other processes hardly change. With more it is the wall
clock: where something else runs, only the best turn of a product says something, which is why it stands by the median.

    python benchmarks/kernel_limit.py [--repeats 11] [--threads 1 2] [--units vnni avx_vnni]

Shares by the median and by the best turn are printed; raw results go to results/kernel_limit_UNIT.json, one file for
each unit of this CPU.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from processor import processor

from sqap_vla_ros.quantization.backends.cpu import compiling
from sqap_vla_ros.quantization.backends.cpu.product import TileProduct
from sqap_vla_ros.quantization.backends.cpu.units import Unit
from sqap_vla_ros.quantization.backends.table import BACKENDS

RESULTS = Path(__file__).parent / "results"
SHAPES = ((4096, 4096), (4096, 11008), (11008, 4096))  # inputs, outputs
TOKENS = (277, 165)
SECONDS = 0.05  # of one measurement of the limit


def clock_of(threads: int) -> Callable[[], float]:
    """Return the clock for work on that many threads."""
    return time.process_time if threads == 1 else time.perf_counter


def limit_of(unit: Unit, threads: int, folder: Path) -> Callable[[], float]:
    """Return what measures the limit of a unit, in 10^12 operations a second; a multiply-add is two."""
    clock = clock_of(threads)
    compiler = next(filter(None, map(shutil.which, compiling.COMPILERS)))
    made = folder / f"{unit.name}.so"
    command = compiling.command(compiler, unit, made, source=Path(__file__).with_suffix(".cpp"))
    subprocess.run([*command, f"-I{compiling.SOURCE.parent}"], check=True)
    multiply = ctypes.CDLL(str(made)).multiply_on_registers
    multiply.restype = ctypes.c_int64
    turns = 1 << 14

    def measure() -> float:
        nonlocal turns
        while True:
            start = clock()
            pairs = multiply(ctypes.c_int64(turns), ctypes.c_int64(threads))
            seconds = clock() - start
            if seconds >= SECONDS:
                return 2 * pairs / seconds / 1e12
            turns *= 2

    return measure


def products_of(kind: type[TileProduct]) -> dict[str, tuple[TileProduct, int]]:
    """Return products with random weights of four and of eight bits, and the inputs of each."""
    products = {}
    for inputs, outputs in SHAPES:
        for bits, top in ((4, 7), (8, 127)):
            weight = torch.randint(-top, top + 1, (outputs, inputs)).to(torch.int8)
            products[f"{inputs}x{outputs}, {bits} bits"] = kind(weight, torch.full((outputs,), 0.004)), inputs
    return products


def measure(kind: type[TileProduct], threads: int, repeats: int, folder: Path) -> list[dict[str, object]]:
    """Return the limit and every product's share of it, on that many threads."""
    torch.set_num_threads(threads)
    limit, products = limit_of(kind.unit, threads, folder), products_of(kind)
    clock, limits = clock_of(threads), [0.0]
    seconds: dict[tuple[str, int], list[float]] = {(name, tokens): [] for name in products for tokens in TOKENS}
    scale = torch.full((max(TOKENS), 1), 0.01).bfloat16()
    for repeat in range(-1, repeats):
        limits.append(limit())
        for (name, tokens), times in seconds.items():
            product, inputs = products[name]
            values = torch.randint(-127, 128, (tokens, inputs)).to(torch.int8)
            start = clock()
            product(values, scale[:tokens])
            if repeat >= 0:
                times.append(clock() - start)
        limits.append(limit())
    top = max(limits)
    rows: list[dict[str, object]] = []
    for (name, tokens), times in seconds.items():
        inputs, outputs = map(int, name.split(",")[0].split("x"))
        rates = [2 * tokens * inputs * outputs / each / 1e12 for each in (statistics.median(times), min(times))]
        shares = [rate / top for rate in rates]
        rows.append(
            {
                "linear": name,
                "tokens": tokens,
                "threads": threads,
                "limit_tera_operations_per_s": top,
                "share": shares[0],
                "best_share": shares[1],
                "ms": [1e3 * each for each in times],
            }
        )
        print(
            f"{kind.unit.name:9} {threads} threads  {name:20} {tokens} tokens {1e3 * statistics.median(times):7.2f} ms"
            f"{rates[0]:6.2f} of {top:.2f} T operations/s: {shares[0]:4.0%}, best {shares[1]:4.0%}",
            flush=True,
        )
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    here = {
        backend.name: backend.make
        for backend in BACKENDS
        if isinstance(backend.make, type)
        and issubclass(backend.make, TileProduct)
        and not backend.unsupported(torch.device("cpu"))
    }
    parser.add_argument("--units", nargs="+", choices=sorted(here), default=list(here))
    args = parser.parse_args()
    for name in args.units:
        with tempfile.TemporaryDirectory() as folder:
            rows = [row for threads in args.threads for row in measure(here[name], threads, args.repeats, Path(folder))]
        machine = {"cpu": processor(), "load_average": os.getloadavg(), "torch": torch.__version__}
        out = RESULTS / f"kernel_limit_{name}.json"
        out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
