"""Frames between `RemotePolicy` and its server: a checksum, then a packet of `wire.py`.

A request has the length of its packet ahead of it, and the raw image behind it. The checksum covers all that follows:
TCP's own, of 16 bits, lets one damaged packet in 65,536 pass, and a wrong bit in a chunk is a wrong motion.
"""

from __future__ import annotations

import ipaddress
import struct
import urllib.parse
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.serving.events import PredictRequest
from sqap_vla_ros.serving.wire import WireError, decode, encode

NATIVE_PATH = "/native"  # of the server, for clients that send these frames
SCHEMES = ("ws://", "wss://")
MOST_FRAME = 32 * 2**20  # bytes that a server takes in one message, of any protocol
TOKEN_VARIABLE = "SQAP_VLA_TOKEN"  # in the environment of both sides; never an argument, which others could read
_LENGTH = struct.Struct("<I")
_CHECKSUM = struct.Struct("<I")


def token_of(environment: Mapping[str, str]) -> str:
    """Return the token that an environment names, "" for none. Raises ValueError for one that no header can carry."""
    given = environment.get(TOKEN_VARIABLE, "")
    token = given.strip()  # a file that it was read from may have ended with a line break
    if (given and not token) or not (token.isascii() and token.isprintable()):
        raise ValueError(
            f"the environment variable {TOKEN_VARIABLE} holds no token: set visible ASCII characters, or nothing"
        )
    return token


class RemoteError(RuntimeError):
    """The server cannot be reached, or gave no usable answer; the text says which and what to do.

    Here and not in `remote.py`, which needs a library: who reports it may run without.
    """


class NoAnswer(RemoteError):
    """The observation was not judged: the server cannot be reached, stays silent, or serves another policy now."""


class DamagedFrame(WireError):
    """The bytes of a frame are not those that were sent."""


def is_remote(checkpoint: str) -> bool:
    """Return whether the name of a checkpoint is a server's address."""
    return checkpoint.lower().startswith(SCHEMES)


def host_and_port(address: str) -> tuple[str, int]:
    """Return what a server's address names; the scheme's port where it names none. Raises ValueError."""
    try:
        parts = urllib.parse.urlsplit(address)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"no address of a server (ws://HOST:PORT): {error}") from error
    if not parts.hostname or port == 0 or not address.isprintable() or " " in address:
        raise ValueError("no address of a server: ws://HOST:PORT is needed")
    return parts.hostname, port or (443 if parts.scheme == "wss" else 80)


def is_loopback(host: str) -> bool:
    """Return True if a host can be reached from this computer only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def uses_proxy(address: str) -> bool:
    """Return whether a proxy that the environment names (https_proxy, no_proxy) stands between us and a server.

    A server at ws:// or on this computer is spoken to directly: it is on the robot's own network, or behind a tunnel,
    and a web proxy would refuse it or be a detour.
    """
    host, port = host_and_port(address)
    if not address.lower().startswith("wss://") or is_loopback(host):
        return False
    import urllib.request  # with all that it loads

    named = not {"wss", "socks", "https"}.isdisjoint(urllib.request.getproxies())
    return named and not urllib.request.proxy_bypass(f"{host}:{port}")


def seal(*parts: bytes) -> bytes:
    """Return the frame of these parts, one after the other."""
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return b"".join((_CHECKSUM.pack(checksum), *parts))


def unseal(frame: bytes) -> memoryview:
    """Return what was sealed. Raises DamagedFrame."""
    content = memoryview(frame)[_CHECKSUM.size :]
    if len(frame) < _CHECKSUM.size or _CHECKSUM.unpack_from(frame)[0] != zlib.crc32(content):
        raise DamagedFrame("a frame is damaged, or of another version of this package")
    return content


def join_request(request: PredictRequest, image: NDArray[np.uint8]) -> bytes:
    """Return the frame. Raises WireError, also for one that is longer than servers take."""
    packet = encode(request)
    size = _CHECKSUM.size + _LENGTH.size + len(packet) + image.nbytes
    if size > MOST_FRAME:
        raise WireError(
            f"an image of {request.width} x {request.height} pixels makes a frame of {size / 2**20:.1f} MiB, a server "
            f"takes at most {MOST_FRAME / 2**20:g} MiB: send an image of at most {MOST_FRAME // 3_000_000} million "
            "pixels"
        )
    return seal(_LENGTH.pack(len(packet)), packet, image.tobytes())


def split_request(sealed: bytes) -> tuple[PredictRequest, memoryview]:
    """Return the request, and what should be its image. Raises WireError."""
    frame = unseal(sealed)
    if len(frame) < _LENGTH.size:
        raise WireError("a frame begins with the length of its request")
    end = _LENGTH.size + int(_LENGTH.unpack_from(frame)[0])
    request = decode(bytes(frame[_LENGTH.size : end]))
    if not isinstance(request, PredictRequest):
        raise WireError(f"expected a request, got {type(request).__name__}")
    return request, frame[end:]


def observed(request: PredictRequest, pixels: memoryview) -> Observation:
    """Return the observation of a request. Raises WireError for another number of pixels, ValueError if impossible."""
    size = request.height * request.width * 3
    if len(pixels) != size:
        raise WireError(f"an image of {request.width} x {request.height} pixels needs {size} bytes, got {len(pixels)}")
    return request.observation(np.frombuffer(pixels, np.uint8).reshape(request.height, request.width, 3))
