"""What an interrupted command leaves behind, damaged: compressions, studies and replays."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzzing.mutation import damage_file, fresh
from fuzzing.originals import moving_policy

from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.files.job import compress_to_file
from sqap_vla_ros.compression.recipe import Recipe, load_recipe
from sqap_vla_ros.contracts import PolicyInfo, TokenSelection
from sqap_vla_ros.evaluation.closed_loop.study import DEVIATIONS, EPISODES, METHODS, Method, Store, Unit, remaining_work
from sqap_vla_ros.evaluation.closed_loop.tables import markdown, method_results, write_csv
from sqap_vla_ros.evaluation.replay.metrics import summarise
from sqap_vla_ros.evaluation.replay.run import FRAMES, RUN, FrameRecord, RecipeRun, _resume, load_run
from sqap_vla_ros.evaluation.replay.tables import busy_warning, write_frames_csv, write_recipes_csv
from sqap_vla_ros.recordings.frames import ReplayCounters
from sqap_vla_ros.simulation.vocabulary import TaskFamily

_RECIPES = {
    "rtn": "{weight_bits: 4, activation_bits: 8}",
    "gptq": "{weight_bits: 4, activation_bits: 4, rounding: gptq, activation_clip: null}",
    "qvla": "{activation_bits: 8, rounding: gptq, hessian: weighted, row_bits: {average: 4.0, probes: 1}}",
}
_IDENTITY: dict[str, Any] = {
    "checkpoint": "micro",
    "checkpoint_sha256": "0",
    "recipe_digest": "1",
    "execution": {},
}
_IMAGES = 4  # as many as the gradients of `hessian: weighted` need
_SUITE = "visual_matching"
_NAMES = ("fp32", "w4a4")


class _Interrupted(Exception):
    pass


def fuzz_partial(folder: Path, seed: int) -> None:
    """Go on with a damaged compression: it is refused, or makes what an undamaged one would have made."""
    rng = Random(f"partial {seed}")
    name = rng.choice(tuple(_RECIPES))
    before, expected = unfinished_compression(folder / "good_partial", name)
    out = fresh(folder / "partial") / "policy.safetensors"
    work = out.with_name(out.name + ".partial")
    shutil.copytree(before, work)
    for _ in range(rng.choice((1, 1, 1, 2))):
        _damage_in(rng, work)
    compress_again(before.parent, name, out)
    assert _digest(out) == expected, "damage went into the file"


def compress_again(folder: Path, name: str, out: Path) -> None:
    """Go on with the compression that `unfinished_compression` began."""
    compress_to_file(moving_policy(), _recipe(folder, name), synthetic_observations(_IMAGES, size=28), out)


def fuzz_study(folder: Path, seed: int) -> None:
    """Go on with a study whose files were damaged, and write its tables."""
    rng = Random(f"study {seed}")
    out = fresh(folder / "study") / "out"
    shutil.copytree(_study(folder / "good_study"), out)
    for _ in range(rng.choice((1, 1, 1, 2))):
        _damage_in(rng, out)
    store = Store(out)
    store.describe("fp32", _IDENTITY)
    units = [Unit(Method(name, name, "micro"), _SUITE, 3, (TaskFamily.PICK,), deviations=1) for name in _NAMES]
    assert isinstance(remaining_work(units, store), list)
    rows = method_results(store, _NAMES, _SUITE)
    assert markdown(rows)
    write_csv(out / "table.csv", rows)


def fuzz_replayed(folder: Path, seed: int) -> None:
    """Go on with a replay whose files were damaged, and write its tables."""
    rng = Random(f"replayed {seed}")
    out = fresh(folder / "replayed") / "out"
    complete = rng.random() < 0.6
    shutil.copytree(replayed_folder(folder / "good_replayed", complete), out)
    for _ in range(rng.choice((1, 1, 1, 2))):
        _damage_in(rng, out)
    records, finished = _resume(out, "abc")
    assert finished or all(record.to_json() for record in records)
    if finished:
        run = load_run(out, "fp32")
        _write_tables(out, [run, run])


def _write_tables(out: Path, runs: list[RecipeRun]) -> None:
    summaries = [summarise(run, runs[0], control_rate_hz=5.0) for run in runs]
    write_frames_csv(out / "frames.csv", runs)
    write_recipes_csv(out / "recipes.csv", summaries)
    busy_warning(summaries)
    json.dumps(summaries)


def _damage_in(rng: Random, folder: Path) -> None:
    """Damage, remove, empty or exchange a file, or put a folder in its place."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        return
    path = rng.choice(files)
    what = rng.random()
    if what < 0.75:
        if path.stat().st_size:
            damage_file(rng, path, sealed=False)
    elif what < 0.85:
        path.unlink()
    elif what < 0.92:
        path.write_bytes(bytes(rng.choice((0, path.stat().st_size))))  # as a power cut leaves it
    elif what < 0.97:
        path.write_bytes(rng.choice(files).read_bytes())
    else:
        path.unlink()
        path.mkdir()


