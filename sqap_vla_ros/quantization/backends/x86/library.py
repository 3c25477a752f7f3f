"""kernels.cpp as shared libraries, compiled by the machine's C++ compiler once and kept in the user's cache folder."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "kernels.cpp"
COMPILERS = ("c++", "g++", "clang++")
COMMON = ("-std=c++17", "-O3", "-mavx512f", "-mavx512bw", "-mavx512vl", "-fopenmp", "-shared", "-fPIC")


@dataclass(frozen=True)
class Unit:
    """A matrix unit of x86 processors.

    flags: let the compiler use it; not those of the machine that compiles, since home folders are shared.
    missing: says why this CPU does not have it, empty when it does.
    """

    name: str
    flags: tuple[str, ...]
    missing: Callable[[], str]


def _amx_missing() -> str:
    usable = torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx()
    return "" if usable else "the CPU has no AMX, or the system does not grant it"


def _vnni_missing() -> str:
    usable = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_vnni_supported()
    return "" if usable else "the CPU has no AVX512-VNNI"


AMX = Unit("amx", ("-mamx-tile", "-mamx-int8"), _amx_missing)
VNNI = Unit("vnni", ("-mavx512vnni",), _vnni_missing)


def unsupported(unit: Unit, device: torch.device) -> str:
    """Return why the kernels cannot run on weights on `device`; empty when they can."""
    if device.type != "cpu":
        return f"it runs on the CPU, and the weights are on {device}"
    return cpu_unsupported(unit)


@functools.cache
def cpu_unsupported(unit: Unit) -> str:
    """Return why this CPU cannot run the kernels; empty when it can. The first call ever compiles them in seconds."""
    if missing := unit.missing():
        return missing
    try:
        _library(unit)
    except subprocess.CalledProcessError as error:
        return f"compiling {SOURCE.name} failed: {(error.stderr.strip() or str(error)).splitlines()[0]}"
    except OSError as error:
        return str(error)
    return ""


def kernels(unit: Unit) -> ctypes.CDLL:
    """Return a unit's library, set to use as many threads as torch does."""
    library = _library(unit)
    library.use_threads(torch.get_num_threads())
    return library


def address(tensor: Tensor) -> ctypes.c_void_p:
    """Return where a tensor's data begins, as a kernel's argument."""
    return ctypes.c_void_p(tensor.data_ptr())


@functools.cache
def _library(unit: Unit) -> ctypes.CDLL:
    return ctypes.CDLL(str(_compiled(unit)))


def command(compiler: str, unit: Unit, made: Path) -> list[str]:
    """Return the command that compiles a unit's library to `made`."""
    return [compiler, *COMMON, *unit.flags, str(SOURCE), "-o", str(made)]


def _compiled(unit: Unit) -> Path:
    """Return the shared library, from the cache when it is there. Raise OSError or CalledProcessError."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise FileNotFoundError("there is no C++ compiler (install g++)")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sqap_vla_ros"
    sources = b"".join(path.read_bytes() for path in (SOURCE, *sorted(FOLDER.glob("*.h"))))
    key = hashlib.sha256(sources + " ".join([compiler, *COMMON, *unit.flags]).encode()).hexdigest()[:16]
    library = cache / f"{unit.name}_kernels_{key}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:  # others may be compiling it too: complete or not there
            made = Path(folder, library.name)
            subprocess.run(command(compiler, unit, made), check=True, capture_output=True, text=True)
            made.replace(library)
    return library
