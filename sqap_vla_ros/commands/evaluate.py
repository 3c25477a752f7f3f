"""`sqap-vla evaluate`: measure recipes in closed loop on the embedded simulator."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqap_vla_ros.commands.ignored import ignored, note
from sqap_vla_ros.commands.options import (
    UsageError,
    add_checkpoint,
    add_command,
    add_jobs,
    add_ray,
    add_recipes,
    integer,
    names_among,
    number,
)
from sqap_vla_ros.commands.policy_checks import require_fitting, require_policy
from sqap_vla_ros.contracts import CONTINUATIONS, JOINS, TRAINED_POLICY
from sqap_vla_ros.evaluation.closed_loop.choices import ENSEMBLES, HORIZON, LOCKSTEP
from sqap_vla_ros.simulation.vocabulary import CONTROL_DT_S, SUITES, TaskFamily

if TYPE_CHECKING:
    from sqap_vla_ros.evaluation.closed_loop.study import Unit

_DESCRIPTION = """\
Run recipes in closed loop on the embedded tabletop, on the same episodes, and compare their success with the first
recipe's (Wilson intervals, exact McNemar test). Every episode is stored as it ends: an interrupted run goes on where it
stopped, and more --episodes or --recipes only add what is missing. With a server's address as --checkpoint
(ws://host:port), its policy is measured under the recipe that it has. docs/benchmark.md says what is measured."""
_SUITES = tuple(map(str, SUITES))
_FAMILIES = tuple(map(str, TaskFamily))


def register(subparsers: Any) -> None:
    """Add the `evaluate` sub-command."""
    parser = add_command(
        subparsers,
        "evaluate",
        run,
        summary="measure recipes in closed loop",
        description=_DESCRIPTION,
        resumes=True,
    )
    add_checkpoint(parser, TRAINED_POLICY)
    add_recipes(parser)
    parser.add_argument("--suite", choices=(*_SUITES, "both"), default=_SUITES[0], help="how much the scenes vary")
    parser.add_argument(
        "--families", type=names_among(_FAMILIES), default=",".join(_FAMILIES), help="task families, comma-separated"
    )
    parser.add_argument("--episodes", type=integer(1, 100_000), default=50, help="of each family, seeds 0, 1, ...")
    parser.add_argument(
        "--out", type=Path, default=Path("out/evaluate"), help="folder of results; continued if it exists"
    )
    how = parser.add_argument_group("how chunks become motion")
    how.add_argument("--horizon", type=integer(1, 16), default=HORIZON, help="actions executed between two images")
    how.add_argument("--ensemble", choices=ENSEMBLES, default=ENSEMBLES[0], help="CogACT's adaptive ensemble")
    how.add_argument(
        "--async-latency",
        type=number(0.0),
        default=0.0,
        metavar="S",
        help="seconds that the world goes on while the policy thinks",
    )
    how.add_argument("--join", choices=JOINS, default=JOINS[0], help="enter a late chunk by pose or by time")
    how.add_argument(
        "--continuation",
        choices=CONTINUATIONS,
        default=CONTINUATIONS[0],
        help="sample late chunks so that they agree with what the arm does meanwhile (Real-Time Chunking)",
    )
    work = parser.add_argument_group("work")
    add_jobs(work, 1, "processes, one thread each")
    add_ray(work, "episodes")
    work.add_argument("--lockstep", type=integer(1, 1024), default=LOCKSTEP, help="episodes that share a prediction")
    work.add_argument(
        "--deviations",
        type=integer(0, 100_000),
        default=3,
        help="taught episodes of each family for the deviation",
    )
    work.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with the results in --out; --no-resume refuses a folder that has some",
    )


def units_of(args: argparse.Namespace) -> list[Unit]:
    """Return the options as units of work, the reference first. Raises ValueError."""
    from sqap_vla_ros.evaluation.closed_loop.episodes import Execution
    from sqap_vla_ros.evaluation.closed_loop.study import study_units

    return study_units(
        args.recipes,
        _SUITES if args.suite == "both" else (args.suite,),
        [TaskFamily(name) for name in args.families],
        checkpoint=args.checkpoint,
        execution=Execution(args.horizon, args.ensemble, args.async_latency, args.join, args.continuation),
        episodes=args.episodes,
        deviations=args.deviations,
    )


