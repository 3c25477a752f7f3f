"""The small files of a published CogACT folder, read without torch: what can be said before its weights are opened."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqap_vla_ros.policy.checkpoints.contents import CheckpointError
from sqap_vla_ros.policy.checkpoints.foreign import file_problem, location_problem
from sqap_vla_ros.policy.config import PolicyConfig
from sqap_vla_ros.policy.prompt import PromptTokenizer

TOWERS = "dinosiglip-224px"  # in the name of every base model with the published two towers
OURS = "sqap_vla_ros"  # our part of config.json: what the published code fixes in its own source


@dataclass(frozen=True)
class PublishedFolder:
    """The small files that lie beside the weights.

    config: geometry that `config.json` states; None where it is one of the published sizes, which the weights tell.
    datasets: as in `dataset_statistics.json`.
    """

    weights: Path
    config: PolicyConfig | None
    crop: str
    datasets: dict[str, Any]
    tokenizer: tuple[str, bytes] | None


def read_folder(path: Path, config: PolicyConfig | None = None) -> PublishedFolder:
    """Read a folder, or that which a `.pt` is in. Raises CheckpointError.

    config: the geometry, where it is neither one of the published sizes nor in the folder's `config.json`.
    """
    folder, weights = _published_files(path)
    settings = _json(folder / "config.json")
    own = settings.get(OURS)
    crop = "none"
    if config is None and isinstance(own, dict):
        try:
            config, crop = PolicyConfig.from_dict(own["config"]), str(own.get("crop", crop))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / 'config.json'} has a damaged {OURS!r} part: {error}") from error
    if config is None:
        _require_cogact(folder, settings)
    if problem := file_problem(weights):
        raise CheckpointError(problem)
    datasets = _json(folder / "dataset_statistics.json")
    if "action" in datasets and "action" not in (datasets["action"] if isinstance(datasets["action"], dict) else {}):
        raise CheckpointError(
            f"{folder / 'dataset_statistics.json'} holds the statistics of one data set without its name: write "
            '{"my_data": {"action": {...}}} around them'
        )
    beside = [file for name in PromptTokenizer.FILES if (file := folder / name).is_file()]
    if beside and (problem := file_problem(beside[0])):
        raise CheckpointError(problem)
    tokenizer = (beside[0].name, beside[0].read_bytes()) if beside else None
    return PublishedFolder(weights, config, crop, datasets, tokenizer)


def _published_files(path: Path) -> tuple[Path, Path]:
    """Return the folder and its one weights file."""
    if path.is_file():
        if problem := file_problem(path):
            raise CheckpointError(problem)
        folders = (path.parent.parent, path.parent)
        folder = next((folder for folder in folders if (folder / "config.json").is_file()), None)
        if path.suffix != ".pt" or (folder is None and path.parent.name != "checkpoints"):
            beside = " (config.json and dataset_statistics.json must lie beside it or one folder up)"
            raise CheckpointError(location_problem(path) + (beside if path.suffix == ".pt" else ""))
        return folder or path.parent.parent, path
    if not path.is_dir():
        raise CheckpointError(f"{path} is neither a file nor a folder: give a CogACT folder or a file")
    found = sorted((path / "checkpoints").glob("*.pt")) or sorted(path.glob("*.pt"))
    if len(found) == 1:
        return path, found[0]
    if len(found) > 1 and found[0].parent == path and (problem := location_problem(path)):
        raise CheckpointError(problem)  # such as OpenVLA-OFT's, whose heads lie beside the shards
    if len(found) > 1:
        names = ", ".join(str(file.relative_to(path)) for file in found[:6]) + (", …" if len(found) > 6 else "")
        raise CheckpointError(f"{path} holds {len(found)} .pt files ({names}): name one of them, such as {found[-1]}")
    raise CheckpointError(
        location_problem(path)
        or f"{path} is no CogACT folder: its checkpoints/ must hold exactly one .pt file, found none"
    )


def _require_cogact(folder: Path, settings: dict[str, Any]) -> None:
    """Raise CheckpointError unless `config.json` says that the model has the published towers."""
    vla = settings.get("vla")
    if isinstance(vla, dict):
        base = vla.get("base_vlm", "")
        if TOWERS not in str(base):
            raise CheckpointError(
                f"{folder / 'config.json'} names base_vlm {base!r}; CogACT is built on a {TOWERS} model: another model"
            )
    elif not (isinstance(vla, str) and TOWERS in vla):
        raise CheckpointError(
            location_problem(folder)
            or f'{folder / "config.json"} says "vla": {json.dumps(vla)[:80]}, where CogACT\'s training writes '
            f'{{"vla": {{"base_vlm": "prism-{TOWERS}+7b", …}}}}: write that if the file is a CogACT model'
        )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: a published CogACT folder has it beside checkpoints/")
    if problem := file_problem(path):
        raise CheckpointError(problem)
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))  # editors of Windows begin a file with a mark
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value
