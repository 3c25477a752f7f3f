import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from sqap_vla_ros.quantization.backends.amx import library

EMULATION = Path(__file__).with_name("emulated_tiles.h")


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory) -> ctypes.CDLL:
    """The kernels with AMX's tile instructions in plain C++."""
    compiler = next(filter(None, map(shutil.which, library.COMPILERS)), None)
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or compiler is None:
        pytest.skip("backend amx: neither AMX, nor AVX-512 and a compiler to emulate it with")
    made = tmp_path_factory.mktemp("amx") / "emulated.so"
    command = [compiler, *library.FLAGS, "-include", str(EMULATION), str(library.SOURCE), "-o", str(made)]
    subprocess.run(command, check=True, capture_output=True)
    return ctypes.CDLL(str(made))


@pytest.fixture
def amx(request, monkeypatch):
    """Backend amx: the CPU's own, or emulated where the CPU has AVX-512 and no AMX."""
    if library.cpu_unsupported():
        loaded = request.getfixturevalue("emulated_library")
        monkeypatch.setattr(library, "_library", lambda: loaded)
        monkeypatch.setattr(library, "cpu_unsupported", lambda: "")
