"""The compressed policy on disk: one safetensors file, with everything a robot needs in its header.

Tensors are named as in the model's state dict; packed integer weights are uint8. The header's metadata holds the
policy's configuration, dataset statistics, the recipe, the source checkpoint's hash, a calibration summary, a CRC-32 of
every tensor and one of the header; the tokenizer file travels as a tensor of bytes. Every decoder layer is handed to
its backend before the next one is read.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from sqap_vla_ros.compression.files.kind import FORMAT, CompressedFileError
from sqap_vla_ros.compression.files.skeleton import empty_model, put, quantize_structure
from sqap_vla_ros.compression.recipe import Recipe
from sqap_vla_ros.field_types import field_problem
from sqap_vla_ros.policy.actions import ActionStatistics
from sqap_vla_ros.policy.checkpoints.contents import CheckpointError
from sqap_vla_ros.policy.checkpoints.reading import SafetensorsFile
from sqap_vla_ros.policy.checkpoints.writing import written_aside
from sqap_vla_ros.policy.cogact import CogACT, CogACTPolicy, Provenance
from sqap_vla_ros.policy.config import PolicyConfig
from sqap_vla_ros.policy.prompt import PromptTokenizer
from sqap_vla_ros.quantization.layer_fusion import prepare_inference
from sqap_vla_ros.quantization.reordered_weights import give_back_freed_memory

VERSION = "1"
TOKENIZER = "tokenizer."  # followed by the tokenizer's file name
_SEAL = "header_crc32"
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}
Read = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class _ReportRow:
    """The types of what is read again of a linear's report."""

    name: str
    activation_clip: float
    row_counts: dict[str, int]


@dataclass(frozen=True)
class Header:
    """The description that a compressed file carries of itself.

    source: {"checkpoint", "sha256"} of what was compressed. calibration: what it was calibrated on.
    report: one dictionary per quantised linear. clips: full linear name -> clip of its activations.
    """

    config: PolicyConfig
    recipe: Recipe
    statistics: dict[str, ActionStatistics]
    source: dict[str, str]
    calibration: dict[str, Any]
    report: list[dict[str, Any]]
    crop: str

    @property
    def clips(self) -> dict[str, float]:
        return {row["name"]: row["activation_clip"] for row in self.report}

    @property
    def row_counts(self) -> dict[str, dict[int, int]]:
        """Full name of every linear with rows of mixed widths, and how many rows have which."""
        return {
            row["name"]: {int(width): count for width, count in row["row_counts"].items()}
            for row in self.report
            if "row_counts" in row
        }

    def to_metadata(self) -> dict[str, str]:
        values = {
            "policy": self.config.to_dict(),
            "recipe": self.recipe.to_dict(),
            "statistics": {key: value.to_dict() for key, value in self.statistics.items()},
            "source": self.source,
            "calibration": self.calibration,
            "report": self.report,
            "crop": self.crop,
        }
        return {"format": FORMAT, "version": VERSION, **{key: json.dumps(value) for key, value in values.items()}}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Header:
        """Read what `to_metadata` wrote. Raises KeyError for what is missing, ValueError for what is no such value."""
        values = {key: json.loads(metadata[key]) for key in metadata if key not in ("format", "version")}
        for part in ("policy", "recipe", "statistics"):
            if not isinstance(values[part], dict):
                raise ValueError(f"{part} must be a mapping, got {repr(values[part])[:60]}")
        if problem := field_problem(cls, {name: values[name] for name in ("source", "crop")}):
            raise ValueError(problem)
        if not isinstance(values["calibration"], dict) or not isinstance(values["report"], list):
            raise ValueError("calibration must be a mapping and report a list")
        for row in values["report"]:
            if problem := field_problem(_ReportRow, row if isinstance(row, dict) else {"name": row}):
                raise ValueError(f"report: {problem}")
        return cls(
            config=PolicyConfig.from_dict(values["policy"]),
            recipe=Recipe.from_dict(values["recipe"]),
            statistics={k: ActionStatistics.from_dataset(k, v) for k, v in values["statistics"].items()},
            source=values["source"],
            calibration=values["calibration"],
            report=[
                {**row, "name": row["name"], "activation_clip": row["activation_clip"]} for row in values["report"]
            ],
            crop=values["crop"],
        )


