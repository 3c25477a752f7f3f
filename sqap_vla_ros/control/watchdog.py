"""A thread that acts when the thread it watches stands still."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

CHECKS = 5  # looks within the time-out


class Watchdog:
    """Calls `act` again and again, from a thread of its own, while an armed owner has not fed it for `timeout_s`.

    Python's global lock is shared: a thread that never lets go of it stops this one too. What waits for a lock, a
    socket or the middleware lets go.
    """

    def __init__(self, timeout_s: float, act: Callable[[Callable[[], bool]], None], again_s: float) -> None:
        """act: gets a function that says whether the owner stands still by now, for `act` may have to wait for it.

        again_s: between two calls of `act`.
        """
        self._timeout_s = timeout_s
        self._again_s = again_s
        self._act = act
        self._lock = threading.Lock()
        self._fed_s = time.monotonic()
        self._armed = False
        self._stalled_s: float | None = None  # how long the owner stood still, when `act` was called
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="policy_node_watchdog", daemon=True)
        self._thread.start()

    def feed(self, *, armed: bool) -> float | None:
        """Show that the owner runs. armed: act if it stops doing so.

        Return how long it stood still, if that made the watchdog act since the last call; else None.
        """
        with self._lock:
            self._fed_s, self._armed = time.monotonic(), armed
            stalled_s, self._stalled_s = self._stalled_s, None
            return stalled_s

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        due = False
        while not self._closing.wait(self._again_s if due else self._timeout_s / CHECKS):
            if due := self._due():
                self._act(self._due)

    def _due(self) -> bool:
        with self._lock:
            stalled_s = time.monotonic() - self._fed_s
            due = self._armed and stalled_s > self._timeout_s
            if due:
                self._stalled_s = stalled_s
            return due
