"""The parameter table, the file written from it and the configurations made of it."""

import dataclasses
import subprocess
import sys

import pytest
import yaml

from sqap_vla_ros.control.executive import ExecutiveConfig
from sqap_vla_ros.control.motion import MotionConfig
from sqap_vla_ros.nodes.policy import parameters
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.safety import SafetyLimits


def values(**changes):
    return {**parameters.defaults(), **changes}


def test_the_file_is_the_table():
    text = share_path("config/policy.yaml").read_text()
    assert text == parameters.as_yaml(), "run: python -m sqap_vla_ros.nodes.policy.parameters > config/policy.yaml"
    loaded = yaml.safe_load(text)["/**"]["ros__parameters"]
    assert loaded == parameters.defaults()
    # A whole number in YAML would be refused for a floating point parameter.
    assert {n: type(v) for n, v in loaded.items()} == {n: type(v) for n, v in parameters.defaults().items()}


def test_the_defaults_are_valid_and_harmless():
    assert parameters.problems(parameters.defaults()) == []
    assert parameters.defaults()["dry_run"] is True


def test_every_description_says_something():
    for parameter in parameters.PARAMETERS:
        assert len(parameter.description) > 10, parameter.name
        assert parameter.description.endswith("."), parameter.name
    assert len({p.name for p in parameters.PARAMETERS}) == len(parameters.PARAMETERS)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"output_mode": "torque"}, "output_mode must be one of 'joint', 'pose', 'twist', got 'torque'"),
        ({"command_rate": 1.0}, "command_rate must be at least 5, got 1"),
        ({"command_rate": float("nan")}, "command_rate must be finite, got nan"),
        ({"task_deadline_s": 0.0}, "task_deadline_s must be above 0, got 0"),
        ({"gripper_open_above": 1.5}, "gripper_open_above must be at most 1, got 1.5"),
        ({"workspace_min_m": [0.0, 0.0]}, r"workspace_min_m must have 3 values, got [0.0, 0.0]"),
        ({"workspace_min_m": [0.0, 0.7, 0.0]}, "workspace_min_m must be below workspace_max_m in every axis"),
        ({"max_lead_m": 0.2}, "max_lead_m must not exceed max_tracking_m, got 0.2 and 0.1"),
        ({"training_camera": [640.0, 480.0, 0.0, 600.0, 320.0, 240.0]}, "training_camera: a camera needs positive"),
        ({"gripper_close_below": 0.7}, "gripper_close_below must not exceed gripper_open_above, got 0.7 and 0.6"),
    ],
)
def test_a_wrong_value_is_named(changes, text):
    (problem,) = parameters.problems(values(**changes))
    assert text in problem


def test_every_value_reaches_its_configuration():
    changed = values(replan="horizon", execution_horizon=3, max_open_loop_s=1.5, blend_s=0.7, joint_margin=0.3, seed=4)
    assert parameters.executive_config(changed).replan == "horizon"
    assert parameters.motion_config(changed).execution_horizon == 3
    assert parameters.motion_config(changed).max_open_loop_s == 1.5
    assert parameters.motion_config(changed).blend_s == 0.7
    assert parameters.safety_limits(changed).joint_margin == 0.3
    assert parameters.safety_limits(changed).workspace_max_m == tuple(changed["workspace_max_m"])
    assert parameters.worker_config(changed).seed == 4
    assert parameters.image_gate_config(values(image_timeout_s=3.0)).timeout_s == 3.0


def test_no_parameter_is_unused():
    """Every name of the table is read somewhere in the nodes, outside the table."""
    folder = share_path("sqap_vla_ros/nodes/policy")
    source = "".join(path.read_text() for path in folder.glob("*.py") if path.name != "parameters.py")
    table = (folder / "parameters.py").read_text()
    readers = source + table[table.index("def worker_config") :]
    by_field = {f.name for kind in (ExecutiveConfig, MotionConfig, SafetyLimits) for f in dataclasses.fields(kind)}
    unused = [name for name in parameters.defaults() if f'"{name}"' not in readers and name not in by_field]
    assert unused == []


def test_the_node_imports_no_torch():
    code = "import sys, sqap_vla_ros.nodes.policy.node; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
