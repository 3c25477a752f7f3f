"""Writes the full CogACT-Base geometry with random weights in the published format, loads it and predicts once.

Prints and stores the time and the peak resident memory of loading, against the size of the weights in memory.
Each phase is its own process, so that one's memory does not count for another. Needs about 16 GB of disk (bf16) and
somewhat more memory than that.

    python benchmarks/checkpoint_7b.py --folder /somewhere/large
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from processor import processor

from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.policy.actions import ActionStatistics
from sqap_vla_ros.policy.checkpoints.load import load_checkpoint
from sqap_vla_ros.policy.checkpoints.published import save_published
from sqap_vla_ros.policy.cogact import CogACT, CogACTPolicy
from sqap_vla_ros.policy.config import COGACT_BASE
from sqap_vla_ros.policy.micro.tokenizer import build
from sqap_vla_ros.policy.prompt import PromptTokenizer

RESULTS = Path(__file__).parent / "results" / "checkpoint_7b.json"


def peak_gib() -> float:
    """Peak resident memory of this process, file pages included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def fill_randomly(model: CogACT) -> None:
    """bf16 weights that keep the activations' variance, in the place of a model's shapes on the meta device."""
    # drawing seven billion numbers would take minutes: every tensor starts elsewhere among these
    normal = torch.randn(1 << 24)
    start = 0
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 1
            if parameter.ndim > 1:
                scaled = (normal.roll(start) * fan_in**-0.5).bfloat16()
                value = scaled.repeat(-(-parameter.numel() // len(scaled)))[: parameter.numel()].view(parameter.shape)
                value, start = value.clone(), start + 7919
            else:
                value = torch.full(parameter.shape, float(name == "weight"), dtype=torch.bfloat16)
            setattr(module, name, torch.nn.Parameter(value, requires_grad=False))


def write(folder: Path) -> dict[str, float]:
    """A checkpoint of random weights that keep the activations' variance."""
    started = time.perf_counter()
    with torch.device("meta"):
        model = CogACT(COGACT_BASE)
    fill_randomly(model)
    bound = np.array([0.02] * 3 + [0.1] * 3 + [1.0])
    statistics = ActionStatistics(-bound, bound, np.array([True] * 6 + [False]), dt_s=0.2)
    tokenizer = PromptTokenizer(
        COGACT_BASE.prompt, COGACT_BASE.decoder.vocabulary, "tokenizer.json", build().to_str().encode()
    )
    weights = save_published(CogACTPolicy(model, tokenizer, {"bridge_orig": statistics}), folder)
    return {
        "seconds": time.perf_counter() - started,
        "file_gib": weights.stat().st_size / 2**30,
        "peak_gib": peak_gib(),
    }


def load(path: Path) -> dict[str, object]:
    """Load, then predict once."""
    baseline = peak_gib()
    started = time.perf_counter()
    policy = load_checkpoint(path, dtype=torch.bfloat16)
    seconds = time.perf_counter() - started
    loaded = peak_gib()
    weights = sum(p.numel() * p.element_size() for p in policy.model.parameters()) / 2**30
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    chunk = policy.predict(Observation(image, 0, "pick up the red block"), seed=0)
    if not np.isfinite(chunk.normalized).all():
        raise SystemExit("the prediction is not finite")
    return {
        "parameters": policy.info.parameters,
        "weights_gib": weights,
        "imports_peak_gib": baseline,
        "seconds": seconds,
        "peak_gib": loaded,
        "peak_over_weights": loaded / weights,
        "first_prediction_ms": dict(chunk.timings_ms),
        "peak_gib_with_prediction": peak_gib(),
    }


def main() -> None:
    """Runs both phases, prints, writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where about 16 GB may be written for a while")
    parser.add_argument("--phase", choices=["write", "load"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.phase:
        print(json.dumps({"write": write, "load": load}[args.phase](args.folder)))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, object] = {"cpu": processor(), "cores": os.cpu_count()}
    try:
        for phase in ("write", "load"):
            command = [sys.executable, __file__, "--folder", str(args.folder), "--phase", phase]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[phase] = json.loads(output.splitlines()[-1])
            print(phase, json.dumps(results[phase], indent=2))
    finally:
        shutil.rmtree(args.folder)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