def ignored_options(args: argparse.Namespace) -> list[str]:
    """Return a sentence for each option that was typed and has no effect; `_units_as_served` tells of --recipes."""
    return ignored(
        args,
        (("--jobs",), args.ray, "--ray distributes the episodes"),
        (("--join",), args.async_latency == 0.0, "without --async-latency no chunk is late"),
    )


def _units_as_served(args: argparse.Namespace) -> list[Unit]:
    """Return the units, under the recipe of the server where there is one. Raises RemoteError."""
    from sqap_vla_ros.serving.frames import is_remote

    if not is_remote(args.checkpoint):
        return units_of(args)
    units = units_of(args)
    served = units[0].method.recipe
    note(ignored(args, (("--recipes",), args.recipes != (served,), f"the server has chosen {served}")))
    return units


def _require_continuable(args: argparse.Namespace) -> None:
    """Raise UsageError where --continuation cannot go with the other options, before anything is written."""
    if args.continuation == "none":
        return
    from sqap_vla_ros.compression.recipe import load_recipe
    from sqap_vla_ros.policy.sampling.continuing import find_continuation
    from sqap_vla_ros.serving.frames import is_remote

    option = f"--continuation {args.continuation}"
    if args.async_latency == 0.0:
        raise UsageError(f"{option}: without --async-latency no chunk is late")
    if args.ensemble != "none":
        raise UsageError(f"{option}: goes without an ensemble, got --ensemble {args.ensemble}")
    if is_remote(args.checkpoint):
        raise UsageError(f"{option}: needs a policy in this process, got --checkpoint {args.checkpoint}")
    if not find_continuation(args.continuation).differentiates:
        return
    for recipe in args.recipes:
        chosen = load_recipe(recipe)
        quantised = chosen.quantization is not None and "action_head" in chosen.quantization.parts
        if quantised or (chosen.quantization is not None and chosen.head_dtype != "float32"):
            raise UsageError(
                f"{option}: differentiates the action head, which recipe {recipe!r} does not leave at float32: take "
                "one that does, or --continuation replace"
            )


def run(args: argparse.Namespace) -> int:
    """Run or continue the study; 1 where a recipe could not be measured."""
    from sqap_vla_ros.evaluation.ray_cluster import require_cluster
    from sqap_vla_ros.policy.checkpoints.writing import check_folder
    from sqap_vla_ros.serving.frames import RemoteError

    check_folder(args.out)
    if args.ray is not None:
        require_cluster(args.ray)
    longest_s = args.horizon * CONTROL_DT_S
    if args.async_latency > longest_s:
        lasts = f"the time that --horizon {args.horizon} lasts"
        raise UsageError(f"--async-latency must be at most {longest_s:g} s, {lasts}, got {args.async_latency:g}")
    require_policy(args.checkpoint, *args.recipes)
    _require_continuable(args)
    require_fitting(args.checkpoint, args.recipes)  # all of them, before the first episode
    from sqap_vla_ros.evaluation.closed_loop.report import print_summary, write_report
    from sqap_vla_ros.evaluation.closed_loop.run_study import run_units
    from sqap_vla_ros.evaluation.closed_loop.study import METHODS, Store

    if not args.resume and (args.out / METHODS).exists():
        raise ValueError(f"{args.out} holds results: choose another --out, or leave out --no-resume to continue them")
    try:
        units = _units_as_served(args)
        note(ignored_options(args))
        problems = run_units(
            units, args.out, reference=units[0].method, jobs=args.jobs, lockstep=args.lockstep, ray_address=args.ray
        )
    except RemoteError as error:
        again = "when the server answers again, the same command goes on from here"
        raise UsageError(f"--checkpoint {args.checkpoint}: {error}; {again}") from error
    store = Store(args.out)
    methods = list(dict.fromkeys(unit.method.name for unit in units))
    for suite in dict.fromkeys(unit.suite for unit in units):
        if not any(episode["suite"] == suite for name in methods for episode in store.episodes(name)):
            continue  # nothing could be measured: `problems` says why
        print_summary(store, methods, suite)
        print(f"report: {write_report(store, methods, suite)}")
    for name, problem in problems.items():
        print(f"error: {name}: {problem}", file=sys.stderr)
    return 1 if problems else 0
