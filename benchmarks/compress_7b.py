"""Compresses a random checkpoint of the full CogACT-Base geometry, in the published format, in 24 GB of memory.

Each phase is a process of its own, so that its peak resident memory is its own:

* `write`: the checkpoint (bf16, 15 GB) with weights that keep the activations' variance;
* `first`: `--recipe` (GPTQ on calibration observations) until layer `--layers` - 1 is on disk, then killed as a power
  cut would;
* `resumed`: the same command again; it goes on with the next layer, and is stopped after one more;
* `whole`: `--whole-recipe` through all 32 layers to the finished file;
* `load`: that file loaded, one prediction.

    python benchmarks/compress_7b.py --folder /somewhere/with/40/GB [--layers 1] [--observations 2] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoint_7b import peak_gib, write

from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.job import compress_to_file
from sqap_vla_ros.compression.load import load_policy, load_uncompressed
from sqap_vla_ros.compression.recipe import load_recipe

RESULTS = Path(__file__).parent / "results" / "compress_7b.json"


def compress(checkpoint: Path, recipe_name: str, out: Path, observations: int, layers: int | None) -> None:
    """Prints a line of JSON after loading and after every layer; dies without a word after `layers` of them."""
    started = time.perf_counter()
    recipe = load_recipe(recipe_name)
    policy = load_uncompressed(str(checkpoint), recipe)
    print(json.dumps({"loaded_s": time.perf_counter() - started, "peak_gib": peak_gib()}), flush=True)
    last = [time.perf_counter(), time.process_time()]
    done = 0

    def after_layer(index: int) -> None:
        nonlocal done
        now = [time.perf_counter(), time.process_time()]
        row = {"layer": index, "s": now[0] - last[0], "cpu_s": now[1] - last[1], "peak_gib": peak_gib()}
        print(json.dumps(row), flush=True)
        last[:] = now
        done += 1
        if done == layers:
            os.kill(os.getpid(), signal.SIGKILL)

    calibration = synthetic_observations(observations) if recipe.quantization and observations else []
    compress_to_file(policy, recipe, calibration, out, after_layer=after_layer)
    print(json.dumps({"written_s": time.perf_counter() - last[0], "file_gib": out.stat().st_size / 2**30}), flush=True)


def load(path: Path) -> dict[str, Any]:
    """The compressed policy, loaded and used once."""
    started = time.perf_counter()
    policy = load_policy(str(path))
    seconds, loaded = time.perf_counter() - started, peak_gib()
    chunk = policy.predict(synthetic_observations(1)[0])
    if not np.isfinite(chunk.normalized).all():
        raise SystemExit("the prediction is not finite")
    return {
        "seconds": seconds,
        "peak_gib": loaded,
        "peak_gib_with_prediction": peak_gib(),
        "first_prediction_ms": dict(chunk.timings_ms),
    }


def main() -> None:
    """Runs the phases, prints, writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where about 40 GB may be written for a while")
    parser.add_argument("--recipe", default="sqap", help="calibrated recipe of the first layers")
    parser.add_argument("--whole-recipe", default="w4a4_rotated", help="recipe that goes through all layers")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--observations", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint in the folder, and use one there")
    parser.add_argument("--phase", choices=["write", "compress", "load"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    checkpoint = args.folder / "checkpoint"
    if args.phase == "write":
        print(json.dumps(write(checkpoint)))
    elif args.phase == "compress":
        compress(checkpoint, args.recipe, args.out, args.observations, args.layers or None)
    elif args.phase == "load":
        print(json.dumps(load(args.out)))
    if args.phase:
        return

    def phase(name: str, *arguments: str) -> list[dict[str, Any]]:
        command = [sys.executable, __file__, "--folder", str(args.folder), "--threads", str(args.threads), *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode not in (0, -signal.SIGKILL):
            raise SystemExit(f"{name} failed with status {done.returncode}")
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        print(name, json.dumps(rows), flush=True)
        return rows

    args.folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "cpu": platform.processor() or platform.machine(),
        "threads": args.threads,
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "recipe": args.recipe,
        "observations": args.observations,
        "whole_recipe": args.whole_recipe,
    }
    try:
        if not checkpoint.exists():
            results["write"] = phase("write", "--phase", "write")
        first = args.folder / "first.safetensors"
        calibrated = ("--phase", "compress", "--recipe", args.recipe, "--observations", str(args.observations))
        results["first"] = phase("first", *calibrated, "--layers", str(args.layers), "--out", str(first))
        results["resumed"] = phase("resumed", *calibrated, "--layers", "1", "--out", str(first))
        shutil.rmtree(first.with_name(first.name + ".partial"))
        whole = args.folder / "whole.safetensors"
        cheap = ("--phase", "compress", "--recipe", args.whole_recipe, "--observations", "0", "--layers", "0")
        results["whole"] = phase("whole", *cheap, "--out", str(whole))
        results["load"] = phase("load", "--phase", "load", "--out", str(whole))
    finally:
        if not args.keep:
            shutil.rmtree(args.folder)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
