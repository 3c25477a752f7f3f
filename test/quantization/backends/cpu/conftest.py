import ctypes
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from sqap_vla_ros.quantization.backends.cpu import compiling, library
from sqap_vla_ros.quantization.backends.cpu.product import TileProduct
from sqap_vla_ros.quantization.backends.cpu.units import AMX, Unit
from sqap_vla_ros.quantization.backends.table import BACKENDS

EMULATION = Path(__file__).with_name("emulated_tiles.h")
PRODUCTS = [
    backend.make for backend in BACKENDS if isinstance(backend.make, type) and issubclass(backend.make, TileProduct)
]


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory) -> ctypes.CDLL:
    """The kernels of AMX with its tile instructions in plain C++."""
    compiler = next(filter(None, map(shutil.which, compiling.COMPILERS)), None)
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or compiler is None:
        pytest.skip("backend amx: neither AMX, nor AVX-512 and a compiler to emulate it with")
    made = tmp_path_factory.mktemp("amx") / "emulated.so"
    command = compiling.command(compiler, AMX, made)
    subprocess.run([*command, "-include", str(EMULATION)], check=True, capture_output=True)
    return ctypes.CDLL(str(made))


@pytest.fixture(
    params=[product for product in PRODUCTS if product.unit.architecture == platform.machine()],
    ids=lambda product: product.unit.name,
)
def product(request, monkeypatch) -> type[TileProduct]:
    """Each backend: those that the CPU has, and amx emulated where it has AVX-512 and no AMX."""
    unit: Unit = request.param.unit
    if reason := library.cpu_unsupported(unit):
        if unit is not AMX:
            pytest.skip(f"backend {unit.name}: {reason}")
        loaded, load, unsupported = (
            request.getfixturevalue("emulated_library"),
            library._library,
            library.cpu_unsupported,
        )
        monkeypatch.setattr(library, "_library", lambda other: loaded if other is AMX else load(other))
        monkeypatch.setattr(library, "cpu_unsupported", lambda other: "" if other is AMX else unsupported(other))
    return request.param
