import ctypes
import subprocess
from pathlib import Path

import pytest
import torch

from sqap_vla_ros.quantization.backends.cpu import compiling, library, units
from sqap_vla_ros.quantization.backends.cpu.library import cpu_unsupported
from sqap_vla_ros.quantization.backends.cpu.units import AMX, AVX2, UNITS, VNNI
from sqap_vla_ros.quantization.backends.product import BackendError
from sqap_vla_ros.quantization.backends.table import find_backend


@pytest.fixture
def uncached():
    """What is remembered about the machine is asked again, before and after."""
    cpu_unsupported.cache_clear()
    library._library.cache_clear()
    library._SAID.clear()
    yield
    cpu_unsupported.cache_clear()
    library._library.cache_clear()


@pytest.fixture
def on_a_cpu_with(monkeypatch, uncached, tmp_path):
    """Pretend to be on a CPU with some units, without compiled kernels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.path", [str(tmp_path)])  # nothing installed
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: True)

    def pretend(*there):
        features = frozenset().union(*(unit.features for unit in there))
        monkeypatch.setattr(units, "cpu_features", lambda: features)
        cpu_unsupported.cache_clear()

    return pretend


def test_without_a_unit_or_a_compiler_auto_takes_another_backend(monkeypatch, on_a_cpu_with):
    monkeypatch.setattr("shutil.which", lambda name: None)
    on_a_cpu_with(VNNI)
    assert find_backend("auto", torch.device("cpu")).name in ("onednn", "reference")
    assert cpu_unsupported(VNNI) == "there is no C++ compiler (install g++)"
    with pytest.raises(BackendError, match=r"the CPU has no AMX.*use backend auto"):
        find_backend("amx", torch.device("cpu"))
    on_a_cpu_with(AMX)
    assert cpu_unsupported(AMX) == "there is no C++ compiler (install g++)"
    assert cpu_unsupported(VNNI) == "the CPU has no AVX512-VNNI"
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: False)
    cpu_unsupported.cache_clear()
    assert cpu_unsupported(AMX) == "the system does not grant AMX"


def test_units_are_those_of_the_architecture_and_of_the_cpu(monkeypatch, on_a_cpu_with, tmp_path):
    on_a_cpu_with(*UNITS)
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert all(units.missing(unit) for unit in UNITS)
    monkeypatch.undo()
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: fpu fma avx2\n\nprocessor\t: 1\n")
    monkeypatch.setattr(units, "CPU_INFO", info)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    units.cpu_features.cache_clear()
    try:
        assert [unit for unit in UNITS if not units.missing(unit)] == [AVX2]
    finally:
        units.cpu_features.cache_clear()


def test_libraries_are_installed_or_compiled_once(monkeypatch, on_a_cpu_with, tmp_path, caplog):
    calls = []

    def compile_to(command, **kwargs):
        calls.append(command)
        Path(command[-1]).write_text("a library")

    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", compile_to)
    made = compiling.compiled(AVX2)
    assert made.parent == tmp_path / "sqap_vla_ros"
    assert "compiling the kernels for AVX2 into" in caplog.text
    assert compiling.compiled(AVX2) == made
    assert len(calls) == 1
    installed = tmp_path / compiling.INSTALLED
    installed.mkdir(parents=True)
    (installed / "avx2_kernels_of_older_sources.so").touch()
    monkeypatch.setattr("sys.argv", ["compiling", "--to", str(installed)])
    compiling.main()
    assert compiling.compiled(AVX2) == installed / made.name
    here = {compiling.library_name(unit) for unit in UNITS if unit.architecture == "x86_64"}
    assert {path.name for path in installed.iterdir()} == here


def test_a_failed_compilation_says_why_and_leaves_nothing(monkeypatch, on_a_cpu_with, tmp_path):
    on_a_cpu_with(AMX)
    monkeypatch.setattr("shutil.which", lambda name: name)

    def fail(command, **kwargs):
        Path(command[-1]).write_text("half a library")
        raise subprocess.CalledProcessError(1, command, stderr="error: unrecognized option -mamx-tile\nmore")

    monkeypatch.setattr(subprocess, "run", fail)
    assert cpu_unsupported(AMX) == "compiling kernels.cpp failed: error: unrecognized option -mamx-tile"
    assert not list((tmp_path / "sqap_vla_ros").iterdir())


@pytest.mark.parametrize("where", ["cache", "installed"])
def test_a_library_that_cannot_be_loaded_is_compiled_anew_once(monkeypatch, on_a_cpu_with, tmp_path, where):
    on_a_cpu_with(AVX2)
    folder = tmp_path / {"cache": "sqap_vla_ros", "installed": compiling.INSTALLED}[where]
    folder.mkdir(parents=True)
    (folder / compiling.library_name(AVX2)).write_text("half a lib")
    calls = []

    def compile_to(command, **kwargs):
        calls.append(command)
        Path(command[-1]).write_text("a library")

    def load(path):
        if Path(path).read_text() != "a library":
            raise OSError("file too short")
        return path

    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", compile_to)
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert cpu_unsupported(AVX2) == ""
    library._library.cache_clear()
    cpu_unsupported.cache_clear()
    assert cpu_unsupported(AVX2) == ""
    assert len(calls) == 1


def test_kernels_that_cannot_be_had_are_named_once(monkeypatch, on_a_cpu_with, tmp_path, caplog):
    on_a_cpu_with(*UNITS)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert [cpu_unsupported(unit) for unit in (VNNI, AVX2)] == ["there is no C++ compiler (install g++)"] * 2
    (said,) = caplog.messages
    assert said.startswith("the kernels for ")
    assert "oneDNN" in said
    assert said.endswith("there is no C++ compiler; install g++, and leave room in the cache folder")


def test_a_library_that_still_cannot_be_loaded_is_left_out_with_a_word(monkeypatch, on_a_cpu_with, caplog):
    on_a_cpu_with(AVX2)
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", lambda command, **kwargs: Path(command[-1]).write_text("no library"))
    assert cpu_unsupported(AVX2)
    assert "are left out" in caplog.messages[-1]
