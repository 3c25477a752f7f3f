"""The units of processors that multiply bytes, and what the compiler needs to know to use them.

Adding one is a row here, its innermost product in `kernels/units/`, a class in `product.py` and a row in the table of
backends.
"""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Unit:
    """A unit of processors that multiplies bytes.

    architecture: as `platform.machine` names it. described: as people do.
    features: as /proc/cpuinfo names what the code uses.
    flags: let the compiler use it; not those of the machine that compiles, since home folders are shared.
    """

    name: str
    architecture: str
    described: str
    features: frozenset[str]
    flags: tuple[str, ...]


def _unit(name: str, architecture: str, described: str, features: str, flags: str) -> Unit:
    return Unit(name, architecture, described, frozenset(features.split()), tuple(flags.split()))


_AVX512 = "-mavx512f -mavx512bw -mavx512vl -mprefer-vector-width=512"
AMX = _unit(
    "amx",
    "x86_64",
    "AMX",
    "avx512f avx512bw avx512vl amx_tile amx_int8",
    f"{_AVX512} -mamx-tile -mamx-int8",
)
VNNI = _unit("vnni", "x86_64", "AVX512-VNNI", "avx512f avx512bw avx512vl avx512_vnni", f"{_AVX512} -mavx512vnni")
AVX_VNNI = _unit("avx_vnni", "x86_64", "AVX-VNNI", "avx2 fma avx_vnni", "-mavx2 -mfma -mavxvnni")
AVX2 = _unit("avx2", "x86_64", "AVX2", "avx2 fma", "-mavx2 -mfma")
I8MM = _unit("i8mm", "aarch64", "i8mm", "asimddp i8mm", "-march=armv8.2-a+dotprod+i8mm")
DOTPROD = _unit("dotprod", "aarch64", "dot product instructions", "asimddp", "-march=armv8.2-a+dotprod")
NEON = _unit("neon", "aarch64", "Advanced SIMD", "asimd", "-march=armv8-a")
UNITS = (AMX, VNNI, AVX_VNNI, AVX2, I8MM, DOTPROD, NEON)


@functools.cache
def cpu_features() -> frozenset[str]:
    """Return what this CPU can do, as Linux lists it; empty on other systems."""
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, features = line.partition(":")
        if name.strip() in ("flags", "Features"):  # of x86, of Arm; of the first core, and Linux lists what all have
            return frozenset(features.split())
    return frozenset()


def missing(unit: Unit) -> str:
    """Return why this CPU does not have a unit; empty when it does."""
    if platform.machine() == unit.architecture and unit.features <= cpu_features():
        return ""
    return f"the CPU has no {unit.described}"
