"""kernels.cpp as shared libraries, one a unit, made by the machine's C++ compiler.

    python -m sqap_vla_ros.quantization.backends.cpu.compiling --to FOLDER

compiles those of this architecture into a folder, which is what the installation does (CMakeLists.txt). What is not
found there is compiled at first use and kept in the user's cache folder. It needs nothing but the standard library.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from sqap_vla_ros.quantization.backends.cpu.units import UNITS, Unit

SOURCE = Path(__file__).parent / "kernels" / "kernels.cpp"
INSTALLED = "sqap_vla_ros/quantization/backends/cpu/built"  # beside this file, or in the installed half of a checkout
COMPILERS = ("c++", "g++", "clang++")
COMMON = ("-std=c++17", "-O3", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC")
_LOGGER = logging.getLogger(__name__)


def command(compiler: str, unit: Unit, made: Path, source: Path = SOURCE) -> list[str]:
    """Return the command that compiles a unit's library to `made`."""
    return [compiler, *COMMON, *unit.flags, str(source), "-o", str(made)]


def library_name(unit: Unit) -> str:
    """Return the file name of a unit's library, which changes with the sources and the flags."""
    sources = b"".join(path.read_bytes() for path in (SOURCE, *sorted(SOURCE.parent.rglob("*.h"))))
    key = hashlib.sha256(sources + " ".join([*COMMON, *unit.flags]).encode()).hexdigest()[:16]
    return f"{unit.name}_kernels_{key}.so"


def compiled(unit: Unit, broken: Collection[Path] = ()) -> Path:
    """Return a unit's library as installed, or from the cache, where it is made if it is not there.

    broken: files that could not be loaded. An installed one is passed over, one in the cache is compiled anew.
    Raises OSError without a compiler or room, and CalledProcessError when compiling fails.
    """
    name = library_name(unit)
    for installed in (Path(path, INSTALLED, name) for path in sys.path):
        if installed.exists() and installed not in broken:
            return installed
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sqap_vla_ros"
    if not (cache / name).exists() or cache / name in broken:
        _compiler()  # nothing is announced that cannot be done
        _LOGGER.warning("compiling the kernels for %s into %s; later starts find them there", unit.described, cache)
        compile_into(cache, unit)
    return cache / name


def compile_into(folder: Path, unit: Unit) -> None:
    """Compile a unit's library into a folder, where it appears when it is complete. Raises as `compiled` does."""
    compiler = _compiler()
    library = folder / library_name(unit)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:  # others may be compiling it too
        made = Path(temporary, library.name)
        subprocess.run(command(compiler, unit, made), check=True, capture_output=True, text=True)
        made.replace(library)


def _compiler() -> str:
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise FileNotFoundError("there is no C++ compiler (install g++)")
    return compiler


def failure(error: Exception) -> str:
    """Return an error of `compiled` as one line."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"compiling {SOURCE.name} failed: {(error.stderr.strip() or str(error)).splitlines()[0]}"
    return str(error)


def main() -> None:
    """Compile the libraries of this architecture; say which cannot be had, and go on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True)
    folder = parser.parse_args().to
    units = [unit for unit in UNITS if unit.architecture == platform.machine()]
    for path in folder.glob("*.so"):
        if path.name not in map(library_name, units):  # of older sources
            path.unlink()
    for unit in units:
        try:
            if not (folder / library_name(unit)).exists():
                compile_into(folder, unit)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"kernels for {unit.described} are left out: {failure(error)}", file=sys.stderr)


if __name__ == "__main__":
    main()
