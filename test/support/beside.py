"""A ROS node beside the node under test, and a node under test in a process of its own."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import IO, Any, Self

import rclpy
from rclpy.node import Node

from sqap_vla_ros.nodes.spinning import SpinThread

END_S = 40.0  # in which an ended process is gone; several times what it takes on a busy computer


class NodeBeside:
    """A node with a context of its own, spun by a thread. Use as a context manager; `create` may be overridden."""

    NAME, NAMESPACE = "beside", ""

    def __enter__(self) -> Self:
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = Node(self.NAME, namespace=self.NAMESPACE, context=self.context)
        self.create()
        self._spinning = SpinThread(self.node)
        return self

    def __exit__(self, *_: object) -> None:
        self._spinning.close()
        self.context.try_shutdown()

    def create(self) -> None:
        """Create publishers, subscriptions and timers on `self.node`."""


class ProcessRig(NodeBeside):
    """A node under test in a process of its own, and a node beside it. `log` is the output of all processes so far."""

    def __init__(self) -> None:
        self.log = ""

    def __exit__(self, *details: object) -> None:
        """End the node beside it first: Fast DDS 3.2.3 may end a process whose node goes after a killed one's."""
        super().__exit__(*details)
        self.stop_process(signal.SIGKILL)

    def start_python(self, *arguments: str) -> None:
        """Start a Python interpreter as the process under test."""
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self._reader.start()

    def stop_process(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send the signal, unless the process has ended, and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(END_S)
        self._reader.join(END_S)
        return status

    def _read(self, output: IO[str]) -> None:
        for line in output:
            self.log += line


def ros_arguments(parameters: Mapping[str, Any]) -> list[str]:
    """Return the command line that sets these parameters."""
    arguments = ["--ros-args"]
    for name, value in parameters.items():
        arguments += ["-p", f"{name}:={str(value).lower() if isinstance(value, bool) else value}"]
    return arguments
