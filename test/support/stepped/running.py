"""An engine that runs a mission in a cell, and everything that went wrong with it or was said."""

from __future__ import annotations

from stepped.command_checks import CommandChecks, Violation
from stepped.simulated_cell import Cell

QUICK = {"ensemble_chunks": 1, "ramp_s": 0.3}


def moving(cell: Cell, seconds: float = 1.5) -> Cell:
    """Give an instruction, enable, and let so much time pass."""
    cell.run(0.2)
    cell.instruct("pick")
    assert cell.enable().success
    cell.run(seconds)
    assert cell.commands
    return cell


def violations(cell: Cell) -> list[Violation]:
    """Judge every command that was sent."""
    return CommandChecks(cell, cell.loop.commander.motion.limits).judge()


def told(cell: Cell) -> str:
    """Every reason that the status gave, and the log."""
    return "\n".join([*(reason for *_, reason in cell.statuses), *(text for _, text in cell.node.log.lines)])
