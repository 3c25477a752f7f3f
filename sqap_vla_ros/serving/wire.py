"""The binary form in which the parent and the worker exchange messages.

A message is one packet: two magic bytes, the version of the form, the kind, then the fields of that kind in a fixed
order. `KINDS` describes every message field by field, and that table is all there is to it: `encode` and `decode` walk
it, so both ends check the same types, ranges, lengths and shapes. Nothing in a packet names code, unlike a pickle, and
nothing in it can make the reader allocate more than the packet's own size, which `MAX_PACKET` bounds.

The form is written here and not taken from msgpack because a schema would have to be checked on top of it anyway
(msgpack packs whatever it is given, and knows no arrays), and that check is most of this file.

Numbers are little-endian; integers and reals take eight bytes, texts are UTF-8 after their length in bytes.
"""

from __future__ import annotations

import math
import numbers
import operator
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sqap_vla_ros.contracts import ActionChunk, Commitment, PolicyInfo, TokenSelection
from sqap_vla_ros.serving.defaults import MOST_BATCH
from sqap_vla_ros.serving.events import (
    Declined,
    LoadFailed,
    LoadProgress,
    Offer,
    PredictFailed,
    PredictRequest,
    Ready,
    Result,
    Unanswered,
)

MAX_PACKET = 65_536  # bytes; a result of 16 actions and 256 tokens has 4,000
MAX_INSTRUCTION = 4_096  # bytes of UTF-8
MAX_TEXT = 4_096
MAX_IMAGE_SIDE = 16_384  # pixels
HEADER = b"SQ\x04"  # magic and version

_INT64 = 2**63
_COUNT = struct.Struct("<I")
_INTEGER = struct.Struct("<q")
_REAL = struct.Struct("<d")


class WireError(ValueError):
    """A value that has no place in the form, or bytes that are no message; the text names the field."""


class Field(Protocol):
    """One entry of a message: writes a value, reads it back. `where` names it in errors."""

    def write(self, out: bytearray, value: Any, where: str) -> None: ...

    def read(self, packet: Packet, where: str) -> Any: ...


