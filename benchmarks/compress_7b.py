"""Compresses a random checkpoint of the CogACT-Base geometry at full width, and says what memory and time that takes.

Each phase is a process of its own, so that its peak resident memory is its own:

* `write`: a checkpoint in bf16 with `--depth` decoder layers (the published model has 32: 15 GB);
* `first`: `--recipe` with GPTQ on calibration observations, until one layer is on disk, then killed as by a power cut.
  A recipe that looks at the action (`qvla_w4a8`) scores all layers first, which counts by itself;
* `resumed`: the same command again, which goes on with the second layer and finishes the file;
* `load`: that file loaded, one prediction;
* `observation`: what one more calibration observation adds to scoring one layer, where the recipe scores.

Layers stay in the checkpoint file until their turn and leave memory afterwards, so the peak is that of one layer
whatever the depth (the file's pages aside, which the system takes back when it needs them); time goes with the depth.

    python benchmarks/compress_7b.py --folder /somewhere/large [--depth 4] [--observations 2] [--threads 2]
    python benchmarks/compress_7b.py --folder /somewhere/large --recipe qvla_w4a8 --depth 2 --observations 4

Results go to results/compress_7b.json, those of another recipe than w4a4 to results/compress_7b_RECIPE.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoint_7b import fill_randomly, peak_gib
from processor import processor

from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.files.job import compress_to_file
from sqap_vla_ros.compression.layer_work import rotary_of
from sqap_vla_ros.compression.load import load_policy, load_uncompressed
from sqap_vla_ros.compression.recipe import RowBits, load_recipe
from sqap_vla_ros.compression.sensitivity.backward import layer_moments
from sqap_vla_ros.policy.actions import ActionStatistics
from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
from sqap_vla_ros.policy.cogact import CogACT, CogACTPolicy
from sqap_vla_ros.policy.config import COGACT_BASE
from sqap_vla_ros.policy.decoder import Decoder
from sqap_vla_ros.policy.micro.tokenizer import build
from sqap_vla_ros.policy.prompt import PromptTokenizer

RESULTS = Path(__file__).parent / "results"
PROMPT_TOKENS = 21  # of a usual instruction


def write(path: Path, depth: int) -> dict[str, float]:
    """A checkpoint of our one-file form, random weights that keep the activations' variance."""
    started = time.perf_counter()
    config = COGACT_BASE.replace(name=f"cogact-base, {depth} layers", decoder=replace(COGACT_BASE.decoder, depth=depth))
    with torch.device("meta"):
        model = CogACT(config)
    fill_randomly(model)
    bound = np.array([0.02] * 3 + [0.1] * 3 + [1.0])
    statistics = ActionStatistics(-bound, bound, np.array([True] * 6 + [False]), dt_s=0.2)
    tokenizer = PromptTokenizer(config.prompt, config.decoder.vocabulary, "tokenizer.json", build().to_str().encode())
    save_checkpoint(CogACTPolicy(model, tokenizer, {"random": statistics}), path)
    return {"seconds": time.perf_counter() - started, "file_gib": path.stat().st_size / 2**30}


def compress(checkpoint: Path, recipe_name: str, out: Path, observations: int, layers: int | None) -> None:
    """Prints a line of JSON after loading and after every layer; dies without a word after `layers` of them."""
    started = time.perf_counter()
    recipe = load_recipe(recipe_name)
    policy = load_uncompressed(str(checkpoint), recipe, layers_in_file=True)
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

    def scoring(stage: str, layer: int, _: int) -> None:
        if stage != "scoring decoder layers":
            return
        now = [time.perf_counter(), time.process_time()]
        row = {"before_scoring": layer, "s": now[0] - last[0], "cpu_s": now[1] - last[1], "peak_gib": peak_gib()}
        print(json.dumps(row), flush=True)
        last[:] = now

    calibration = synthetic_observations(observations)
    compress_to_file(policy, recipe, calibration, out, progress=scoring, after_layer=after_layer)
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


def observation() -> dict[str, float]:
    """Return the CPU seconds that one more observation adds to a layer: one that is fitted to, and one that judges."""
    decoder = Decoder(replace(COGACT_BASE.decoder, depth=1, vocabulary=8)).requires_grad_(False)
    layer, tokens = decoder.layers[0], COGACT_BASE.vision.tokens + PROMPT_TOKENS
    hidden, *cotangents = (torch.randn(1, tokens, COGACT_BASE.decoder.width) for _ in range(1 + RowBits.probes))
    changed = {
        name: dict.fromkeys(RowBits.widths, COGACT.linear(layer, name).weight.detach()) for name in COGACT.linears
    }
    seconds = {}
    for kind, more in (("fitted_cpu_s", {}), ("judged_cpu_s", {"deltas": changed, "second": False})):
        started = time.process_time()
        layer_moments(layer, [hidden], [cotangents], rotary_of(decoder), **more)
        seconds[kind] = time.process_time() - started
    return seconds


def main() -> None:
    """Runs the phases, prints, writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where twice the checkpoint may be written")
    parser.add_argument("--depth", type=int, default=32, help="decoder layers")
    parser.add_argument("--recipe", default="w4a4", help="`sqap` quantises the same way and needs four layers")
    parser.add_argument("--observations", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--phase", choices=["write", "compress", "load", "observation"], help=argparse.SUPPRESS)
    parser.add_argument("--layers", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    checkpoint, out = args.folder / "checkpoint.safetensors", args.folder / "policy.safetensors"
    if args.phase == "write":
        print(json.dumps(write(checkpoint, args.depth)))
    elif args.phase == "compress":
        compress(checkpoint, args.recipe, out, args.observations, args.layers)
    elif args.phase == "load":
        print(json.dumps(load(out)))
    elif args.phase == "observation":
        print(json.dumps(observation()))
    if args.phase:
        return

    def phase(name: str, *arguments: str) -> list[dict[str, Any]]:
        options = {"--folder": args.folder, "--depth": args.depth, "--recipe": args.recipe, "--threads": args.threads}
        command = [sys.executable, __file__, *(str(part) for option in options.items() for part in option)]
        command += ["--observations", str(args.observations), "--phase", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode not in (0, -signal.SIGKILL):
            raise SystemExit(f"{name} failed with status {done.returncode}")
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        print(name, json.dumps(rows), flush=True)
        return rows

    args.folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "cpu": processor(),
        "threads": args.threads,
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "recipe": args.recipe,
        "observations": args.observations,
        "decoder_layers": args.depth,
    }
    try:
        if not checkpoint.exists():
            results["write"] = phase("write", "write")
        results["first"] = phase("first", "compress", "--layers", "1")
        results["resumed"] = phase("resumed", "compress")
        results["load"] = phase("load", "load")
        spec = load_recipe(args.recipe).quantization
        if spec is not None and spec.looks_at_the_action:
            results["observation"] = phase("observation", "observation")
    finally:
        shutil.rmtree(args.folder)
        name = "compress_7b" if args.recipe == "w4a4" else f"compress_7b_{args.recipe}"
        (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
