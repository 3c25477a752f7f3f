"""The facts about a checkpoint that `sqap-vla inspect` prints, read from headers and shapes alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from sqap_vla_ros.contracts import STEP_S
from sqap_vla_ros.policy.actions import CONTROL_PERIOD_S, ActionStatistics, require_channels, statistics_notes
from sqap_vla_ros.policy.checkpoints.contents import Contents
from sqap_vla_ros.policy.checkpoints.load import is_plain
from sqap_vla_ros.policy.cogact import CogACT
from sqap_vla_ros.policy.costs import size_in_words
from sqap_vla_ros.policy.preprocessing import ImageTransform
from sqap_vla_ros.policy.prompt import PromptTokenizer

# Facts only where the checkpoint cannot be loaded.
MISSING = "missing tensors"
MISSHAPEN = "tensors of another shape"
NOT_FLOATS = "tensors that are not floating-point"
UNUSABLE = "unusable"


def describe(contents: Contents) -> dict[str, Any]:
    """Return the facts in reading order. Counts and sizes are those of the file's tensors that the policy uses.

    `MISSING`, `MISSHAPEN` and `NOT_FLOATS` are among them only where the file is incomplete or of another model,
    `UNUSABLE` only where statistics, tokenizer or crop are damaged.
    """
    config = contents.config
    with torch.device("meta"):
        wanted = CogACT(config).state_dict()
    stored = {name: contents.form(name) for name in wanted if name in contents.names}
    misshapen = [name for name, tensor in stored.items() if tensor.shape != wanted[name].shape]
    parts: Counter[str] = Counter()
    for name, tensor in stored.items():
        parts[name.partition(".")[0]] += tensor.numel()
    rows, columns = config.vision.grid
    notes = [
        f"the control period of {key!r} is not stated: give it as dt_s (--dt)"
        for key, entry in contents.datasets.items()
        if isinstance(entry, dict) and not entry.get("dt_s") and key not in CONTROL_PERIOD_S
    ]
    notes += [note for key, entry in contents.datasets.items() for note in statistics_notes(key, entry)]
    facts: dict[str, Any] = {
        "file": str(contents.path),
        "format": contents.format,
        "model": config.name,
        "parameters": sum(parts.values()),
        **{f"parameters in {name}": count for name, count in parts.items()},
        "dtype": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in stored.values()}),
        "size in use": size_in_words(sum(t.numel() * t.element_size() for t in stored.values())),
        "image": f"{config.vision.image_size} x {config.vision.image_size} pixels, {rows} x {columns} tokens",
        "crop": contents.crop,
        "decoder": f"{config.decoder.depth} layers of width {config.decoder.width}",
        "action head": f"{config.head.depth} blocks of width {config.head.width}, {config.head.horizon} actions of "
        f"{config.head.channels} channels",
        "datasets (unnorm_key)": sorted(contents.datasets),
        "tokenizer": "none: name one" if contents.tokenizer is None else contents.tokenizer[0],
    }
    missing = [name for name in wanted if name not in stored]
    not_floats = [name for name, tensor in stored.items() if not is_plain(tensor)]
    for fact, names in ((MISSING, missing), (MISSHAPEN, misshapen), (NOT_FLOATS, not_floats)):
        if names:
            facts[fact] = f"{len(names)} of {len(wanted)}, the first is {contents.stored_name(names[0])!r}"
    problems = _statistics_problems(contents)
    if len(problems) == len(contents.datasets):
        facts[UNUSABLE] = problems[0] if problems else "there are no dataset statistics"
    else:
        notes = [*problems, *notes]
    for problem in filter(None, (_tokenizer_problem(contents), _crop_problem(contents))):
        facts[UNUSABLE] = "; ".join(filter(None, [facts.get(UNUSABLE), problem]))
    if notes := [*contents.notes, *notes[:3], *([f"{len(notes) - 3} more"] if len(notes) > 3 else [])]:
        facts["notes"] = notes
    return facts


def _statistics_problems(contents: Contents) -> list[str]:
    """Return a sentence for each dataset that cannot be used. A control period that is not stated can be given."""
    problems = []
    for key, entry in contents.datasets.items():
        try:
            lacks_period = isinstance(entry, dict) and entry.get("dt_s") is None
            statistics = ActionStatistics.from_dataset(key, entry, STEP_S[1] if lacks_period else None)
            require_channels(key, statistics, contents.config.head.channels)
        except ValueError as error:
            problems.append(str(error))
    return problems


def _crop_problem(contents: Contents) -> str | None:
    try:
        ImageTransform(contents.config.vision.image_size, contents.crop)
    except ValueError as error:
        return str(error)
    return None


def _tokenizer_problem(contents: Contents) -> str | None:
    try:
        if contents.tokenizer is not None:
            PromptTokenizer(contents.config.prompt, contents.config.decoder.vocabulary, *contents.tokenizer)
    except ValueError as error:
        return str(error)
    return None
