"""`sqap-vla convert`: turn a published checkpoint folder into one `.safetensors` file, or back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sqap_vla_ros.commands.options import add_command, add_unnorm_key, number


def register(subparsers: Any) -> None:
    """Add the `convert` sub-command."""
    parser = add_command(
        subparsers, "convert", run, summary="turn a published folder into one .safetensors file, or back"
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="published folder or .safetensors file")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="a name ending in .safetensors, or a new folder")
    parser.add_argument(
        "--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"), help="type of the stored weights"
    )
    add_unnorm_key(parser)
    parser.add_argument("--tokenizer", type=Path, help="Llama-2 tokenizer, where the checkpoint has none")
    parser.add_argument(
        "--dt",
        type=number(0.0, above=True),
        metavar="S",
        help="seconds between actions, where the statistics do not say",
    )


def run(args: argparse.Namespace) -> None:
    """Convert; an existing output is refused."""
    import torch

    from sqap_vla_ros.policy.checkpoints.load import load_checkpoint
    from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
    from sqap_vla_ros.policy.checkpoints.published import save_published

    if args.output.exists():
        raise FileExistsError(f"{args.output} exists: nothing is overwritten")
    policy = load_checkpoint(
        args.checkpoint,
        dtype=getattr(torch, args.dtype),
        unnorm_key=args.unnorm_key or None,
        tokenizer=args.tokenizer,
        dt_s=args.dt,
    )
    if args.output.suffix == ".safetensors":
        save_checkpoint(policy, args.output)
    else:
        save_published(policy, args.output)
    print(f"wrote {args.output}")
