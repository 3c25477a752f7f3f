"""The report: a page of coloured lines, or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console
from rich.markup import escape

from sqap_vla_ros.nodes.check.finding import Check, Finding, Level
from sqap_vla_ros.nodes.check.snapshot import Snapshot

_MARKS = {
    Level.OK: ("green", "ok  "),
    Level.SKIPPED: ("dim", "–   "),
    Level.WARNING: ("yellow", "warn"),
    Level.FAIL: ("bold red", "FAIL"),
}


@dataclass(frozen=True)
class Row:
    """A finding and the name of its check."""

    check: str
    finding: Finding


@dataclass(frozen=True)
class Report:
    """All findings. picture: file with the gripper's pixel drawn in, "" where there is none; question: about it."""

    rows: tuple[Row, ...]
    picture: str = ""
    question: str = "is the cross on the gripper?"

    @property
    def go(self) -> bool:
        """True when nothing forbids the first motion."""
        return not any(row.finding.level is Level.FAIL for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """Return what --json prints."""
        return {
            "go": self.go,
            "picture": self.picture,
            "findings": [
                {
                    "check": row.check,
                    "level": row.finding.level.value,
                    "text": row.finding.text,
                    "remedy": row.finding.remedy,
                }
                for row in self.rows
            ],
        }

    def print(self, console: Console) -> None:
        """Print every finding, and the verdict."""
        print_rows(console, self.rows, max(len(row.check) for row in self.rows))
        self.print_verdict(console)

    def print_verdict(self, console: Console) -> None:
        """Print where to look, and whether it is a go."""
        say = partial(console.print, soft_wrap=True, highlight=False)
        if self.picture:
            say(f"\nLook at {escape(self.picture)}: {self.question}")
        fails = sum(row.finding.level is Level.FAIL for row in self.rows)
        warnings = sum(row.finding.level is Level.WARNING for row in self.rows)
        verdict = "[bold green]GO[/]" if self.go else "[bold red]NO-GO[/]"
        say(f"\n{verdict}: {fails} to mend, {warnings} to think about")


def print_rows(console: Console, rows: Sequence[Row], width: int) -> None:
    """Print one line a finding, and below it what to do. width: of the column of the checks' names."""
    say = partial(console.print, soft_wrap=True, highlight=False)
    before = ""
    for row in rows:
        colour, mark = _MARKS[row.finding.level]
        name = row.check if row.check != before else ""
        before = row.check
        say(f"[{colour}]{mark}[/] [bold]{name:<{width}}[/]  {escape(row.finding.text)}")
        if row.finding.remedy:
            say(f"     {'':<{width}}  [cyan]→ {escape(row.finding.remedy)}[/]")


def examine(snapshot: Snapshot, checks: Sequence[Check]) -> tuple[Row, ...]:
    """Return what the checks find."""
    return tuple(Row(check.name, finding) for check in checks for finding in check.run(snapshot))
