"""Compare recipes on LIBERO through vla-eval's runner: the same initial states for each, paired; goes on where it was.

    python benchmarks/outside/libero_table.py policy.safetensors --demonstrations demonstrations --out table

Runs in the package's environment and starts LIBERO's own (LIBERO_VENV, made by libero.sh) for the benchmark. Recipes
that quantise are compressed once, calibrated on pictures of the demonstrations. Each episode is a line of
OUT/episodes.jsonl, and a run that was interrupted repeats ten episodes at most.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from sqap_vla_ros.compression.calibration import INSTRUCTIONS_FILE
from sqap_vla_ros.compression.recipe import load_recipe
from sqap_vla_ros.evaluation.closed_loop.statistics import PairedOutcomes, wilson

HERE = Path(__file__).parent
SUITES = ("libero_object", "libero_object_swap")
RECIPES = ("fp32", "w4a4", "w4a8", "sqap", "qvla_w4a8", "fastv", "random_drop")
CALIBRATION_PICTURES = 48
COMMAND = (sys.executable, "-m", "sqap_vla_ros.cli")


def calibration(demonstrations: Path, folder: Path) -> Path:
    """Write pictures of the demonstrations, spread over their shards, as a folder that `compress` reads."""
    if (folder / INSTRUCTIONS_FILE).is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    instructions = json.loads((demonstrations / "dataset.json").read_text())["instructions"]
    shards = sorted(demonstrations.glob("shard[0-9][0-9][0-9][0-9]"))
    if not shards:
        raise SystemExit(f"{demonstrations} holds no shards to calibrate on")
    lines = []
    for number in range(CALIBRATION_PICTURES):
        shard = shards[number % len(shards)]
        images = np.load(shard / "image.npy", mmap_mode="r")
        row = number * 37 % len(images)
        asked = int(np.load(shard / "instruction.npy")[row, 0])
        Image.fromarray(np.asarray(images[row])).save(folder / f"{number:02d}.png")
        lines.append(f"{number:02d}.png\t{instructions[asked]}")
    (folder / INSTRUCTIONS_FILE).write_text("\n".join(lines) + "\n")
    return folder


def compressed(checkpoint: Path, recipe: str, pictures: Path, out: Path) -> Path:
    """Return the file to serve: the checkpoint, or what the recipe makes of it, which is written once."""
    quantization = load_recipe(recipe).quantization
    if quantization is None or not quantization.needs_calibration:
        return checkpoint
    path = out / f"{recipe}.safetensors"
    if not path.is_file():
        arguments = ("--checkpoint", checkpoint, "--recipe", recipe, "--calibration", pictures, "--out", path)
        count = ("--observations", str(CALIBRATION_PICTURES))
        subprocess.run([*COMMAND, "compress", *map(str, arguments), *count], check=True)
    return path


@contextmanager
def served(checkpoint: Path, recipe: str, camera: Path, horizon: int, log: Path) -> Iterator[str]:
    """Serve a policy while the block runs; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--checkpoint", checkpoint, "--recipe", recipe, "--port", port, "--execution-horizon", horizon]
    arguments += ["--action-space", "libero", "--simulator-camera", camera, "--mirrored", "--image-key", "agentview"]
    with log.open("a") as file:
        server = subprocess.Popen([*COMMAND, "serve", *map(str, arguments)], stdout=file, stderr=file)
    try:
        while not _healthy(port):
            if server.poll() is not None:
                raise SystemExit(f"the server ended: {log.read_text()[-500:]}")
            time.sleep(1.0)
        yield f"ws://127.0.0.1:{port}/vla-eval"
    finally:
        server.terminate()
        server.wait(30)


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(json.load(answer)["status"] == "ok")
    except OSError:
        return False


def environment(out: Path) -> dict[str, str]:
    """Return the variables for LIBERO's own interpreter."""
    values = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**values, "LIBERO_CONFIG_PATH": str(out / "config"), "MUJOCO_GL": "osmesa", "PYTHONPATH": str(HERE)}


