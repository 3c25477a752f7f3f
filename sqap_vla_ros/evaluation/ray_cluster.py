"""A connection to a Ray cluster, whose end has the same exit status as that of any other command."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

from sqap_vla_ros.processes import Terminated, signals_raise

ADDRESSES = "auto, local, HOST:PORT or ray://HOST:PORT"
_MISSING = "--ray needs Ray: pip install '.[cluster]' in the checkout of sqap-vla-ros"
_START = "start one with `ray start --head`, or use --ray local"
_TOKEN = "if Ray's lines above speak of a token, set RAY_AUTH_MODE=token with the cluster's token in ~/.ray/auth_token"
_ANSWER_S = 5.0  # that a cluster has to answer; Ray itself tries for minutes, in which no signal reaches it
_HOST_PORT = re.compile(
    r"(?:ray://)?(?:\[(?P<inside>[0-9A-Fa-f:.%]+)\]|(?P<host>[^\s:/\[\]]+)):(?P<port>[0-9]{1,5})", re.ASCII
)
# HTTP/2, which gRPC speaks: what a client begins with, and the kind of frame that a server answers with.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_HEADER, _SETTINGS = 9, 4


def ray_address(text: str) -> str:
    """Return the address of a cluster as it is, one of `ADDRESSES`. Raises ValueError for anything else."""
    if text not in ("auto", "local"):
        _host_and_port(text)
    return text


def _host_and_port(address: str) -> tuple[str, int]:
    found = _HOST_PORT.fullmatch(address)
    if found is None or not 0 < int(found["port"]) < 2**16:
        raise ValueError(f"must be {ADDRESSES}, got {address!r}")
    return found["inside"] or found["host"], int(found["port"])


def require_cluster(address: str) -> None:
    """Raise ValueError where Ray is missing or no cluster answers at an address; does not connect to it."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError(_MISSING)
    _require_answer(address)


def _require_answer(address: str) -> None:
    """Raise ValueError where no cluster answers within seconds, or where none runs that `auto` could stand for."""
    option, told = f"--ray {address}", os.environ.get("RAY_ADDRESS", "")
    found: str | None = address
    if address == "auto" and told not in ("", "auto"):
        option, found = f"--ray auto, for which RAY_ADDRESS is set to {told}", told
    elif address == "auto":
        found = _running_cluster()
    if found in (None, "local"):
        return
    try:
        host, port = _host_and_port(found)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error
    place = "there" if found == address else f"at {found}"
    try:
        is_cluster = _speaks_grpc(host, port)
    except OSError as error:
        why = "no answer in time" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise ValueError(f"{option}: no cluster answers {place} ({why}): {_START}") from error
    if not is_cluster:
        raise ValueError(
            f"{option}: what answers {place} is no Ray cluster: give the address that `ray start --head` "
            "printed, or use --ray local"
        )


def _running_cluster() -> str | None:
    """Return the address that Ray takes for `auto`, None where this Ray does not tell. Raises ValueError for none."""
    try:
        from ray._private.services import (  # type: ignore[import-not-found, unused-ignore]  # no public one tells
            canonicalize_bootstrap_address,
        )
    except ImportError:
        return None
    try:
        return str(canonicalize_bootstrap_address("auto"))
    except ConnectionError as error:
        raise ValueError(f"--ray auto: no cluster runs on this computer: {_START}") from error


def _speaks_grpc(host: str, port: int) -> bool:
    """Return whether a server greets as Ray's do. Raises OSError where none can be reached."""
    with socket.create_connection((host, port), _ANSWER_S) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return True  # it would expect another greeting
        connection.settimeout(_ANSWER_S)
        answer = b""
        try:
            connection.sendall(_GREETING)
            while len(answer) < _HEADER and (more := connection.recv(_HEADER - len(answer))):
                answer += more
        except OSError:  # silent, or closed
            return False
    return len(answer) == _HEADER and answer[3] == _SETTINGS


@contextlib.contextmanager
def ray_cluster(address: str) -> Iterator[Any]:
    """Connect to a cluster, or start a local one, and provide the module `ray` until the block is left.

    address: one of `ADDRESSES`. Workers get this process's import paths, and paths that do not depend on the working
    directory. Raises ValueError where Ray is missing or does not connect, and `Terminated` on SIGTERM and SIGHUP, also
    while Ray starts.
    """
    try:
        import ray  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ValueError(_MISSING) from error
    _require_answer(address)
    variables = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY") if name in os.environ}
    variables["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    received: list[int] = []
    try:
        with signals_raise(received):
            _connect(ray, address, variables)
            with signals_raise(received):  # `ray.init` has put other handlers of SIGTERM in place of the command's
                yield ray
    except SystemExit as error:  # Ray's own where its handler of SIGTERM ran, or one in place of `Terminated`
        raise Terminated(received[-1] if received else signal.SIGTERM) from error
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str, variables: dict[str, str]) -> None:
    try:
        ray.init(address=address, runtime_env={"env_vars": variables}, log_to_driver=False, include_dashboard=False)
    except Exception as error:  # of another version, of a computer that is no part of the cluster, ...
        if address == "local":  # a full disk, for example, which is named elsewhere
            raise
        said = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(f"--ray {address}: Ray does not connect: {said}; {_TOKEN}") from error
