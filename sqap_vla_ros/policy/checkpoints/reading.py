"""Tensors read from a file into memory of their own.

Mapping the file would need less code. But whoever cuts off or unplugs a mapped file ends the process by a bus error,
and whoever rewrites it changes the weights of a running policy.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from sqap_vla_ros.policy.checkpoints.contents import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_AT_ONCE = 2**30  # bytes; Linux reads less than 2 GiB a call
_CHUNK = 2**22  # bytes that are in memory for a checksum
_SAFETENSORS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


class TensorFile:
    """An open file of tensors. Another file that takes its name meanwhile is not seen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("rb", buffering=0)
        self._state = self._now()

    @property
    def size(self) -> int:
        """Bytes of the file when it was opened."""
        return self._state[0]

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self.file.fileno())
        return status.st_size, status.st_mtime_ns

    def read(self, form: Tensor, begin: int) -> Tensor:
        """Return a tensor of the shape, strides and dtype of `form`, which may be on the meta device.

        begin: the byte at which the storage of `form` begins. Raises CheckpointError where the file is shorter, cannot
        be read, or was written to since it was opened.
        """
        import torch

        width = form.element_size()
        last = sum((size - 1) * stride for size, stride in zip(form.shape, form.stride(), strict=True))
        elements = last + 1 if form.numel() else 0
        storage = torch.empty(elements * width, dtype=torch.uint8)
        try:
            left = storage.numpy().data if elements else memoryview(b"")
            whole = _fill(self.file.fileno(), left, begin + int(form.storage_offset()) * width)
            now = self._now()
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read ({error.strerror}): copy it again") from error
        if not whole or now != self._state:
            change = "written to" if whole and now[0] >= self._state[0] else "cut off"
            raise CheckpointError(
                f"{self.path} was {change} while it was read: wait until it is whole, and start again"
            )
        return storage.view(form.dtype).as_strided(form.shape, form.stride())

    def bytes(self, begin: int, size: int) -> bytes:
        """Return a few bytes; fewer where the file ends before. Raises OSError."""
        return os.pread(self.file.fileno(), size, begin)

    def crc32(self, begin: int, size: int) -> int:
        """Return the checksum of a part of the file. Raises CheckpointError where it cannot be read."""
        checksum, buffer = 0, memoryview(bytearray(min(size, _CHUNK)))
        try:
            while size:
                part = buffer[: min(size, _CHUNK)]
                if not _fill(self.file.fileno(), part, begin):
                    break  # reading says so
                checksum = zlib.crc32(part, checksum)
                begin, size = begin + len(part), size - len(part)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read ({error.strerror}): copy it again") from error
        return checksum


def _fill(file: int, left: memoryview, begin: int) -> bool:
    """Read bytes from `begin` on; return whether the file had enough of them."""
    while left:
        count = os.preadv(file, [left[:_AT_ONCE]], begin)
        if not count:
            return False
        left, begin = left[count:], begin + count
    return True


class SafetensorsFile:
    """The tensors of a safetensors file. Torch is imported when the first is looked at.

    Raises OSError, and SafetensorError or ValueError for a file that is not whole.
    """

    def __init__(self, path: Path) -> None:
        self._file = TensorFile(path)
        with safe_open(str(path), framework="np") as checked:  # checks the header and that the file has all its bytes
            self.metadata: dict[str, str] = dict(checked.metadata() or {})
            self.names: list[str] = list(checked.keys())
        (length,) = struct.unpack("<Q", self._file.file.read(8))
        if length > self._file.size:
            raise ValueError("the header is cut off")
        self._entries = json.loads(self._file.file.read(length))
        self._data = 8 + length

    @property
    def stored(self) -> dict[str, tuple[str, list[int]]]:
        """Data type, in safetensors' words, and shape of each tensor."""
        return {name: (self._entries[name]["dtype"], self._entries[name]["shape"]) for name in self.names}

    def form(self, name: str) -> Tensor:
        """Return a tensor's shape and dtype as a tensor on the meta device. Raises CheckpointError."""
        import torch

        entry = self._entries[name]
        dtype = getattr(torch, _SAFETENSORS.get(entry["dtype"], ""), None)
        if dtype is None:
            raise CheckpointError(
                f"{self._file.path}: {name!r} holds numbers of type {entry['dtype']}, which are not read: "
                "name the file that it was made from"
            )
        return torch.empty(entry["shape"], dtype=dtype, device="meta")

    def read(self, name: str) -> Tensor:
        """Return a tensor. Raises CheckpointError, see `TensorFile.read`."""
        return self._file.read(self.form(name), self._data + self._entries[name]["data_offsets"][0])
