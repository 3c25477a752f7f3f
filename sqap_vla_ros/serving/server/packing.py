"""msgpack with arrays, as vla-eval's and openpi's clients write it; nothing in it names code.

openpi marks an array by keys of bytes: `{b"__ndarray__": True, b"data", b"dtype", b"shape"}`; vla-eval by keys of text,
and has images besides: `{"__image__": True, "format": "raw" | "jpeg" | "png", "data", "shape"}`. `unpack` reads both;
`pack` writes the one that is asked for.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.pictures import decode_picture
from sqap_vla_ros.serving.server.words import kind_of, quoted

MAX_SIDE = 4_096  # pixels
MAX_AXES = 8
MAX_ENTRIES, MAX_VALUES = 1_024, 10_000  # of one list or map; of a frame. A byte of msgpack can take 64 of memory
_KINDS = "biuf"  # dtypes that hold numbers and nothing else
_DTYPE = re.compile(r"[<>|=]?[biuf]\d{1,2}|bool|u?int(8|16|32|64)|float(16|32|64)")
_FAULTS = {  # by names of msgpack's exceptions
    "ExtraData": "more bytes follow its end",
    "FormatError": "a byte in it begins no value",
    "StackError": "it is nested too deeply",
    "UnicodeDecodeError": "a text in it is no UTF-8",
}


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

    values = 0

    def counted(entries: Sized) -> None:
        nonlocal values
        values += 1 + len(entries)
        if values > MAX_VALUES:
            raise PackingError(f"the frame has more than {MAX_VALUES} values: numbers travel as arrays")

    def of_list(entries: list[Any]) -> list[Any]:
        counted(entries)
        return entries

    def of_map(entry: dict[Any, Any]) -> Any:
        counted(entry)
        return _array(entry)

    limits = {"max_array_len": MAX_ENTRIES, "max_map_len": MAX_ENTRIES}
    try:
        return msgpack.unpackb(data, object_hook=of_map, list_hook=of_list, **limits)
    except PackingError:
        raise
    except Exception as error:  # msgpack documents several, and its C and Python forms raise different ones
        long = f"a list or map in it has more than {MAX_ENTRIES} entries" if "exceeds max" in str(error) else None
        why = long or _FAULTS.get(type(error).__name__, "it is damaged or cut off")
        raise PackingError(f"the frame is no msgpack message: {why}") from error


def read_header(data: bytes, *names: str) -> dict[str, Any]:
    """Return the entries of these names of a message that is a map, as far as it can be read: {} for anything else.

    What lies beside them is skipped and may be damaged pictures. A value that is no scalar is None.
    """
    import msgpack

    found: dict[str, Any] = {}
    reader = msgpack.Unpacker(max_array_len=0, max_map_len=0, max_buffer_size=max(len(data), 1))
    reader.feed(data)
    with contextlib.suppress(Exception):  # as in `unpack`; what was found until then counts
        for _ in range(min(reader.read_map_header(), MAX_ENTRIES)):
            name = reader.unpack()
            if name in names:
                found[name] = None
                found[name] = reader.unpack()
            else:
                reader.skip()
    return found


def decode_image(data: bytes, formats: tuple[str, ...] = ("JPEG", "PNG")) -> NDArray[np.uint8]:
    """Return a picture as [H, W, 3] uint8, RGB: the same that `predict --image` sees of it.

    Raises PackingError for anything else, and for half a picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=formats) as picture:
            if max(picture.size) > MAX_SIDE:  # read from the header, before anything is decoded
                raise PackingError(
                    f"the image has {picture.width} x {picture.height} pixels, at most {MAX_SIDE} a side are allowed"
                )
        return decode_picture(data, "the image", quietly=False)  # in any of several threads
    except PackingError:
        raise
    except Exception as error:  # PIL raises whatever its decoders raise
        why = "it is none" if isinstance(error, UnidentifiedImageError) else "it is damaged or cut off"
        raise PackingError(f"the image cannot be decoded as {' or '.join(formats)}: {why}") from error


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
            raise PackingError(f"a scalar must be a number, got {kind_of(value)}")
        return value
    return entry


def _image(entry: dict[Any, Any]) -> NDArray[Any]:
    form, data = entry.get("format"), entry.get("data")
    if form == "raw":
        return _ndarray(data, entry.get("dtype"), entry.get("shape"))
    if form not in ("jpeg", "png") or not isinstance(data, bytes):
        raise PackingError(f"an image's format must be raw, jpeg or png with data in bytes, got {quoted(form)}")
    return decode_image(data, (form.upper(),))


def _ndarray(data: Any, name: Any, shape: Any) -> NDArray[Any]:
    if isinstance(name, bytes):
        name = name.decode("ascii", errors="replace")
    try:
        dtype = np.dtype(name) if isinstance(name, str) and _DTYPE.fullmatch(name) else None
    except TypeError:
        dtype = None
    if dtype is None:
        raise PackingError(f"an array's dtype must be of numbers (kinds {', '.join(_KINDS)}), got {quoted(name)}")
    if not isinstance(shape, (list, tuple)) or len(shape) > MAX_AXES:
        raise PackingError(f"an array's shape must be a list of at most {MAX_AXES} lengths, got {kind_of(shape)}")
    if not all(type(length) is int and 0 <= length < 2**31 for length in shape):
        raise PackingError(f"an array's shape must hold lengths from 0 to {2**31 - 1}")
    needed = math.prod(shape) * dtype.itemsize
    if not isinstance(data, bytes) or len(data) != needed:
        held = len(data) if isinstance(data, bytes) else kind_of(data)
        raise PackingError(f"an array of shape {list(shape)} and dtype {name} needs {needed} bytes, got {held}")
    return np.frombuffer(data, dtype).reshape(shape)
