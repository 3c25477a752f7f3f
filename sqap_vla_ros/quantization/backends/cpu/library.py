"""The kernels of a unit as a loaded library."""

from __future__ import annotations

import ctypes
import functools
import logging
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from sqap_vla_ros.quantization.backends.cpu.compiling import compiled, failure
from sqap_vla_ros.quantization.backends.cpu.units import AMX, Unit, missing

_LOGGER = logging.getLogger(__name__)
_SAID: set[str] = set()  # units of which it was said that their kernels are left out


def unsupported(unit: Unit, device: torch.device) -> str:
    """Return why the kernels cannot run on weights on `device`; empty when they can."""
    if device.type != "cpu":
        return f"it runs on the CPU, and the weights are on {device}"
    return cpu_unsupported(unit)


@functools.cache
def cpu_unsupported(unit: Unit) -> str:
    """Return why this CPU cannot run the kernels; empty when it can.

    Where they were not installed, the first call ever compiles them in seconds.
    """
    if reason := missing(unit):
        return reason
    if unit is AMX and not torch.cpu._init_amx():
        return "the system does not grant AMX"
    try:
        _library(unit)
    except (OSError, subprocess.CalledProcessError) as error:
        _say_once(unit, failure(error))
        return failure(error)
    return ""


def kernels(unit: Unit) -> ctypes.CDLL:
    """Return a unit's library, set to use as many threads as torch does."""
    library = _library(unit)
    library.use_threads(torch.get_num_threads())
    return library


def address(tensor: Tensor) -> ctypes.c_void_p:
    """Return where a tensor's data begins, as a kernel's argument."""
    return ctypes.c_void_p(tensor.data_ptr())


def require(name: str, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raise ValueError where a tensor is not as a kernel trusts it to be: it would read beyond it, or other numbers."""
    if tensor is None or (tensor.shape == shape and tensor.dtype == dtype and tensor.is_cpu):
        return
    expected = f"{str(dtype).removeprefix('torch.')} {list(shape)} on the CPU"
    found = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"
    raise ValueError(f"{name} of a CPU kernel: expected {expected}, got {found}")


@functools.cache
def _library(unit: Unit) -> ctypes.CDLL:
    broken: set[Path] = set()
    while True:
        path = compiled(unit, broken)
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            if path in broken:  # it was compiled anew
                raise
            broken.add(path)


def _say_once(unit: Unit, reason: str) -> None:
    """Say that kernels are left out, at the first unit only: the others mostly lack the same thing."""
    if not _SAID:
        _SAID.add(unit.name)
        _LOGGER.warning(
            "the kernels for %s are left out, and slower ones compute instead (oneDNN's at the last): "
            "%s; install g++, and leave room in the cache folder",
            unit.described,
            reason.removesuffix(" (install g++)"),
        )
