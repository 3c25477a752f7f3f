"""The rooms import each other in one direction only, and torch and rclpy stay where they belong."""

import configparser
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import ROOT

PACKAGE = ROOT / "sqap_vla_ros"


def _load_structure():
    """scripts/structure.py, which is a program and not a module of the package."""
    spec = importlib.util.spec_from_file_location("structure", ROOT / "scripts" / "structure.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["structure"] = module
    spec.loader.exec_module(module)
    return module


structure = _load_structure()


def test_the_structure_is_as_the_rules_say():
    assert len(structure.read_tree(PACKAGE).modules) > 100
    assert structure.violations(PACKAGE, ROOT / "test") == []


def test_every_rule_is_about_a_room_that_exists():
    modules = structure.read_tree(PACKAGE).modules
    named = {room for row in structure.RULES.values() for room in row} | set(structure.RULES) | set(structure.DYNAMIC)
    named |= {room for _, rooms in structure.LIBRARIES for room in rooms}
    assert named - set(modules) - {"__init__"} == set()


# A small package in which nothing is wrong, and one change to it for every rule.
SOUND = {
    "__init__.py": "",
    "contracts.py": "",
    "resources.py": "",
    "text_rows.py": "",
    "cli.py": "from sqap_vla_ros.commands import demo\n",
    "commands/__init__.py": "",
    "commands/demo.py": "from sqap_vla_ros.evaluation.demo import run\n",
    "evaluation/__init__.py": "",
    "evaluation/demo/__init__.py": "",
    "evaluation/demo/run.py": "",
    "nodes/__init__.py": "",
    "nodes/messages.py": "import rclpy\nfrom sqap_vla_ros.contracts import Observation\n",
    "nodes/tf/__init__.py": "",
    "nodes/tf/buffer.py": "",
    "nodes/policy/__init__.py": "",
    "nodes/policy/node.py": "from sqap_vla_ros.nodes import messages\nfrom sqap_vla_ros.nodes.policy import sinks\n",
    "nodes/policy/sinks.py": "from sqap_vla_ros.robot import camera\n",
    "nodes/simulator/__init__.py": "",
    "nodes/simulator/node.py": "",
    "policy/__init__.py": "",
    "policy/cogact.py": "import torch\n",
    "policy/preprocessing.py": "",
    "pruning/__init__.py": "",
    "pruning/grid.py": "",
    "pruning/overlay.py": "from sqap_vla_ros.policy.preprocessing import ImageTransform\n",
    "robot/__init__.py": "",
    "robot/camera.py": "",
    "robot/safety.py": "",
    "serving/__init__.py": "",
    "serving/worker.py": "",
}

PLANTED = {
    "a lower room imports a higher one": (
        {"robot/safety.py": "from sqap_vla_ros.nodes import messages\n"},
        r"robot/safety\.py:1 imports sqap_vla_ros\.nodes\.messages, but robot may only import contracts, resources",
    ),
    "inside a function": (
        {"robot/safety.py": "def f():\n    import sqap_vla_ros.evaluation.demo.run\n"},
        r"robot/safety\.py:2 imports sqap_vla_ros\.evaluation\.demo\.run",
    ),
    "importlib by name": (
        {"robot/safety.py": "import importlib\nimportlib.import_module('sqap_vla_ros.evaluation.demo.run')\n"},
        r"robot/safety\.py:2 imports sqap_vla_ros\.evaluation\.demo\.run",
    ),
    "importlib by a computed name": (
        {"robot/safety.py": "import importlib\nimportlib.import_module('sqap_vla_ros.' + 'evaluation')\n"},
        r"robot/safety\.py:2 imports a module by a computed name",
    ),
    "a module named in a string": (
        {"robot/safety.py": "BOOT = 'sqap_vla_ros.evaluation.demo.run:main'\n"},
        r"robot/safety\.py:1 names sqap_vla_ros\.evaluation\.demo\.run",
    ),
    "one file's permission is not the room's": (
        {"pruning/grid.py": "from sqap_vla_ros.policy.cogact import CogACT\n"},
        r"pruning/grid\.py:1 imports sqap_vla_ros\.policy\.cogact, but pruning may only import contracts, resources",
    ),
    "a file with a permission uses another": (
        {"pruning/overlay.py": "from sqap_vla_ros.policy.cogact import CogACT\n"},
        r"pruning/overlay\.py:1 imports sqap_vla_ros\.policy\.cogact, but pruning\.overlay may only",
    ),
    "one folder of nodes imports another": (
        {"nodes/simulator/node.py": "from sqap_vla_ros.nodes.policy import sinks\n"},
        r"nodes/simulator/node\.py:1 imports sqap_vla_ros\.nodes\.policy\.sinks",
    ),
    "the shared files of nodes import a node": (
        {"nodes/messages.py": "from sqap_vla_ros.nodes.policy import sinks\n"},
        r"nodes/messages\.py:1 imports sqap_vla_ros\.nodes\.policy\.sinks",
    ),
    "somebody imports commands": (
        {"nodes/tf/buffer.py": "from sqap_vla_ros.commands import demo\n"},
        r"nodes/tf/buffer\.py:1 imports sqap_vla_ros\.commands\.demo",
    ),
    "a circle": (
        {
            "robot/camera.py": "import sqap_vla_ros.robot.safety\n",
            "robot/safety.py": "import sqap_vla_ros.robot.camera\n",
        },
        r"these files import each other in a circle: robot\.camera, robot\.safety",
    ),
    "a circle behind TYPE_CHECKING": (
        {
            "robot/camera.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
            "    from sqap_vla_ros.robot.safety import SafetyLimits\n",
            "robot/safety.py": "from sqap_vla_ros.robot.camera import CameraModel\n",
        },
        r"these files import each other in a circle: robot\.camera, robot\.safety",
    ),
    "torch in a folder of nodes": (
        {"nodes/policy/sinks.py": "def f():\n    import torch\n"},
        r"nodes/policy/sinks\.py:2 imports torch, which belongs to policy",
    ),
    "ROS outside of nodes": (
        {"serving/worker.py": "from rclpy.node import Node\n"},
        r"serving/worker\.py:1 imports rclpy\.node\.Node, which belongs to nodes",
    ),
    "messages below evaluation": (
        {"robot/safety.py": "from sensor_msgs.msg import Image\n"},
        r"robot/safety\.py:1 imports sensor_msgs\.msg\.Image, which belongs to nodes, evaluation",
    ),
    "a relative import": ({"robot/safety.py": "from . import camera\n"}, r"robot/safety\.py:1 imports relatively"),
    "a room without a row": (
        {"attic/__init__.py": "", "attic/box.py": ""},
        r"attic/__init__\.py:1: the room 'attic' has no row in RULES of scripts/structure\.py",
    ),
    "a file that is too long": (
        {"robot/safety.py": "x = 1\n" * (structure.MOST_LINES + 1)},
        r"robot/safety\.py has 451 lines; split it, 450 is the most",
    ),
    "a folder that is too full": (
        {f"robot/file_{i}.py": "" for i in range(structure.MOST_FILES)},
        r"robot holds 15 files; give a subject a folder of its own, 13 is the most",
    ),
    "torch where type checkers do not look": (
        {"robot/safety.py": "from typing import TYPE_CHECKING\nif not TYPE_CHECKING:\n    import torch\n"},
        r"robot/safety\.py:3 imports torch, which belongs to policy",
    ),
    "torch where others look too": (
        {"robot/safety.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING or True:\n    import torch\n"},
        r"robot/safety\.py:3 imports torch",
    ),
    "torch under another name's guard": (
        {"robot/safety.py": "if TYPE_CHECKING_OFF:\n    import torch\n"},
        r"robot/safety\.py:2 imports torch",
    ),
    "an alias of import_module": (
        {"robot/safety.py": "import importlib\nload = importlib.import_module\nload('torch')\n"},
        r"robot/safety\.py:2 imports a module by a computed name",
    ),
    "import_module under another name": (
        {"robot/safety.py": "from importlib import import_module as load\nload('torch')\n"},
        r"robot/safety\.py:2 imports torch, which belongs to policy",
    ),
    "a syntax error": (
        {"robot/safety.py": "x = 1\ndef f(:\n"},
        r"^sqap_vla_ros/robot/safety\.py:2 cannot be parsed \(.+\); mend it$",
    ),
    "everything of the package": (
        {"robot/safety.py": "from sqap_vla_ros import *\n"},
        r"robot/safety\.py:1 imports everything of sqap_vla_ros; import what you use by name",
    ),
}

# One line each, in robot/safety.py, and what is said of it.
PLANTED_LINES = {
    "from unique_identifier_msgs.msg import UUID": "imports unique_identifier_msgs.msg.UUID, which belongs to nodes",
    "import rclpy_action": "imports rclpy_action, which belongs to nodes",
    "import ament_index_python.packages": "imports ament_index_python.packages, which belongs to nodes",
    "from rcl_interfaces.srv import GetParameters": "imports rcl_interfaces.srv.GetParameters, which belongs to nodes",
    "import rosbags.highlevel": "imports rosbags.highlevel, which belongs to nodes, evaluation",
    "from sqap_vla_ros.msg import PolicyStatus": "imports sqap_vla_ros.msg.PolicyStatus, which belongs to nodes",
    "import sqap_vla_ros.action": "imports sqap_vla_ros.action, which belongs to nodes",
    "import torchvision.ops": "imports torchvision.ops, which belongs to policy",
    "from safetensors.torch import save_file": "imports safetensors.torch.save_file, which belongs to policy",
    "import triton.language": "imports triton.language, which belongs to quantization",
    "import gymnasium": "imports gymnasium, which belongs to simulation",
    "import importlib; importlib.import_module('.nodes.messages', package='sqap_vla_ros')": (
        "imports sqap_vla_ros.nodes.messages, but robot"
    ),
    "import importlib; importlib.import_module('..nodes.messages', 'sqap_vla_ros.robot')": (
        "imports sqap_vla_ros.nodes.messages, but robot"
    ),
    "import importlib; importlib.import_module('.x', package=__package__)": "imports a module by a computed name",
    "import importlib; importlib.import_module(name='torch')": "imports torch, which belongs to policy",
    "import importlib; importlib.import_module(name=NAME)": "imports a module by a computed name",
    "import importlib; getattr(importlib, 'import_module')('torch')": "imports a module by a computed name",
    "import runpy; runpy.run_module(mod_name='torch')": "imports torch, which belongs to policy",
    "import runpy; runpy.run_path('x.py')": "uses runpy.run_path, which hides what is imported",
    "import pkgutil; pkgutil.resolve_name('torch:nn')": "imports torch, which belongs to policy",
    "__import__('torch')": "uses __import__, which hides what is imported",
    "import importlib.util as u; u.spec_from_file_location('x', 'x.py')": "uses importlib.util.spec_from_file_location",
    "import sys; sys.modules['torch']": "uses sys.modules, which hides what is imported",
    "import sys as s; s.modules['torch']": "uses sys.modules, which hides what is imported",
    "from sys import modules as m; m['torch']": "uses sys.modules, which hides what is imported",
    "from runpy import run_path as run; run('x.py')": "uses runpy.run_path, which hides what is imported",
    "load = __import__": "uses __import__, which hides what is imported",
    "exec('import torch')": "uses exec, which hides what is imported",
    "import builtins; builtins.eval('1')": "uses builtins.eval, which hides what is imported",
    "import sqap_vla_ros; sqap_vla_ros.nodes.messages.x": "imports sqap_vla_ros.nodes.messages, but robot",
    "import sqap_vla_ros as s; s.nodes.messages": "imports sqap_vla_ros.nodes.messages, but robot",
    "RUN = 'python -m sqap_vla_ros.nodes.messages'": "names sqap_vla_ros.nodes.messages, but robot",
    "RUN = 'sqap_vla_ros.nodes.messages --x'": "names sqap_vla_ros.nodes.messages, but robot",
    "RUN = f'{PYTHON} -m sqap_vla_ros.nodes.messages'": "names sqap_vla_ros.nodes.messages, but robot",
}

# Lines that look like a violation and are none.
HARMLESS_LINES = (
    "'Like importlib.import_module'",
    "'A docstring may name sqap_vla_ros.nodes.messages.'",
    "import typing\nif typing.TYPE_CHECKING:\n    import torch",
    "import re; re.compile('x'); MODEL.eval()",
    "import sqap_vla_ros.robot.camera as camera; camera.CameraModel",
    "import sqap_vla_ros; sqap_vla_ros.robot.camera.CameraModel",
    "import importlib; importlib.import_module('.robot.camera', package='sqap_vla_ros')",
    "from safetensors import safe_open",
    "TITLE = 'sqap_vla_ros.yaml'",
)


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in {**SOUND, **files}.items():
        path = root / "sqap_vla_ros" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "sqap_vla_ros"


def test_a_sound_package_has_no_violation(tmp_path):
    assert structure.violations(plant(tmp_path, {})) == []


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_caught(tmp_path, name):
    files, message = PLANTED[name]
    found = structure.violations(plant(tmp_path, files))
    assert len(found) == 1, found
    assert re.search(message, found[0]), found[0]


@pytest.mark.parametrize("line", PLANTED_LINES)
def test_a_planted_line_is_caught(tmp_path, line):
    found = structure.violations(plant(tmp_path, {"robot/safety.py": f"{line}\n"}))
    assert len(found) == 1, found
    assert found[0].startswith(f"sqap_vla_ros/robot/safety.py:1 {PLANTED_LINES[line]}"), found[0]


@pytest.mark.parametrize("line", HARMLESS_LINES)
def test_a_harmless_line_is_accepted(tmp_path, line):
    assert structure.violations(plant(tmp_path, {"robot/safety.py": f"{line}\n"})) == []


def test_a_test_folder_is_counted_too(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test_long.py").write_text("\n" * 451)
    found = structure.violations(plant(tmp_path, {}), tmp_path / "test")
    assert found == ["test/test_long.py has 451 lines; split it, 450 is the most"]


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


@pytest.mark.parametrize("room", ["robot", "control", "serving"])
def test_these_rooms_load_neither_torch_nor_ros(room):
    assert loaded_by(modules_of(room), {"torch", "rclpy"}) == set()


@pytest.mark.parametrize("room", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))
def test_a_room_is_imported_without_torch_or_ros(room):
    assert loaded_by([f"sqap_vla_ros.{room}"], {"torch", "rclpy", "transformers", "mujoco"}) == set()


def test_every_library_the_sources_import_is_declared():
    """In setup.cfg for pip and in package.xml for rosdep; triton comes with the CUDA builds of PyTorch."""
    config = configparser.ConfigParser()
    config.read(PACKAGE.parent / "setup.cfg")
    lists = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    needs = [Requirement(line) for text in lists for line in text.splitlines() if line]
    declared = {canonicalize_name(requirement.name) for requirement in needs}
    package = ET.parse(PACKAGE.parent / "package.xml").getroot()
    ros = {element.text for element in package if element.tag.endswith("depend")} | {"triton"}
    distributions = importlib.metadata.packages_distributions()
    undeclared = set()
    tree = structure.read_tree(PACKAGE)
    for module, references in tree.references.items():
        for reference in references:
            top = reference.name.split(".")[0]
            if top in sys.stdlib_module_names or top == "sqap_vla_ros" or top in ros or reference.kind == "name":
                continue
            if not {canonicalize_name(found) for found in distributions.get(top, [top])} & declared:
                undeclared.add(f"{tree.where(module, reference.line)} imports {top}")
    assert not undeclared, "\n".join(sorted(undeclared))