@cache
def unfinished_compression(folder: Path, name: str) -> tuple[Path, str]:
    """Return the unfinished work of a compression after its first layer, and the digest of the whole one."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe, observations = _recipe(folder, name), synthetic_observations(_IMAGES, size=28)
    whole, out = folder / f"{name}_whole.safetensors", folder / f"{name}.safetensors"
    compress_to_file(moving_policy(), recipe, observations, whole)

    def interrupt(layer: int) -> None:
        raise _Interrupted

    try:
        compress_to_file(moving_policy(), recipe, observations, out, after_layer=interrupt)
    except _Interrupted:
        return out.with_name(out.name + ".partial"), _digest(whole)
    raise AssertionError("not interrupted")


def _recipe(folder: Path, name: str) -> Recipe:
    path = folder / f"{name}.yaml"
    path.write_text(f"quantization: {_RECIPES[name]}\n")
    return load_recipe(path)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def _study(folder: Path) -> Path:
    for name in (EPISODES, DEVIATIONS):
        (folder / name).mkdir(parents=True)
    numbers = {"steps": 10, "reason": "success", "chunks": 2, "path_m": 0.4, "jerk_m_s3": 4.2, "inference_ms": 27.0}
    described = {}
    for name in _NAMES:
        of = {"method": name, "suite": _SUITE, "family": "pick"}
        rows: list[dict[str, Any]] = [{**of, "seed": seed, "success": seed > 0, **numbers} for seed in range(2)]
        (folder / EPISODES / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        row = {**of, "seed": 0, "distances": [0.1, 0.2]}
        (folder / DEVIATIONS / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
        described[name] = {**_IDENTITY, "bops": 0.26, "bops_7b": 0.25}
    (folder / METHODS).write_text(json.dumps(described, indent=1) + "\n")
    return folder


@cache
def replayed_folder(folder: Path, complete: bool) -> Path:
    """Write a replay of four frames, finished or not."""
    folder = folder / str(complete)
    folder.mkdir(parents=True)
    selection = TokenSelection(np.arange(4, dtype=np.int32), np.ones(4, np.uint8), (4, 4), "sqap", 2, (1, 1))
    records = [
        FrameRecord(
            *(number, 10**18 + number * 10**8, 0.0, number == 0, "", "", "pick", (1.0, 2.0)),
            pose=np.eye(4),
            deltas=np.full((4, 7), 0.01),
            normalized=np.full((4, 7), 0.1),
            dt_s=0.1,
            policy_ms=20.0,
            timings_ms={"vision": 5.0, "total": 20.0},
            selection=selection,
            commanded=np.eye(4),
            opening=1.0,
        )
        for number in range(4)
    ]
    (folder / FRAMES).write_text("".join(record.to_json() + "\n" for record in records))
    info = dataclasses.asdict(PolicyInfo("micro", "0", "fp32", 5, 4, 0.1, 28, (4, 4), "x", "none"))
    counters = {**vars(ReplayCounters(images=4, used=4, paired=4, observed=4)), "without_camera_info": 0}
    summary = {"identity": "abc", "info": info, "peak_memory_mb": 50.0, "counters": counters, "sources": {}}
    (folder / RUN).write_text(json.dumps({**summary, "complete": complete}))
    return folder
