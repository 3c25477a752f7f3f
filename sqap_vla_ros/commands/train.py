"""`sqap-vla train`: the shipped policy from nothing, in the embedded simulator."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def register(subparsers: Any) -> None:
    """Add the `train` sub-command."""
    parser = subparsers.add_parser(
        "train",
        help="train the small tabletop policy from nothing",
        description="Collects demonstrations in the embedded simulator, imitates them, corrects the policy where it "
        "strays, and imitates again. Interrupted, it goes on where it was; the result is OUT/policy.safetensors.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for demonstrations (10 GB) and checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, weights and noise (default 0, the shipped one)")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one for each core (default 2)")
    parser.add_argument("--device", default="cpu", help="where the weights are trained: cpu (default) or cuda")
    parser.add_argument("--compile", action="store_true", help="compile the decoder's layers (needs a C++ compiler)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the demonstrations and steps (default 1)")
    parser.add_argument(
        "--no-attention-supervision", action="store_true", help="the control: nobody tells the policy where to look"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run or continue the pipeline."""
    if args.seed < 0 or args.jobs < 1 or not 0.0 < args.scale <= 100.0:
        raise ValueError(
            f"--seed must be 0 or more, --jobs 1 or more and --scale within 0..100, "
            f"got {args.seed}, {args.jobs} and {args.scale:g}"
        )
    import shutil

    from sqap_vla_ros.training import pipeline

    config = pipeline.SHIPPED if args.seed == 0 else pipeline.SHIPPED.seeded(args.seed)
    if args.scale != 1.0:
        config = config.scaled(args.scale)
    if args.no_attention_supervision:
        config = config.without_attention()
    result = pipeline.run_pipeline(
        args.out, config, jobs=args.jobs, device=args.device, compiled=args.compile, show=not args.quiet
    )
    final = args.out / "policy.safetensors"
    shutil.copyfile(result, final)
    print(f"{final}\ntry it: sqap-vla demo --checkpoint {final}")
    return 0
