"""Make a small policy for LIBERO and measure it: expert, demonstrations, training, corrections, table. One command.

    python benchmarks/outside/libero_small.py --out out/libero/small                 goes on where it was interrupted
    python benchmarks/outside/libero_small.py --out /tmp/trial --scale 0.001         tries every stage

Runs in the package's environment; LIBERO's own (LIBERO_VENV) is made where it is missing. docs/outside_benchmarks.md
says what each stage costs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from libero_table import COMMAND, HERE, begun_with, environment, environment_of_libero, run, served

from sqap_vla_ros.processes import signals_raise

FRAMES, HORIZON = 256, 8
TRIAL = 0.1  # a smaller scale gives no result, so that one task and a few steps of it do


@dataclass(frozen=True)
class Amounts:
    """How much is made. episodes: of each task, for the expert's check and for each row of the table."""

    shards: int = 80
    frames: int = FRAMES
    corrections: int = 16
    checked: int = 3
    episodes: int = 20
    training: float = 1.0
    limits: tuple[str, ...] = ()

    def scaled(self, factor: float) -> Amounts:
        """Return the amounts times `factor`, at least one of each; a trial stops its episodes early."""

        def part(count: int) -> int:
            return max(1, round(count * factor))

        return replace(
            self,
            shards=part(self.shards),
            frames=max(8, round(self.frames * min(1.0, factor / TRIAL))),
            corrections=part(self.corrections),
            checked=min(50, part(self.checked)),
            episodes=min(50, part(self.episodes)),
            training=self.training * factor,
            limits=("--max-tasks", "1", "--max-steps", "24") if factor < TRIAL else (),
        )


class Chain:
    """The stages. Each does what is missing in its folder of `out`, so that all can be called again."""

    def __init__(self, out: Path, amounts: Amounts, jobs: int) -> None:
        self._out, self._amounts, self._jobs = out, amounts, jobs
        self._venv = environment_of_libero()

    def _libero(self, *arguments: Any) -> None:
        command = [self._venv / "bin" / "python", HERE / "libero_demonstrations.py", *arguments, "--jobs", self._jobs]
        run(command, env=environment(self._out, self._jobs))

    def check(self) -> None:
        """Let the expert solve LIBERO's own initial states."""
        if not (self._out / "expert.json").is_file():
            self._libero("check", "--out", self._out / "expert.json", "--episodes", self._amounts.checked)

    def demonstrate(self) -> None:
        """Collect the expert's demonstrations."""
        amounts = self._amounts
        self._libero(
            *("collect", "--out", self._out / "demonstrations"),
            *("--shards", amounts.shards, "--frames", amounts.frames),
        )

    def train(self, number: int) -> Path:
        """Train, with `number` rounds of corrections so far; return the checkpoint."""
        folders = [self._out / "demonstrations", *(self._out / f"corrections{n}" for n in range(1, number + 1))]
        start = self._out / f"training{number - 1}" if number else "tabletop"
        out = self._out / f"training{number}"
        arguments = ["--demonstrations", *folders, "--start", start, "--out", out, "--scale", self._amounts.training]
        arguments += ["--jobs", self._jobs, *(() if self._amounts.limits else ("--compile",))]
        run([*COMMAND, "train", *arguments])
        return out / "policy.safetensors"

    def correct(self, number: int, policy: Path) -> None:
        """Let the policy act, and the expert label what it gets itself into."""
        amounts, folder = self._amounts, self._out / f"corrections{number}"
        if len(list(folder.glob("shard[0-9][0-9][0-9][0-9]"))) >= amounts.corrections:
            return
        with served(policy, "fp32", None, HORIZON, [self._out / "serve.log"]) as (url,):
            self._libero(
                *("collect", "--out", folder, "--shards", amounts.corrections, "--frames", amounts.frames),
                *("--seed", number, "--policy", url, "--horizon", HORIZON),
            )

    def compare(self, policy: Path, recipes: str) -> None:
        """Measure the recipes."""
        arguments = [policy, "--demonstrations", self._out / "demonstrations", "--out", self._out / "table"]
        arguments += ["--jobs", self._jobs, "--episodes", self._amounts.episodes, "--execution-horizon", HORIZON]
        arguments += [*self._amounts.limits, *(("--recipes", recipes) if recipes else ())]
        run([sys.executable, HERE / "libero_table.py", *arguments])


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Say what is done, and in one sentence where it fails."""
    print(f"== {name}", flush=True)
    try:
        yield
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{name}: {Path(error.cmd[0]).name} ended with status {error.returncode}") from error


def main() -> None:
    """Read the options and run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/libero/small"))
    parser.add_argument("--scale", type=float, default=1.0, help="share of everything; below 0.1 it is a trial")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of corrections")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; each takes 2 GB")
    parser.add_argument("--recipes", default="", help="of the table; default: all seven")
    parser.add_argument("--until", choices=("demonstrations", "training", "table"), default="table")
    args = parser.parse_args()
    if not args.scale > 0:
        parser.error(f"--scale must be above 0, got {args.scale}")
    with signals_raise():  # so that the stage's processes end too
        make(args)


def make(args: argparse.Namespace) -> None:
    """Go through the stages."""
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    amounts = Amounts().scaled(args.scale)
    begun_with(out / "amounts.json", asdict(amounts))  # shards, the expert's check and the training are not redone
    os.environ.setdefault("LIBERO_VENV", str(Path("out/libero/venv").resolve()))
    with stage("LIBERO's environment"):
        run([HERE / "libero_environment.sh"])
    chain = Chain(out, amounts, args.jobs)
    with stage("expert"):
        chain.check()
    with stage("demonstrations"):
        chain.demonstrate()
    if args.until == "demonstrations":
        return
    with stage("training"):
        policy = chain.train(0)
    for number in range(1, args.rounds + 1):
        with stage(f"corrections, round {number}"):
            chain.correct(number, policy)
        with stage(f"training, round {number}"):
            policy = chain.train(number)
    if args.until == "training":
        return
    with stage("table"):
        chain.compare(policy, args.recipes)


if __name__ == "__main__":
    main()
