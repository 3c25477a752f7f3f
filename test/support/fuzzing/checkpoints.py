"""Checkpoints: damaged files, whole pickles that say something else, and whole tensors of another kind."""

from __future__ import annotations

import dataclasses
import io
import json
import pickletools
import struct
import zipfile
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import torch
from fuzzing.mutation import damaged, damaged_copy, fresh
from fuzzing.originals import mixed_files, originals
from safetensors.torch import load_file, save

from sqap_vla_ros.compression.files.storage import load_compressed
from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.policy.checkpoints.inspect import describe
from sqap_vla_ros.policy.checkpoints.load import load_checkpoint, open_checkpoint
from sqap_vla_ros.policy.cogact import CogACTPolicy

_DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int64, torch.bool)


def fuzz_checkpoint(folder: Path, seed: int) -> None:
    """Damage one file of either form."""
    rng = Random(f"checkpoint {seed}")
    name = rng.choice(("one.safetensors", "published"))
    copy = damaged_copy(rng, originals(folder / "good")[name], folder / "checkpoint")
    describe(open_checkpoint(copy))
    _predict(load_checkpoint(copy))


def fuzz_compressed(folder: Path, seed: int) -> None:
    """Damage a compressed file."""
    rng = Random(f"compressed {seed}")
    copy = damaged_copy(rng, originals(folder / "good")["packed.safetensors"], folder / "compressed")
    _predict(load_compressed(copy))


def fuzz_mixed(folder: Path, seed: int) -> None:
    """Damage a file with rows of several widths, GPTQ or quantised towers: it is refused, or predicts as before."""
    rng = Random(f"mixed {seed}")
    good = mixed_files(folder / "good_mixed")
    name = rng.choice(sorted(good))
    if rng.random() < 0.5:
        _predict(load_compressed(damaged_copy(rng, good[name], folder / "mixed")))
        return
    path = fresh(folder / "mixed") / name
    path.write_bytes(damaged(rng, good[name].read_bytes()))
    found = _predict(load_compressed(path))
    assert np.array_equal(found, _expected(good[name])), "damage changed what is predicted"


@cache
def _expected(path: Path) -> np.ndarray:
    return _predict(load_compressed(path))


def fuzz_pickle(folder: Path, seed: int) -> None:
    """Change operations of the pickle in a `.pt`, or its archive's entries, with true checksums."""
    rng = Random(f"pickle {seed}")
    copy = fresh(folder / "pickle")
    good = originals(folder / "good")["published"]
    for file in good.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    (copy / "checkpoints").mkdir()
    escaped = folder / "escaped"
    weights = (good / "checkpoints" / "model.pt").read_bytes()
    (copy / "checkpoints" / "model.pt").write_bytes(_repacked(rng, weights, escaped))
    try:
        describe(open_checkpoint(copy))
        _predict(load_checkpoint(copy))
    finally:
        if escaped.exists():
            escaped.unlink()
            raise AssertionError("the pickle ran a program")


def fuzz_tensors(folder: Path, seed: int) -> None:
    """Give tensors of a whole safetensors file other types, shapes, values or names."""
    rng = Random(f"tensors {seed}")
    name = rng.choice(("one.safetensors", "packed.safetensors"))
    good = originals(folder / "good")[name]
    data = good.read_bytes()
    metadata = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"]
    tensors = load_file(good)
    for _ in range(rng.choice((1, 1, 2, 4))):
        key = rng.choice(sorted(tensors))
        tensors |= _altered(rng, tensors, key)
        if rng.random() < 0.1 and len(tensors) > 1:
            del tensors[key]
    path = fresh(folder / "tensors") / name
    path.write_bytes(save({key: tensor.contiguous() for key, tensor in tensors.items()}, metadata=metadata))
    if name == "one.safetensors":
        describe(open_checkpoint(path))
        _predict(load_checkpoint(path))
    else:
        _predict(load_compressed(path))


def _altered(rng: Random, tensors: dict[str, torch.Tensor], key: str) -> dict[str, torch.Tensor]:
    tensor = tensors[key]
    what = rng.randrange(8)
    if what == 0:
        return {key: tensor.to(rng.choice(_DTYPES))}
    if what == 1:
        return {key: tensor.reshape(-1).clone()}
    if what == 2:
        return {key: tensor.transpose(0, -1).clone() if tensor.ndim > 1 else tensor[None].clone()}
    if what == 3:
        return {key: tensor[..., : rng.choice((0, 1, 3))].clone()}
    if what == 4:
        return {key: torch.cat([tensor, tensor]) if tensor.ndim else tensor[None].clone()}
    if what == 5:
        return {rng.choice((key + "x", "", "x" * 300, key.partition(".")[2] or "y")): tensor.clone()}
    if what == 6:
        other = tensors[rng.choice(sorted(tensors))]
        return {key: other.clone()}
    if tensor.is_floating_point():
        return {key: torch.full_like(tensor, rng.choice((0.0, float("nan"), float("inf"), -1e30, 1e30)))}
    return {key: torch.full_like(tensor, rng.choice((0, 1, 127, 255)) if tensor.dtype != torch.bool else 1)}


def _repacked(rng: Random, data: bytes, escaped: Path) -> bytes:
    """Return the archive anew, with one entry or the pickle changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    pickled = next(name for name in entries if name.endswith("data.pkl"))
    compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    what = rng.randrange(10)
    name = rng.choice(sorted(entries))
    if what <= 5:
        entries[pickled] = _other_pickle(rng, entries[pickled], escaped)
    elif what == 6:
        entries[name] = damaged(rng, entries[name])
    elif what == 7:
        entries[rng.choice(("../x", "/x", "archive/data/9" * 40, name + "x"))] = entries.pop(name)
    elif what == 8:
        entries[name] = bytes(rng.choice((0, 1, 2**20, 2**26)))
        compression = zipfile.ZIP_DEFLATED
    else:
        entries = {pickled: entries[pickled]}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    return packed.getvalue()


def _other_pickle(rng: Random, data: bytes, escaped: Path) -> bytes:
    """Return a pickle in which operations are changed, left out, doubled or put in."""
    starts = [position for _, _, position in pickletools.genops(data) if position is not None]
    parts = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    program = f"cos\nsystem\n(V/bin/touch {escaped}\ntR".encode()
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(parts))
        what = rng.randrange(6)
        if what == 0:
            del parts[at]
        elif what == 1:
            parts.insert(at, parts[rng.randrange(len(parts))])
        elif what == 2:
            parts.insert(at, rng.choice((program, b"N", b"(", b".", b"]", b"}", b"0", b"t", b"R", b"b", b"Q", b"\x81")))
        elif what == 3:
            parts[at] = rng.choice(
                (b"N", b"J" + struct.pack("<i", rng.choice((-1, 0, 2**31 - 1))), b"\x8a\x09" + b"\x7f" * 9)
            )
        elif what == 4:
            parts[at] = damaged(rng, parts[at])
        else:
            parts[at] = b"cbuiltins\neval\n" if rng.random() < 0.5 else b"V" + b"[" * 3000 + b"\n"
        if not parts:
            break
    return b"".join(parts)


def _predict(policy: CogACTPolicy) -> np.ndarray:
    # a file that damage made large but possible is not predicted with: that is slow and proves nothing
    sampling = dataclasses.replace(policy.diffusion, steps=min(policy.diffusion.steps, 10))
    if policy.diffusion.sampler == "ddim" and sampling.stride is not None:
        policy.diffusion = sampling
    return policy.predict(Observation(np.zeros((20, 30, 3), np.uint8), 0, "pick up the can")).normalized
