"""Identify a replay by its recording, options and policy: they have to be the same for it to be continued."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sqap_vla_ros.compression.load import checkpoint_path
from sqap_vla_ros.compression.recipe import load_recipe
from sqap_vla_ros.recordings.frames import Recording
from sqap_vla_ros.serving.frames import is_remote
from sqap_vla_ros.serving.worker import WorkerConfig
from sqap_vla_ros.shipped import SHIPPED

if TYPE_CHECKING:
    from sqap_vla_ros.evaluation.replay.sources import RecordingSpec

FileState = tuple[str, int, int]  # path, bytes, nanoseconds of its last change
_BESIDE_PT = ("config.json", "dataset_statistics.json", "tokenizer.json", "tokenizer.model")


def replay_identity(source: Recording, spec: RecordingSpec, worker: WorkerConfig, policy: list[FileState]) -> str:
    """Return a digest of what a replay is made from. policy: see `policy_files`."""
    recorded = states_of(source.files)
    loads = not (worker.factory or is_remote(worker.checkpoint))
    recipe = load_recipe(worker.recipe).digest if loads else ""
    content = [*source.identity, repr(spec), repr(worker), recorded, policy, recipe]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def policy_files(worker: WorkerConfig) -> list[FileState]:
    """Return the state of the files that a policy is loaded from: another file of the same name is another policy."""
    if worker.factory or is_remote(worker.checkpoint):
        return []
    path = checkpoint_path(worker.checkpoint, SHIPPED)
    places = [] if path is None else [path, path / "checkpoints"]
    if path is not None and path.suffix == ".pt":
        places += [folder / name for folder in (path.parent, path.parent.parent) for name in _BESIDE_PT]
    return states_of([*places, *([Path(worker.tokenizer)] if worker.tokenizer else [])])


def states_of(places: Iterable[Path]) -> list[FileState]:
    """Return the state of files, and of the files that lie in folders themselves."""
    files = [file for place in places for file in (sorted(place.iterdir()) if place.is_dir() else [place])]
    found = ((file, file.stat()) for file in files if file.is_file())
    return [(str(file.resolve()), status.st_size, status.st_mtime_ns) for file, status in found]
