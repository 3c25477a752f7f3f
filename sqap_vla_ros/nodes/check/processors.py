"""Tells how busy this computer is, from the counters of its kernel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

_COUNTERS = Path("/proc/stat")  # Linux; its first line: "cpu user nice system idle iowait irq softirq steal …"
_IDLE = (3, 4)


@dataclass(frozen=True)
class ProcessorTime:
    """Time of all processors since the start of the computer, in ticks. None where the kernel does not tell."""

    idle: int | None = None
    total: int | None = None

    @classmethod
    def read(cls) -> Self:
        """Return it as it is now."""
        try:
            counts = [int(word) for word in _COUNTERS.read_text("ascii").split("\n", 1)[0].split()[1:9]]
            return cls(sum(counts[i] for i in _IDLE), sum(counts))
        except (OSError, ValueError, IndexError):
            return cls()

    def free_since(self, before: Self) -> float:
        """Return the share of the processors' time since then that nobody used; 1 where that is not known."""
        if self.idle is None or self.total is None or before.idle is None or before.total is None:
            return 1.0
        return (self.idle - before.idle) / max(self.total - before.total, 1) if self.total > before.total else 1.0
