"""Parameter files that people write: every name and type is compared with the node's own."""

from pathlib import Path

import pytest

from sqap_vla_ros.nodes.launch.params_files import check_params_file
from sqap_vla_ros.nodes.launch.table import BRINGUPS, resolve
from sqap_vla_ros.resources import share_path

SHIPPED = share_path("config/policy.yaml")


def check(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    check_params_file(path, "policy_node", SHIPPED)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("speed_scal: 0.1", "there is no parameter speed_scal, did you mean speed_scale?"),
        ('max_joint_velocity: "0.3"', "max_joint_velocity must be a number, got '0.3'"),
        ("max_joint_velocity: fast", "max_joint_velocity must be a number, got 'fast'"),
        ("max_joint_velocity: 2", "max_joint_velocity must be written with a decimal point, 2.0, got 2"),
        ("max_joint_velocity: true", "max_joint_velocity must be a number, got True"),
        ("max_joint_velocity:", "max_joint_velocity must be a number, got None"),
        ("workspace_min_m: [0, -0.45, 0.15]", "workspace_min_m must be written with a decimal point, 0.0, got 0"),
        ("workspace_min_m: 0.1", "workspace_min_m must be a list of numbers, got 0.1"),
        ("tool_frame: 7", "tool_frame must be text, got 7"),
        ('dry_run: "true"', "dry_run must be true or false, got 'true'"),
        ("threads: 1.0", "threads must be a whole number, got 1.0"),
        ('use_sim_time: "yes"', "use_sim_time must be true or false, got 'yes'"),
        ("use_sim_tim: true", "there is no parameter use_sim_tim, did you mean use_sim_time?"),
    ],
)
@pytest.mark.parametrize("section", ["/**", "policy_node", "/left/policy_node"])
def test_what_ros_would_ignore_is_refused(line, text, section, tmp_path):
    with pytest.raises(ValueError, match=r"mine\.yaml") as caught:
        check(tmp_path, f"{section}:\n  ros__parameters:\n    {line}\n")
    assert text in str(caught.value)


def test_every_fault_is_named_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"base_fram.*; .*hold_s"):
        check(tmp_path, "left:\n  policy_node:\n    ros__parameters: {base_fram: base, hold_s_: 1.0}\n")


@pytest.mark.parametrize(
    "text",
    [
        "/**:\n  ros__parameters: {max_joint_velocity: 1e-1, use_sim_time: true, workspace_min_m: [1e-1, .2, 0.0]}\n",
        "policy_node:\n  ros__parameters: {threads: 2}\nother_node:\n  ros__parameters: {what_it_likes: [a, b]}\n",
        "/**:\n  ros__parameters: {qos_overrides./tf.subscription.depth: 5}\n",
        "/**:\n  ros__parameters: {}\n",
    ],
)
def test_what_ros_takes_passes(text, tmp_path):
    check(tmp_path, text)


@pytest.mark.parametrize("text", ["", "policy:\n  ros__parameters: {threads: 2}\n", "threads: 2\n", "- 1\n"])
def test_a_file_without_a_section_for_the_node_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match=r"has no parameters for policy_node: they stand under '/\*\*'"):
        check(tmp_path, text)


@pytest.mark.parametrize("argument", ["robot", "params_file"])
def test_a_launch_with_such_a_file_does_not_begin(argument, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("/**:\n  ros__parameters: {speed_scal: 0.1}\n")
    with pytest.raises(ValueError, match="did you mean speed_scale"):
        resolve(BRINGUPS["policy"], {argument: str(path)})
