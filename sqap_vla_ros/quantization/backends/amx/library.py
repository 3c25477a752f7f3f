"""kernels.cpp as a shared library, compiled by the machine's C++ compiler once and kept in the user's cache folder."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILERS = ("c++", "g++", "clang++")
UNITS = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mamx-tile", "-mamx-int8")  # not the machine's: homes are shared
FLAGS = ("-std=c++17", "-O3", *UNITS, "-fopenmp", "-shared", "-fPIC")


def unsupported(device: torch.device) -> str:
    """Return why the kernels cannot run on weights on `device`; empty when they can."""
    if device.type != "cpu":
        return f"it runs on the CPU, and the weights are on {device}"
    return cpu_unsupported()


@functools.cache
def cpu_unsupported() -> str:
    """Return why this CPU cannot run the kernels; empty when it can. The first call ever compiles them in seconds."""
    if not torch.cpu._is_amx_tile_supported() or not torch.cpu._init_amx():
        return "the CPU has no AMX, or the system does not grant it"
    try:
        _library()
    except subprocess.CalledProcessError as error:
        return f"compiling {SOURCE.name} failed: {(error.stderr.strip() or str(error)).splitlines()[0]}"
    except OSError as error:
        return str(error)
    return ""


def kernels() -> ctypes.CDLL:
    """Return the library, set to use as many threads as torch does."""
    library = _library()
    library.use_threads(torch.get_num_threads())
    return library


def address(tensor: Tensor) -> ctypes.c_void_p:
    """Return where a tensor's data begins, as a kernel's argument."""
    return ctypes.c_void_p(tensor.data_ptr())


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(_compiled()))


def _compiled() -> Path:
    """Return the shared library, from the cache when it is there. Raise OSError or CalledProcessError."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise FileNotFoundError("there is no C++ compiler (install g++)")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sqap_vla_ros"
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join([compiler, *FLAGS]).encode()).hexdigest()[:16]
    library = cache / f"amx_kernels_{key}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:  # others may be compiling it too: complete or not there
            made = Path(folder, library.name)
            command = [compiler, *FLAGS, str(SOURCE), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            made.replace(library)
    return library
