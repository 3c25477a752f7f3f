"""Judges ROS time: does it run, did it jump, and by how much of its path may a stream of commands follow it?"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from sqap_vla_ros.contracts import NS_PER_S

STANDS_S = 1.0
JUMP_S = 0.05  # of the system's clock against the steady one: the command leaps by what the arm moves in this time
SIMULATED_JUMP_S = 0.25  # of simulated time: /clock may come seldom, and time may run faster than the steady clock
TOGETHER_S, ATTEMPTS = 0.002, 5  # two clocks count as read together when no more passed between
PERIODS = 2.5  # of a stream, between two samples; what comes later is a pause, and the path waits
WINDOW_S = 1.0  # in which steps of simulated time are remembered


def read_clocks(ros_ns: Callable[[], int]) -> tuple[int, float]:
    """Return ROS time and the steady clock of one moment; read again where the thread was interrupted in between."""
    for _ in range(ATTEMPTS):
        before_s, now_ns = time.monotonic(), ros_ns()
        if time.monotonic() - before_s <= TOGETHER_S:
            break
    return now_ns, before_s


class ClockMonitor:
    """Compares ROS time with the steady clock. simulated: ROS time comes from /clock, at any speed."""

    def __init__(self, *, simulated: bool) -> None:
        self._simulated = simulated
        self._ns = 0
        self._s: float | None = None  # when ROS time last changed, by the steady clock
        self._last: tuple[int, float] | None = None

    def problem(self, now_ns: int, now_s: float) -> str | None:
        """Return why ROS time cannot be relied upon, or None; called regularly."""
        if self._s is None or now_ns != self._ns:
            self._ns, self._s = now_ns, now_s
        if not self._simulated:
            return None
        if now_ns == 0:
            return "use_sim_time is set, but no /clock was received: ROS time stands at zero"
        if now_s - self._s >= STANDS_S:
            return f"ROS time has stood still for {now_s - self._s:.1f} s: is the simulation paused?"
        return None

    def jump(self, now_ns: int, now_s: float) -> str | None:
        """Return how the system's clock jumped since the last call, or None. Simulated time reports its own jumps."""
        last, self._last = self._last, (now_ns, now_s)
        if last is None or self._simulated:
            return None
        jumped_s = (now_ns - last[0]) / NS_PER_S - (now_s - last[1])
        return f"the system's clock jumped by {jumped_s:+.2f} s" if abs(jumped_s) > JUMP_S else None


class Pace:
    """Keeps the steps of ROS time between two samples. period_s: of the samples. simulated: time comes from /clock.

    Simulated time may run faster than the samples, or come in steps longer than their period. A stream follows it by
    the longest of its last steps, so that only a step longer than those counts as a pause.
    """

    def __init__(self, period_s: float, *, simulated: bool) -> None:
        self._least_ns = round(PERIODS * period_s * NS_PER_S)
        self._steps_ns: deque[int] = deque(maxlen=max(round(WINDOW_S / period_s), 1) if simulated else 0)
        self._last_ns: int | None = None

    @property
    def longest_ns(self) -> int:
        """The longest part (ns) of a path by which a sample may lead on from the one before."""
        return max(self._least_ns, *self._steps_ns, 0)

    def note(self, now_ns: int) -> None:
        """Note that a sample was due."""
        if self._last_ns is not None:
            self._steps_ns.append(now_ns - self._last_ns)
        self._last_ns = now_ns

    def forget(self) -> None:
        """Forget the steps: time jumped."""
        self._steps_ns.clear()
        self._last_ns = None
