"""Processes that do not outlive the command that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import SpawnContext
from pathlib import Path
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_BUSY = 0.25  # share of the machine that others use from which on times carry a warning
ORPHAN_GRACE_S = 15.0  # a node holds the arm and ends its worker first


class Terminated(SystemExit):
    """SIGTERM or SIGHUP, raised in the main thread, so that every `with` and `finally` ends what it started."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


@contextlib.contextmanager
def signals_raise(received: list[int] | None = None) -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into `Terminated` inside the block. A signal that is ignored (nohup) stays ignored.

    An error that leaves the block in the wake of such a signal, or of Ctrl-C, gives way to it (`raise_interruption`).

    received: gets the numbers of these signals, for blocks whose libraries put other exceptions in place of this one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's business
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if received is not None:
            received.append(number)
        raise Terminated(number)

    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number, handler in previous.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, handle)
        try:
            yield
        except Exception as error:
            raise_interruption(error)
            raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def raise_interruption(error: BaseException) -> None:
    """Raise the interruption, Ctrl-C or `Terminated`, in whose wake an error was raised; return where there was none.

    For whoever goes on after any error. An interruption between two steps of a lock leaves it half taken: `with` then
    fails to release it, and that RuntimeError takes the interruption's place.
    """
    met: list[BaseException] = []
    behind: list[BaseException | None] = [error]
    while behind:
        cause = behind.pop()
        if isinstance(cause, KeyboardInterrupt | Terminated):
            raise cause from None
        if cause is not None and cause not in met:
            met.append(cause)
            behind += [cause.__cause__, cause.__context__]


def end_with_parent() -> None:
    """End this process when the one that started it through `multiprocessing` is gone, even if that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        _when_closed(parent.sentinel, lambda: os._exit(1))


def command_tied_to_parent(module: str, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs `module` as `python -m` does, and ends it when its parent is gone.

    Start it with `stdin=subprocess.PIPE` and a session of its own: the pipe closes when the parent ends, even if that
    was killed. The module then receives SIGTERM, and after ORPHAN_GRACE_S its whole session SIGKILL.
    """
    return [sys.executable, "-m", __name__, module, *arguments]


def main(argv: Sequence[str]) -> None:
    """Run the module `argv[0]` with the arguments that follow; the child's side of `command_tied_to_parent`."""

    def end() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_GRACE_S)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    _when_closed(sys.stdin.fileno(), end)
    sys.argv[1:] = argv[1:]
    runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


def _when_closed(lifeline: int, then: Callable[[], None]) -> None:
    """Call `then` in a thread once the other end of the pipe `lifeline`, a file descriptor, is closed."""

    def watch() -> None:
        multiprocessing.connection.wait([lifeline])
        then()

    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()


def spawning() -> SpawnContext:
    """Return how processes are made: spawned, because forking a process with running threads may deadlock.

    A progress bar in a process that is ended keeps a semaphore. Python gives it back and warns; a user need not know.
    """
    quiet, warnings = "ignore:resource_tracker:UserWarning", os.environ.get("PYTHONWARNINGS", "")
    if quiet not in warnings:
        os.environ["PYTHONWARNINGS"] = f"{warnings},{quiet}" if warnings else quiet
    return multiprocessing.get_context("spawn")


@contextlib.contextmanager
def worker_pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Provide a pool of spawned processes. An exception that leaves the block ends them at once."""
    before = set(multiprocessing.active_children())
    context = spawning()
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=end_with_parent)
    try:
        yield pool
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def busy_warning(share: float) -> str:
    """Return a warning where others use so much of the machine (0 to 1) that times are not to be trusted, else ""."""
    return "" if share < _BUSY else f"other programs used {share:.0%} of this machine's processor time"


def busy_share(seconds: float = 0.3) -> float:
    """Return the share of this machine's processor time that is in use, 0 to 1; 0 where that cannot be told.

    Ask before one's own work begins: the answer is about everybody else's.
    """
    before = _processor_times()
    time.sleep(seconds)
    after = _processor_times()
    total = after[1] - before[1]
    return 1.0 - (after[0] - before[0]) / total if total > 0 else 0.0


def _processor_times() -> tuple[int, int]:
    """Return idle and all processor time since the machine started, in ticks."""
    try:
        ticks = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return ticks[3] + ticks[4], sum(ticks)  # idle and waiting for a disk


if __name__ == "__main__":
    main(sys.argv[1:])