class Packet:
    """The bytes of a message and how far they were read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int, where: str) -> bytes:
        """The next `size` bytes. Raises WireError when there are fewer."""
        if size > len(self.data) - self.at:
            raise WireError(f"{where} needs {size} bytes, {len(self.data) - self.at} are left")
        self.at += size
        return self.data[self.at - size : self.at]

    def count(self, where: str, most: int) -> int:
        """A length or number of entries. Raises WireError when it is above `most`."""
        (count,) = _COUNT.unpack(self.take(_COUNT.size, where))
        if count > most:
            raise WireError(f"{where} has {count} entries, at most {most} are allowed")
        return int(count)


@dataclass(frozen=True)
class Integer:
    """An integer from low to high; NumPy integers pass, floats do not."""

    low: int = -_INT64
    high: int = _INT64 - 1

    def write(self, out: bytearray, value: Any, where: str) -> None:
        try:
            out += _INTEGER.pack(self._checked(operator.index(value), where))
        except TypeError as error:
            raise WireError(f"{where} is {show(value)}, expected an integer") from error

    def read(self, packet: Packet, where: str) -> int:
        (value,) = _INTEGER.unpack(packet.take(_INTEGER.size, where))
        return self._checked(value, where)

    def _checked(self, value: int, where: str) -> int:
        if not self.low <= value <= self.high:
            raise WireError(f"{where} is {show(value)}, expected an integer from {self.low} to {self.high}")
        return value


@dataclass(frozen=True)
class Real:
    """A float64. Not a number and the infinities travel too: `validation` names them."""

    def write(self, out: bytearray, value: Any, where: str) -> None:
        try:
            if not isinstance(value, numbers.Real):
                raise TypeError
            out += _REAL.pack(value)
        except (TypeError, OverflowError, struct.error) as error:
            raise WireError(f"{where} is {show(value)}, expected a number") from error

    def read(self, packet: Packet, where: str) -> float:
        (value,) = _REAL.unpack(packet.take(_REAL.size, where))
        return float(value)


@dataclass(frozen=True)
class Flag:
    """True or False."""

    def write(self, out: bytearray, value: Any, where: str) -> None:
        if not isinstance(value, (bool, np.bool_)):
            raise WireError(f"{where} is {show(value)}, expected True or False")
        out.append(bool(value))

    def read(self, packet: Packet, where: str) -> bool:
        (value,) = packet.take(1, where)
        if value > 1:
            raise WireError(f"{where} is {value}, expected 0 or 1")
        return bool(value)


@dataclass(frozen=True)
class Text:
    """A string of at most `most` bytes of UTF-8."""

    most: int = MAX_TEXT

    def write(self, out: bytearray, value: Any, where: str) -> None:
        if not isinstance(value, str):
            raise WireError(f"{where} is {show(value)}, expected a text")
        try:
            data = value.encode()
        except UnicodeEncodeError as error:
            raise WireError(f"{where} holds characters that are no Unicode text: {error.reason}") from error
        if len(data) > self.most:
            raise WireError(f"{where} has {len(data)} bytes, at most {self.most} are allowed: shorten it")
        out += _COUNT.pack(len(data))
        out += data

    def read(self, packet: Packet, where: str) -> str:
        data = packet.take(packet.count(where, self.most), where)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise WireError(f"{where} is no UTF-8: {error.reason}") from error


@dataclass(frozen=True)
class Array:
    """A NumPy array of one dtype and number of axes, each at most as long as `most` says.

    A narrower dtype of the same kind is widened (float32 → float64); a wider one, lists and objects are refused.
    """

    dtype: str
    most: tuple[int, ...]

    def write(self, out: bytearray, value: Any, where: str) -> None:
        if not isinstance(value, np.ndarray):
            raise WireError(f"{where} is {show(value)}, expected an array of {self.dtype}")
        target = np.dtype(self.dtype)
        if value.dtype.kind != target.kind or not np.can_cast(value.dtype, target):
            raise WireError(f"{where} is an array of {value.dtype}, expected {self.dtype}")
        if value.ndim != len(self.most):
            raise WireError(f"{where} is {list(value.shape)}, expected {len(self.most)} axes")
        for length, most in zip(value.shape, self.most, strict=True):
            if length > most:
                raise WireError(f"{where} is {list(value.shape)}, at most {list(self.most)} is allowed")
            out += _COUNT.pack(length)
        out += value.astype(target.newbyteorder("<")).tobytes()

    def read(self, packet: Packet, where: str) -> np.ndarray:
        shape = tuple(packet.count(where, most) for most in self.most)
        dtype = np.dtype(self.dtype).newbyteorder("<")
        count = math.prod(shape)
        data = packet.take(count * dtype.itemsize, where)
        return np.frombuffer(data, dtype).astype(self.dtype).reshape(shape)  # a copy, which may be written to


@dataclass(frozen=True)
class Optional:
    """Something, or None."""

    of: Field

    def write(self, out: bytearray, value: Any, where: str) -> None:
        out.append(value is not None)
        if value is not None:
            self.of.write(out, value, where)

    def read(self, packet: Packet, where: str) -> Any:
        return self.of.read(packet, where) if Flag().read(packet, where) else None


@dataclass(frozen=True)
class Pair:
    """A tuple of two."""

    of: Field

    def write(self, out: bytearray, value: Any, where: str) -> None:
        if not isinstance(value, (Sequence, np.ndarray)) or isinstance(value, str) or len(value) != 2:
            raise WireError(f"{where} is {show(value)}, expected two values")
        for entry in value:
            self.of.write(out, entry, where)

    def read(self, packet: Packet, where: str) -> tuple[Any, Any]:
        return self.of.read(packet, where), self.of.read(packet, where)


@dataclass(frozen=True)
class Table:
    """A mapping from texts to numbers, in order."""

    most: int
    name: Text

    def write(self, out: bytearray, value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise WireError(f"{where} is {show(value)}, expected a mapping from texts to numbers")
        if len(value) > self.most:
            raise WireError(f"{where} has {len(value)} entries, at most {self.most} are allowed")
        out += _COUNT.pack(len(value))
        for name, number in value.items():
            self.name.write(out, name, f"a name in {where}")
            Real().write(out, number, f"{where}[{name!r}]")

    def read(self, packet: Packet, where: str) -> dict[str, float]:
        table: dict[str, float] = {}
        for _ in range(packet.count(where, self.most)):
            name = self.name.read(packet, f"a name in {where}")
            if name in table:
                raise WireError(f"{where} has {name!r} twice")
            table[name] = Real().read(packet, where)
        return table


@dataclass(frozen=True)
class Record:
    """A dataclass, field by field. name: how errors call it."""

    name: str
    type: type
    fields: Mapping[str, Field]

    def write(self, out: bytearray, value: Any, where: str) -> None:
        if not isinstance(value, self.type):
            raise WireError(f"{where} is {show(value)}, expected {self.type.__name__}")
        for name, field in self.fields.items():
            field.write(out, getattr(value, name), f"{self.name}.{name}")

    def read(self, packet: Packet, where: str) -> Any:
        values = {name: field.read(packet, f"{self.name}.{name}") for name, field in self.fields.items()}
        try:
            return self.type(**values)
        except ValueError as error:
            raise WireError(f"{where}: {error}") from error


MAX_HORIZON, MAX_ACTION, MAX_TOKENS = 128, 16, 4_096
_UINT16 = Integer(0, 2**16 - 1)
_NAME = Text(256)
_SEED = Integer(0)
_REQUEST = Integer(1)
_SELECTION = Record(
    "selection",
    TokenSelection,
    {
        "indices": Array("int32", (MAX_TOKENS,)),
        "reasons": Array("uint8", (MAX_TOKENS,)),
        "grid": Pair(_UINT16),
        "method": _NAME,
        "prune_layer": _UINT16,
        "gripper_patch": Optional(Pair(_UINT16)),
    },
)
_COMMITMENT = Record(
    "commitment",
    Commitment,
    {
        "actions": Array("float64", (MAX_HORIZON, MAX_ACTION)),
        "executed": Integer(0, MAX_HORIZON),
        "continuation": _NAME,
    },
)
_CHUNK = Record(
    "chunk",
    ActionChunk,
    {
        "stamp_ns": Integer(),
        "deltas": Array("float64", (MAX_HORIZON, MAX_ACTION)),
        "dt_s": Real(),
        "normalized": Array("float64", (MAX_HORIZON, MAX_ACTION)),
        "selection": Optional(_SELECTION),
        "timings_ms": Table(64, Text(64)),
        "seed": _SEED,
    },
)
_INFO = Record(
    "info",
    PolicyInfo,
    {
        "checkpoint": Text(),
        "checkpoint_sha256": _NAME,
        "recipe": Text(),
        "parameters": Integer(0),
        "horizon": Integer(1, MAX_HORIZON),
        "dt_s": Real(),
        "image_size": Integer(0, MAX_IMAGE_SIDE),
        "grid": Pair(_UINT16),
        "unnorm_key": _NAME,
        "selector": _NAME,
        "stateful": Flag(),
        "crop": _NAME,
        "settings": Text(),
        "costs": Table(16, Text(64)),
    },
)
_REASON = Text()
_SIDE = Integer(1, MAX_IMAGE_SIDE)
KINDS: tuple[Record, ...] = (
    Record(
        "request",
        PredictRequest,
        {
            "request": _REQUEST,
            "reset": Flag(),
            "height": _SIDE,
            "width": _SIDE,
            "stamp_ns": Integer(),
            "instruction": Text(MAX_INSTRUCTION),
            "gripper_pixel": Optional(Pair(Real())),
            "base_from_tool": Optional(Array("float64", (4, 4))),
            "seed": _SEED,
            "commitment": Optional(_COMMITMENT),
        },
    ),
    Record("progress", LoadProgress, {"text": _REASON}),
    Record("ready", Ready, {"info": _INFO, "warm_latency_s": Real()}),
    Record("load_failed", LoadFailed, {"text": _REASON}),
    Record("result", Result, {"request": _REQUEST, "chunk": _CHUNK, "policy_s": Real()}),
    Record("predict_failed", PredictFailed, {"request": _REQUEST, "text": _REASON}),
    Record("offer", Offer, {"count": Integer(2, MOST_BATCH)}),
    Record("declined", Declined, {"request": _REQUEST, "text": _REASON}),
    Record("unanswered", Unanswered, {"request": _REQUEST, "text": _REASON}),
)
Message = PredictRequest | LoadProgress | Ready | LoadFailed | Result | PredictFailed | Offer | Declined | Unanswered
_NUMBER_OF = {kind.type: number for number, kind in enumerate(KINDS)}


def encode(message: Message) -> bytes:
    """Return the packet of a message. Raises WireError naming the field that does not fit."""
    number = _NUMBER_OF[type(message)]
    out = bytearray(HEADER)
    out.append(number)
    KINDS[number].write(out, message, KINDS[number].name)
    if len(out) > MAX_PACKET:
        raise WireError(f"the {KINDS[number].name} has {len(out)} bytes, at most {MAX_PACKET} are allowed")
    return bytes(out)


def decode(data: bytes) -> Message:
    """Return the message of a packet. Raises WireError for anything that `encode` does not write."""
    if len(data) > MAX_PACKET:
        raise WireError(f"a packet of more than {MAX_PACKET} bytes")
    packet = Packet(data)
    header = packet.take(len(HEADER), "the header")
    if header[:-1] == HEADER[:-1] and header != HEADER:
        versions = f"version {header[-1]} of the form, this end speaks version {HEADER[-1]}"
        raise WireError(f"a packet in {versions}: use the same version of sqap_vla_ros on both ends")
    if header != HEADER:
        found, wanted = header.hex(" "), HEADER.hex(" ")
        raise WireError(f"a packet that begins with the bytes {found}, expected {wanted}")
    number = packet.take(1, "the kind")[0]
    if number >= len(KINDS):
        raise WireError(f"a packet of the unknown kind {number}")
    message: Message = KINDS[number].read(packet, KINDS[number].name)
    if packet.at != len(data):
        raise WireError(f"the {KINDS[number].name} ends {len(data) - packet.at} bytes before its packet")
    return message


def clip(text: str) -> str:
    """Shorten a text that is only for people to what `Text` allows, and replace what UTF-8 cannot carry."""
    return text.encode(errors="replace")[:MAX_TEXT].decode(errors="ignore")


def show(value: object) -> str:
    """Return a short description of a value for an error message, never raising."""
    try:
        text = repr(value)
    except Exception:
        text = "?"
    text = " ".join(text[:400].split())
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
