"""The check over DDS, against the simulator: go, and no-go where somebody else commands."""

import argparse
import contextlib
import json
from types import SimpleNamespace

import cv2
import pytest
from planted.robot import healthy, trial
from rclpy.node import Node
from simulator_rig import Rig
from trajectory_msgs.msg import JointTrajectory

from sqap_vla_ros.cli import build_parser
from sqap_vla_ros.nodes.check import main as check_main
from sqap_vla_ros.nodes.check.main import main
from sqap_vla_ros.nodes.check.options import add_options
from sqap_vla_ros.nodes.check.table import CHECKS

ATTEMPTS = 5  # on a computer so busy that the streams have gaps, a no-go is right


@pytest.fixture(scope="module")
def rig():
    with Rig() as rig:
        rig.wait_until_connected()
        for topic in tuple(rig.publishers):  # nobody but the policy node may command
            rig.node.destroy_publisher(rig.publishers.pop(topic))
        yield rig


def check(capsys, tmp_path, *arguments):
    status = main(["--json", "--listen", "1.5", "--picture", str(tmp_path / "check.png"), *arguments])
    report = json.loads(capsys.readouterr().out)
    assert report["go"] == (status == 0)
    return status, report


def texts(report, check):
    return [finding["text"] for finding in report["findings"] if finding["check"] == check]


def failed(report):
    return {finding["check"] for finding in report["findings"] if finding["level"] == "fail"}


def test_a_healthy_simulator_is_a_go(rig, capsys, tmp_path):
    for _ in range(ATTEMPTS):
        status, report = check(capsys, tmp_path, "--without-policy")
        if status == 0:
            break
    assert failed(report) == set()
    assert status == 0
    assert texts(report, "listeners") == ["/joint_trajectory: /simulator", "/gripper_command: /simulator"]
    assert "interpolate_from_desired_state" in json.dumps(report)
    assert cv2.imread(str(tmp_path / "check.png")).shape == (240, 320, 3)


def test_findings_are_printed_before_the_policy_is_loaded(capsys, tmp_path, monkeypatch):
    """The slow part comes last, and its findings are appended."""
    before = []

    @contextlib.contextmanager
    def nowhere(_arguments):
        yield None, {}

    def loading(*_arguments, **_options):
        before.append(capsys.readouterr().out)
        return trial()

    listening = SimpleNamespace(collect=lambda _seconds: healthy(trial=None))
    monkeypatch.setattr(check_main, "standing_in", nowhere)
    monkeypatch.setattr(check_main, "Collector", lambda _node, _values: listening)
    monkeypatch.setattr(check_main, "try_policy", loading)
    assert main(["--picture", str(tmp_path / "check.png")]) == 0
    assert "ok   rates " in before[0]
    assert "ok   transforms " in before[0]
    assert "camera_info  " not in before[0]
    after = capsys.readouterr().out
    assert "ok   latency " in after
    assert "rates" not in after
    assert after.endswith("GO: 0 to mend, 1 to think about\n")
    assert main(["--json", "--picture", str(tmp_path / "check.png")]) == 0
    assert before[1] == ""
    assert list(dict.fromkeys(finding["check"] for finding in json.loads(capsys.readouterr().out)["findings"])) == [
        check.name for check in CHECKS
    ]


def test_another_commander_is_found(rig, capsys, tmp_path):
    publisher = rig.node.create_publisher(JointTrajectory, "joint_trajectory", 1)
    for _ in range(ATTEMPTS):
        status, report = check(capsys, tmp_path, "--without-policy")
        if "commanders" in failed(report):
            break
    rig.node.destroy_publisher(publisher)
    assert status == 1
    assert texts(report, "commanders")[0] == "/beside publishes on /joint_trajectory"


def test_the_arguments_are_those_of_the_launch_file(rig, capsys, tmp_path):
    arguments = ("robot:=ur5e", "namespace:=cell", "image:=/image", "--without-policy")
    status, report = check(capsys, tmp_path, *arguments)
    assert status == 1
    assert "/scaled_joint_trajectory_controller/joint_trajectory" in texts(report, "listeners")[0]
    assert "/robotiq_gripper_controller/gripper_cmd" in texts(report, "gripper")[0]
    rates = [text for text in texts(report, "rates") if not text.startswith("this computer is busy")]
    assert rates[1].startswith("/cell/camera_info: no message")


def test_a_picture_that_cannot_be_written_loses_no_finding(rig, capsys, tmp_path):
    for _ in range(ATTEMPTS):
        _, report = check(capsys, tmp_path, "--without-policy", "--picture", str(tmp_path / "no" / "check.png"))
        if texts(report, "picture"):
            break
    assert "there is no folder" in texts(report, "picture")[0]
    assert report["picture"] == ""
    assert texts(report, "listeners")


