"""Which features of a LeRobot dataset are read, by what their elements are called."""

import pytest

from sqap_vla_ros.recordings.lerobot.dataset import DatasetFrames
from sqap_vla_ros.recordings.lerobot.layout import Feature, Layout
from sqap_vla_ros.recordings.lerobot.spec import DatasetSpec, choose

JOINTS = tuple(f"joint_{number}" for number in range(1, 7))
MOTORS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "forearm_roll", "wrist_flex", "wrist_roll", "gripper")


def layout(tmp_path, names, key="action", shape=(7,)):
    camera = Feature("observation.images.top", "video", (32, 32, 3), ())
    action = Feature(key, "float32", shape, tuple(names))
    return Layout(tmp_path, "v3.0", 5.0, {camera.key: camera, key: action}, {0: "push"}, ())


@pytest.mark.parametrize(
    "names",
    [
        (*JOINTS, "gripper"),
        [f"{name}.pos" for name in MOTORS],
        [f"main_{name}" for name in MOTORS],
        [f"motor_{number}" for number in range(7)],
        ("x", "y", "z", "qx", "qy", "qz", "qw"),
        ("x.vel", "y.vel", "theta.vel", "a", "b", "c", "d"),
    ],
    ids=["joints", "positions of motors", "motors", "numbered motors", "a pose", "velocities of a base"],
)
def test_actions_that_are_no_motion_of_the_tool_are_not_compared(tmp_path, names):
    found = choose(layout(tmp_path, names), DatasetSpec())
    assert found.action is None
    assert f"float32 7: {', '.join(names)}] names no motion of the tool: say --action-key action if" in found.no_action
    asked = choose(layout(tmp_path, names), DatasetSpec(action_key="action"))
    assert (asked.action.key, asked.no_action) == ("action", "")


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("actions",),
        [f"action_{number}" for number in range(7)],
        [f"dim{number}" for number in range(7)],
        [str(number) for number in range(7)],
        ("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
        ("x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper"),
        ("X", "Y", "Z", "RX", "RY", "RZ", "open"),
        ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"),
        ("delta_x", "delta_y", "delta_z", "delta_roll", "delta_pitch", "delta_yaw", "gripper"),
        [f"ee.{name}" for name in ("x", "y", "z", "wx", "wy", "wz", "gripper_pos")],
        ("eef_pos_x", "eef_pos_y", "eef_pos_z", "rot_x", "rot_y", "rot_z", "gripper"),
    ],
)
def test_actions_without_names_or_with_those_of_a_motion_are_compared(tmp_path, names):
    found = choose(layout(tmp_path, names), DatasetSpec())
    assert (found.action.key, found.no_action) == ("action", "")


def test_the_report_says_why_actions_are_not_compared(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow", reason="LeRobot datasets need pyarrow")
    from tiny_datasets import factory

    monkeypatch.setattr(factory, "ACTION", (*JOINTS, "gripper"))
    frames = DatasetFrames(factory.write_dataset(tmp_path / "joints"), DatasetSpec())
    assert "names no motion of the tool" in frames.sources["recorded actions"]
    assert next(iter(frames)).commanded is None
