"""`sqap-vla train`: train the shipped policy from nothing, or the same network on demonstrations of another world."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from sqap_vla_ros.commands.ignored import ignored, note
from sqap_vla_ros.commands.options import (
    UsageError,
    add_command,
    add_device,
    add_jobs,
    add_seed,
    number,
)
from sqap_vla_ros.commands.policy_checks import require_device
from sqap_vla_ros.contracts import TRAINED_POLICY


def register(subparsers: Any) -> None:
    """Add the `train` sub-command."""
    parser = add_command(
        subparsers,
        "train",
        run,
        summary="train the small tabletop policy from nothing",
        description="Collect demonstrations in the embedded simulator, imitate them, correct the policy where it "
        "strays, and imitate again; or imitate the DEMONSTRATIONS of another world. Interrupted, it goes on where it "
        "was; the result is OUT/policy.safetensors.",
        resumes=True,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for demonstrations (10 GB) and checkpoints")
    parser.add_argument(
        "--demonstrations",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="shards from another world, instead of the simulator's; the first folder describes them all",
    )
    parser.add_argument(
        "--start",
        type=Path,
        help="weights to begin with: OUT of an earlier training on demonstrations, a .safetensors of the same "
        f"geometry, or {TRAINED_POLICY}, the policy that ships",
    )
    add_seed(parser, "of scenes, weights and noise; 0 is the shipped policy's")
    add_jobs(parser, 2, "processes, one for each core")
    add_device(parser, "where the weights are trained")
    parser.add_argument("--compile", action="store_true", help="compile the decoder's layers (needs a C++ compiler)")
    parser.add_argument(
        "--scale",
        type=number(0.0, 100.0, above=True),
        default=1.0,
        help="share of the steps, and of the simulator's demonstrations",
    )
    parser.add_argument(
        "--no-attention-supervision", action="store_true", help="train the control that is not told where to look"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress bars")


def _named_or(start: Path) -> Path:
    """Return what to start from: the shipped policy's file where that is named, or the path. Raises UsageError."""
    from sqap_vla_ros.shipped import SHIPPED
    from sqap_vla_ros.training.pipeline import starting_weights

    shipped = SHIPPED[TRAINED_POLICY].weights
    found = shipped if shipped is not None and str(start) == TRAINED_POLICY else start
    try:
        starting_weights(found)
    except ValueError as error:
        raise UsageError(f"--start: {error}") from error
    return found


def run(args: argparse.Namespace) -> int:
    """Run or continue the training that was asked for."""
    require_device(args.device)
    import shutil

    from sqap_vla_ros.policy.checkpoints.writing import check_folder, written_aside
    from sqap_vla_ros.training import pipeline

    check_folder(args.out)
    if args.demonstrations is not None:
        note(ignored(args, (("--jobs",), args.device != "cpu", "a GPU is trained on by one process")))
    how = {"jobs": args.jobs, "device": args.device, "compiled": args.compile, "show": not args.quiet}
    final = args.out / "policy.safetensors"
    if args.demonstrations is None:
        if args.start is not None:
            raise UsageError("--start goes with --demonstrations: the simulator's stages start from each other")
        config = pipeline.SHIPPED if args.seed == 0 else pipeline.SHIPPED.seeded(args.seed)
        if args.scale != 1.0:
            config = config.scaled(args.scale)
        if args.no_attention_supervision:
            config = config.without_attention()
        result = pipeline.run_pipeline(args.out, config, **how)
        trial = f"sqap-vla demo --checkpoint {shlex.quote(str(final))}"
    else:
        training = pipeline.recorded_training(
            args.scale, args.seed, attention=not args.no_attention_supervision, again=args.start is not None
        )
        start = None if args.start is None else _named_or(args.start)
        try:
            result = pipeline.train_on_recorded(args.out, args.demonstrations, training, start=start, **how)
        except ValueError as error:
            raise UsageError(f"--demonstrations: {error}") from error
        trial = f"sqap-vla serve --checkpoint {shlex.quote(str(final))}"
    with written_aside(final) as partial:
        shutil.copyfile(result, partial)
    print(f"{final}\ntry it: {trial}")
    return 0
