"""The package's descriptions agree with each other and with the sources; files are found; set-up refuses clearly."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sqap_vla_ros
from sqap_vla_ros import resources
from sqap_vla_ros.nodes.launch import bringup
from sqap_vla_ros.nodes.launch.table import BRINGUPS
from sqap_vla_ros.quantization.backends.cpu import compiling

ROOT = Path(__file__).resolve().parent.parent


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements(name: str) -> dict[str, Requirement]:
    lines = [line.strip() for line in (ROOT / name).read_text().splitlines()]
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def needs() -> dict[str, Requirement]:
    parsed = [Requirement(line) for line in setup_cfg()["options"]["install_requires"].split("\n") if line]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def pinned_version(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", f"{requirement} is not pinned"
    return specifier.version


def test_versions_agree():
    package = ET.parse(ROOT / "package.xml").getroot()
    assert package.findtext("version") == sqap_vla_ros.__version__
    assert setup_cfg()["metadata"]["version"] == "attr: sqap_vla_ros.__version__"
    assert sqap_vla_ros.__version__ in (ROOT / "CHANGELOG.rst").read_text()


def test_every_interface_file_is_built():
    cmake = (ROOT / "CMakeLists.txt").read_text()
    files = [*(ROOT / "msg").iterdir(), *(ROOT / "action").iterdir()]
    assert {f'"{file.parent.name}/{file.name}"' for file in files} == set(
        re.findall(r'"(?:msg|action)/\w+\.\w+"', cmake)
    )


def test_console_scripts_name_functions_that_exist():
    scripts = setup_cfg()["options.entry_points"]["console_scripts"].strip().splitlines()
    assert {script.split("=")[0].strip() for script in scripts} >= {
        "policy_node",
        "simulator_node",
        "bringup",
        "sqap-vla",
    }
    for script in scripts:
        module, function = script.split("=")[1].strip().split(":")
        source = (ROOT / (module.replace(".", "/") + ".py")).read_text()
        assert re.search(rf"^def {function}\(", source, re.MULTILINE), f"{module} has no function {function}"


def test_launch_table_and_setup_cfg_name_the_same_modules():
    """`ros2 run`, the launch files and `bringup` start the same code."""
    scripts = dict(
        map(str.strip, line.split("="))
        for line in setup_cfg()["options.entry_points"]["console_scripts"].strip().splitlines()
    )
    nodes = {node.executable: node.module for row in BRINGUPS.values() for node in row.nodes}
    assert nodes == {name: scripts[name].partition(":")[0] for name in nodes}
    assert set(scripts) - set(nodes) == {"bringup", "check", "sqap-vla", "stand_in"}
    assert scripts["bringup"] == f"{bringup.__name__}:main"


def test_pins_are_exact_consistent_and_within_what_the_package_asks_for():
    constraints = requirements("constraints.txt")
    direct = {}
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-ros.txt"):
        direct |= requirements(name)
    for name, requirement in direct.items():
        assert pinned_version(requirement) == pinned_version(constraints[name]), name
    for name, requirement in needs().items():
        assert requirement.specifier.contains(pinned_version(direct[name])), name


# rosdep's keys of what pip calls otherwise; "" where it has none (jazzy, kilted, lyrical), so that scripts/setup.sh or
# pip has to install it.
ROSDEP = {
    "gymnasium": "python3-gymnasium-pip",
    "imageio-ffmpeg": "",
    "mujoco": "python3-mujoco-pip",
    "opencv-python-headless": "python3-opencv",
    "pillow": "python3-pil",
    "pin": "pinocchio",
    "pyopengl": "python3-opengl",
    "pyyaml": "python3-yaml",
    "rosbags": "python3-rosbags-pip",
    "safetensors": "",
    "sentencepiece": "",
    "tokenizers": "",
    "torch": "python3-pytorch-pip",
    "transformers": "python3-transformers-pip",
}


def package_keys() -> set[str]:
    package = ET.parse(ROOT / "package.xml").getroot()
    return {element.text for element in package if element.tag.endswith("depend")}


def test_what_pip_installs_is_known_to_rosdep_where_it_has_a_key():
    keys = {ROSDEP.get(name, f"python3-{name}") for name in needs()} - {""}
    assert sorted(keys - package_keys()) == []


def test_the_readme_skips_the_keys_that_the_virtual_environment_has():
    (skipped,) = re.findall(r'--skip-keys "([^"]+)"', (ROOT / "README.md").read_text())
    assert set(skipped.replace("\\", " ").split()) == {key for key in package_keys() if key.endswith("-pip")}


def test_the_kernels_are_installed_where_they_are_looked_for():
    cmake = (ROOT / "CMakeLists.txt").read_text()
    assert "add_custom_target(kernels ALL" in cmake
    (where,) = re.findall(r"install\(DIRECTORY \$\{_kernels\}/ DESTINATION \$\{PYTHON_INSTALL_DIR\}/(\S+)\)", cmake)
    assert where.replace("${PROJECT_NAME}", "sqap_vla_ros") == compiling.INSTALLED
    assert "-m ${PROJECT_NAME}.quantization.backends.cpu.compiling --to ${_kernels}" in cmake


def test_pytest_collects_where_launch_testing_is_installed(tmp_path):
    """Its plugins import test files by their base names, of which some are there twice."""
    plugins = tmp_path / "launch_plugins-1.dist-info"
    plugins.mkdir()
    (plugins / "METADATA").write_text("Metadata-Version: 2.1\nName: launch-plugins\nVersion: 1\n")
    (plugins / "entry_points.txt").write_text("[pytest11]\nlaunch_testing = exploding\nlaunch_ros = exploding\n")
    (tmp_path / "exploding.py").write_text("raise RuntimeError('the plugin is loaded')\n")
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", "test/test_processes.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_share_path_prefers_the_checkout():
    assert resources.share_path("config/fastdds_shm.xml") == ROOT / "config" / "fastdds_shm.xml"


def test_share_path_of_an_installed_package(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "_CHECKOUT", tmp_path / "lib" / "python3" / "site-packages")
    first, second = tmp_path / "overlay", tmp_path / "underlay"
    for prefix in (first, second):
        (prefix / "share/sqap_vla_ros/config").mkdir(parents=True)
    (second / "share/sqap_vla_ros/config/policy.yaml").write_text("underlay")
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{first}{os.pathsep}{second}")
    assert resources.share_path("config/policy.yaml").read_text() == "underlay"
    (first / "share/sqap_vla_ros/config/policy.yaml").write_text("overlay")
    assert resources.share_path("config/policy.yaml").read_text() == "overlay"
    with pytest.raises(
        FileNotFoundError, match=r"config/absent\.yaml of sqap_vla_ros is in none of: .*overlay.*underlay"
    ):
        resources.share_path("config/absent.yaml")


@pytest.mark.parametrize("bad", ["../secret", "/etc/passwd"])
def test_share_path_stays_inside_the_package(bad):
    with pytest.raises(ValueError, match="inside the package"):
        resources.share_path(bad)


def test_help_of_the_command_line_loads_no_library_that_takes_time():
    code = (
        "import sys; from sqap_vla_ros.cli import build_parser; print(build_parser().format_help());"
        "heavy = {'torch', 'transformers', 'rclpy', 'mujoco', 'matplotlib', 'cv2', 'scipy', 'rosbags'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    for command in ("demo", "compress", "predict"):
        assert command in done.stdout


def set_up(tmp_path: Path, *, tools: tuple[str, ...], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the set-up script where only the named tools (and coreutils) are installed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    base = ("bash", "dirname", "sed", "sort", "head", "mktemp", "rm", "ls", "cat", "grep", "id", "env")
    for tool in (*base, *tools):
        path = shutil.which(tool)
        assert path, f"this test needs {tool}"
        (folder / tool).symlink_to(path)
    environment = {"PATH": str(folder), "HOME": str(tmp_path), "PYTHON": sys.executable, **variables}
    environment.setdefault("SQAP_VENV", str(tmp_path / "venv"))
    return subprocess.run(
        [str(folder / "bash"), str(ROOT / "scripts/setup.sh")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(("missing", "package"), [("c++", "g++"), ("cmake", "cmake"), ("make", "make")])
def test_setup_names_what_is_missing_in_one_sentence(tmp_path, missing, package):
    tools = tuple(tool for tool in ("cc", "c++", "cmake", "make") if tool != missing)
    done = set_up(tmp_path, tools=tools)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line == (
        f"setup: These system packages are missing: {package} (cmake 3.20 or newer). "
        f"Install with: sudo apt-get install {package}"
    )
    assert not (tmp_path / "venv").exists()


def test_setup_refuses_an_argument_that_it_does_not_know(tmp_path):
    done = subprocess.run(["bash", ROOT / "scripts/setup.sh", "--library"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "setup: unknown argument: --library (there is --libraries)\n"


def test_setup_refuses_an_unfit_python(tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\necho 3.9\n")
    (tmp_path / "python").chmod(0o755)
    done = set_up(tmp_path, tools=("cc", "c++", "cmake", "make"), PYTHON=str(tmp_path / "python"))
    assert done.returncode == 1
    assert done.stderr == f"setup: PYTHON={tmp_path}/python is Python 3.9, but 3.11 or 3.12 is needed.\n"


def test_setup_never_overwrites_a_folder_that_is_not_a_virtual_environment(tmp_path):
    precious = tmp_path / "home" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("ten years of work")
    done = set_up(tmp_path, tools=("cc", "c++", "cmake", "make"), SQAP_VENV=str(precious.parent))
    assert done.returncode == 1
    assert "is not a virtual environment and will not be overwritten" in done.stderr
    assert precious.read_text() == "ten years of work"
