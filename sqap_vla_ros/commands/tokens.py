"""`sqap-vla inspect-tokens`: a picture of the visual tokens that survive, for several selectors side by side."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sqap_vla_ros.compression.accelerators.base import Accelerator
    from sqap_vla_ros.contracts import TokenSelector

_DEFAULT_SELECTORS = ("sqap", "fastv", "uniform_grid", "random_same_budget")


def register(subparsers: Any) -> None:
    """Add the `inspect-tokens` sub-command."""
    tokens = subparsers.add_parser(
        "inspect-tokens", help="draw which visual tokens survive and why, for several selectors side by side"
    )
    tokens.add_argument("--checkpoint", default="micro", help="folder, .safetensors file, or 'micro' (default)")
    tokens.add_argument("--recipe", default="fp32", help="recipe the attention comes from; its pruning is ignored")
    tokens.add_argument("--image", type=Path, required=True, help="any picture PIL can read")
    tokens.add_argument("--instruction", default="pick up the object", help="what to do, in words")
    tokens.add_argument(
        "--selectors",
        nargs="+",
        default=list(_DEFAULT_SELECTORS),
        metavar="NAME[:key=value,...]",
        help=f"selectors, with parameters as in sqap:ratio=0.6,ring_radius=3 (default: {' '.join(_DEFAULT_SELECTORS)})",
    )
    tokens.add_argument("--gripper-pixel", type=float, nargs=2, metavar=("U", "V"), help="gripper in the image, pixels")
    tokens.add_argument("--seed", type=int, default=0, help="for the selectors that draw at random (default: 0)")
    tokens.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    tokens.add_argument("--out", type=Path, default=Path("tokens.png"), help="picture to write (default: tokens.png)")
    tokens.set_defaults(run=run)


def parse_selector(text: str) -> tuple[str, dict[str, Any]]:
    """`name:key=value,...` to a name and parameters; values are read as JSON where they are JSON."""
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


def make_choice(name: str, parameters: dict[str, Any]) -> TokenSelector | Accelerator:
    """Make a token selector, or an accelerator whose choice of tokens can be drawn; raises ValueError for others."""
    from sqap_vla_ros.compression.accelerators.table import ACCELERATORS, make_accelerator
    from sqap_vla_ros.pruning import SELECTORS, make_selector

    if name in SELECTORS or name not in ACCELERATORS:
        return make_selector(name, **parameters)
    if not ACCELERATORS[name].shows_tokens:
        raise ValueError(f"accelerator {name!r} keeps every token: there is nothing to draw")
    return make_accelerator(name, **parameters)


def run(args: argparse.Namespace) -> None:
    """Writes one picture with a panel for each selector and prints a line for each."""
    from PIL import Image

    from sqap_vla_ros.compression.accelerators.base import Accelerator
    from sqap_vla_ros.compression.accelerators.table import accelerate
    from sqap_vla_ros.compression.load import load_policy
    from sqap_vla_ros.contracts import Observation, Reason
    from sqap_vla_ros.policy.cogact import CogACTPolicy
    from sqap_vla_ros.pruning.overlay import draw_overlay
    from sqap_vla_ros.shipped import SHIPPED

    wanted = [(text, make_choice(*parse_selector(text))) for text in args.selectors]
    image = np.asarray(Image.open(args.image).convert("RGB"))
    pixel = None if args.gripper_pixel is None else (args.gripper_pixel[0], args.gripper_pixel[1])
    observation = Observation(image, 0, args.instruction, gripper_pixel=pixel)
    policy = load_policy(args.checkpoint, args.recipe, shipped=SHIPPED, device=args.device)
    if not isinstance(policy, CogACTPolicy):
        raise ValueError(f"recipe {args.recipe!r} runs the layers its own way; take one without an accelerator")
    parts = dict(policy.model.named_children())
    panels = []
    for text, choice in wanted:
        policy.selector = None
        for part, module in parts.items():  # an accelerator may have replaced some
            setattr(policy.model, part, module)
        if isinstance(choice, Accelerator):
            accelerate(policy, choice)
        else:
            policy.selector = choice
        started = time.perf_counter()
        chunk = policy.predict(observation, seed=args.seed)
        elapsed_ms = (time.perf_counter() - started) * 1e3
        selection = chunk.selection
        if selection is None:
            raise ValueError(f"the policy reported no token selection for {text!r}")
        counts = {
            Reason(int(r)).name.lower(): int((selection.reasons == r).sum()) for r in np.unique(selection.reasons)
        }
        listed = ", ".join(f"{reason} {count}" for reason, count in counts.items())
        where = "outside the view" if selection.gripper_patch is None else f"in patch {selection.gripper_patch}"
        print(
            f"{text:28s} kept {len(selection.indices)} of {selection.grid[0] * selection.grid[1]} before layer "
            f"{selection.prune_layer} ({listed}), gripper {where}, {elapsed_ms:.0f} ms"
        )
        panels.append(
            draw_overlay(
                image,
                selection,
                policy.transform,
                gripper_pixel=pixel,
                caption=f"{text}, before layer {selection.prune_layer}",
            )
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(side_by_side([image, *panels])).save(args.out)
    print(f"wrote {args.out}: the image, then {', '.join(args.selectors)}")


def side_by_side(panels: list[NDArray[np.uint8]], columns: int = 3, gap: int = 4) -> NDArray[np.uint8]:
    """Pictures of one size in rows of `columns`, on white. [H, W, 3] uint8"""
    height, width = panels[0].shape[:2]
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for index, panel in enumerate(panels):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = panel
    return sheet
