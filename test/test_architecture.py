"""The rooms import each other in one direction only, and torch and rclpy stay where they belong."""

import ast
import configparser
import importlib.metadata
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGE = Path(__file__).resolve().parent.parent / "sqap_vla_ros"
MODULES = sorted(PACKAGE.rglob("*.py"))
assert len(MODULES) > 20

# Which rooms a room may import, beside itself.
FOUNDATION = {"contracts", "resources", "text_rows", "__init__"}
MAY_IMPORT = {
    "contracts": set(),
    "resources": set(),
    "text_rows": set(),
    "__init__": set(),
    "policy": FOUNDATION,
    "quantization": FOUNDATION,
    "robot": FOUNDATION,
    # The overlay draws through the policy's own image transform.
    "pruning": FOUNDATION | {"policy"},
    # Calibration looks at the simulator, which is loaded when it is asked for.
    "compression": FOUNDATION | {"policy", "pruning", "quantization", "simulation"},
    "simulation": FOUNDATION | {"robot"},
    "training": FOUNDATION | {"policy", "simulation"},
    "control": FOUNDATION | {"robot"},
    "serving": FOUNDATION | {"compression"},
    "nodes": FOUNDATION | {"control", "serving", "policy", "pruning", "robot", "simulation"},
    "evaluation": FOUNDATION
    | {"compression", "control", "serving", "policy", "pruning", "robot", "simulation", "nodes"},
}
MAY_IMPORT["commands"] = {*MAY_IMPORT}
MAY_IMPORT["cli"] = {*MAY_IMPORT}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of all modules a file imports anywhere in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; the project imports by full name"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def test_rooms_import_in_one_direction():
    wrong = []
    for path in MODULES:
        room = room_of(path)
        for name, line in imports_of(path):
            parts = name.split(".")
            if parts[0] != "sqap_vla_ros" or parts[1] in (room, "msg", "action", "__version__"):
                continue
            if parts[1] not in MAY_IMPORT[room]:
                wrong.append(f"{path.relative_to(PACKAGE.parent)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_only_the_nodes_room_speaks_ros():
    """Message classes are data: evaluation writes bags with them, without a running ROS."""
    middleware = {"rclpy", "tf2_ros", "launch", "launch_ros", "cv_bridge"}
    messages = {"sensor_msgs", "geometry_msgs", "std_msgs", "trajectory_msgs", "tf2_msgs"}
    wrong = [
        f"{path.relative_to(PACKAGE.parent)}:{line} imports {name}"
        for path in MODULES
        for name, line in imports_of(path)
        if (name.split(".")[0] in middleware and room_of(path) != "nodes")
        or (name.split(".")[0] in messages and room_of(path) not in ("nodes", "evaluation"))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_can_be_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 500


def loaded_by(modules: list[str], heavy: set[str]) -> set[str]:
    """Which of the heavy modules are in memory after a fresh interpreter imported `modules`."""
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return heavy & set(done.stdout.split())


def modules_of(room: str, *without: str) -> list[str]:
    paths = [path for path in sorted((PACKAGE / room).rglob("*.py")) if path.stem not in ("__init__", *without)]
    return [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in paths]


@pytest.mark.ros
def test_nodes_do_not_load_torch():
    """The policy lives in a worker process: the process that answers callbacks has no use for torch's start-up time."""
    assert loaded_by(modules_of("nodes", "description"), {"torch", "transformers"}) == set()


def test_the_robot_room_loads_neither_torch_nor_ros():
    assert loaded_by(modules_of("robot"), {"torch", "rclpy"}) == set()


@pytest.mark.parametrize("room", ["policy", "pruning", "quantization", "compression", "robot", "simulation"])
def test_a_room_is_imported_without_torch_or_ros(room):
    assert loaded_by([f"sqap_vla_ros.{room}"], {"torch", "rclpy", "transformers", "mujoco"}) == set()


def test_every_library_the_sources_import_is_declared():
    """In setup.cfg for pip and in package.xml for rosdep.

    cv_bridge is used where it imports and works; triton comes with the CUDA builds of PyTorch.
    """
    config = configparser.ConfigParser()
    config.read(PACKAGE.parent / "setup.cfg")
    lists = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    needs = [Requirement(line) for text in lists for line in text.splitlines() if line]
    declared = {canonicalize_name(requirement.name) for requirement in needs}
    package = ET.parse(PACKAGE.parent / "package.xml").getroot()
    ros = {element.text for element in package if element.tag.endswith("depend")} | {"cv_bridge", "triton"}
    ros |= {"tf2_ros"} if "tf2_ros_py" in ros else set()
    distributions = importlib.metadata.packages_distributions()
    undeclared = set()
    for path in MODULES:
        for name, line in imports_of(path):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top == "sqap_vla_ros" or top in ros:
                continue
            if not {canonicalize_name(found) for found in distributions.get(top, [top])} & declared:
                undeclared.add(f"{path.relative_to(PACKAGE.parent)}:{line} imports {top}")
    assert not undeclared, "\n".join(sorted(undeclared))
