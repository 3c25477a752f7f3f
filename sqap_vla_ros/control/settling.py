"""Keeps an input that comes and goes from moving the arm by fits and starts."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable

from sqap_vla_ros.control.conditions import Input

HOLDS, WITHIN_S = 3, 10.0  # so many holds for an input within this time show that it comes and goes
GOOD_S, LONGEST_GOOD_S = 1.0, 8.0  # such an input must have been good for so long; each time twice as long
AGAIN_S = 30.0  # an input that holds the arm so soon after it was believed again is doubted at once


class Settling:
    """Counts the holds that each input caused. Times are those of a steady clock.

    An input that is well again is believed at once, until it has held the arm HOLDS times within WITHIN_S. Then it
    keeps a problem until it was good for GOOD_S, and for twice as long when it holds the arm again soon after.
    """

    def __init__(self) -> None:
        self._held_s: dict[Input, deque[float]] = defaultdict(lambda: deque(maxlen=HOLDS))
        self._bad_s: dict[Input, float] = defaultdict(lambda: -math.inf)  # when each input last had a problem
        self._bad: dict[Input, str] = {}  # and which
        self._doubted: dict[Input, float] = {}  # how long each must be good
        self._believed: dict[Input, tuple[float, float]] = {}  # when each was again, and how long it had to be good
        self._waiting: set[Input] = set()

    def __bool__(self) -> bool:
        """True while an input has no problem but that it must stay good for a while."""
        return bool(self._waiting)

    def held(self, sources: Iterable[Input], now_s: float) -> None:
        """Note a hold for these inputs."""
        for source in sources:
            held_s = self._held_s[source]
            held_s.append(now_s)
            if source in self._doubted:
                continue
            believed_s, good_s = self._believed.get(source, (-math.inf, 0.0))
            if now_s - believed_s <= AGAIN_S:
                self._doubted[source] = min(2.0 * good_s, LONGEST_GOOD_S)
            elif len(held_s) == HOLDS and now_s - held_s[0] <= WITHIN_S:
                self._doubted[source] = GOOD_S

    def judge(self, source: Input, problem: str | None, now_s: float) -> str | None:
        """Return the problem that an input has, or that it had one just now and too often, or None."""
        self._waiting.discard(source)
        if problem is not None:
            self._bad_s[source], self._bad[source] = now_s, problem
            return problem
        if source not in self._doubted:
            return None
        good_s, needed_s = now_s - self._bad_s[source], self._doubted[source]
        if good_s >= needed_s:
            self._believed[source] = (now_s, self._doubted.pop(source))
            return None
        self._waiting.add(source)
        return (
            f"{HOLDS} holds for {source.value} within {WITHIN_S:g} s: nothing moves until it was good for "
            f"{needed_s:g} s ({good_s:.1f} s so far; before: {self._bad[source]})"
        )
