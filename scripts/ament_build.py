"""Build an ament_cmake package and install it into a prefix, without colcon."""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def cmake_install(source: Path, prefix: Path) -> None:
    """Configure, build and install the package in `source` into `prefix`, for the running Python.

    ROS 2 is found in the sourced environment or, installed by pip, in the running Python's own prefix.
    """
    env = dict(os.environ)
    # pip's isolated build environment hides the one that holds ROS 2.
    search = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if "pip-build-env" not in path]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, search))
    for name in ("AMENT_PREFIX_PATH", "CMAKE_PREFIX_PATH"):
        env[name] = os.pathsep.join(filter(None, [sys.prefix, env.get(name)]))
    with tempfile.TemporaryDirectory() as build:
        configure = [
            *("cmake", "-S", source, "-B", build, f"-DCMAKE_INSTALL_PREFIX={prefix}"),
            *(f"-DPython3_EXECUTABLE={sys.executable}", "-DBUILD_TESTING=OFF", "-DCMAKE_BUILD_TYPE=Release"),
        ]
        subprocess.run(configure, check=True, env=env)
        install = ["cmake", "--build", build, "--parallel", str(os.cpu_count()), "--target", "install"]
        subprocess.run(install, check=True, env=env)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder with the package's CMakeLists.txt")
    parser.add_argument("--prefix", type=Path, default=Path(sys.prefix), help="default: this Python's own prefix")
    args = parser.parse_args()
    try:
        cmake_install(args.source.resolve(), args.prefix.resolve())
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        print(f"{args.source} was not built: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
