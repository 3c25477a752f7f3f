"""`sqap-vla inspect`: tell what a checkpoint holds, without loading its weights."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sqap_vla_ros.commands.options import add_command


def register(subparsers: Any) -> None:
    """Add the `inspect` sub-command."""
    parser = add_command(
        subparsers, "inspect", run, summary="tell what a checkpoint holds, without loading its weights"
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="published folder or .safetensors file")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> None:
    """Print what the headers say."""
    from sqap_vla_ros.compression.files.storage import is_compressed
    from sqap_vla_ros.policy.checkpoints.inspect import describe
    from sqap_vla_ros.policy.checkpoints.load import open_checkpoint

    path = args.checkpoint.expanduser()
    facts = _describe_compressed(path) if is_compressed(path) else describe(open_checkpoint(path))
    if args.json:
        print(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {', '.join(map(str, value)) if isinstance(value, list) else value}")


def _describe_compressed(path: Path) -> dict[str, Any]:
    """Return the facts of a file made by `sqap-vla compress`."""
    from sqap_vla_ros.compression.files.storage import CompressedFile

    header = CompressedFile(path).header
    return {
        "file": str(path),
        "format": "sqap_vla_ros, compressed",
        "model": header.config.name,
        "recipe": header.recipe.name,
        "what it does": header.recipe.description,
        "size [GiB]": round(path.stat().st_size / 2**30, 3),
        "compressed from": header.source.get("checkpoint", "unknown"),
        "its sha256": header.source.get("sha256", "unknown"),
        "datasets (unnorm_key)": sorted(header.statistics),
    }
