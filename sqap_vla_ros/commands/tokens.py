"""`sqap-vla inspect-tokens`: draw the visual tokens that survive, for several selectors side by side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sqap_vla_ros.commands.ignored import ignored_recipe, note
from sqap_vla_ros.commands.options import (
    UsageError,
    add_checkpoint,
    add_command,
    add_device,
    add_gripper_pixel,
    add_picture,
    add_recipe,
    add_seed,
    gripper_pixel,
    instruction,
)
from sqap_vla_ros.commands.policy_checks import require_device, require_policy

_DEFAULT_SELECTORS = ("sqap", "fastv", "uniform_grid", "random_same_budget")


def register(subparsers: Any) -> None:
    """Add the `inspect-tokens` sub-command."""
    parser = add_command(
        subparsers,
        "inspect-tokens",
        run,
        summary="draw which visual tokens survive and why, for several selectors side by side",
        description="Draw which visual tokens survive and why, for several selectors side by side. The attention is "
        "that of the policy under --recipe; the pruning of the recipe itself is left out.",
    )
    add_checkpoint(parser, "micro", server=False)
    add_recipe(parser, "fp32")
    add_picture(parser)
    parser.add_argument("--instruction", type=instruction, default="pick up the object", help="what to do, in words")
    parser.add_argument(
        "--selectors",
        nargs="+",
        default=list(_DEFAULT_SELECTORS),
        metavar="NAME[:key=value,...]",
        help="selectors, with parameters as in sqap:ratio=0.6,ring_radius=3",
    )
    add_gripper_pixel(parser)
    add_seed(parser, "for the selectors that draw at random")
    add_device(parser)
    parser.add_argument("--out", type=Path, default=Path("tokens.png"), help="picture to write")


def parse_selector(text: str) -> tuple[str, dict[str, Any]]:
    """Split `name:key=value,...` into a name and parameters; values that are JSON are read as JSON."""
    name, _, rest = text.partition(":")
    parameters: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not (key and equals):
            raise ValueError(f"selector {text!r}: {item!r} is not key=value")
        try:
            parameters[key] = json.loads(value)
        except json.JSONDecodeError:
            parameters[key] = value
    return name, parameters


def run(args: argparse.Namespace) -> None:
    """Write one picture with a panel for each selector and print a line for each."""
    from PIL import Image

    from sqap_vla_ros.contracts import Observation
    from sqap_vla_ros.pictures import read_picture
    from sqap_vla_ros.policy.checkpoints.writing import check_folder, written_aside
    from sqap_vla_ros.shipped import SHIPPED

    kind = Image.registered_extensions().get(args.out.suffix.lower())
    if kind is None:
        raise UsageError(f"--out {args.out}: no kind of picture ends in {args.out.suffix!r}; .png is one that does")
    if args.out.exists() and args.image.exists() and args.out.samefile(args.image):
        raise UsageError(f"--out {args.out} is the picture that is read: name another file")
    check_folder(args.out.parent, args.out)
    require_policy(args.checkpoint, args.recipe, server=False)
    named = {text: parse_selector(text) for text in args.selectors}
    require_device(args.device)
    image = read_picture(args.image)
    pixel = gripper_pixel(args.gripper_pixel, image.shape[1], image.shape[0])
    observation = Observation(image, 0, args.instruction, gripper_pixel=pixel)
    from sqap_vla_ros.compression.load import load_policy
    from sqap_vla_ros.evaluation.selectors import compare_selectors, make_choice, side_by_side

    wanted = {text: make_choice(*selector) for text, selector in named.items()}
    policy = load_policy(args.checkpoint, args.recipe, shipped=SHIPPED, device=args.device)
    note(ignored_recipe(args, policy.info.recipe))
    panels = [image]
    for panel in compare_selectors(policy, observation, wanted, seed=args.seed):
        print(panel.line)
        panels.append(panel.picture)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(args.out) as partial:
        Image.fromarray(side_by_side(panels)).save(partial, format=kind)
    print(f"wrote {args.out}: the image, then {', '.join(args.selectors)}")
