"""Damage of bytes, of trees of plain values, and of files on disk."""

from __future__ import annotations

import copy
import json
import shutil
import struct
from pathlib import Path
from random import Random
from typing import Any

import yaml

from sqap_vla_ros.compression.files.storage import seal

REFUSALS = (ValueError, OSError)
LARGE = 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 0.0, -0.0, 1e308, float("nan"), float("inf"), 2**70, *LARGE),
    *("", "x", "4", "nan", "../../etc", "\x00", "é中", "%s{0}", "a" * 3000),
    *([], {}, [[]], [None], {"": {}}, [0] * 7, [1.0] * 9, ["a"] * 7, [float("nan")] * 9, list(range(100))),
)


def damaged(rng: Random, data: bytes) -> bytes:
    """Return the bytes with one to eight changes, half of the time near the beginning or the end."""
    mutable = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        size = len(mutable)
        near = rng.choice((size, min(size, 600)))
        at = rng.randrange(near) if near else 0
        at = size - 1 - at if near < size and rng.random() < 0.4 else at
        length = rng.choice((1, 2, 4, 8, 64, 4096))
        kind = rng.randrange(7)
        if kind == 0:
            mutable[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del mutable[at:]
        elif kind == 2:
            del mutable[at : at + length]
        elif kind == 3:
            mutable[at:at] = mutable[at : at + length] * rng.choice((1, 2, 50))
        elif kind == 4:
            mutable[at:at] = rng.randbytes(min(length, 64))
        elif kind == 5:
            mutable[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 255, 2**16, *LARGE[:2])))
        else:
            mutable[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 2**20, 2**33, *LARGE)))
    return bytes(mutable)


def distorted(rng: Random, tree: Any) -> Any:
    """Return plain containers with one to four nodes replaced, left out, renamed, doubled or nested."""
    tree = json.loads(json.dumps(tree))
    nested = False
    for _ in range(rng.choice((1, 1, 2, 4))):
        found = list(_places(tree))
        if not found:
            return _hostile(rng)
        owner, key = rng.choice(found)
        kind = rng.randrange(6)
        if kind <= 2:
            owner[key] = _hostile(rng)
        elif kind == 3:
            del owner[key]
        elif kind == 4 and isinstance(owner, dict):
            owner[str(rng.choice(("", "x", key + "s", 3)))] = owner.pop(key)
        elif kind == 5:
            deep = rng.random() >= 0.7
            owner[key] = _nest(owner[key], 300) if deep and not nested else [owner[key]] * rng.choice((1, 2, 9))
            nested = nested or deep
    return tree


def _hostile(rng: Random) -> Any:
    """Return a hostile value of its own: the next change may be inside it."""
    return copy.deepcopy(rng.choice(HOSTILE))


def _places(tree: Any) -> Any:
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def as_yaml(tree: Any) -> str:
    """Write YAML; what is nested too deep for its writer is written as JSON, which is YAML too."""
    try:
        return str(yaml.safe_dump(tree))
    except RecursionError:
        return json.dumps(tree)


def _nest(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def damage_file(rng: Random, path: Path, *, sealed: bool = True) -> None:
    """Damage the bytes of a file; of a safetensors file also its header as JSON, with the right length before it.

    sealed: give a changed header its right checksum, where it has one, so that what it says is read.
    """
    data = path.read_bytes()
    if path.suffix == ".safetensors" and rng.random() < 0.6:
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        before = header["__metadata__"].pop("header_crc32", None)
        if rng.random() < 0.7:
            key = rng.choice(sorted(header["__metadata__"]))
            try:
                text = json.dumps(distorted(rng, json.loads(header["__metadata__"][key])))
            except ValueError:
                text = damaged(rng, header["__metadata__"][key].encode()).decode("latin-1")
            header["__metadata__"][key] = text
        else:
            header = distorted(rng, header)
        if before is not None and isinstance(header.get("__metadata__"), dict):
            header["__metadata__"]["header_crc32"] = _seal(header) if sealed else before
        raw = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])
    elif path.suffix == ".json" and rng.random() < 0.7:
        path.write_text(json.dumps(distorted(rng, json.loads(data))))
    elif path.suffix == ".jsonl" and data and rng.random() < 0.7:
        lines = data.decode().splitlines()
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(distorted(rng, json.loads(lines[at])))
        path.write_text("\n".join(lines) + rng.choice(("", "\n", "\n")))
    elif path.suffix == ".yaml" and rng.random() < 0.7:
        path.write_text(as_yaml(distorted(rng, yaml.safe_load(data))))
    else:
        path.write_bytes(damaged(rng, data))


def _seal(header: dict[str, Any]) -> str:
    """Return the checksum of a header; any where it is no header of tensors any more."""
    try:
        tensors = {name: (each["dtype"], each["shape"]) for name, each in header.items() if name != "__metadata__"}
        return seal(header["__metadata__"], tensors)
    except (KeyError, TypeError):
        return "0"


def damaged_copy(rng: Random, source: Path, folder: Path) -> Path:
    """Copy a file or folder and damage one file of it. Returns the copy."""
    target = fresh(folder) / source.name
    if source.is_file():
        shutil.copy(source, target)
        damage_file(rng, target)
    else:
        shutil.copytree(source, target)
        damage_file(rng, rng.choice(sorted(path for path in target.rglob("*") if path.is_file())))
    return target