def test_it_only_reads(rig, capsys, tmp_path, monkeypatch):
    made = []
    for name in ("create_publisher", "create_client"):
        create = getattr(Node, name)
        monkeypatch.setattr(
            Node, name, lambda node, *a, _create=create, **k: made.append(a[1]) or _create(node, *a, **k)
        )
    for _ in range(ATTEMPTS):
        check(capsys, tmp_path, "--without-policy")
        if "/simulator/get_parameters" in made:
            break
    assert set(made) == {"/parameter_events", "/simulator/list_parameters", "/simulator/get_parameters"}


def test_sections_of_parameter_files_for_the_node_hold(rig, capsys, tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("policy_node:\n  ros__parameters:\n    tool_frame: flange\n")
    status, report = check(capsys, tmp_path, f"params_file:={file}", "--without-policy")
    assert status == 1
    assert "base_link <- flange" in texts(report, "transforms")[0]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("robot=ur5e",), "not of the form name:=value"),
        (("ur5e",), "did you mean robot:=ur5e?"),
        (("my_ur5e.yaml",), "robot:=my_ur5e.yaml is for a robot file"),
        (("robot:=no_such",), "no such file"),
        (("colour:=red",), "no argument colour"),
        (("params_file:=/no/such.yaml",), "no such file"),
        (("params_file:=/",), "this is a folder"),
        (("namespace:=a b",), "namespace:=a b: a namespace in ROS has parts of letters"),
        (("image:=/a-b",), "image:=/a-b: a topic's name"),
        (("image:=/1/2",), "image:=/1/2: a topic's name in ROS has parts of letters"),
        (("gripper_closed:=0.04",), "gripper_closed and gripper_open must differ"),
        (("--bag", "recording"), "are for --camera"),
        (("--clicks", "clicks.csv"), "are for --camera"),
    ],
)
def test_wrong_arguments_are_told(arguments, text, capsys):
    assert main(arguments) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ("other:\n  ros__parameters: {x: [0, 1.0]}\n", "2.0, not 2"),
        ("other: {x: 3}\n", "Cannot have a value before ros__parameters"),
    ],
)
def test_a_file_that_ros_cannot_read_is_told_in_a_sentence(section, text, capsys, tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(f"{section}policy_node:\n  ros__parameters: {{threads: 2}}\n")
    assert main([f"params_file:={file}"]) == 2
    said = capsys.readouterr().err
    assert text in said
    assert str(file) in said
    assert said.count("\n") == 1


def test_a_value_out_of_range_is_told_with_its_file(capsys, tmp_path):
    file = tmp_path / "my_robot.yaml"
    file.write_text("/**:\n  ros__parameters: {gripper_unit: mm, speed_scale: -2.0, command_rate: .nan}\n")
    assert main([f"robot:={file}", "speed_scale:=0.5"]) == 2
    said = capsys.readouterr().err
    assert "gripper_unit must be one of 'm', 'rad', got 'mm'" in said
    assert "command_rate must be finite, got nan" in said
    assert said.endswith(f" (command_rate, gripper_unit: {file})\n")


MIXED = ("--json", "robot:=ur5e", "--without-policy", "joint_states:=/x", "--listen", "1", "image:=/y")


@pytest.mark.parametrize("parse", [lambda: build_parser().parse_args(["check", *MIXED]), lambda: alone(MIXED)])
def test_arguments_may_stand_between_options(parse):
    found = parse()
    assert found.arguments == ["robot:=ur5e", "joint_states:=/x", "image:=/y"]
    assert (found.json, found.without_policy, found.listen) == (True, True, 1.0)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--point", "nan", "0", "0"], "--point: must be -10 to 10 metres, got nan"),
        (["--point", "30", "0", "0"], "--point: must be -10 to 10 metres, got 30"),
        (["--wait", "0"], "--wait: must be 0.5 to 86400 seconds, got 0"),
        (["--listen", "inf"], "--listen: must be 0.5 to 600 seconds, got inf"),
    ],
)
def test_numbers_are_bounded(words, text, capsys):
    with pytest.raises(SystemExit):
        alone(words)
    assert text in capsys.readouterr().err


def test_an_unknown_option_is_still_refused(capsys):
    with pytest.raises(SystemExit):
        alone(["robot:=ur5e", "--jsom", "image:=/y"])
    assert "unrecognized arguments: --jsom" in capsys.readouterr().err


def alone(words):
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args(words)
