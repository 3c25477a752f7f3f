"""The published CogACT checkpoint: a folder with `config.json`, `dataset_statistics.json` and one `checkpoints/*.pt`.

The Llama-2 tokenizer is not part of it: `tokenizer.json` or `tokenizer.model` may lie beside the two, or be named.
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqap_vla_ros.policy.checkpoints.contents import CheckpointError, Contents
from sqap_vla_ros.policy.checkpoints.foreign import is_archive, tensors_problem
from sqap_vla_ros.policy.checkpoints.published_folder import OURS, TOWERS, read_folder
from sqap_vla_ros.policy.checkpoints.published_names import (
    AVERAGED_HEAD,
    GROUPS,
    Groups,
    head_config,
    source_of,
    to_groups,
)
from sqap_vla_ros.policy.checkpoints.torch_archive import TorchArchive
from sqap_vla_ros.policy.checkpoints.writing import written_aside
from sqap_vla_ros.policy.cogact import CogACT, CogACTPolicy
from sqap_vla_ros.policy.config import COGACT_BASE, COGACT_LARGE, COGACT_SMALL, PolicyConfig

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
_PUBLISHED = (COGACT_SMALL, COGACT_BASE, COGACT_LARGE)


def open_published(path: Path, config: PolicyConfig | None, *, ema: bool = False) -> Contents:
    """Read the headers of a folder, or of the folder that a `.pt` is in. Raises CheckpointError.

    config: the geometry, where it is neither one of the published sizes nor in the folder's `config.json`.
    ema: take the action head that was averaged over training steps.
    """
    folder = read_folder(path, config)
    weights, config = folder.weights, folder.config
    archive, groups = _read_groups(weights)
    notes = []
    if AVERAGED_HEAD in groups:
        if ema:
            groups["action_model"] = groups[AVERAGED_HEAD]
        else:
            notes.append(f"the file also holds an action head averaged over training ({AVERAGED_HEAD}): --ema takes it")
    elif ema:
        raise CheckpointError(f"{weights} holds no averaged action head ({AVERAGED_HEAD!r}): leave out --ema")
    if config is None:
        try:
            head = head_config(groups["action_model"])
            published = next(c for c in _PUBLISHED if (c.head.depth, c.head.width) == (head.depth, head.width))
            config = published.replace(head=head)
        except ValueError as error:
            raise CheckpointError(f"{weights}: {error}") from error

    with torch.device("meta"):
        sources = {name: source_of(name) for name in CogACT(config).state_dict()}

    def form(name: str) -> Tensor:
        source = sources[name]
        if source.part == "absent":
            return torch.empty(1, config.vision.dino.width, device="meta")
        stored = groups[source.group][source.key]
        if stored.layout != torch.strided:
            return stored
        try:
            return source.complete(source.view(stored))
        except (IndexError, RuntimeError) as error:  # no dimension to split or to take from
            shape = list(stored.shape)
            raise CheckpointError(f"{weights}: {source.group}/{source.key!r} has the shape {shape}") from error

    def read(name: str) -> Tensor:
        source = sources[name]
        if source.part == "absent":
            return torch.zeros(1, config.vision.dino.width)
        view = source.view(groups[source.group][source.key])
        return source.complete(archive.read(view, f"{source.group}/{source.key}"))

    held = {n for n, s in sources.items() if s.part == "absent" or s.key in groups[s.group]}
    if len(held) < len(sources):
        unmerged = [key for group in groups.values() for key in group if "lora_" in key or ".base_layer." in key]
        if unmerged:
            raise CheckpointError(tensors_problem(weights, unmerged))
    used = {(s.group, s.key) for s in sources.values()}
    unused = sum((group, key) not in used for group in groups for key in groups[group])
    return Contents(
        path=weights,
        format="published CogACT",
        config=config,
        datasets=folder.datasets,
        names=frozenset(held),
        form=form,
        read=read,
        stored_name=lambda name: f"{sources[name].group}/{sources[name].key}",
        tokenizer=folder.tokenizer,
        crop=folder.crop,
        notes=tuple(notes),
        unused=unused,
        unused_names="each tower's last block and SigLIP's pooling, the language head, the history embedder"
        + (", the other action head" if AVERAGED_HEAD in groups else ""),
    )


def save_published(policy: CogACTPolicy, folder: str | Path) -> Path:
    """Write the published folder layout, with the tokenizer beside it. Returns the `.pt` file.

    Geometry and crop, which the published code does not write, join `config.json`, so that any size is read again.
    Raises OSError where the folder exists or the disk is full; nothing half-written stays.
    """
    folder = Path(folder)
    with written_aside(folder) as partial:
        weights = partial / "checkpoints" / "model.pt"
        weights.parent.mkdir(parents=True)
        own = {"config": policy.model.config.to_dict(), "crop": policy.transform.crop}
        settings = {"vla": {"base_vlm": f"prism-{TOWERS}+7b"}, OURS: own}
        (partial / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        datasets = {key: value.to_dict() for key, value in policy.statistics.items()}
        (partial / "dataset_statistics.json").write_text(json.dumps(datasets, indent=2) + "\n")
        name, data = policy.tokenize.file
        (partial / name).write_bytes(data)
        torch.save({"model": to_groups(policy.model)}, weights)
    return folder / "checkpoints" / "model.pt"


def _read_groups(weights: Path) -> tuple[TorchArchive, Groups]:
    """Return the dict of dicts, its tensors on the meta device, and the archive that their numbers are read from."""
    try:
        archive = TorchArchive(weights)
    except CheckpointError:
        raise
    except NotImplementedError as error:
        raise CheckpointError(
            f"{weights} holds tensors that another tool quantised or packed: name the file that it was made from"
        ) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{weights} holds more than tensors, or is not a checkpoint: it is not loaded") from error
    except PermissionError:
        raise
    except Exception as error:  # damaged bytes make the unpickler raise anything
        if is_archive(weights):
            raise CheckpointError(
                f"{weights} is truncated or damaged: it begins as torch.save writes but is not whole: copy it again"
            ) from error
        raise CheckpointError(f"{weights} {_other_file(weights)}") from error
    stored = archive.content
    model = stored.get("model", stored) if isinstance(stored, dict) else stored
    if isinstance(model, dict) and not any(isinstance(part, dict) for part in model.values()):
        model = _regrouped(weights, model)
    if not isinstance(model, dict) or (model is stored and not set(GROUPS) & set(model)):
        raise CheckpointError(f"{weights} has no 'model' entry: not a CogACT checkpoint")
    lacking = [group for group in GROUPS if not isinstance(model.get(group), dict)]
    if lacking:
        raise CheckpointError(f"{weights} lacks the part {lacking[0]!r} of a CogACT checkpoint")
    return archive, {
        name: _without_wrapper(weights, name, model[name])
        for name in (*GROUPS, AVERAGED_HEAD)
        if isinstance(model.get(name), dict) and (model[name] or name != AVERAGED_HEAD)
    }


def _other_file(weights: Path) -> str:
    """Say what a file is that does not begin as the zip archive which torch.save writes."""
    with weights.open("rb") as file:
        start = file.read(2)
    if start[:1] == b"\x80" and start[1:] <= b"\x05":
        return "is a Python pickle, which can run anything: torch.save writes a zip archive, save its tensors so"
    return "is not a PyTorch file: torch.save writes a zip archive, which this is not: copy it again"


def _regrouped(weights: Path, flat: dict[Any, Any]) -> Groups:
    """Return bare tensors, named as in the whole model (`llm_backbone.llm.model…`), as a dict of groups."""
    names = [name for name in flat if isinstance(name, str) and isinstance(flat[name], Tensor)]
    if not names:
        return {}
    groups: Groups = {}
    for name in names:
        group, _, rest = _unwrapped(name).removeprefix("vlm.").partition(".")
        groups.setdefault(group, {})[f"{group}.{rest}" if group == "projector" else rest] = flat[name]
    if not set(GROUPS) <= set(groups) or any("lora_" in name for name in names):
        raise CheckpointError(tensors_problem(weights, names))
    return groups


def _without_wrapper(weights: Path, group: str, part: dict[Any, Any]) -> dict[str, Tensor]:
    """Return a group's tensors under the names that they have in a model that nothing is wrapped around."""
    for name, value in part.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise CheckpointError(f"{weights}: {group}/{name!r} is a {type(value).__name__} and no tensor")
    return {_unwrapped(name): value for name, value in part.items()}


def _unwrapped(name: str) -> str:
    """Return a tensor's name without what parallel training, checkpointing and torch.compile put into it."""
    return _WRAPPERS.sub("", name).removeprefix("module.")
