"""The outcome of a check."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sqap_vla_ros.nodes.check.snapshot import Snapshot


class Level(enum.Enum):
    """Severity of a finding. Only FAIL forbids the first motion."""

    OK = "ok"
    SKIPPED = "skipped"
    WARNING = "warning"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One line of the report. text: what was found, with values; remedy: what to do about it."""

    level: Level
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Check:
    """One row of the table of checks. run: returns what it found, at least one finding.

    by_policy: what it finds depends on the policy, which takes long to load.
    """

    name: str
    run: Callable[[Snapshot], Iterable[Finding]]
    by_policy: bool = False


def ok(text: str) -> Finding:
    """Return a finding that nothing is wrong with."""
    return Finding(Level.OK, text)


def skipped(text: str) -> Finding:
    """Return a finding of what could not be looked at, because of a fault that another check names."""
    return Finding(Level.SKIPPED, text)


def warning(text: str, remedy: str) -> Finding:
    """Return a finding that does not forbid the first motion."""
    return Finding(Level.WARNING, text, remedy)


def fail(text: str, remedy: str) -> Finding:
    """Return a finding that forbids the first motion."""
    return Finding(Level.FAIL, text, remedy)
