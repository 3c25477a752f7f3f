"""`sqap-vla evaluate`: its options and what they become."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqap_vla_ros.simulation.vocabulary import SUITES, TaskFamily

if TYPE_CHECKING:
    from sqap_vla_ros.evaluation.closed_loop.study import Method, Unit

_SUITES = tuple(map(str, SUITES))
_FAMILIES = tuple(map(str, TaskFamily))
_JOINS = ("clock", "path")  # of evaluation.closed_loop.episodes, without its imports

_DESCRIPTION = """\
Runs recipes in closed loop on the embedded tabletop, on the same episodes, and compares their success with the first
recipe's (Wilson intervals, exact McNemar test). Every episode is stored as it ends: an interrupted run goes on where it
stopped, and more --episodes or --recipes only add what is missing. docs/benchmark.md says what is measured."""


def register(subparsers: Any) -> None:
    """Add the `evaluate` sub-command."""
    parser = subparsers.add_parser(
        "evaluate", help="measure recipes in closed loop", description=_DESCRIPTION, formatter_class=_Formatter
    )
    parser.add_argument("--checkpoint", default="tabletop", help="a shipped policy, a checkpoint folder or file")
    parser.add_argument("--recipes", default="fp32,w4a4,sqap", help="comma-separated; the first is the reference")
    parser.add_argument("--suite", choices=(*_SUITES, "both"), default=_SUITES[0])
    parser.add_argument("--families", default=",".join(_FAMILIES), help="comma-separated task families")
    parser.add_argument("--episodes", type=int, default=50, help="of each family; seeds 0, 1, ...")
    parser.add_argument(
        "--out", type=Path, default=Path("out/evaluate"), help="folder of results; continued if it exists"
    )
    how = parser.add_argument_group("how chunks become motion")
    how.add_argument("--horizon", type=int, default=8, help="actions executed between two images")
    how.add_argument(
        "--ensemble", choices=("none", "original", "by_time"), default="none", help="CogACT's adaptive ensemble"
    )
    how.add_argument(
        "--async-latency",
        type=float,
        default=0.0,
        metavar="S",
        help="the world goes on while the policy thinks, seconds",
    )
    how.add_argument("--join", choices=_JOINS, default=_JOINS[0], help="enter a late chunk by time or by pose")
    work = parser.add_argument_group("work")
    work.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    work.add_argument("--lockstep", type=int, default=10, help="episodes that share a prediction")
    work.add_argument("--deviations", type=int, default=3, help="taught episodes a family for the action deviation")
    work.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with the results in --out; --no-resume refuses a folder that has some",
    )
    parser.set_defaults(run=run)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def make_units(args: argparse.Namespace) -> list[Unit]:
    """The options as units of work, the reference first. Raises ValueError."""
    from sqap_vla_ros.compression.recipe import load_recipe
    from sqap_vla_ros.evaluation.closed_loop.episodes import Execution
    from sqap_vla_ros.evaluation.closed_loop.study import Method, Unit

    names = _names(args.recipes)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"--recipes needs some recipes, each once, got {args.recipes!r}")
    unknown = sorted(set(_names(args.families)) - set(_FAMILIES))
    if unknown or not _names(args.families):
        raise ValueError(f"--families must be some of {', '.join(_FAMILIES)}, got {args.families!r}")
    for option in ("jobs", "lockstep", "episodes"):
        if getattr(args, option) < 1:
            raise ValueError(f"--{option} must be at least 1, got {getattr(args, option)}")
    execution = Execution(args.horizon, args.ensemble, args.async_latency, args.join)
    families = tuple(TaskFamily(name) for name in _names(args.families))
    suites = _SUITES if args.suite == "both" else (args.suite,)
    methods: list[Method] = []
    for name in names:
        recipe = load_recipe(name)  # a wrong name is told before an hour of work, not after
        methods.append(Method(recipe.name, name, args.checkpoint, execution))
    return [
        Unit(method, suite, args.episodes, families, min(args.deviations, args.episodes))
        for method in methods
        for suite in suites
    ]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def run(args: argparse.Namespace) -> int:
    """Run or continue the study; 1 where a recipe could not be measured."""
    from sqap_vla_ros.evaluation.closed_loop.report import print_summary, write_report
    from sqap_vla_ros.evaluation.closed_loop.study import METHODS, Store, run_units

    units = make_units(args)
    if not args.resume and (args.out / METHODS).exists():
        raise ValueError(f"{args.out} holds results: choose another --out, or leave out --no-resume to continue them")
    try:
        problems = run_units(units, args.out, reference=units[0].method, jobs=args.jobs, lockstep=args.lockstep)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        raise
    store = Store(args.out)
    methods = list(dict.fromkeys(unit.method.name for unit in units))
    for suite in dict.fromkeys(unit.suite for unit in units):
        print_summary(store, methods, suite)
        print(f"report: {write_report(store, methods, suite)}")
    for name, problem in problems.items():
        print(f"error: {name}: {problem}", file=sys.stderr)
    return 1 if problems else 0
