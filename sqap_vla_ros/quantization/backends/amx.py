"""Backend `amx` for CPUs with AMX: four-bit weights stay packed in memory and are unpacked inside the kernel.

oneDNN needs a byte for each weight. This kernel (amx_kernels.cpp) reads half a byte, packs the activations once into
tiles, keeps what it multiplies in the caches, and applies both scales before it writes; gate and up of an MLP are one
pass with SiLU and their product at its end. It is compiled with the machine's C++ compiler the first time and kept in
the user's cache folder.
"""

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

from sqap_vla_ros.quantization.backends.table import IntegerProduct
from sqap_vla_ros.quantization.quantizers import clip_ratio, largest, quantize_activation

SOURCE = Path(__file__).with_name("amx_kernels.cpp")
COMPILERS = ("c++", "g++", "clang++")
UNITS = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mamx-tile", "-mamx-int8")  # not the machine's: homes are shared
FLAGS = ("-std=c++17", "-O3", *UNITS, "-fopenmp", "-shared", "-fPIC")
CHANNELS_OF_A_PANEL = 32
MOST_INPUTS = 2**31 // (127 * 128)  # more could overflow an accumulator: |activation| <= 127, |weight| <= 128


class AmxProduct:
    """Prepared weights of one linear, see `backends.IntegerProduct`. weight: int8 [N, K]; scale: [N]."""

    rows_per_call = 1 << 20  # the kernel splits the work itself

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        self.outputs, self.inputs = weight.shape
        if self.inputs > MOST_INPUTS:
            raise ValueError(f"{self.inputs} input channels could overflow 32 bits; at most {MOST_INPUTS} are possible")
        low, high = torch.aminmax(weight)
        self.four_bits = bool(low >= -8 and high <= 7)
        sizes = [ctypes.c_int64(size) for size in weight.shape]
        weight, library = weight.contiguous(), _kernels()
        self.packed = torch.empty(library.packed_bytes(*sizes, self.four_bits), dtype=torch.uint8)
        library.pack_weight(_address(weight), _address(self.packed), *sizes, self.four_bits)
        missing = -self.outputs % CHANNELS_OF_A_PANEL
        self.scale = torch.nn.functional.pad(scale.float(), (0, missing)).contiguous()

    def __call__(self, values: Tensor, scale: Tensor) -> Tensor:
        return self._run("product", values, scale, self._weights)

    def gated(self, up: IntegerProduct, values: Tensor, scale: Tensor) -> Tensor:
        """See `IntegerProduct`."""
        assert isinstance(up, AmxProduct)
        return self._run("gated", values, scale, self._weights + up._weights)

    @property
    def _weights(self) -> list[object]:
        return [_address(self.packed), self.four_bits, _address(self.scale)]

    def _run(self, kernel: str, values: Tensor, scale: Tensor, weights: list[object]) -> Tensor:
        if values.shape[-1] != self.inputs or values.dtype != torch.int8:
            raise ValueError(f"expected int8 [M, {self.inputs}], got {values.dtype} {tuple(values.shape)}")
        if scale.dtype not in (torch.bfloat16, torch.float32):
            raise ValueError(f"backend amx computes in bfloat16 and float32, not in {scale.dtype}")
        values, scale = values.contiguous(), scale.contiguous()
        result = torch.empty(len(values), self.outputs, dtype=scale.dtype)
        sizes = map(ctypes.c_int64, (len(values), self.outputs, self.inputs))
        run = getattr(_kernels(), f"{kernel}_{str(scale.dtype).removeprefix('torch.')}")
        run(_address(values), *weights, _address(scale), _address(result), *sizes)
        return result


def quantize_rows(x: Tensor, bits: int, clip: float, rms_eps: float | None) -> tuple[Tensor, Tensor]:
    """`quantize_activation` per token in one pass over each row. x: [M, K] bfloat16."""
    if x.dtype != torch.bfloat16:
        return quantize_activation(x, bits, clip=clip, rms_eps=rms_eps)
    x, top = x.contiguous(), largest(bits)
    values = torch.empty(x.shape, dtype=torch.int8)
    scale = torch.empty(len(x), 1, dtype=x.dtype)
    _kernels().quantize_rows(
        *map(_address, (x, values, scale)),
        *map(ctypes.c_int64, x.shape),
        top,
        ctypes.c_float(clip_ratio(clip, bits)),
        ctypes.c_float(-1.0 if rms_eps is None else rms_eps),
    )
    return values, scale


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


@functools.cache
def amx_unsupported() -> str:
    """Why the kernel cannot run here; empty when it can. The first call ever compiles it, which takes some seconds."""
    if not torch.cpu._is_amx_tile_supported() or not torch.cpu._init_amx():
        return "the CPU has no AMX, or the system does not grant it"
    try:
        _library()
    except subprocess.CalledProcessError as error:
        return f"compiling {SOURCE.name} failed: {(error.stderr.strip() or str(error)).splitlines()[0]}"
    except OSError as error:
        return str(error)
    return ""


def _kernels() -> ctypes.CDLL:
    """The library, about to use as many threads as torch does."""
    library = _library()
    library.use_threads(torch.get_num_threads())
    return library


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_compiled()))
    library.packed_bytes.restype = ctypes.c_int64
    return library


def _compiled() -> Path:
    """The shared library, from the cache when it is there. Raises OSError or CalledProcessError."""
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
