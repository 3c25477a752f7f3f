"""The kernels for Arm, compiled by a cross compiler and run in an emulator. On Arm itself the other tests run them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from sqap_vla_ros.quantization.backends.cpu import compiling
from sqap_vla_ros.quantization.backends.cpu.units import DOTPROD, I8MM, NEON

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
MISSING = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (g++-aarch64-linux-gnu, qemu-user)")
@pytest.mark.parametrize("unit", [I8MM, DOTPROD, NEON], ids=lambda unit: unit.name)
def test_products_are_plain_loops_to_the_last_bit(unit, tmp_path):
    program = tmp_path / "compare_products"
    command = compiling.command(COMPILER, unit, program, source=Path(__file__).with_name("compare_products.cpp"))
    command = [part for part in command if part not in ("-shared", "-fPIC")]
    subprocess.run([*command, "-static", f"-I{compiling.SOURCE.parent}"], check=True, capture_output=True)
    done = subprocess.run([EMULATOR, "-cpu", "max", program], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (0, "60 cases\n", "")