def episodes_of(venv: Path, url: str, suite: str, number: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run episode `number` of each task of a suite; return one record for each."""
    params = {"suite": suite, "send_state": True, "first_episode": number}
    entry = {"benchmark": "libero_benchmark:OneCamera", "subname": suite, "episodes_per_task": 1, "params": params}
    entry |= {"max_tasks": args.max_tasks, "max_steps": args.max_steps}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "run.json"
        config.write_text(json.dumps({"server": {"url": url}, "benchmarks": [entry]}))
        command = [venv / "bin" / "vla-eval", "run", "--no-docker", "--render", "cpu", "--config", config]
        with (args.out / "vla-eval.log").open("a") as log:
            subprocess.run(
                [*command, "--output-dir", folder],
                check=True,
                env=environment(args.out),
                stdout=log,
                stderr=log,
            )
        found = [json.loads(path.read_text()) for path in Path(folder).rglob("*.json") if path != config]
    tasks = [task for result in found for task in result.get("tasks", ())]
    records = []
    for task in tasks:
        for episode in task["episodes"]:
            if episode.get("failure_reason"):
                raise SystemExit(f"vla-eval could not run {task['task']}: {episode['failure_reason']}")
            success = bool(episode["metrics"]["success"])
            records.append({"task": task["task"], "episode": number, "success": success, "steps": episode["steps"]})
    if not records:
        raise SystemExit(f"vla-eval wrote no episodes: see {args.out / 'vla-eval.log'}")
    return records


def table(records: list[dict[str, Any]]) -> str:
    """Return Markdown: success with its Wilson interval, and the difference from fp32 over the same episodes."""
    lines = ["| suite | recipe | solved | success, % (95 %) | difference from fp32, points | McNemar p |"]
    lines.append("|---|---|---|---|---|---|")
    results: dict[tuple[str, str], dict[tuple[str, int], bool]] = {}
    for r in records:
        results.setdefault((r["suite"], r["recipe"]), {})[r["task"], r["episode"]] = r["success"]
    for (suite, recipe), own in results.items():
        rate = wilson(sum(own.values()), len(own))
        row = f"| {suite} | {recipe} | {sum(own.values())} of {len(own)} "
        row += f"| {100 * rate.value:.1f} ({100 * rate.low:.1f} to {100 * rate.high:.1f}) "
        reference = results.get((suite, "fp32"), {})
        shared = sorted(own.keys() & reference.keys())
        if recipe == "fp32" or not shared:
            lines.append(f"{row}| | |")
            continue
        pairs = PairedOutcomes.of([own[key] for key in shared], [reference[key] for key in shared])
        gap = pairs.difference()
        lines.append(
            f"{row}| {100 * gap.value:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f}) | {pairs.mcnemar():.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--demonstrations", type=Path, required=True, help="shards whose pictures calibrate recipes")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--suites", default=",".join(SUITES))
    parser.add_argument("--episodes", type=int, default=20, help="of each task, at most 50")
    parser.add_argument("--execution-horizon", type=int, default=8)
    parser.add_argument("--max-tasks", type=int, help="for a trial")
    parser.add_argument("--max-steps", type=int, help="for a trial")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends too
    args.out = args.out.resolve()
    venv = Path(os.environ.get("LIBERO_VENV", "out/libero/venv")).resolve()
    if not (venv / "bin" / "vla-eval").is_file():
        raise SystemExit(f"{venv} is no environment of LIBERO: make it with libero.sh, or set LIBERO_VENV")
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "episodes.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    done = {(r["suite"], r["recipe"], r["episode"]) for r in records}
    suites, recipes = args.suites.split(","), args.recipes.split(",")
    missing = {
        (suite, recipe): [n for n in range(args.episodes) if (suite, recipe, n) not in done]
        for suite in suites
        for recipe in recipes
    }
    with tqdm(total=sum(map(len, missing.values())), unit="round") as bar:
        for (suite, recipe), numbers in missing.items():
            if not numbers:
                continue
            camera = args.out / f"camera_{suite}.json"
            if not camera.is_file():
                script = [venv / "bin" / "python", HERE / "libero_camera.py", suite, camera]
                subprocess.run(script, check=True, env=environment(args.out), input="n\n", text=True)
            policy = compressed(
                args.checkpoint, recipe, calibration(args.demonstrations, args.out / "calibration"), args.out
            )
            with served(policy, recipe, camera, args.execution_horizon, args.out / "serve.log") as url:
                for number in numbers:
                    bar.set_postfix_str(f"{suite} {recipe}")
                    new = episodes_of(venv, url, suite, number, args)
                    records += [{"suite": suite, "recipe": recipe, **record} for record in new]
                    with file.open("a") as lines:  # a round at once: no half of one is ever read
                        lines.write("".join(json.dumps(r) + "\n" for r in records[-len(new) :]))
                    bar.update()
    (args.out / "table.md").write_text(table(records))
    print(table(records))


if __name__ == "__main__":
    main()
