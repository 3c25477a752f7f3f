"""The published CogACT checkpoint: a folder with `config.json`, `dataset_statistics.json` and one `checkpoints/*.pt`.

The Llama-2 tokenizer is not part of it: `tokenizer.json` or `tokenizer.model` may lie beside the two, or be named.
"""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqap_vla_ros.policy.checkpoints.contents import CheckpointError, Contents
from sqap_vla_ros.policy.checkpoints.published_names import GROUPS, Groups, head_config, source_of, to_groups
from sqap_vla_ros.policy.cogact import CogACT, CogACTPolicy
from sqap_vla_ros.policy.config import COGACT_BASE, COGACT_LARGE, COGACT_SMALL, PolicyConfig
from sqap_vla_ros.policy.prompt import PromptTokenizer

_TOWERS = "dinosiglip-224px"  # in the name of every base model with the published two towers


def open_published(path: Path, config: PolicyConfig | None) -> Contents:
    """Read the headers of a folder, or of the folder that a `.pt` is in. Raises CheckpointError.

    config: the geometry, where it is not one of the published sizes.
    """
    folder, weights = _published_files(path)
    base = _json(folder / "config.json").get("vla", {}).get("base_vlm", "")
    if config is None and _TOWERS not in str(base):
        raise CheckpointError(
            f"{folder / 'config.json'} names base_vlm {base!r}; CogACT is built on a {_TOWERS} model: another model"
        )
    groups = _read_groups(weights)
    if config is None:
        try:
            head = head_config(groups["action_model"])
        except ValueError as error:
            raise CheckpointError(f"{weights}: {error}") from error
        config = next(c for c in (COGACT_SMALL, COGACT_BASE, COGACT_LARGE) if c.head == head)

    with torch.device("meta"):
        sources = {name: source_of(name) for name in CogACT(config).state_dict()}

    def read(name: str) -> Tensor:
        source = sources[name]
        if source.part == "absent":
            return torch.zeros(1, config.vision.dino.width)
        return source.read(groups[source.group][source.key])

    held = {n for n, s in sources.items() if s.part == "absent" or s.key in groups[s.group]}
    datasets = _json(folder / "dataset_statistics.json")
    beside = [file for name in PromptTokenizer.FILES if (file := folder / name).is_file()]
    return Contents(
        path=weights,
        format="published CogACT",
        config=config,
        datasets=datasets,
        names=frozenset(held),
        read=read,
        stored_name=lambda name: f"{sources[name].group}/{sources[name].key}",
        tokenizer=(beside[0].name, beside[0].read_bytes()) if beside else None,
    )


def save_published(policy: CogACTPolicy, folder: str | Path) -> Path:
    """Write the published folder layout, with the tokenizer beside it. Returns the `.pt` file."""
    folder = Path(folder)
    weights = folder / "checkpoints" / "model.pt"
    weights.parent.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"vla": {"base_vlm": f"prism-{_TOWERS}+7b"}}, indent=2) + "\n")
    datasets = {key: value.to_dict() for key, value in policy.statistics.items()}
    (folder / "dataset_statistics.json").write_text(json.dumps(datasets, indent=2) + "\n")
    name, data = policy.tokenize.file
    (folder / name).write_bytes(data)
    torch.save({"model": to_groups(policy.model)}, weights)
    return weights


def _published_files(path: Path) -> tuple[Path, Path]:
    """Return the folder and its one weights file."""
    if path.is_file():
        if path.suffix != ".pt" or path.parent.name != "checkpoints":
            raise CheckpointError(
                f"{path} is not a checkpoint: give a published CogACT folder, its checkpoints/*.pt "
                "or a .safetensors file"
            )
        return path.parent.parent, path
    found = sorted((path / "checkpoints").glob("*.pt"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise CheckpointError(f"{path / 'checkpoints'} must hold exactly one .pt file, found {names}")
    return path, found[0]


def _read_groups(weights: Path) -> Groups:
    """Return the dict of dicts, each tensor still in the file."""
    try:
        model = torch.load(weights, map_location="cpu", mmap=True, weights_only=True)["model"]
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{weights} holds more than tensors, or is not a checkpoint: it is not loaded") from error
    except (RuntimeError, EOFError, OSError, struct.error) as error:
        raise CheckpointError(f"{weights} is truncated or not a PyTorch file ({error}): copy it again") from error
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{weights} has no 'model' entry: not a CogACT checkpoint") from error
    lacking = [group for group in GROUPS if not isinstance(model, dict) or not isinstance(model.get(group), dict)]
    if lacking:
        raise CheckpointError(f"{weights} lacks the part {lacking[0]!r} of a CogACT checkpoint")
    return model


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: a published CogACT folder has it beside checkpoints/")
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value
