"""Signals at moments that are hard to hit."""

import os
import signal
import threading


class _Interrupted(threading.Condition):
    """The signal comes once the lock was given back, and before it is known that it was."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(threading.Lock())
        self._number = number

    def _release_save(self) -> None:
        self._lock.release()
        os.kill(os.getpid(), self._number)


def interrupted_within_a_lock(number: signal.Signals = signal.SIGINT) -> None:
    """As when `threading.Event.wait` is interrupted there: what comes out is RuntimeError("release unlocked lock")."""
    condition = _Interrupted(number)
    with condition:
        condition.wait()
