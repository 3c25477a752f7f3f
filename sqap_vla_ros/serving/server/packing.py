"""msgpack with arrays, as vla-eval's and openpi's clients write it; nothing in it names code.

openpi marks an array by keys of bytes: `{b"__ndarray__": True, b"data", b"dtype", b"shape"}`; vla-eval by keys of text,
and has images besides: `{"__image__": True, "format": "raw" | "jpeg" | "png", "data", "shape"}`. `unpack` reads both;
`pack` writes the one that is asked for.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_SIDE = 4_096  # pixels
MAX_AXES = 8
_KINDS = "biuf"  # dtypes that hold numbers and nothing else


class PackingError(ValueError):
    """Bytes that are no message of the form; the text says why, for the client."""


def pack(value: Any, *, keys: type[str] | type[bytes]) -> bytes:
    """Return the msgpack form; arrays are marked by keys of the given type."""

    import msgpack  # only who serves needs it

    def array(entry: Any) -> Any:
        if isinstance(entry, np.ndarray):
            marks = {"__ndarray__": True, "data": entry.tobytes(), "dtype": entry.dtype.str, "shape": entry.shape}
            return {name if keys is str else name.encode(): mark for name, mark in marks.items()}
        raise TypeError(f"{type(entry).__name__} cannot be packed")

    packed: bytes = msgpack.packb(value, default=array)
    return packed


def unpack(data: bytes) -> Any:
    """Return the value of a message. Raises PackingError."""
    import msgpack

    try:
        return msgpack.unpackb(data, object_hook=_array)
    except PackingError:
        raise
    except Exception as error:  # msgpack documents several, and its C and Python forms raise different ones
        raise PackingError(f"the frame is no msgpack message: {type(error).__name__}: {error}") from error


def decode_image(data: bytes, formats: tuple[str, ...] = ("JPEG", "PNG")) -> NDArray[np.uint8]:
    """Return a picture as [H, W, 3] uint8, RGB. Raises PackingError for anything else, and for half a picture."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=formats) as picture:
            if max(picture.size) > MAX_SIDE:  # read from the header, before anything is decoded
                raise PackingError(f"the image has {picture.size} pixels, at most {MAX_SIDE} a side are allowed")
            return np.array(picture.convert("RGB"))
    except PackingError:
        raise
    except Exception as error:  # PIL raises whatever its decoders raise
        raise PackingError(f"the image cannot be decoded as {' or '.join(formats)}: {error}") from error


def _array(entry: dict[Any, Any]) -> Any:
    if "__image__" in entry:
        return _image(entry)
    if "__ndarray__" in entry:
        return _ndarray(entry.get("data"), entry.get("dtype"), entry.get("shape"))
    if b"__ndarray__" in entry:
        return _ndarray(entry.get(b"data"), entry.get(b"dtype"), entry.get(b"shape"))
    if b"__npgeneric__" in entry:
        value = entry.get(b"data")
        if not isinstance(value, (bool, int, float)):
            raise PackingError(f"a scalar must be a number, got {type(value).__name__}")
        return value
    return entry


def _image(entry: dict[Any, Any]) -> NDArray[Any]:
    form, data = entry.get("format"), entry.get("data")
    if form == "raw":
        return _ndarray(data, entry.get("dtype"), entry.get("shape"))
    if form not in ("jpeg", "png") or not isinstance(data, bytes):
        raise PackingError(f"an image's format must be raw, jpeg or png with data in bytes, got {form!r:.40}")
    return decode_image(data, (form.upper(),))


def _ndarray(data: Any, name: Any, shape: Any) -> NDArray[Any]:
    if isinstance(name, bytes):
        name = name.decode("ascii", errors="replace")
    try:
        dtype = np.dtype(name) if isinstance(name, str) and len(name) <= 8 else None
    except TypeError:
        dtype = None
    if dtype is None or dtype.kind not in _KINDS or dtype.hasobject:
        raise PackingError(f"an array's dtype must be of numbers (kinds {', '.join(_KINDS)}), got {name!r:.40}")
    if not isinstance(shape, (list, tuple)) or len(shape) > MAX_AXES:
        raise PackingError(f"an array's shape must be a list of at most {MAX_AXES} lengths, got {shape!r:.60}")
    if not all(isinstance(length, int) and 0 <= length < 2**31 for length in shape):
        raise PackingError(f"an array's shape must hold lengths, got {shape!r:.60}")
    needed = math.prod(shape) * dtype.itemsize
    if not isinstance(data, bytes) or len(data) != needed:
        held = len(data) if isinstance(data, bytes) else type(data).__name__
        raise PackingError(f"an array of shape {list(shape)} and dtype {name} needs {needed} bytes, got {held}")
    return np.frombuffer(data, dtype).reshape(shape)
