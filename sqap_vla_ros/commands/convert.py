"""`sqap-vla convert`: a published checkpoint folder to one `.safetensors` file, or back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def register(subparsers: Any) -> None:
    """Add the `convert` sub-command."""
    convert = subparsers.add_parser("convert", help="published folder to one .safetensors file, or back")
    convert.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="published folder or .safetensors file")
    convert.add_argument("output", type=Path, metavar="OUTPUT", help="a name ending in .safetensors, or a new folder")
    convert.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    convert.add_argument("--unnorm-key", help="dataset whose statistics go into the result")
    convert.add_argument("--tokenizer", type=Path, help="Llama-2 tokenizer, where the checkpoint has none")
    convert.add_argument("--dt", type=float, help="seconds between actions, where the statistics do not say")
    convert.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Converts, refusing to overwrite."""
    import torch

    from sqap_vla_ros.policy.checkpoints.load import load_checkpoint
    from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
    from sqap_vla_ros.policy.checkpoints.published import save_published

    if args.output.exists():
        raise FileExistsError(f"{args.output} exists: nothing is overwritten")
    policy = load_checkpoint(
        args.checkpoint,
        dtype=getattr(torch, args.dtype),
        unnorm_key=args.unnorm_key,
        tokenizer=args.tokenizer,
        dt_s=args.dt,
    )
    if args.output.suffix == ".safetensors":
        save_checkpoint(policy, args.output)
    else:
        save_published(policy, args.output)
    print(f"wrote {args.output}")
