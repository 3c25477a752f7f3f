import subprocess
from pathlib import Path

import pytest
import torch

from sqap_vla_ros.quantization.backends.product import BackendError
from sqap_vla_ros.quantization.backends.table import find_backend
from sqap_vla_ros.quantization.backends.x86 import library
from sqap_vla_ros.quantization.backends.x86.library import AMX, VNNI, cpu_unsupported


@pytest.fixture
def uncached():
    """What is remembered about the machine is asked again, before and after."""
    cpu_unsupported.cache_clear()
    library._library.cache_clear()
    yield
    cpu_unsupported.cache_clear()
    library._library.cache_clear()


def test_without_amx_or_a_compiler_auto_takes_another_backend(monkeypatch, uncached, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert find_backend("auto", torch.device("cpu")).name in ("onednn", "reference")
    cpu = torch.backends.cpu.get_cpu_capability()
    if cpu == "AVX512" and torch.cpu._is_vnni_supported():
        assert cpu_unsupported(VNNI) == "there is no C++ compiler (install g++)"
    else:
        assert cpu_unsupported(VNNI) == "the CPU has no AVX512-VNNI"
    with pytest.raises(BackendError, match=r"the CPU has no AMX.*use backend auto"):
        find_backend("amx", torch.device("cpu"))
    cpu_unsupported.cache_clear()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: True)
    assert cpu_unsupported(AMX) == "there is no C++ compiler (install g++)"


def test_a_failed_compilation_says_why_and_leaves_nothing(monkeypatch, uncached, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: True)
    monkeypatch.setattr("shutil.which", lambda name: name)

    def fail(command, **kwargs):
        Path(command[-1]).write_text("half a library")
        raise subprocess.CalledProcessError(1, command, stderr="error: unrecognized option -mamx-tile\nmore")

    monkeypatch.setattr(subprocess, "run", fail)
    assert cpu_unsupported(AMX) == "compiling kernels.cpp failed: error: unrecognized option -mamx-tile"
    assert not list((tmp_path / "sqap_vla_ros").iterdir())
