"""The options that were typed and have no effect: what is said about them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

POLICY_OPTIONS = (
    *("--unnorm-key", "--tokenizer", "--dt", "--crop", "--ema", "--cfg-scale", "--ddim-steps"),
    *("--device", "--dtype", "--threads"),
)  # which a server has chosen itself
Case = tuple[Sequence[str], object, str]  # options, whether they have no effect, the reason


def ignored(args: argparse.Namespace, *cases: Case) -> list[str]:
    """Return a sentence for each case that holds and of which an option was typed."""
    said = []
    for options, useless, reason in cases:
        typed = [option for option in options if option in args.typed]
        if typed and useless:
            said.append(f"{', '.join(typed)} {'is' if len(typed) == 1 else 'are'} ignored: {reason}")
    return said


def note(sentences: Iterable[str]) -> None:
    """Print each sentence as a note, on standard error."""
    for sentence in sentences:
        print(f"note: {sentence}", file=sys.stderr)


def ignored_by_server(args: argparse.Namespace) -> list[str]:
    """Return what is said about options of a policy where --checkpoint is the address of a server."""
    from sqap_vla_ros.serving.frames import is_remote

    return ignored(args, (POLICY_OPTIONS, is_remote(args.checkpoint), "the server has loaded the policy already"))


def ignored_recipe(args: argparse.Namespace, loaded: str) -> list[str]:
    """Return what is said about --recipe where the policy follows its own.

    loaded: `PolicyInfo.recipe`, the recipes that are in effect, joined by "+".
    """
    from sqap_vla_ros.serving.frames import is_remote

    if "--recipe" not in args.typed or _in_effect(args.recipe, loaded):
        return []
    own = "the server has chosen" if is_remote(args.checkpoint) else "the checkpoint is compressed as"
    return [f"--recipe {args.recipe} is ignored: {own} {loaded}"]


def ignored_recipes(args: argparse.Namespace) -> list[str]:
    """Return what is said about --recipes, typed or not, that a compressed checkpoint does not follow."""
    from sqap_vla_ros.compression.load import applied_recipe
    from sqap_vla_ros.serving.frames import is_remote
    from sqap_vla_ros.shipped import SHIPPED

    if is_remote(args.checkpoint):
        return []
    applied = {name: applied_recipe(args.checkpoint, name, SHIPPED).name for name in args.recipes}
    return [
        f"--recipes {name} is ignored: the checkpoint is compressed as {loaded}"
        for name, loaded in applied.items()
        if not _in_effect(name, loaded)
    ]


def _in_effect(recipe: str, loaded: str) -> bool:
    """Return whether a recipe is among those in effect; one that cannot be read here, which a server may have, by name.

    `policy_checks.require_policy` has refused it where there is no server.
    """
    from sqap_vla_ros.compression.recipe import load_recipe

    try:
        name = load_recipe(recipe).name
    except (OSError, ValueError):
        name = recipe
    return name in loaded.split("+")
