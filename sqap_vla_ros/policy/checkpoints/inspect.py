"""The facts about a checkpoint that `sqap-vla inspect` prints, read from headers and shapes alone."""

from __future__ import annotations

from typing import Any

import torch

from sqap_vla_ros.policy.checkpoints.contents import Contents
from sqap_vla_ros.policy.cogact import CogACT


def describe(contents: Contents) -> dict[str, Any]:
    """Return the facts in reading order; sizes are those of the tensors the policy uses, in the file's dtype."""
    config = contents.config
    with torch.device("meta"):
        model = CogACT(config)
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    used = [name for name in model.state_dict() if name in contents.names]
    missing = len(model.state_dict()) - len(used)
    stored = [contents.read(name) for name in used]
    rows, columns = config.vision.grid
    facts: dict[str, Any] = {
        "file": str(contents.path),
        "format": contents.format,
        "model": config.name,
        "parameters": sum(parts.values()),
        **{f"parameters in {name}": count for name, count in parts.items()},
        "dtype": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in stored}),
        "size in use [GiB]": round(sum(t.numel() * t.element_size() for t in stored) / 2**30, 3),
        "image": f"{config.vision.image_size} x {config.vision.image_size} pixels, {rows} x {columns} tokens",
        "decoder": f"{config.decoder.depth} layers of width {config.decoder.width}",
        "action head": f"{config.head.depth} blocks of width {config.head.width}, {config.head.horizon} actions",
        "datasets (unnorm_key)": sorted(contents.datasets),
        "tokenizer": "none: name one" if contents.tokenizer is None else contents.tokenizer[0],
    }
    if missing:
        facts["missing tensors"] = missing
    return facts
