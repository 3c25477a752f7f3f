"""Robot files as launch arguments: what they set, who has the last word, and what is refused."""

import pytest

from sqap_vla_ros.nodes.launch.table import BRINGUPS, resolve
from sqap_vla_ros.resources import share_path


def policy(**given: str):
    return resolve(BRINGUPS["policy"], given)[0]


ROBOT = """
/**:
  ros__parameters: {base_frame: base, workspace_max_m: [0.5, 0.4, 0.3]}
/launch:
  ros__parameters: {joint_trajectory: /arm/joint_trajectory, image: /front/image}
"""


def test_a_robot_file_sets_parameters_and_topics_and_arguments_have_the_last_word(tmp_path):
    file, own = tmp_path / "mine.yaml", tmp_path / "own.yaml"
    file.write_text(ROBOT)
    own.write_text("/**:\n  ros__parameters: {base_frame: other}\n")
    command = policy(robot=str(file), image="/cam/image")
    assert command.params_files == (share_path("config/policy.yaml"), file)
    topics = dict(command.remappings)
    assert (topics["joint_trajectory"], topics["image"]) == ("/arm/joint_trajectory", "/cam/image")
    assert policy(robot=str(file), params_file=str(own)).params_files == (file, own)


@pytest.mark.parametrize(
    ("written", "dry_run"), [("false", False), ("true", True), ("no", False), ("on", True), ("'false'", False)]
)
def test_values_of_a_robot_file_are_arguments_as_they_are_typed(tmp_path, written, dry_run):
    file = tmp_path / "mine.yaml"
    launch = f"{{dry_run: {written}, gripper_open: 1, speed_scale: 1.0e-1, namespace: seven}}"
    file.write_text(f"/**:\n  ros__parameters: {{}}\n/launch:\n  ros__parameters: {launch}\n")
    command = policy(robot=str(file))
    given = {name: command.parameters[name] for name in ("dry_run", "gripper_open", "speed_scale")}
    assert (given, command.namespace) == ({"dry_run": dry_run, "gripper_open": 1.0, "speed_scale": 0.1}, "seven")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, FileNotFoundError, r"robot:=.*mine\.yaml: there is no such file, and the robots that ship are \["),
        ("base_frame: base", ValueError, r"mine\.yaml is no robot file: it needs the section '/\*\*'"),
        ("{", ValueError, r"mine\.yaml is not valid YAML"),
        (ROBOT.replace("image: /front/image", "image:"), ValueError, r"image of '/launch' must be text, .*got None"),
        (ROBOT.replace("/front/image", "[a, 1]"), ValueError, r"image of '/launch' must be text, .*got \['a', 1\]"),
        (ROBOT.replace("base_frame: base", "base_frame: a, base_frame: b"), ValueError, "base_frame is given twice"),
        (ROBOT.replace("image:", "picture:"), ValueError, r"mine\.yaml: policy has no argument picture"),
    ],
)
def test_what_is_wrong_with_a_robot_file_is_named(tmp_path, text, error, message):
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(error, match=message):
        policy(robot=str(file))
