"""Remembers which samples of a measurement were refused lately: one is a glitch, several are a problem."""

from __future__ import annotations

from collections import deque

from sqap_vla_ros.contracts import NS_PER_S

COUNT, WITHIN_NS = 3, NS_PER_S


class Refusals:
    """The newest refusals, by the stamps of the samples, or by when they came; always by the same clock."""

    def __init__(self) -> None:
        self._newest: deque[tuple[int, str]] = deque(maxlen=COUNT)

    def add(self, stamp_ns: int, why: str) -> None:
        """Note a refused sample; several reasons for one stamp count once."""
        if not self._newest or self._newest[-1][0] != stamp_ns:
            self._newest.append((stamp_ns, why))

    def problem(self, now_ns: int) -> str | None:
        """Return the newest reason when samples were refused repeatedly, and lately; else None."""
        if len(self._newest) < COUNT or abs(now_ns - self._newest[0][0]) > WITHIN_NS:
            return None
        return self._newest[-1][1]

    def newest(self, now_ns: int) -> str | None:
        """Return the newest reason, when a sample was refused lately; else None."""
        if not self._newest or abs(now_ns - self._newest[-1][0]) > WITHIN_NS:
            return None
        return self._newest[-1][1]

    def clear(self) -> None:
        """Forget them: time jumped, or what was refused is believed now."""
        self._newest.clear()
