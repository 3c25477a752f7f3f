"""Parser, checks and options that the sub-commands share, so that an option means and says the same everywhere."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sqap_vla_ros.contracts import CROPS, STEP_S, TRAINED_POLICY, unreadable
from sqap_vla_ros.evaluation.ray_cluster import ADDRESSES, ray_address
from sqap_vla_ros.policy.devices import name_problem
from sqap_vla_ros.serving.defaults import MOST_THREADS

if TYPE_CHECKING:
    from sqap_vla_ros.policy.settings import CheckpointSettings

_POLICIES = f"`{TRAINED_POLICY}`, `libero_object`, `micro` (random weights), a CogACT folder"
CHECKPOINT_HELP = f"{_POLICIES}, or a .safetensors file"
SERVED_HELP = f"{_POLICIES}, a .safetensors file, or a server (ws://HOST:PORT)"
RECIPE_HELP = "how the policy is compressed: a name of config/recipes or a YAML file"
STATE_HELP = "what follows the position in the state: axis_angle, rpy, quat_wxyz or quat_xyzw"
DEFAULT_RECIPES = "fp32,w4a4,sqap"  # the first is the reference
_LARGEST_SEED = 2**32 - 1


class UsageError(ValueError):
    """A command line that cannot be run; the message names the option, the value and what is allowed."""


class CommandParser(argparse.ArgumentParser):
    """An argument parser that reports a mistake as a `UsageError`, in one line.

    What it returns has `typed`, the options that were given: a value does not tell whether it is the default.
    """

    _typed: frozenset[str] = frozenset()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._typed = frozenset()
        found, rest = super().parse_known_args(args, namespace)
        found.typed = self._typed | vars(found).get("typed", frozenset())  # a sub-command's parser has set its own
        return found, rest

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (`{self.prog} --help` lists the options)")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if "" in arg_strings and (
            action.type is Path or action.dest in ("checkpoint", "unnorm_key")
        ):  # Path("") is the folder one is in
            raise argparse.ArgumentError(action, "needs a name, got ''")
        value = super()._get_values(action, arg_strings)  # type: ignore[misc]
        self._typed |= set(action.option_strings)
        if value == [] and action.nargs is None:  # `--option=--`, of which argparse drops the value
            raise argparse.ArgumentError(action, "expected one argument")
        return value


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help that ends with the default of an option, where it has one worth telling."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        told = default is not None and default is not False and default not in ("", [], (), argparse.SUPPRESS)
        if not told or action.required or not action.option_strings:
            return action.help
        if isinstance(default, bool):
            shown = f"--{action.dest}".replace("_", "-")
        else:
            shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
        return f"{action.help or ''} (default: {shown.replace('%', '%%')})".strip()


def add_command(
    subparsers: Any,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    *,
    summary: str,
    description: str | None = None,
    resumes: bool = False,
) -> argparse.ArgumentParser:
    """Add a sub-command that calls `run`.

    summary: its line in the list of commands. resumes: after an interruption the same command goes on where it was.
    """
    parser = subparsers.add_parser(
        name,
        help=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.set_defaults(run=run, resumes=resumes, parser=parser)
    return parser


def option_naming(args: argparse.Namespace, file: object) -> str:
    """Return the option, and a space, that was given the name of a file; "" where none or several were."""
    actions = () if args.parser is None or not file else args.parser._actions
    values = vars(args)
    found = [a.option_strings[-1] for a in actions if a.option_strings and str(values.get(a.dest)) == str(file)]
    return f"{found[0]} " if len(found) == 1 else ""


# -- values -----------------------------------------------------------------------------------------------------------


def integer(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Return an argument type that reads a whole number within `minimum` and `maximum`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"needs a whole number, got {text!r}") from None
        _check_range(value, minimum, maximum)
        return value

    return parse


def number(minimum: float, maximum: float | None = None, *, above: bool = False) -> Callable[[str], float]:
    """Return an argument type that reads a finite number. above: `minimum` itself is not allowed."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"needs a number, got {text!r}") from None
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"needs a finite number, got {text!r}")
        if above and value <= minimum:
            raise argparse.ArgumentTypeError(f"must be above {minimum:g}, got {text}")
        _check_range(value, minimum, maximum)
        return value

    return parse


