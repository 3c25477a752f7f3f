"""docs/extending.md: the files and names it gives exist, and its examples run."""

import importlib.util
import re
import types

import numpy as np
import pytest
import torch
import yaml
from places import ROOT

from sqap_vla_ros.compression.recipe import load_recipe
from sqap_vla_ros.compression.schemes.rounding import ROUNDINGS
from sqap_vla_ros.contracts import Reason, SelectionContext
from sqap_vla_ros.nodes.policy.parameters import PARAMETERS
from sqap_vla_ros.policy.architecture import ARCHITECTURES
from sqap_vla_ros.pruning.registry import SELECTORS, make_selector
from sqap_vla_ros.quantization.backends.reference import ReferenceProduct
from sqap_vla_ros.robot.interchange.action_space import ACTION_SPACES

PAGE = (ROOT / "docs" / "extending.md").read_text()
PACKAGE = ROOT / "sqap_vla_ros"
# A line "- `file.py`: `Name`, `Other`." gives names of that file; other files are only said to be there.
FILES = sorted(set(re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|yaml|msg))`", PAGE)))
NAMES = re.findall(r"^- `((?:[\w-]+/)*[\w-]+\.py)`:((?:,? (?:and )?`\w+`)+)", PAGE, re.M)
HAS_ROS = importlib.util.find_spec("rclpy") is not None


def section(heading):
    return PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def example(heading, language):
    (block,) = re.findall(rf"```{language}\n(.*?)```", section(heading), re.S)
    return block


def run(heading):
    """Run the example of a section in a module of its own, and return what it defines."""
    module = types.ModuleType(heading.replace(" ", "_"))
    exec(compile(example(heading, "python"), f"extending.md, {heading}", "exec"), module.__dict__)
    return module


@pytest.mark.parametrize("file", FILES)
def test_files_exist(file):
    written_by_the_reader = {"my_recipe.yaml", "fr3.yaml"}
    assert file in written_by_the_reader or (PACKAGE / file).exists() or (ROOT / file).exists()


@pytest.mark.parametrize(("file", "names"), NAMES)
def test_files_hold_the_names_given(file, names):
    text = ((PACKAGE / file) if (PACKAGE / file).exists() else (ROOT / file)).read_text()
    given = re.findall(r"`(\w+)`", names)
    assert [name for name in given if not re.search(rf"^(?:class |def )?{name}\b", text, re.M)] == []


def test_every_section_gives_names():
    kinds = re.findall(r"^\| \[.*?\]\(#(.*?)\)", PAGE, re.M)
    headings = [heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.*)$", PAGE, re.M)]
    assert kinds == headings
    assert len(NAMES) >= len(kinds)


def test_the_selector_runs(monkeypatch):
    monkeypatch.setitem(SELECTORS, "centre", None)  # and what it was comes back after the test
    run("A token selector")
    answer = make_selector("centre", ratio=0.5).select(SelectionContext(grid=(4, 4), gripper_patch=[None]))
    assert len(answer.indices[0]) == 8
    assert {5, 6, 9, 10} <= set(answer.indices[0].tolist())
    assert set(answer.reasons[0].tolist()) == {Reason.SPATIAL}


def test_the_action_space_runs(monkeypatch):
    monkeypatch.setattr("sqap_vla_ros.robot.interchange.action_space.ACTION_SPACES", dict(ACTION_SPACES))
    module = run("An action space")
    actions = module.ACTION_SPACES["my_arm"].actions(np.array([[0.02, 0, 0, 0, 0, 0.1, 1.0]]))
    np.testing.assert_allclose(actions, [[1, 0, 0, 0, 0, 1, 0]], atol=1e-12)


def test_the_recipe_loads(tmp_path):
    (tmp_path / "my_recipe.yaml").write_text(example("A recipe", "yaml"))
    recipe = load_recipe(tmp_path / "my_recipe.yaml")
    assert recipe.pruning.parameters["ratio"] == 0.6
    assert (recipe.quantization.weight_bits, recipe.quantization.activation_bits) == (4, 8)


def test_the_rounding_runs(monkeypatch):
    monkeypatch.setattr("sqap_vla_ros.compression.schemes.rounding.ROUNDINGS", dict(ROUNDINGS))
    module = run("A quantisation scheme")
    weight = torch.tensor([[0.9, -1.9, 7.0], [0.4, 0.0, -3.5]])
    work = types.SimpleNamespace(settings=types.SimpleNamespace(bits=lambda name: (4, 4)))
    rounded = module.ROUNDINGS["towards_zero"].round(work, "q_proj", weight, None)
    assert rounded.values.tolist() == [[0, -1, 7], [0, 0, -7]]


def test_the_architecture_is_a_row(monkeypatch):
    monkeypatch.setattr("sqap_vla_ros.policy.architecture.ARCHITECTURES", dict(ARCHITECTURES))
    module = run("A policy architecture")
    assert module.ARCHITECTURES["other"].linears == ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


def test_the_backend_multiplies_like_the_reference():
    module = run("A backend")
    generator = torch.Generator().manual_seed(0)
    weight, values = (torch.randint(-8, 8, (rows, 64), generator=generator).to(torch.int8) for rows in (16, 5))
    scale = torch.rand(16, generator=generator)
    token_scale = torch.rand(5, 1, generator=generator)
    expected = ReferenceProduct(weight, scale)(values, token_scale)
    torch.testing.assert_close(module.row.make(weight, scale)(values, token_scale), expected, rtol=0, atol=0)
    assert module.row.unsupported(torch.device("cpu")) == ""


class FakeNode:
    """A node whose publishers keep what they were given."""

    def __init__(self):
        self.sent = []

    def create_lifecycle_publisher(self, kind, topic, qos):
        return types.SimpleNamespace(publish=self.sent.append)


@pytest.mark.skipif(not HAS_ROS, reason="needs ROS 2")
def test_the_output_sends_the_tools_position(monkeypatch):
    from sqap_vla_ros.nodes.policy.sinks import sink, table
    from sqap_vla_ros.robot.holding import Evidence, HoldReason
    from sqap_vla_ros.robot.safety import SafetyLimits
    from sqap_vla_ros.robot.trajectory import anchor_chunk

    monkeypatch.setattr(table, "SINKS", dict(table.SINKS))
    run("An output")
    assert table.SINKS["position"].KEEPS_POSE
    node = FakeNode()
    output = table.SINKS["position"](node, sink.SinkParts(None, SafetyLimits(), "base_link"))
    chunk = anchor_chunk(np.tile([0.01, 0, 0, 0, 0, 0, 1.0], (16, 1)), np.eye(4), 0, 0.2)
    output.start(chunk, sink.Measured(np.eye(4), None), 4_000_000_000)
    output.tick(400_000_000, None)
    assert node.sent[-1].data[0] == pytest.approx(0.02)
    order = sink.HoldOrder(500_000_000, 500_000_000, Evidence.NEAR, HoldReason.ORDER, sink.Measured(np.eye(4), None))
    output.hold(order)
    output.tick(600_000_000, None)
    assert 0.02 < node.sent[-1].data[0] < 0.025  # at rest, a little beyond what was sent last


@pytest.mark.skipif(not HAS_ROS, reason="needs ROS 2")
def test_the_gripper_sends_a_decision_once(monkeypatch):
    from sqap_vla_ros.nodes.policy.grippers import table
    from sqap_vla_ros.nodes.policy.grippers.gripper import GripperConfig, GripperParts

    monkeypatch.setattr(table, "GRIPPER_SINKS", dict(table.GRIPPER_SINKS))
    run("A gripper")
    node = FakeNode()
    gripper = table.GRIPPER_SINKS["suction"](node, GripperParts(GripperConfig(), arm=None, joints=None))
    for opening in (1.0, 0.9, 0.1, 0.0):
        gripper.update(opening)
    assert [message.data for message in node.sent] == [False, True]


@pytest.mark.skipif(not HAS_ROS, reason="needs ROS 2")
def test_the_launch_arguments_offer_every_output_and_gripper():
    from sqap_vla_ros.nodes.launch.table import BRINGUPS
    from sqap_vla_ros.nodes.policy.grippers.table import GRIPPER_SINKS
    from sqap_vla_ros.nodes.policy.sinks.table import SINKS

    choices = {argument.name: set(argument.choices) - {""} for argument in BRINGUPS["policy"].arguments}
    assert choices["output_mode"] == set(SINKS)
    assert choices["gripper_output"] == set(GRIPPER_SINKS)


def test_the_robots_parameters_are_parameters():
    values = yaml.safe_load(example("A robot", "yaml"))["/**"]["ros__parameters"]
    table = {parameter.name: parameter for parameter in PARAMETERS}
    assert sorted(set(values) - set(table)) == []
    assert [problem for name, value in values.items() if (problem := table[name].problem(value))] == []
