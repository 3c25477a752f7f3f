import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from sqap_vla_ros.quantization.backends.x86 import library
from sqap_vla_ros.quantization.backends.x86.library import AMX, VNNI, Unit
from sqap_vla_ros.quantization.backends.x86.product import AmxProduct, TileProduct, VnniProduct

EMULATION = Path(__file__).with_name("emulated_tiles.h")


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory) -> ctypes.CDLL:
    """The kernels of AMX with its tile instructions in plain C++."""
    compiler = next(filter(None, map(shutil.which, library.COMPILERS)), None)
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or compiler is None:
        pytest.skip("backend amx: neither AMX, nor AVX-512 and a compiler to emulate it with")
    made = tmp_path_factory.mktemp("amx") / "emulated.so"
    command = library.command(compiler, AMX, made)
    subprocess.run([*command, "-include", str(EMULATION)], check=True, capture_output=True)
    return ctypes.CDLL(str(made))


@pytest.fixture(params=[AmxProduct, VnniProduct], ids=lambda product: product.unit.name)
def product(request, monkeypatch) -> type[TileProduct]:
    """Each backend: the CPU's own, and amx emulated where the CPU has AVX-512 and no AMX."""
    unit: Unit = request.param.unit
    if reason := library.cpu_unsupported(unit):
        if unit is VNNI:
            pytest.skip(f"backend vnni: {reason}")
        loaded, load, unsupported = (
            request.getfixturevalue("emulated_library"),
            library._library,
            library.cpu_unsupported,
        )
        monkeypatch.setattr(library, "_library", lambda other: loaded if other is AMX else load(other))
        monkeypatch.setattr(library, "cpu_unsupported", lambda other: "" if other is AMX else unsupported(other))
    return request.param
