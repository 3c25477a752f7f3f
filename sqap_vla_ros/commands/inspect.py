"""`sqap-vla inspect`: tell what a checkpoint holds, without loading its weights."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sqap_vla_ros.commands.options import CHECKPOINT_HELP, add_command
from sqap_vla_ros.policy.costs import costs_in_words, size_in_words


def register(subparsers: Any) -> None:
    """Add the `inspect` sub-command."""
    parser = add_command(
        subparsers, "inspect", run, summary="tell what a checkpoint holds, without loading its weights"
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> int:
    """Print what the headers say; 1 where the checkpoint is not whole."""
    from sqap_vla_ros.compression.load import checkpoint_path
    from sqap_vla_ros.shipped import SHIPPED

    path = checkpoint_path(args.checkpoint, SHIPPED)
    from sqap_vla_ros.policy.checkpoints.inspect import MISSHAPEN, MISSING, NOT_FLOATS, UNUSABLE

    facts = _describe_made(args.checkpoint) if path is None else _describe_file(path)
    not_whole = "; the file is incomplete or of another model"
    verdicts = {
        MISSING: not_whole,
        MISSHAPEN: not_whole,
        NOT_FLOATS: "; another tool quantised or packed the file: name the one it was made from",
        UNUSABLE: "",
    }
    broken = {name: facts[name] for name in verdicts if name in facts}
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        shown = {name: value for name, value in facts.items() if name not in broken}
        width = max(map(len, shown))
        for name, value in shown.items():
            lines = value if name == "notes" else [", ".join(map(str, value)) if isinstance(value, list) else value]
            print("\n".join(f"{label:<{width}}  {line}" for label, line in zip_longest([name], lines, fillvalue="")))
    for name, fact in broken.items():
        print(f"error: {name}: {fact}{verdicts[name]}", file=sys.stderr)
    return 1 if broken else 0


def _describe_file(path: Path) -> dict[str, Any]:
    from sqap_vla_ros.compression.files.kind import is_compressed
    from sqap_vla_ros.policy.checkpoints.inspect import describe
    from sqap_vla_ros.policy.checkpoints.load import open_checkpoint

    return _describe_compressed(path) if is_compressed(path) else describe(open_checkpoint(path))


def _describe_made(name: str) -> dict[str, Any]:
    """Return the facts of a shipped policy that has no file, because its weights are random."""
    from sqap_vla_ros.policy.checkpoints.inspect import describe
    from sqap_vla_ros.policy.checkpoints.load import open_checkpoint
    from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
    from sqap_vla_ros.shipped import SHIPPED

    make = SHIPPED[name].make
    assert make is not None  # `checkpoint_path` found no file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "made.safetensors")
        save_checkpoint(make(0), path)
        return describe(open_checkpoint(path)) | {"file": "none", "format": "random weights, made when it is loaded"}


def _describe_compressed(path: Path) -> dict[str, Any]:
    """Return the facts of a file made by `sqap-vla compress`."""
    from sqap_vla_ros.compression.bits import linear_widths, parts_in_words, sensitivity_in_words
    from sqap_vla_ros.compression.costs import costs_of_file
    from sqap_vla_ros.compression.files.storage import CompressedFile

    file = CompressedFile(path)
    header = file.header
    packed = sum(row.get("stored_bytes", 0) for row in header.report)
    return {
        "file": str(path),
        "format": "sqap_vla_ros, compressed",
        "model": header.config.name,
        "recipe": header.recipe.name,
        "what it does": header.recipe.description or "the recipe does not say",
        "size": size_in_words(path.stat().st_size),
        "packed linears": size_in_words(packed),
        **costs_in_words(costs_of_file(file)),
        **parts_in_words(header.report),
        **sensitivity_in_words(linear_widths(header.report, header.config)),
        "calibrated on": _calibration(header.calibration),
        "compressed from": header.source.get("checkpoint", "unknown"),
        "its sha256": header.source.get("sha256", "unknown"),
        "datasets (unnorm_key)": sorted(header.statistics),
    }


def _calibration(summary: dict[str, Any]) -> str:
    count = summary.get("observations")
    return f"{count} observations of {summary.get('source', 'an unknown source')}" if count else "nothing"
