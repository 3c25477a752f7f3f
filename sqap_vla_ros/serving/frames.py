"""A request of `RemotePolicy` as one websocket frame: the length of its packet, the packet, the raw image."""

from __future__ import annotations

import struct
import urllib.parse

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.serving.events import PredictRequest
from sqap_vla_ros.serving.wire import WireError, decode, encode

NATIVE_PATH = "/native"  # of the server, for clients that send these frames
SCHEMES = ("ws://", "wss://")
TOKEN_VARIABLE = "SQAP_VLA_TOKEN"  # in the environment of both sides; never an argument, which others could read
_LENGTH = struct.Struct("<I")


def is_remote(checkpoint: str) -> bool:
    """Return whether the name of a checkpoint is a server's address."""
    return checkpoint.startswith(SCHEMES)


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


def join_request(request: PredictRequest, image: NDArray[np.uint8]) -> bytes:
    """Return the frame. Raises WireError."""
    packet = encode(request)
    return b"".join((_LENGTH.pack(len(packet)), packet, image.tobytes()))


def split_request(frame: bytes) -> tuple[PredictRequest, Observation]:
    """Return the request and its observation. Raises WireError, and ValueError for an impossible observation."""
    if len(frame) < _LENGTH.size:
        raise WireError("a frame begins with the length of its request")
    begin = _LENGTH.size
    end = begin + int(_LENGTH.unpack_from(frame)[0])
    request = decode(frame[begin:end])
    if not isinstance(request, PredictRequest):
        raise WireError(f"expected a request, got {type(request).__name__}")
    size = request.height * request.width * 3
    if len(frame) - end != size:
        raise WireError(
            f"an image of {request.width} x {request.height} pixels needs {size} bytes, got {len(frame) - end}"
        )
    image = np.frombuffer(frame, np.uint8, offset=end).reshape(request.height, request.width, 3)
    return request, Observation(
        image, request.stamp_ns, request.instruction, request.gripper_pixel, request.base_from_tool
    )
