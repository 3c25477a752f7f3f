"""The zip archive that `torch.save` writes: first its tensors without their numbers, then the numbers of one at a time.

`torch.load` either reads everything or maps the file. What it says about the places of tensors in the file
(`_checkpoint_offset`) is calculated, and wrong once another program has written the archive anew.
"""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._weights_only_unpickler import Unpickler
from torch.storage import TypedStorage

from sqap_vla_ros.policy.checkpoints.contents import CheckpointError
from sqap_vla_ros.policy.checkpoints.reading import TensorFile

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, and the lengths of the name and of what follows it


class _Unpickler(Unpickler):
    """PyTorch's unpickler of tensors alone. storage: makes a storage of what the pickle says of one."""

    def __init__(self, pickled: bytes, storage: Callable[[tuple[Any, ...]], TypedStorage]) -> None:
        super().__init__(io.BytesIO(pickled), encoding="utf-8")
        self._make = storage

    def persistent_load(self, saved: tuple[Any, ...]) -> TypedStorage:
        return self._make(saved)


class TorchArchive:
    """An open archive. content: what was saved, its tensors on the meta device.

    Raises BadZipFile, ValueError and whatever damaged bytes make the unpickler raise; CheckpointError for an archive
    whose tensors do not lie in it as they are in memory.
    """

    def __init__(self, path: Path) -> None:
        self._file = TensorFile(path)
        with zipfile.ZipFile(self._file.file) as archive:
            entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise CheckpointError(f"{path} was compressed by another program: give the file as torch.save wrote it")
        (root,) = {entry.filename.partition("/")[0] for entry in entries}
        self._entries = {entry.filename.removeprefix(f"{root}/"): entry for entry in entries}
        self._begins = {name: self._begin_of(entry) for name, entry in self._entries.items()}
        if "byteorder" in self._entries and self._bytes("byteorder") != b"little":
            raise CheckpointError(f"{path} was saved on a big-endian computer: save it again on this one")
        self._storages: dict[str, TypedStorage] = {}
        self._names: dict[int, str] = {}  # a storage's identity -> the name of its entry
        self._sound: set[str] = set()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of kinds of tensors that are refused in a sentence
            self.content: Any = _Unpickler(self._bytes("data.pkl"), self._storage).load()

    def read(self, view: Tensor, name: str) -> Tensor:
        """Return the numbers of one of the tensors in `content`, or of a view of it. name: for the error.

        Raises CheckpointError where they are damaged; see also `TensorFile.read`.
        """
        path, stored = self._file.path, self._names.get(view.untyped_storage()._cdata)
        if stored is None:
            raise CheckpointError(f"{path}: {name!r} was saved without its numbers")
        entry, begin = self._entries[stored], self._begins[stored]
        last = sum((size - 1) * stride for size, stride in zip(view.shape, view.stride(), strict=True))
        if view.numel() and (int(view.storage_offset()) + last + 1) * view.element_size() > entry.file_size:
            raise CheckpointError(f"{path} is damaged: less is stored of {name!r} than belongs to it: copy it again")
        tensor = self._file.read(view, begin)
        if entry.CRC and stored not in self._sound:  # torch.save may be told to leave the checksums out
            if self._file.crc32(begin, entry.file_size) != entry.CRC:
                raise CheckpointError(f"{path} is damaged at {name!r}: copy or download it again")
            self._sound.add(stored)
        return tensor.neg() if view.is_neg() else tensor

    def _storage(self, saved: tuple[Any, ...]) -> TypedStorage:
        """Return a storage without memory for what the pickle says of one: its kind, type, key, device and elements."""
        _, kind, key, _, elements = saved[:5]
        if key not in self._storages:
            name, dtype = f"data/{key}", torch.uint8 if kind is torch.UntypedStorage else kind.dtype
            if name not in self._entries:
                raise zipfile.BadZipFile(f"no entry {name}")
            storage = torch.UntypedStorage(elements * dtype.itemsize, device="meta")
            self._names[storage._cdata] = name
            self._storages[key] = TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)
        return self._storages[key]

    def _begin_of(self, entry: zipfile.ZipInfo) -> int:
        """Return the byte of the file at which the content of an entry begins."""
        at = entry.header_offset
        signature, name, extra = _LOCAL_HEADER.unpack(self._file.bytes(at, _LOCAL_HEADER.size))
        if signature != b"PK\x03\x04":
            raise zipfile.BadZipFile(f"no entry at {at}")
        return at + _LOCAL_HEADER.size + int(name) + int(extra)

    def _bytes(self, name: str) -> bytes:
        return self._file.bytes(self._begins[name], self._entries[name].file_size)
