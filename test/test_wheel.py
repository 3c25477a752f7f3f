"""The wheel without ROS holds what it should, asks for no more than it needs, and predicts with no more than that."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("wheel", reason="wheel is not installed: nothing can be built")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", out, ROOT]
    environment = os.environ | {"SQAP_VLA_WITHOUT_ROS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    assert path.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(path) as file:
        yield file


def test_it_holds_the_sources_and_nothing_that_was_compiled(wheel):
    names = {name for name in wheel.namelist() if name.startswith("sqap_vla_ros/")}
    sources = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "sqap_vla_ros").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == sources  # and no compiled message
    assert "sqap_vla_ros/policy/assets/tabletop.safetensors" in names


def test_recipes_are_where_the_package_looks_for_them(wheel):
    shared = {name.partition("/data/share/sqap_vla_ros/")[2] for name in wheel.namelist()} - {""}
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "config").rglob("*") if path.is_file()} == shared


def test_it_requires_neither_ros_nor_the_simulator(wheel):
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    lines = wheel.read(metadata).decode().splitlines()
    needs = {
        line.split()[1].split(">")[0].lower()
        for line in lines
        if line.startswith("Requires-Dist") and "extra" not in line
    }
    assert {"torch", "transformers", "numpy", "pillow", "opencv-python-headless"} <= needs
    assert not needs & {"mujoco", "gymnasium", "rosbags", "pin", "pyopengl", "matplotlib", "imageio"}


def test_it_has_one_command(wheel):
    (scripts,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert wheel.read(scripts).decode().split() == ["[console_scripts]", "sqap-vla", "=", "sqap_vla_ros.cli:main"]


@pytest.mark.slow
def test_it_predicts_in_an_environment_that_holds_only_what_it_requires(tmp_path):
    """The script of docs/python_api.md, with links to this environment's distributions in place of a download."""
    script = [ROOT / "scripts" / "try_wheel_without_ros.sh", "--linked", tmp_path]
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=280)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert "micro under sqap: 16 actions\ntabletop under sqap_pruning: 16 actions\n" in done.stdout
    assert "sqap-vla: error: " in done.stderr  # of the demo, which needs the simulator
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    linked = {path.name for path in site.iterdir() if path.is_symlink()}
    assert {"torch", "websockets"} <= linked
    assert not linked & {"rclpy", "mujoco", "pytest"}


def test_what_is_not_installed_is_named_in_place_of_linked(tmp_path):
    metadata = tmp_path / "own-1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    needs = ("Numpy>=1", "no-such-thing; extra == 'more'", "absent; python_version < '3'")
    lines = ["Metadata-Version: 2.1", "Name: own", "Version: 1", *(f"Requires-Dist: {need}" for need in needs)]
    metadata.write_text("\n".join(lines) + "\n")
    script = [sys.executable, ROOT / "scripts" / "link_requirements.py", tmp_path, "own"]
    subprocess.run(script, check=True, timeout=60)
    assert (tmp_path / "numpy" / "__init__.py").is_file()
    done = subprocess.run([*script, "more"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (77, f"no-such-thing is not installed in {sys.prefix}: nothing to link\n")