def tokenizer_tensors(policy: CogACTPolicy) -> dict[str, torch.Tensor]:
    """Return the policy's tokenizer file as bytes, so that the compressed file needs no companion."""
    name, data = policy.tokenize.file
    return {TOKENIZER + name: torch.frombuffer(bytearray(data), dtype=torch.uint8)}


def _raw(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def write_file(path: Path, tensors: Mapping[str, Read], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically; its tensors are read one at a time, twice (checksums, then data).

    A CRC-32 of every tensor and one of the header join the metadata.
    """
    entries: dict[str, Any] = {}
    checksums: dict[str, int] = {}
    offset = 0
    for name, read in tensors.items():
        tensor = read()
        raw = _raw(tensor)
        checksums[name] = zlib.crc32(raw)
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + raw.nbytes],
        }
        offset += raw.nbytes
    sealed = {**metadata, "crc32": json.dumps(checksums)}
    sealed[_SEAL] = seal(sealed, {name: (entry["dtype"], entry["shape"]) for name, entry in entries.items()})
    header = json.dumps({"__metadata__": sealed, **entries}).encode()
    header += b" " * (-len(header) % 8)
    with written_aside(path) as partial, partial.open("wb") as file:
        file.write(struct.pack("<Q", len(header)))
        file.write(header)
        for read in tensors.values():
            file.write(_raw(read()))
        file.flush()
        os.fsync(file.fileno())


def seal(metadata: Mapping[str, str], tensors: Mapping[str, tuple[str, Sequence[int]]]) -> str:
    """Return the CRC-32 of what a header says. tensors: name -> data type in safetensors' words, and shape."""
    said = [sorted(metadata.items()), sorted((name, kind, list(shape)) for name, (kind, shape) in tensors.items())]
    return str(zlib.crc32(json.dumps(said).encode()))


class CheckedFile:
    """An open file of `write_file`: metadata at once, tensors on demand, each checked against its CRC-32.

    names: of the tensors. remedy: what helps where it is damaged, for the sentence of the error.
    sealed: its header is as it was written; None where it has no checksum, as in files of the first versions.
    Raises FileNotFoundError, and `CompressedFileError` where it is damaged.
    """

    def __init__(self, path: Path, remedy: str) -> None:
        self._path, self._remedy = path, remedy
        try:
            self._file = SafetensorsFile(path)
            self.metadata, self.names = self._file.metadata, self._file.names
            sealed = self.metadata.pop(_SEAL, None)
            self.sealed = None if sealed is None else sealed == seal(self.metadata, self._file.stored)
            self._checksums: dict[str, int] = json.loads(self.metadata.pop("crc32", "{}"))
            self.complete = set(self.names) == set(self._checksums)  # each tensor has a checksum, and the reverse
        except FileNotFoundError:
            raise
        except (SafetensorError, OSError, TypeError, ValueError, RecursionError, struct.error) as error:
            raise CompressedFileError(f"{path} is truncated or damaged ({error}); {remedy}") from error

    def form(self, name: str) -> torch.Tensor:
        """Return a tensor's shape and dtype as a tensor on the meta device."""
        return self._file.form(name)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor. Raises `CompressedFileError` when its bytes have changed."""
        if name not in self.names:
            raise CompressedFileError(f"{self._path} has no tensor {name}: its content is another's; {self._remedy}")
        try:
            tensor = self._file.read(name)
        except CheckpointError as error:
            raise CompressedFileError(str(error)) from error
        if not self.complete or zlib.crc32(_raw(tensor)) != self._checksums[name]:
            raise CompressedFileError(f"{self._path} is damaged at {name}; {self._remedy}")
        return tensor


class CompressedFile:
    """An open compressed policy: header at once, tensors on demand, each checked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = CheckedFile(path, "copy it again or compress anew")
        except FileNotFoundError:
            raise CompressedFileError(f"compressed policy {path} does not exist") from None
        metadata = self._file.metadata
        if metadata.get("format") != FORMAT:
            raise CompressedFileError(f"{path} was not made by `sqap-vla compress` (format {metadata.get('format')!r})")
        if metadata.get("version") != VERSION:
            raise CompressedFileError(
                f"{path} has format version {metadata.get('version')!r}, this package reads {VERSION}; compress anew"
            )
        if self._file.sealed is False:
            raise CompressedFileError(f"{path} is damaged: its header has changed; copy it again or compress anew")
        try:
            self.header = Header.from_metadata(metadata)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise CompressedFileError(f"{path} has a damaged header ({error}); compress anew") from error
        self.names = self._file.names
        if not self._file.complete:
            raise CompressedFileError(f"{path} lacks tensors its header promises; compress anew")

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor. Raises `CompressedFileError` when its bytes have changed."""
        return self._file.tensor(name)

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of all weights, scales and widths included."""
        return sum(self._file.form(name).nbytes for name in self.names if not name.startswith(TOKENIZER))

    def tokenizer(self) -> PromptTokenizer:
        """Return the tokenizer that travelled with the policy."""
        (name,) = (n for n in self.names if n.startswith(TOKENIZER))
        prompt, vocabulary = self.header.config.prompt, self.header.config.decoder.vocabulary
        return PromptTokenizer(prompt, vocabulary, name.removeprefix(TOKENIZER), bytes(_raw(self.tensor(name))))


def layer_names(names: list[str], parts: Collection[str] = ()) -> Iterator[tuple[str, list[str]]]:
    """Yield tensor names by decoder layer ("decoder.layers.3" and its tensors), everything else under "" first.

    parts: what else is prepared by itself, such as "vision".
    """
    groups: dict[str, list[str]] = {"": []}
    for name in names:
        first = name.partition(".")[0]
        key = first if first in parts else ""
        if name.startswith("decoder.layers."):
            key = ".".join(name.split(".")[:3])
        if not name.startswith(TOKENIZER):
            groups.setdefault(key, []).append(name)
    yield from groups.items()


def load_compressed(
    path: Path, *, device: str = "cpu", unnorm_key: str | None = None, backend: str = "auto"
) -> CogACTPolicy:
    """Load the policy in a compressed file, without its recipe's selector. Raises `CompressedFileError`.

    backend: for the integer products, see `quantization.layer_fusion.prepare_inference`.
    """
    file = CompressedFile(path)
    header = file.header
    try:
        model = _filled_model(file, device, backend)
    except CompressedFileError:
        raise
    except ValueError as error:  # shapes, dtypes and packings that do not fit the header
        raise CompressedFileError(f"{path} does not hold what its header says ({error}); compress anew") from error
    return CogACTPolicy(
        model,
        file.tokenizer(),
        header.statistics,
        unnorm_key=unnorm_key,
        crop=header.crop,
        provenance=Provenance(
            str(path),
            header.source.get("sha256", ""),
            header.recipe.name,
            averaged=header.source.get("head") == "averaged",
        ),
    )


def _filled_model(file: CompressedFile, device: str, backend: str) -> CogACT:
    """Return the model that a file's header describes, with its tensors, ready to predict."""
    header = file.header
    model = empty_model(header.config)
    spec = header.recipe.quantization
    if spec is not None:
        quantize_structure(model, spec, header.clips, header.row_counts)
    for layer, names in layer_names(file.names, () if spec is None else spec.part_bits):
        for name in names:
            put(model, name, file.tensor(name).to(device))
        if layer:
            prepare_inference(model.get_submodule(layer), backend)
            give_back_freed_memory()
    missing = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if missing:
        raise CompressedFileError(
            f"{file.path} lacks {len(missing)} tensors of the model, first {missing[0]}; compress anew"
        )
    return model
