"""`sqap-vla bops`: count the operations of one prediction by module, for a recipe and a geometry."""

from __future__ import annotations

import argparse
import json
from typing import Any

from sqap_vla_ros.commands.options import add_command, add_recipe, integer
from sqap_vla_ros.policy.costs import costs_in_words

_MOST_TOKENS = 2**20
_BOUND = "the least that the rows' average allows: what they cost is known once they are compressed (inspect)"


def register(subparsers: Any) -> None:
    """Add the `bops` sub-command."""
    parser = add_command(
        subparsers, "bops", run, summary="count the operations of one prediction by module, for a recipe and a geometry"
    )
    add_recipe(parser, "sqap")
    parser.add_argument("--model", default="cogact-base", help="geometry: micro or cogact-{small,base,large}")
    parser.add_argument(
        "--text-tokens", type=integer(1, _MOST_TOKENS), help="tokens that are not image (default: those of a prompt)"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> None:
    """Print operations by module under both definitions."""
    from sqap_vla_ros.compression.bops import (
        TEXT_TOKENS,
        Definition,
        Workload,
        bops,
        macs,
        only_a_bound,
        operation_shares,
        workload_of,
    )
    from sqap_vla_ros.compression.recipe import load_recipe
    from sqap_vla_ros.policy.config import named_config

    recipe = load_recipe(args.recipe)
    config = named_config(args.model)
    from sqap_vla_ros.compression.compress import require_loadable
    from sqap_vla_ros.compression.costs import expected_costs  # takes a second: the recipe is judged before

    require_loadable(recipe, config.decoder.depth)
    text_tokens = args.text_tokens or TEXT_TOKENS
    work = workload_of(recipe, config, text_tokens)
    baseline = macs(Workload(work.config, text_tokens))
    table = {
        module: {
            "baseline_macs": baseline[module],
            **{d.value: bops(work, recipe.quantization, d)[module] for d in Definition},
        }
        for module in baseline
    }
    shares = operation_shares(recipe, work.config, text_tokens)
    costs = expected_costs(recipe, work.config)
    if args.json:
        said = {"recipe": recipe.name, "model": args.model, "modules": table, "relative": shares, "costs": costs}
        said |= {"note": f"paper: {_BOUND}"} if only_a_bound(recipe.quantization) else {}
        print(json.dumps(said, indent=2))
        return
    print(f"recipe {recipe.name} on {args.model}, {work.config.vision.tokens} visual and {text_tokens} other tokens")
    print(f"{'module':22s}{'GMACs at 16 bits':>18s}{'paper':>12s}{'bit product':>14s}   (16-bit equivalents, 1e9)")
    for module, row in table.items():
        print(
            f"{module:22s}{row['baseline_macs'] / 1e9:18.2f}{row['paper'] / 1e9:12.2f}{row['bit_product'] / 1e9:14.2f}"
        )
    print(f"{'share of uncompressed':22s}{'100.0 %':>18s}{shares['paper']:12.1%}{shares['bit_product']:14.1%}")
    words = costs_in_words(costs)
    if only_a_bound(recipe.quantization):
        print(f"the paper's count is {_BOUND}")
    print(f"weights {words['weights']}; decoder {words['decoder']}")
