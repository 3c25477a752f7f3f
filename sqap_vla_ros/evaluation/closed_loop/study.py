"""Closed-loop studies of many methods: what is to be done, and what is stored, episode by episode.

`out/episodes/<method>.jsonl` has a line for each episode, `out/deviations/<method>.jsonl` one for each taught episode,
`out/methods.json` says what each method is. Only the parent process writes, whole lines at a time, so that an
interrupted run goes on with nothing lost and nothing doubled. Seeds pair episodes across methods: layout, task and
diffusion noise of an episode follow its seed alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqap_vla_ros.contracts import TRAINED_POLICY
from sqap_vla_ros.evaluation.closed_loop.choices import LOCKSTEP
from sqap_vla_ros.evaluation.closed_loop.deviation import Deviation
from sqap_vla_ros.evaluation.closed_loop.episodes import EpisodeResult, Execution
from sqap_vla_ros.field_types import field_problem, name_problem
from sqap_vla_ros.serving.frames import is_remote
from sqap_vla_ros.simulation.layout import VARIATIONS
from sqap_vla_ros.simulation.vocabulary import TaskFamily

if TYPE_CHECKING:
    from sqap_vla_ros.contracts import PolicyInfo

METHODS, EPISODES, DEVIATIONS = "methods.json", "episodes", "deviations"


class ClosedLoopError(ValueError):
    """A study that cannot be run or read; the message says why and what to do."""


@dataclass(frozen=True)
class Method:
    """A policy under a recipe. recipe: a name of `config/recipes` or a YAML file. name: that of its files too."""

    name: str
    recipe: str
    checkpoint: str = TRAINED_POLICY
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        if not self.name or any(character in self.name for character in "/\\\n"):
            raise ClosedLoopError(f"a method's name becomes a file's: it must have no slash, got {self.name!r}")


@dataclass(frozen=True)
class Unit:
    """Episodes of one method and suite: seeds 0 ... episodes - 1 of every family.

    deviations: taught episodes a family, compared with the reference (see deviation.py).
    """

    method: Method
    suite: str
    episodes: int
    families: tuple[TaskFamily, ...] = tuple(TaskFamily)
    deviations: int = 0

    def __post_init__(self) -> None:
        if self.suite not in VARIATIONS:
            raise ClosedLoopError(f"suite must be one of {', '.join(VARIATIONS)}, got {self.suite!r}")
        if self.episodes < 1 or self.deviations < 0 or not self.families:
            raise ClosedLoopError(
                f"at least one episode and one family, and no negative number of deviations, are needed; "
                f"got {self.episodes}, {self.deviations} and {self.families}"
            )


def study_units(
    recipes: Sequence[str],
    suites: Sequence[str],
    families: Sequence[TaskFamily],
    *,
    checkpoint: str,
    execution: Execution,
    episodes: int,
    deviations: int = 0,
) -> list[Unit]:
    """Return the units that compare `recipes` on `suites`, the first recipe's first. Raises ValueError.

    A checkpoint that is a server's address has one method, `served_RECIPE`: the server has chosen its recipe.
    Raises RemoteError where that cannot be reached.
    """
    from sqap_vla_ros.compression.recipe import load_recipe

    if is_remote(checkpoint):
        recipe = served_info(checkpoint).recipe
        methods = [Method(f"served_{recipe}", recipe, checkpoint, execution)]
    else:
        methods = [Method(load_recipe(name).name, name, checkpoint, execution) for name in recipes]
    return [
        Unit(method, suite, episodes, tuple(families), min(deviations, episodes))
        for method in methods
        for suite in suites
    ]


@dataclass(frozen=True)
class Group:
    """Episodes that are run side by side; with `taught`, episodes whose deviation is measured."""

    suite: str
    family: TaskFamily
    seeds: tuple[int, ...]
    taught: bool = False


@dataclass(frozen=True)
class Assignment:
    """The work that one process does in one go with one loaded policy."""

    method: Method
    groups: tuple[Group, ...]


class Store:
    """The folder in which a study keeps its results."""

    def __init__(self, out: Path) -> None:
        self.out = out
        for folder in (EPISODES, DEVIATIONS):
            (out / folder).mkdir(parents=True, exist_ok=True)

    def lock(self) -> int:
        """Return a descriptor of the folder: its holder alone may write here, until it closes it or ends."""
        descriptor = os.open(self.out, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise ClosedLoopError(f"another run is writing to {self.out}: wait for it, or use another --out") from error
        return descriptor

    def episodes(self, method: str) -> list[dict[str, Any]]:
        """Return the stored episodes of a method."""
        return _read_lines(self.out / EPISODES / f"{method}.jsonl", EpisodeResult)

    def deviations(self, method: str) -> list[dict[str, Any]]:
        """Return the stored deviations of a method."""
        return _read_lines(self.out / DEVIATIONS / f"{method}.jsonl", Deviation)

    def append(self, method: str, folder: str, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows; they are on disk when this returns."""
        path = self.out / folder / f"{method}.jsonl"
        with path.open("ab") as file:
            file.write("".join(json.dumps({"method": method, **row}) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())

    def methods(self) -> dict[str, dict[str, Any]]:
        """Return what is known about each method, by name."""
        path = self.out / METHODS
        try:
            known = json.loads(path.read_text()) if path.is_file() else {}
            if problem := next((text for one in known.values() if (text := field_problem(_Measured, one))), None):
                raise ValueError(problem)
            return dict(known)
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            raise ClosedLoopError(f"{path} is damaged: delete it, and the next run writes it anew") from error

    def describe(self, method: str, description: dict[str, Any]) -> None:
        """Remember what a method is; raises ClosedLoopError when its results are of something else."""
        known = self.methods()
        before = known.get(method, {})
        for key in ("checkpoint_sha256", "recipe_digest", "served_policy", "execution"):
            if key in before and key in description and before[key] != description[key]:
                raise ClosedLoopError(
                    f"{self.out} holds results of {method!r} with another {key.replace('_', ' ')} "
                    f"({_change(before[key], description[key])}): use another --out, or delete its files there"
                )
        known[method] = before | description
        partial = self.out / (METHODS + ".partial")
        partial.write_text(json.dumps(known, indent=1) + "\n")
        partial.replace(self.out / METHODS)


def _change(before: object, now: object) -> str:
    """Return in words what differs between two values; of two mappings, the entries that do."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return f"{before}, now {now}"
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return "; ".join(f"{name} {before.get(name, 'unset')}, now {now.get(name, 'unset')}" for name in names)


def remaining_work(units: Sequence[Unit], store: Store, lockstep: int = LOCKSTEP) -> list[Assignment]:
    """Return what is left to do, in the order of the units; successive units of one method share an assignment."""
    assignments: list[Assignment] = []
    planned: set[tuple[str, str, str, int, bool]] = set()
    for unit in units:
        name = unit.method.name
        done = {(name, r["suite"], r["family"], r["seed"], False) for r in store.episodes(name)}
        done |= {(name, r["suite"], r["family"], r["seed"], True) for r in store.deviations(name)} | planned
        groups = []
        for taught, count, width in (
            (True, unit.deviations, max(1, unit.deviations)),
            (False, unit.episodes, lockstep),
        ):
            for start in range(0, count, width):  # families in turn: a run that is cut short has some of each
                for family in unit.families:
                    seeds = range(start, min(start + width, count))
                    keys = {seed: (name, unit.suite, str(family), seed, taught) for seed in seeds}
                    left = tuple(seed for seed, key in keys.items() if key not in done)
                    planned |= set(keys.values())
                    if left:
                        groups.append(Group(unit.suite, family, left, taught))
        if groups and assignments and assignments[-1].method == unit.method:
            assignments[-1] = dataclasses.replace(assignments[-1], groups=assignments[-1].groups + tuple(groups))
        elif groups:
            assignments.append(Assignment(unit.method, tuple(groups)))
    return assignments


def split_among(assignments: Sequence[Assignment], jobs: int) -> list[Assignment]:
    """Cut assignments up where there are fewer of them than processes, so that all processes are busy."""
    parts = -(-jobs // len(assignments)) if assignments else 1
    cut = [Assignment(s.method, s.groups[part::parts]) for s in assignments for part in range(parts)]
    return [assignment for assignment in cut if assignment.groups]


def served_info(address: str) -> PolicyInfo:
    """Return the description of a server's policy. Raises RemoteError."""
    from sqap_vla_ros.policies import remote_policy

    with contextlib.closing(remote_policy(address)) as policy:
        return policy.info


def _as_json(info: PolicyInfo) -> dict[str, Any]:
    """Return what a description holds as it is read back from a file."""
    return dict(json.loads(json.dumps(dataclasses.asdict(info))))


def identity(method: Method) -> dict[str, Any]:
    """Return what must not change between the runs of one study."""
    from sqap_vla_ros.compression.load import applied_recipe, checkpoint_digest
    from sqap_vla_ros.shipped import SHIPPED

    if is_remote(method.checkpoint):
        info = served_info(method.checkpoint)
        return {
            "checkpoint": info.checkpoint,
            "checkpoint_sha256": info.checkpoint_sha256,
            "recipe": {"name": info.recipe},
            "recipe_digest": f"of a server: {info.recipe}",
            "served_policy": {name: value for name, value in _as_json(info).items() if name != "costs"},
            "execution": method.execution.to_dict(),
        }
    recipe = applied_recipe(method.checkpoint, method.recipe, SHIPPED)
    return {
        "checkpoint": method.checkpoint,
        "checkpoint_sha256": checkpoint_digest(method.checkpoint, SHIPPED),
        "recipe": recipe.to_dict(),
        "recipe_digest": recipe.digest,
        "execution": method.execution.to_dict(),
    }


@dataclass(frozen=True)
class _Measured:
    """The types of what tables show of a method's description."""

    costs: Mapping[str, float]
    bops: float | None  # of earlier versions, as the next one
    bops_7b: float | None


def _read_lines(path: Path, kind: type[EpisodeResult | Deviation]) -> list[dict[str, Any]]:
    """Read a JSON-lines file; a last line that was cut off while being written is removed from it."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("rb+") as file:
            file.truncate(whole)
    rows = []
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("it is no JSON object")
            said = {name: value for name, value in row.items() if name != "method"}
            if problem := name_problem(kind, said) or field_problem(kind, said):
                raise ValueError(problem)
        except (ValueError, RecursionError) as error:
            raise ClosedLoopError(f"{path}, line {number}: {error}: remove the line and run again") from error
        rows.append(row)
    return rows
