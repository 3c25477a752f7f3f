"""The parameter table, the file written from it and the configurations made of it."""

import ast
import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from sqap_vla_ros.nodes.policy import configuration, parameters
from sqap_vla_ros.nodes.policy.grippers.table import GRIPPER_SINKS
from sqap_vla_ros.nodes.policy.sinks.table import SINKS
from sqap_vla_ros.resources import share_path


def values(**changes):
    return {**parameters.defaults(), **changes}


def quoted(names):
    return ", ".join(map(repr, names))


def test_the_file_is_the_table():
    text = share_path("config/policy.yaml").read_text()
    assert text == parameters.as_yaml(), "run: python -m sqap_vla_ros.nodes.policy.parameters > config/policy.yaml"
    loaded = yaml.safe_load(text)["/**"]["ros__parameters"]
    assert loaded == parameters.defaults()
    # A whole number in YAML would be refused for a floating point parameter.
    assert {n: type(v) for n, v in loaded.items()} == {n: type(v) for n, v in parameters.defaults().items()}


def test_the_defaults_are_valid_and_harmless():
    assert configuration.problems(parameters.defaults()) == []
    assert parameters.defaults()["dry_run"] is True


def test_names_of_frames_lose_the_slash_of_ros_1():
    given = values(base_frame="/base_link", tool_frame="/left/tool0", robot_description="/not a frame")
    node = SimpleNamespace(get_parameter=lambda name: SimpleNamespace(value=given[name]))
    read = configuration.read(node)
    assert (read["base_frame"], read["tool_frame"]) == ("base_link", "left/tool0")
    assert read["robot_description"] == "/not a frame"


def test_every_description_says_something():
    for parameter in parameters.PARAMETERS:
        assert len(parameter.description) > 10, parameter.name
        assert parameter.description.endswith("."), parameter.name
    assert len({p.name for p in parameters.PARAMETERS}) == len(parameters.PARAMETERS)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"output_mode": "torque"}, f"output_mode must be one of {quoted(SINKS)}, got 'torque'"),
        ({"gripper_output": "magnet"}, f"gripper_output must be one of {quoted(GRIPPER_SINKS)}, got 'magnet'"),
        ({"command_rate": 1.0}, "command_rate must be at least 5, got 1"),
        ({"command_rate": float("nan")}, "command_rate must be finite, got nan"),
        ({"task_deadline_s": 0.0}, "task_deadline_s must be above 0, got 0"),
        ({"gripper_open_above": 1.5}, "gripper_open_above must be at most 1, got 1.5"),
        ({"workspace_min_m": [0.0, 0.0]}, r"workspace_min_m must have 3 values, got [0.0, 0.0]"),
        ({"workspace_min_m": [0.0, 0.7, 0.0]}, "workspace_min_m must be below workspace_max_m in every axis"),
        ({"max_lead_m": 0.2}, "max_lead_m must not exceed max_tracking_m, got 0.2 and 0.1"),
        ({"training_camera": [640.0, 480.0, 0.0, 600.0, 320.0, 240.0]}, "training_camera: a camera needs positive"),
        ({"base_frame": "/"}, "base_frame must name a frame of TF, got '/'"),
        (
            {"gripper_action": "hand/gripper cmd"},
            "gripper_action must be a name as topics have, got 'hand/gripper cmd'",
        ),
        ({"gripper_closed": 0.04}, "gripper_closed and gripper_open must differ, got 0.04 for both"),
        ({"gripper_output": "joint_trajectory"}, "gripper_output 'joint_trajectory' needs gripper_joint"),
        (
            {"gripper_output": "joint_trajectory", "gripper_joint": "jaw", "output_mode": "pose"},
            "gripper_output 'joint_trajectory' needs output_mode 'joint', got 'pose'",
        ),
        ({"gripper_close_below": 0.7}, "gripper_close_below must not exceed gripper_open_above, got 0.7 and 0.6"),
    ],
)
def test_a_wrong_value_is_named(changes, text):
    (problem,) = configuration.problems(values(**changes))
    assert text in problem


def test_every_value_reaches_its_configuration():
    changed = values(replan="horizon", execution_horizon=3, max_open_loop_s=1.5, blend_s=0.7, joint_margin=0.3, seed=4)
    assert configuration.executive_config(changed).replan == "horizon"
    assert configuration.motion_config(changed).execution_horizon == 3
    assert configuration.motion_config(changed).max_open_loop_s == 1.5
    assert configuration.motion_config(changed).blend_s == 0.7
    assert configuration.safety_limits(changed).joint_margin == 0.3
    assert configuration.safety_limits(changed).workspace_max_m == tuple(changed["workspace_max_m"])
    assert configuration.worker_config(changed).seed == 4
    assert configuration.image_gate_config(values(image_timeout_s=3.0)).timeout_s == 3.0


def test_no_parameter_is_unused():
    """Every parameter fills a configuration, or its name is read somewhere in the node, outside the table."""
    folder = share_path("sqap_vla_ros/nodes/policy")
    readers = "".join(path.read_text() for path in folder.glob("*.py") if path.name != "parameters.py")
    unused = [p.name for p in parameters.PARAMETERS if p.config is None and f'"{p.name}"' not in readers]
    assert unused == []


def test_no_default_stands_twice():
    """A parameter that fills a configuration takes its default from there, and any other has no second one there."""
    configs = {p.config for p in parameters.PARAMETERS if p.config is not None}
    fields = {f.name: (c, f) for c in configs for f in dataclasses.fields(c) if f.default is not dataclasses.MISSING}
    for p in parameters.PARAMETERS:
        if p.config is None:
            # A worker by itself runs a checkpoint as it is; the node compresses it.
            assert p.name not in fields or p.name == "recipe", f"{p.name} has a default in {fields[p.name][0]} too"
        else:
            (default,) = (f.default for f in dataclasses.fields(p.config) if f.name == p.field)
            assert p.default == (list(default) if isinstance(default, tuple) else default), p.name
    names = ("parameters", "safety_parameters", "grippers/parameters")
    tables = [share_path(f"sqap_vla_ros/nodes/policy/{name}.py") for name in names]
    nodes = [node for table in tables for node in ast.walk(ast.parse(table.read_text()))]
    rows = [n for n in nodes if isinstance(n, ast.Call) and ast.unparse(n.func) == "Parameter.of"]
    assert len(rows) == sum(p.config is not None for p in parameters.PARAMETERS)
    assert not [ast.unparse(row) for row in rows if any(k.arg == "default" for k in row.keywords)]


def test_every_field_with_a_default_is_filled_by_a_parameter_or_by_nothing_else():
    """A configuration's field is filled by one parameter at most."""
    filled = [(p.config, p.field) for p in parameters.PARAMETERS if p.config is not None]
    assert len(filled) == len(set(filled))


def test_the_node_imports_no_torch():
    code = "import sys, sqap_vla_ros.nodes.policy.node; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