def _whole(limit: float) -> str:
    """Return all digits of a whole number."""
    return str(int(limit)) if float(limit).is_integer() and abs(limit) < 2**63 else f"{limit:g}"


def _check_range(value: float, minimum: float, maximum: float | None) -> None:
    if value < minimum:
        raise argparse.ArgumentTypeError(f"must be at least {_whole(minimum)}, got {str(value)[:40]}")
    if maximum is not None and value > maximum:
        raise argparse.ArgumentTypeError(f"must be at most {_whole(maximum)}, got {str(value)[:40]}")


def names(text: str) -> tuple[str, ...]:
    """Read comma-separated names, at least one and each once."""
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    if not found or len(set(found)) != len(found):
        raise argparse.ArgumentTypeError(f"needs some names, each once and separated by commas, got {text!r}")
    return found


def names_among(allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return an argument type that reads comma-separated names out of `allowed`."""

    def parse(text: str) -> tuple[str, ...]:
        found = names(text)
        if unknown := sorted(set(found) - set(allowed)):
            raise argparse.ArgumentTypeError(f"knows no {', '.join(unknown)}; there are: {', '.join(allowed)}")
        return found

    return parse


def instruction(text: str) -> str:
    """Read what to do, in words."""
    if problem := unreadable(text):
        raise argparse.ArgumentTypeError(problem)
    return text.strip()


def device_name(text: str) -> str:
    """Read `cpu`, `cuda` or `cuda:N`; whether CUDA is there is checked by `policy_checks.require_device`."""
    if problem := name_problem(text):
        raise argparse.ArgumentTypeError(problem)
    return text


def cluster_address(text: str) -> str:
    """Read the address of a Ray cluster; whether it answers is checked by `ray_cluster.require_cluster`."""
    try:
        return ray_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# -- options ----------------------------------------------------------------------------------------------------------


def add_checkpoint(parser: Any, default: str | None, *, server: bool = True) -> None:
    """Add --checkpoint; required where `default` is None. server: as for `policy_checks.require_policy`."""
    told = SERVED_HELP if server else CHECKPOINT_HELP
    parser.add_argument("--checkpoint", default=default, required=default is None, help=told)


def add_recipe(parser: Any, default: str) -> None:
    """Add --recipe."""
    parser.add_argument("--recipe", default=default, help=RECIPE_HELP)


def add_recipes(parser: Any) -> None:
    """Add --recipes, whose first one is the reference."""
    parser.add_argument(
        "--recipes", type=names, default=DEFAULT_RECIPES, help="recipes, comma-separated; the first is the reference"
    )


def add_device(parser: Any, purpose: str = "where the policy runs") -> None:
    """Add --device; call `policy_checks.require_device` before any work."""
    parser.add_argument("--device", type=device_name, default="cpu", help=f"{purpose}: cpu, cuda or cuda:N")


def add_seed(parser: Any, purpose: str) -> None:
    """Add --seed."""
    parser.add_argument("--seed", type=integer(0, _LARGEST_SEED), default=0, help=purpose)


def add_unnorm_key(parser: Any) -> None:
    """Add --unnorm-key."""
    parser.add_argument("--unnorm-key", default="", help="dataset whose statistics turn the chunk into metres")


def add_checkpoint_settings(parser: Any) -> None:
    """Add the options about a checkpoint whose file does not say everything; see `checkpoint_settings`."""
    parser.add_argument("--tokenizer", type=Path, help="Llama-2 tokenizer (file or folder), where none came along")
    parser.add_argument("--dt", type=number(*STEP_S), metavar="S", help="seconds between actions, if not as stored")
    parser.add_argument("--crop", choices=CROPS, help="image preprocessing, if not as stored")
    parser.add_argument("--ema", action="store_true", help="use the action head averaged over training (ema_diffusion)")


def add_sampling(parser: Any) -> None:
    """Add the options about the sampling of a chunk; see `checkpoint_settings`."""
    parser.add_argument("--cfg-scale", type=number(0.0, 100.0), help="guidance of the diffusion, if not as stored")
    parser.add_argument("--ddim-steps", type=integer(2, 100), help="DDIM steps, if not as stored")


def add_jobs(parser: Any, default: int, purpose: str) -> None:
    """Add --jobs, at most eight for each processor core: more only fill the memory."""
    most = 8 * (os.cpu_count() or 1)
    parser.add_argument("--jobs", type=integer(1, most), default=default, help=purpose)


def add_ray(parser: Any, work: str) -> None:
    """Add --ray; call `ray_cluster.require_cluster` before any work."""
    told = f"{work} over a Ray cluster: {ADDRESSES}"
    parser.add_argument("--ray", type=cluster_address, metavar="ADDRESS", help=told)


def add_threads(parser: Any) -> None:
    """Add --threads; commands that load the policy themselves call `use_threads`."""
    parser.add_argument(
        "--threads", type=integer(0, MOST_THREADS), default=0, help="torch threads; 0 leaves torch's default"
    )


def use_threads(count: int) -> None:
    """Give torch `count` threads, unless it is 0."""
    if count:
        import torch

        torch.set_num_threads(count)


def checkpoint_settings(args: argparse.Namespace) -> CheckpointSettings:
    """Return what --unnorm-key, --tokenizer, --dt, --crop, --ema, --cfg-scale and --ddim-steps say."""
    from sqap_vla_ros.policy.settings import CheckpointSettings

    return CheckpointSettings(
        unnorm_key=args.unnorm_key or None,
        tokenizer=args.tokenizer,
        dt_s=args.dt,
        crop=args.crop,
        ema=args.ema,
        guidance=args.cfg_scale,
        ddim_steps=args.ddim_steps,
    )


def worker_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the same, --unnorm-key aside, as fields of `WorkerConfig`."""
    return {
        "tokenizer": str(args.tokenizer.expanduser().resolve()) if args.tokenizer else "",
        "dt": args.dt or 0.0,
        "crop": args.crop or "",
        "ema": args.ema,
        "cfg_scale": -1.0 if args.cfg_scale is None else args.cfg_scale,
        "ddim_steps": args.ddim_steps or 0,
    }


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Provide a function of (stage, done, total) that draws a bar on a terminal, from its first call on.

    Where standard error is no terminal, each stage is one line.
    """
    from tqdm import tqdm

    bar: list[Any] = []
    said: set[str] = set()

    def progress(stage: str, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            if stage not in said:
                said.add(stage)
                print(stage, file=sys.stderr)
            return
        if not bar:
            bar.append(tqdm(total=0, unit="step"))
        bar[0].set_description(stage)
        bar[0].total, bar[0].n = total, done
        bar[0].refresh()

    try:
        yield progress
    finally:
        for one in bar:
            one.close()


def add_picture(parser: Any) -> None:
    """Add --image; read it with `pictures.read_picture`."""
    parser.add_argument("--image", type=Path, required=True, help="picture of the robot's camera (png, jpg, ...)")


def add_gripper_pixel(parser: Any) -> None:
    """Add --gripper-pixel; check it with `gripper_pixel`."""
    parser.add_argument(
        "--gripper-pixel", type=number(-math.inf), nargs=2, metavar=("U", "V"), help="gripper in the image, pixels"
    )


def gripper_pixel(given: Sequence[float] | None, width: int, height: int) -> tuple[float, float] | None:
    """Return --gripper-pixel as (u, v), None where it was not given. Raises UsageError outside the image."""
    if given is None:
        return None
    u, v = given
    if not (-0.5 <= u < width - 0.5 and -0.5 <= v < height - 0.5):
        raise UsageError(f"--gripper-pixel {u:g} {v:g} lies outside the image, which has {width} x {height} pixels")
    return u, v
