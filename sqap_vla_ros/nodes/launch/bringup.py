"""`bringup`: start what the launch files start, on machines without launch_ros, from the same node table.

bringup policy checkpoint:=/models/cogact image:=/camera/image_raw
bringup simulation --show-args
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType, TracebackType
from typing import Self

from sqap_vla_ros.nodes.launch.table import BRINGUPS, Bringup, NodeCommand, dds_environment, read_arguments, resolve
from sqap_vla_ros.processes import command_tied_to_parent

# A node that is told to stop commands the arm to hold and ends its worker first.
STOP_TIMEOUT_S = 10.0
TERMINATE_TIMEOUT_S = 5.0
POLL_S = 0.05


def command_line(command: NodeCommand) -> list[str]:
    """Return the command of a node under this Python: its console script may be in another environment's bin."""
    return command_tied_to_parent(command.module, command.ros_arguments())


class NodeProcesses:
    """The nodes of a bring-up as child processes.

    Leaving the `with` block stops them. They end by themselves when this process is killed.
    """

    def __init__(self, bringup: Bringup, given: Mapping[str, str], *, environment: Mapping[str, str] | None = None):
        """Start the nodes with the given arguments (see `resolve`, which raises on bad ones).

        environment: variables beside those of this process.
        """
        commands = resolve(bringup, given)
        merged = {**os.environ, **(environment or {})}
        merged |= dds_environment(merged)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for command in commands:
                # A session of its own: Ctrl-C in the terminal reaches the nodes once, through `stop`.
                self.processes[command.executable] = subprocess.Popen(
                    command_line(command), stdin=subprocess.PIPE, env=merged, start_new_session=True
                )
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def ended(self) -> dict[str, int]:
        """Return the exit status of the nodes that no longer run; negative: the signal that ended it."""
        return {name: code for name, process in self.processes.items() if (code := process.poll()) is not None}

    def stop(self, signum: signal.Signals = signal.SIGINT) -> dict[str, int]:
        """Stop all nodes: `signum`, then SIGTERM, then SIGKILL. Return the exit status of each."""
        for attempt, patience_s in ((signum, STOP_TIMEOUT_S), (signal.SIGTERM, TERMINATE_TIMEOUT_S)):
            for process in self._running():
                process.send_signal(attempt)
            deadline = time.monotonic() + patience_s
            while self._running() and time.monotonic() < deadline:
                time.sleep(POLL_S)
        for process in self._running():
            os.killpg(process.pid, signal.SIGKILL)  # with the children it has not ended
            process.wait()
        for process in self.processes.values():
            assert process.stdin is not None
            process.stdin.close()
        return self.ended()

    def _running(self) -> list[subprocess.Popen[bytes]]:
        return [process for process in self.processes.values() if process.poll() is None]


def run(bringup: Bringup, given: Mapping[str, str]) -> int:
    """Run until Ctrl-C, SIGTERM or the end of any node. 0 when all nodes ended as they were meant to, else 1."""
    finite = {node.executable for node in bringup.nodes if node.finite}
    received: list[signal.Signals] = []

    def remember(signum: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(signum))

    previous = {signum: signal.signal(signum, remember) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        with NodeProcesses(bringup, given) as nodes:
            while not received and not nodes.ended():
                time.sleep(POLL_S)
            died = {name: code for name, code in nodes.ended().items() if code != 0 or name not in finite}
            for name, code in died.items():
                print(f"bringup: {name} ended by itself with status {code}, stopping the others", file=sys.stderr)
            codes = nodes.stop(received[0] if received else signal.SIGINT)
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    failed = {name: code for name, code in codes.items() if code != 0}
    if failed and not died:
        print(f"bringup: exit status of the nodes: {failed}", file=sys.stderr)
    return 1 if died or failed else 0


def show_arguments(bringup: Bringup) -> str:
    """Return what --show-args prints, in the manner of `ros2 launch --show-args`."""
    lines = [bringup.description, "", "Arguments (pass arguments as '<name>:=<value>'):"]
    for argument in bringup.arguments:
        lines += ["", f"    '{argument.name}':", f"        {argument.description}"]
        if argument.choices:
            lines.append(f"        One of: {', '.join(filter(None, argument.choices))}")
        lines.append(f"        (default: {argument.default!r})")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 2 for bad arguments."""
    parser = argparse.ArgumentParser(prog="bringup", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("name", choices=BRINGUPS, help="what to start")
    parser.add_argument("arguments", nargs="*", metavar="name:=value", help="launch arguments")
    parser.add_argument("-s", "--show-args", action="store_true", help="show the arguments instead of starting")
    args = parser.parse_args(argv)
    bringup = BRINGUPS[args.name]
    if args.show_args:
        print(show_arguments(bringup))
        return 0
    try:
        return run(bringup, read_arguments(args.arguments))
    except (ValueError, FileNotFoundError) as error:
        print(f"bringup: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
