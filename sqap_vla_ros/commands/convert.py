"""`sqap-vla convert`: turn a published checkpoint folder into one `.safetensors` file, or back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqap_vla_ros.commands.options import UsageError, add_checkpoint_settings, add_command, add_unnorm_key
from sqap_vla_ros.commands.policy_checks import require_policy

if TYPE_CHECKING:
    from sqap_vla_ros.policy.checkpoints.contents import Contents

_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")  # endings that no folder has


def register(subparsers: Any) -> None:
    """Add the `convert` sub-command."""
    parser = add_command(
        subparsers, "convert", run, summary="turn a published folder into one .safetensors file, or back"
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="published folder, its .pt, or a .safetensors file")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="a name ending in .safetensors, or a new folder")
    parser.add_argument(
        "--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"), help="type of the stored weights"
    )
    add_unnorm_key(parser)
    add_checkpoint_settings(parser)


def run(args: argparse.Namespace) -> None:
    """Convert; an existing output is refused before anything is loaded."""
    from sqap_vla_ros.compression.files.kind import is_compressed
    from sqap_vla_ros.compression.load import checkpoint_path
    from sqap_vla_ros.policy.checkpoints.writing import check_free
    from sqap_vla_ros.policy.settings import CheckpointSettings
    from sqap_vla_ros.shipped import SHIPPED

    if args.output.suffix != ".safetensors" and (ending := Path(f"a{args.output.name}").suffix).lower() in _WEIGHTS:
        raise UsageError(
            f"OUTPUT {args.output}: a folder is written there, or a file NAME.safetensors, but no {ending}"
        )
    check_free(args.output)
    path = checkpoint_path(args.checkpoint, SHIPPED)
    if path is None:
        raise UsageError(f"{args.checkpoint} has random weights and no file: there is nothing to convert")
    if path.is_dir() and args.output.resolve().is_relative_to(path.resolve()):
        raise UsageError(f"OUTPUT {args.output} lies in the checkpoint {path}: choose another place")
    if is_compressed(path):
        raise UsageError(f"{path} is compressed, which cannot be undone: convert the checkpoint that it was made from")
    require_policy(args.checkpoint, settings=CheckpointSettings(args.unnorm_key or None, args.tokenizer))
    import torch

    from sqap_vla_ros.policy.checkpoints.load import load_checkpoint, open_checkpoint
    from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
    from sqap_vla_ros.policy.checkpoints.published import save_published

    policy = load_checkpoint(
        path,
        dtype=getattr(torch, args.dtype),
        unnorm_key=args.unnorm_key or None,
        tokenizer=args.tokenizer,
        dt_s=args.dt,
        crop=args.crop,
        ema=args.ema,
    )
    source = open_checkpoint(path, ema=args.ema)
    if args.output.suffix == ".safetensors":
        save_checkpoint(policy, args.output)
    else:
        save_published(policy, args.output)
    print(f"wrote {args.output}")
    for line in _dropped(source, policy.unnorm_key, args.dtype):
        print(f"left out: {line}")


def _dropped(source: Contents, kept: str, dtype: str) -> list[str]:
    """Return what the converted checkpoint no longer has, one line each."""
    lines = []
    if others := sorted(set(source.datasets) - {kept}):
        shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        lines.append(f"the statistics of {len(others)} other data sets ({shown}); kept: {kept}")
    if source.unused:
        lines.append(f"{source.unused} tensors that a prediction does not use ({source.unused_names})")
    stored = source.read("decoder.norm.weight").element_size()
    if dtype != "float32" and stored > 2:
        lines.append(f"precision: towers, projector and decoder are {dtype}; the action head stays float32")
    return lines
