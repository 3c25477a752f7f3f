"""A node that a thread of its own spins, the order in which both end, and the signals that end a process."""

from __future__ import annotations

import signal
import threading
import time

from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

TURN_S = 0.1  # between looks whether to end, where nothing wakes the executor
LOOK_S = 0.02  # between looks at an `Interruption` that is waited for


class Interruption:
    """A flag that says that this process is to end: `threading.Event` for handlers of signals.

    It takes no lock. A handler may come between any two steps of the main thread, also of another handler's `set`, and
    would wait for ever for the lock of an Event that is being set there.
    """

    def __init__(self) -> None:
        self._is_set = False

    @classmethod
    def by_signals(cls) -> Interruption:
        """Return one that SIGINT and SIGTERM set."""
        interruption = cls()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: interruption.set())
        return interruption

    def set(self) -> None:
        """End the process, when it next looks."""
        self._is_set = True

    def is_set(self) -> bool:
        """Return whether it was set."""
        return self._is_set

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is set, for timeout_s at most; return whether it was."""
        deadline_s = time.monotonic() + timeout_s
        while not self._is_set and (left_s := deadline_s - time.monotonic()) > 0.0:
            time.sleep(min(left_s, LOOK_S))
        return self._is_set


class SpinThread:
    """Spins a node in a thread. Use as a context manager, or call `close`, which destroys the node too.

    The thread ends first, then the executor lets go of the node, and only then the node is destroyed.
    `Executor.shutdown` does not wait for a callback that another thread runs, or waits for, and what the node owns must
    not be destroyed under it.
    """

    def __init__(self, node: Node, name: str = "spin") -> None:
        """Begin to spin. name: of the thread."""
        self._node = node
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(node)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._spin, name=name, daemon=True)
        self._thread.start()

    def __enter__(self) -> SpinThread:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread and destroy the node. Its context is the caller's to shut down."""
        self._ending.set()
        self._executor.wake()
        self._thread.join()
        self._executor.remove_node(self._node)
        self._executor.shutdown()
        self._node.destroy_node()

    def _spin(self) -> None:
        while not self._ending.is_set():
            try:
                self._executor.spin_once(timeout_sec=TURN_S)
            except ExternalShutdownException:
                return
