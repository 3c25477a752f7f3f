"""A node that a thread of its own spins, and the order in which both end."""

from __future__ import annotations

import threading

from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

TURN_S = 0.1  # between looks whether to end, where nothing wakes the executor


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
