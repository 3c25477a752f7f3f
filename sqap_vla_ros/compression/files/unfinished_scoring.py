"""Files that hold what scoring finished, in a compression's folder of unfinished work."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from functools import partial
from pathlib import Path

import torch

from sqap_vla_ros.compression.files.storage import CheckedFile, CompressedFileError, Read, write_file
from sqap_vla_ros.compression.sensitivity.allocation import Linear
from sqap_vla_ros.compression.sensitivity.unfinished import Cotangents, Scoring, ScoringStore

_LEFT, _HESSIANS = "left", "hessians"  # metadata
_SCORES, _TO_FIT, _TO_JUDGE = "scores", "to_fit", "to_judge"


def file_name(linear: Linear) -> str:
    """Return what a linear is called in names of files and tensors."""
    layer, name = linear
    return f"{layer:03d}_{name}"


def linear_of(file_name: str) -> Linear:
    """Undo `file_name`."""
    layer, _, name = file_name.partition("_")
    return int(layer), name


def open_sealed(path: Path, remedy: str) -> CheckedFile:
    """Open a file of unfinished work. Raises `CompressedFileError` where it is damaged."""
    file = CheckedFile(path, remedy)
    if not file.sealed:
        raise CompressedFileError(f"{path} is damaged or of an older version of this package; {remedy}")
    return file


class StoredScoring(ScoringStore):
    """Layers that are scored are one file, replaced whole after each; each Hessian is a file, read when it is due.

    Scores stay until the compression is finished: a recipe that differs only in what follows goes on from them.
    Raises `CompressedFileError` where a file is damaged. remedy: what then helps.
    """

    def __init__(self, folder: Path, remedy: str) -> None:
        self.hessians = _StoredHessians(folder, remedy)
        self._path, self._remedy = folder / "scoring.safetensors", remedy

    def read(self) -> Scoring | None:
        if not self._path.is_file():
            return None
        file = open_sealed(self._path, self._remedy)
        if _LEFT not in file.metadata:
            raise CompressedFileError(f"{self._path} holds no scores; {self._remedy}")
        kept = {*map(file_name, self.hessians)}
        if lost := [name for name in json.loads(file.metadata[_HESSIANS]) if name not in kept]:
            raise CompressedFileError(f"{self._path.parent} lacks the Hessian of {lost[0]}; {self._remedy}")
        found = Scoring(int(file.metadata[_LEFT]), [], [])
        for name in sorted(file.names):
            kind, place, number = name.rsplit("/", 2)
            tensor = file.tensor(name)
            if not torch.isfinite(tensor).all():
                raise CompressedFileError(f"{self._path} holds {name}, which is not finite; {self._remedy}")
            if kind == _SCORES:
                found.scores.setdefault(linear_of(place), {})[int(number)] = tensor
                continue
            observations: Cotangents = found.to_fit if kind == _TO_FIT else found.to_judge
            if int(place) == len(observations):
                observations.append([])
            observations[-1].append(tensor)
        return found

    def write(self, scoring: Scoring) -> None:
        tensors: dict[str, Read] = {}
        for kind, observations in ((_TO_FIT, scoring.to_fit), (_TO_JUDGE, scoring.to_judge)):
            for place, probes in enumerate(observations):
                for number, cotangent in enumerate(probes):
                    tensors[f"{kind}/{place:04d}/{number:04d}"] = partial(_itself, cotangent.contiguous())
        for linear, by_bits in scoring.scores.items():
            for bits, scores in by_bits.items():
                tensors[f"{_SCORES}/{file_name(linear)}/{bits}"] = partial(_itself, scores.contiguous())
        kept = json.dumps([*map(file_name, self.hessians)])
        write_file(self._path, tensors, {_LEFT: str(scoring.left), _HESSIANS: kept})


class _StoredHessians(MutableMapping[Linear, torch.Tensor]):
    """Matrices by linear, each a file."""

    def __init__(self, folder: Path, remedy: str) -> None:
        self._folder, self._remedy = folder, remedy

    def _path(self, linear: Linear) -> Path:
        return self._folder / f"hessian_{file_name(linear)}.safetensors"

    def __getitem__(self, linear: Linear) -> torch.Tensor:
        try:
            hessian = CheckedFile(self._path(linear), self._remedy).tensor(file_name(linear))
        except FileNotFoundError:
            raise KeyError(linear) from None
        if not torch.isfinite(hessian).all():
            raise CompressedFileError(f"{self._path(linear)} is not finite; {self._remedy}")
        return hessian

    def __setitem__(self, linear: Linear, hessian: torch.Tensor) -> None:
        write_file(self._path(linear), {file_name(linear): partial(_itself, hessian.contiguous())}, {})

    def __delitem__(self, linear: Linear) -> None:
        self._path(linear).unlink()

    def __iter__(self) -> Iterator[Linear]:
        paths = sorted(self._folder.glob("hessian_*.safetensors"))
        return (linear_of(path.stem.removeprefix("hessian_")) for path in paths)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
