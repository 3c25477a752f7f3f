"""Compare the losses of a training on demonstrations that begins with random weights and with the shipped policy's.

    python benchmarks/training_start.py DEMONSTRATIONS [--steps 160] [--batch 4] [--out losses.jsonl]

Both learn the same batches with the same noise. Each line has the mean losses of the last 20 steps. One thread.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from sqap_vla_ros.contracts import TRAINED_POLICY
from sqap_vla_ros.shipped import SHIPPED
from sqap_vla_ros.training.pipeline import recorded
from sqap_vla_ros.training.train import Learner, TrainingConfig

EVERY, MEAN = 10, 20  # steps between lines, and steps that a line averages


def main() -> None:
    """Train both and print as they learn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demonstrations", type=Path)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--out", type=Path, help="file to which the lines are appended")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = recorded([args.demonstrations])
    config = TrainingConfig(steps=args.steps, batch=args.batch, rate=1e-3, final_rate=0.3, warmup=0.1)
    learners = {name: Learner(config, data.read_outs, "cpu") for name in ("random", TRAINED_POLICY)}
    weights = SHIPPED[TRAINED_POLICY].weights
    assert weights is not None
    learners[TRAINED_POLICY].begin_with(weights)
    history: dict[str, list[dict[str, float]]] = {name: [] for name in learners}
    for step, batch in enumerate(data.batches(args.batch, args.steps, seed=11), 1):
        for name, learner in learners.items():
            torch.manual_seed(step - 1)
            history[name].append(learner.learn([batch], step - 1))
        if step % EVERY:
            continue
        line: dict[str, object] = {"step": step}
        for name, found in history.items():
            line[name] = {loss: round(float(np.mean([f[loss] for f in found[-MEAN:]])), 4) for loss in found[0]}
        print(json.dumps(line), flush=True)
        if args.out is not None:
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
