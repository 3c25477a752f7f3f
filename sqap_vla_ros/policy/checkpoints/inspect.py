"""The facts about a checkpoint that `sqap-vla inspect` prints, read from headers and shapes alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from sqap_vla_ros.policy.actions import statistics_notes
from sqap_vla_ros.policy.checkpoints.contents import Contents
from sqap_vla_ros.policy.cogact import CogACT

MISSING = "missing tensors"  # a fact only where the checkpoint cannot be loaded
MISSHAPEN = "tensors of another shape"


def describe(contents: Contents) -> dict[str, Any]:
    """Return the facts in reading order. Counts and sizes are those of the file's tensors that the policy uses.

    `MISSING` and `MISSHAPEN` are among them only where the file is incomplete or of another model.
    """
    config = contents.config
    with torch.device("meta"):
        wanted = CogACT(config).state_dict()
    stored = {name: contents.read(name) for name in wanted if name in contents.names}
    misshapen = [name for name, tensor in stored.items() if tensor.shape != wanted[name].shape]
    parts: Counter[str] = Counter()
    for name, tensor in stored.items():
        parts[name.partition(".")[0]] += tensor.numel()
    rows, columns = config.vision.grid
    notes = [note for key, entry in contents.datasets.items() for note in statistics_notes(key, entry)]
    facts: dict[str, Any] = {
        "file": str(contents.path),
        "format": contents.format,
        "model": config.name,
        "parameters": sum(parts.values()),
        **{f"parameters in {name}": count for name, count in parts.items()},
        "dtype": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in stored.values()}),
        "size in use [GiB]": round(sum(t.numel() * t.element_size() for t in stored.values()) / 2**30, 3),
        "image": f"{config.vision.image_size} x {config.vision.image_size} pixels, {rows} x {columns} tokens",
        "crop": contents.crop,
        "decoder": f"{config.decoder.depth} layers of width {config.decoder.width}",
        "action head": f"{config.head.depth} blocks of width {config.head.width}, {config.head.horizon} actions of "
        f"{config.head.channels} channels",
        "datasets (unnorm_key)": sorted(contents.datasets),
        "tokenizer": "none: name one" if contents.tokenizer is None else contents.tokenizer[0],
    }
    missing = [name for name in wanted if name not in stored]
    for fact, names in ((MISSING, missing), (MISSHAPEN, misshapen)):
        if names:
            facts[fact] = f"{len(names)} of {len(wanted)}, the first is {contents.stored_name(names[0])!r}"
    if notes := [*contents.notes, *notes[:3], *([f"{len(notes) - 3} more"] if len(notes) > 3 else [])]:
        facts["notes"] = notes
    return facts
