"""A Python child process at the other end of a packet socket, and a thread that watches both.

The thread is the only one that reads from the socket and the only one that reaps the process. Whatever ends the child,
`on_end` is called exactly once with the reason: it exited, closed the socket, sent something that `on_packet` refuses,
or was told to end. The whole process group goes with it, so that nothing the child started stays behind.

The socket keeps the boundaries of packets (SOCK_SEQPACKET): one `send` is one message, taken whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from sqap_vla_ros.serving.wire import MAX_PACKET

BUFFER = 4 * MAX_PACKET  # of the socket, bytes: the longest offer fits when what was before it was answered
LAST_PACKETS = 64  # that are still read after the process has ended
EXIT_S = 1.0  # between the end of the socket and that of the process, and between SIGKILL and the end
_BOOTSTRAP = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import main; main(sys.argv[2:])"


class ChildProcess:
    """One child. `send`, `kill` and `stop` never wait for it and may be called from any thread."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        pass_fds: Sequence[int],
        *,
        on_packet: Callable[[bytes], str | None],
        on_end: Callable[[str], None],
    ) -> None:
        """Start `main(arguments)` of a module; its first argument is the socket's descriptor.

        on_packet: called from the thread with each packet; returns why the child is to be ended, or None.
        on_end: called from the thread with the reason, once the process has ended.
        Raises OSError or RuntimeError when no process, descriptor or thread is left.
        """
        self._on_packet, self._on_end = on_packet, on_end
        self._lock = threading.Lock()  # guards the descriptors, _why and _reaped
        self._why: str | None = None
        self._grace_s: float | None = None  # how long the child may take to end by itself, once told to
        self._reaped = False
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pidfd = -1
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            # -c and not -m: the child gets exactly our sys.path, whatever its working directory holds.
            code = _BOOTSTRAP.format(module=module)
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, json.dumps(sys.path), str(theirs.fileno()), *arguments],
                pass_fds=(theirs.fileno(), *pass_fds),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal is for the parent, which holds the arm, then stops us
            )
        except BaseException:
            self._socket.close()
            raise
        finally:
            theirs.close()
        try:
            self._pidfd = os.pidfd_open(self._process.pid)
            self._thread = threading.Thread(target=self._watch, name="worker_watch", daemon=True)
            self._thread.start()
        except BaseException:
            self._kill_group()
            self._process.wait()
            self._close()
            raise

    @property
    def pid(self) -> int | None:
        """Return the process id, None once the process has ended."""
        return None if self._reaped else self._process.pid

    def send(self, packet: bytes) -> bool:
        """Hand a packet over without waiting; False when the child does not take it."""
        with self._lock:
            if self._reaped:
                return False
            try:
                self._socket.send(packet, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:
                return False
        return True

    def kill(self, why: str) -> None:
        """End it at once; `on_end` names `why`."""
        with self._lock:
            if not self._reaped:
                self._why = self._why or why
                self._kill_group()

    def stop(self, grace_s: float) -> None:
        """Close the socket, at which the child ends by itself; it is killed after grace_s."""
        with self._lock:
            if not self._reaped:
                self._grace_s = grace_s
                with contextlib.suppress(OSError):  # it is gone already
                    self._socket.shutdown(socket.SHUT_RDWR)

    def join(self, timeout_s: float) -> None:
        """Wait until the process has ended and everything is given back."""
        self._thread.join(timeout_s)

    def _watch(self) -> None:
        broken = self._exchange()
        self._kill_group()  # also what it started and left behind
        if not self._ended(EXIT_S):
            # In a driver that does not return. Its memory may never be given back, but nobody has to wait for that.
            self._on_end(
                f"{self._why or broken or 'the policy worker was stopped'}, and it does not end, not even by SIGKILL"
            )
            self._process.wait()
            self._close()
            return
        with self._lock:
            self._reaped = True
        status = self._process.wait()
        self._close()
        self._on_end(self._why or broken or describe_exit(status))

    def _exchange(self) -> str | None:
        """Read packets until the child ends or has to be ended; return why it has to be."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._pidfd, select.POLLIN)
        while True:
            exited = any(fd == self._pidfd for fd, _ in poll.poll())
            for _ in range(LAST_PACKETS if exited else 1):
                try:
                    packet = self._socket.recv(MAX_PACKET + 1, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                except ConnectionResetError:
                    continue  # it ended without reading our last packet; its own last ones are still to be read
                if not packet:
                    stopped = self._grace_s is not None
                    ended = self._ended(self._grace_s if self._grace_s is not None else EXIT_S)
                    return None if stopped or ended else "the policy worker was ended: it closed its connection"
                if (problem := self._on_packet(packet)) is not None:
                    return problem
            if exited:
                return None

    def _ended(self, timeout_s: float) -> bool:
        """Wait for the end of the process without reaping it: until then its number belongs to nobody else."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1e3))

    def _kill_group(self) -> None:
        with contextlib.suppress(OSError):  # ended, and so has all that it started
            os.killpg(self._process.pid, signal.SIGKILL)

    def _close(self) -> None:
        with self._lock:
            self._reaped = True
            self._socket.close()
            if self._pidfd >= 0:
                os.close(self._pidfd)


def describe_exit(status: int) -> str:
    """Return a sentence for the exit status of a worker, negative for a signal as in `subprocess`."""
    if status < 0:
        name = signal.Signals(-status).name
        hint = " (out of memory? see dmesg)" if name == "SIGKILL" else ""
        return f"the policy worker was ended by {name}{hint}"
    return f"the policy worker exited with status {status}"
