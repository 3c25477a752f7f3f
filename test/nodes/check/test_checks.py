"""Faults that are planted in a healthy robot are found, by the check that is meant for them, with a remedy."""

import dataclasses

import numpy as np
import pytest
from planted.robot import (
    JOINTS,
    NOW_NS,
    OPTICAL,
    URDF,
    arm,
    arrivals,
    endpoint,
    frames,
    healthy,
    images,
    infos,
    joint_states,
    stamps,
    transforms,
    trial,
    values,
)

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.arm.tool_monitor import ToolSample
from sqap_vla_ros.nodes.check.finding import Level
from sqap_vla_ros.nodes.check.report import Report, examine
from sqap_vla_ros.nodes.check.snapshot import PolicyTrial
from sqap_vla_ros.nodes.check.table import CHECKS
from sqap_vla_ros.nodes.check.transform_watch import Origin

CAMERA, ARM = stamps(10.0), stamps(60.0, age_s=0.001)


def publishers(**added):
    found = dict(healthy().publishers)
    for topic, extra in added.items():
        found[f"/{topic}"] = (extra,)
    return {"publishers": found}


def other_stamps(messages):
    for message in messages:
        message.header.stamp.nanosec = (message.header.stamp.nanosec + 7_000_000) % NS_PER_S
    return messages


def moved(metres):
    pose = arm().forward(JOINTS)
    pose[0, 3] += metres
    return pose


def tools(poses, *, behind_s=0.001):
    return tuple(
        (ToolSample(pose, a.now_ns - round(behind_s * NS_PER_S)), a.now_ns) for pose, a in zip(poses, ARM, strict=False)
    )


def parted(arm_stamps, gripper_stamps):
    """Joint states of arm and gripper from publishers of their own."""
    pairs = [*joint_states(arm_stamps), *joint_states(gripper_stamps, [0.1], ["finger"])]
    return tuple(sorted(pairs, key=lambda pair: pair[1].now_ns))


def twice_the_last_joint():
    pairs = [*joint_states(ARM), *joint_states(ARM, JOINTS[6:], arm().joint_names[6:])]
    return tuple(sorted(pairs, key=lambda pair: pair[1].now_ns))


def subscribers(**changed):
    return {"subscribers": healthy().subscribers | {f"/{topic}": found for topic, found in changed.items()}}


def controller(**parameters):
    return {"controllers": {"/controller": {"joints": list(arm().joint_names)} | parameters}}


def gripper_server(output, kind):
    return {
        "values": values(gripper_output=output),
        "gripper_action": "/gripper_cmd",
        "actions": {"/gripper_cmd": (f"control_msgs/action/{kind}",)},
    }


def finger_at(position, **changed):
    """The gripper's joint at a position beside the arm's joints; without limits unless FINGER is the description."""
    names = [*arm().joint_names, "finger"]
    return {
        "joint_states": joint_states(ARM, [*JOINTS, position], names),
        "values": values(gripper_joint="finger", **changed),
    }


def leaping(*steps):
    stamps_ns = range(NOW_NS - 3 * NS_PER_S, NOW_NS + 1, NS_PER_S // 100)
    return {"buffer": transforms(leaps=steps), "frames": frames(stamps_ns=stamps_ns)}


def outside():
    joints = JOINTS.copy()
    joints[1] = arm().upper[1] + 0.2
    return {"joint_states": joint_states(ARM, joints)}


FINGER = URDF.replace(
    "</robot>",
    '<link name="finger_link"/><joint name="finger" type="prismatic"><parent link="tool0"/><child link="finger_link"/>'
    '<axis xyz="0 1 0"/><limit lower="0.0" upper="0.04" effort="10" velocity="0.1"/></joint></robot>',
)
TWO_NORMALISED = [0.9, 0.0, 0.5, 0.0, 0.9, 0.5, 0.0, 0.0, 1.0]
TRANSPOSED = [142.0, 0.0, 0.0, 0.0, 142.0, 0.0, 79.5, 59.5, 1.0]
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"
LISTENS = endpoint("controller", TRAJECTORY)

# name -> (check that finds it, part of its text, the snapshot's fields)
FAULTS: dict[str, tuple] = {
    "no image": ("rates", "/image: no message", {"arrivals": arrivals(image=()), "images": ()}),
    "image pauses": ("rates", "longest gap", {"arrivals": arrivals(image=CAMERA[:5] + CAMERA[25:])}),
    "stamps repeat": ("rates", "repeat", {"joint_states": joint_states([a for a in ARM for _ in "12"])}),
    "one joint from two drivers": ("rates", "/joint_states (joint7): 120", {"joint_states": twice_the_last_joint()}),
    "latched TF not latched": ("qos", "volatile", publishers(tf_static=endpoint("driver", "tf2_msgs/msg/TFMessage"))),
    "compressed on image": (
        "qos",
        "CompressedImage",
        publishers(image=endpoint("c", "sensor_msgs/msg/CompressedImage")),
    ),
    "normalised camera matrix": ("camera_info", "must be in pixels", {"infos": infos(CAMERA, k=TWO_NORMALISED)}),
    "transposed camera matrix": ("camera_info", "column by column", {"infos": infos(CAMERA, k=TRANSPOSED)}),
    "uncalibrated camera": ("camera_info", "uncalibrated", {"infos": infos(CAMERA, k=[0.0] * 9)}),
    "camera_info of another size": ("camera_info", "160x120", {"infos": infos(CAMERA, width=640, height=480)}),
    "camera_info with other stamps": ("camera_info", "7.000 ms", {"infos": other_stamps(infos(CAMERA))}),
    "another camera than in training": (
        "camera_info",
        "trained with",
        {"values": values(training_camera=[160.0, 120.0, 60.0, 60.0, 80.0, 60.0])},
    ),
    "black image": ("image", "black", {"images": images(CAMERA, np.zeros((120, 160, 3), np.uint8))}),
    "white image": (
        "image",
        "one colour (255, 255, 255)",
        {"images": images(CAMERA, np.full((120, 160, 3), 255, np.uint8))},
    ),
    "no transform to the camera": ("transforms", "camera_optical_frame", {"buffer": transforms(camera=False)}),
    "wrong tool_frame": ("transforms", "flange", {"values": values(tool_frame="flange")}),
    "TF half a second late": ("clocks", "tf: images wait 483 ms", {"tools": tools([moved(0)] * 180, behind_s=0.5)}),
    "stale TF": ("transforms", "stale", {"tools": tools([moved(0)] * 180, behind_s=2.0)}),
    "two publishers of TF": ("transforms", "jumped", {"tools": tools([moved(0.3 * (i % 2)) for i in range(180)])}),
    "frame in two parents": (
        "transforms",
        "tool0 is in base_link by /rsp (moving), and in world by /other (moving)",
        {"frames": frames(origins={"tool0": (Origin("/rsp", "base_link"), Origin("/other", "world"))})},
    ),
    "static frame that moves": (
        "transforms",
        "camera_optical_frame is in base_link by /a (static), and in base_link by /b (moving)",
        {"frames": frames(origins={OPTICAL: (Origin("/a", "base_link", static=True), Origin("/b", "base_link"))})},
    ),
    "no robot_description": ("robot_description", "no robot_description", {"description": None}),
    "limits swapped": (
        "robot_description",
        "swapped",
        {"description": URDF.replace('lower="-2.8973" upper="2.8973"', 'lower="2.8973" upper="-2.8973"', 1)},
    ),
    "joint outside its limits": ("robot_description", "outside its limits", outside()),
    "a joint is missing": (
        "joint_states",
        "lack joint7",
        {"joint_states": joint_states(ARM, JOINTS[:6], arm().joint_names[:6])},
    ),
    "TF of another arm": ("kinematics", "apart", {"buffer": transforms(base_from_tool=moved(0.2))}),
    "tool outside the workspace": (
        "workspace",
        "outside the workspace",
        {"values": values(workspace_min_m=[5.0, -1.0, 0.0], workspace_max_m=[6.0, 1.0, 1.0])},
    ),
    "teleoperation commands too": (
        "commanders",
        "/teleop publishes on /joint_trajectory",
        publishers(joint_trajectory=endpoint("teleop", TRAJECTORY)),
    ),
    "controller wants latched commands": (
        "listeners",
        "hears no command: Volatile publisher and transient local subscription",
        subscribers(joint_trajectory=(endpoint("controller", TRAJECTORY, latched=True),)),
    ),
    "joints of another name": (
        "joint_states",
        "those that come are of ur_1, ur_2",
        {"joint_states": joint_states(ARM, [0.0, 0.0], ["ur_1", "ur_2"])},
    ),
    "no controller": ("listeners", "nobody listens to /joint_trajectory", subscribers(joint_trajectory=())),
    "controller of another type": (
        "listeners",
        "is listened to as",
        subscribers(gripper_command=(endpoint("g", "control_msgs/msg/DynamicJointState"),)),
    ),
    "controller has a joint more": ("controller", "refuses", controller(joints=[*arm().joint_names, "finger"])),
    "controller of another arm": ("controller", "has no joint", controller(joints=["left_1"])),
    "two controllers": (
        "listeners",
        "/joint_trajectory is obeyed by 2 controllers: /controller, /simulation",
        subscribers(joint_trajectory=(LISTENS, endpoint("simulation", TRAJECTORY)))
        | {"controllers": {name: {"joints": list(arm().joint_names)} for name in ("/controller", "/simulation")}},
    ),
    "gripper's joint is none of the controller's": (
        "controller",
        "has no joint finger",
        {"values": values(gripper_output="joint_trajectory", gripper_joint="finger")},
    ),
    "gripper's joint is not measured": (
        "joint_states",
        "no gripper_joint finger, so that no trajectory can",
        {"values": values(gripper_output="joint_trajectory", gripper_joint="finger")},
    ),
    "Servo scales twists": ("controller", "scales every command", controller(command_in_type="unitless")),
    "gripper joint of the arm": (
        "gripper",
        "is a joint of the arm",
        {"values": values(gripper_joint=arm().joint_names[2])},
    ),
    "no gripper server": (
        "gripper",
        "no action server",
        {"values": values(gripper_output="gripper_command"), "gripper_action": "/gripper_cmd"},
    ),
    "gripper server of another type": (
        "gripper",
        "but /gripper_cmd is control_msgs/action/ParallelGripperCommand",
        gripper_server("gripper_command", "ParallelGripperCommand"),
    ),
    "gripper with two servers": (
        "gripper",
        "has 2 servers: /driver, /other",
        gripper_server("gripper_command", "GripperCommand") | {"gripper_servers": ("/driver", "/other")},
    ),
    "gripper's joint in millimetres": ("gripper", "finger at 40 m, it is sent to 0 to 0.04 m", finger_at(40.0)),
    "gripper is sent degrees": (
        "gripper",
        "finger at 0 rad, it is sent to 46 to 85 rad",
        finger_at(0.0, gripper_closed=46.0, gripper_open=85.0, gripper_unit="rad"),
    ),
    "gripper's joint outside its limits": ("gripper", "finger at 0.07 m", finger_at(0.07) | {"description": FINGER}),
    "gripper is sent beyond its joint's limits": (
        "gripper",
        "gripper_closed is -0.3 m, outside the limits of finger",
        finger_at(0.01, gripper_closed=-0.3) | {"description": FINGER},
    ),
    "joint states at 5 Hz": (
        "rates",
        "/joint_states at 5 Hz: too slow",
        {"joint_states": joint_states(stamps(5.0, age_s=0.001))},
    ),
    "camera_info of every fifth image": (
        "rates",
        "21% of the images have a camera_info",
        {"arrivals": arrivals(camera_info=CAMERA[4::5])},
    ),
    "TF leaps in one of forty": (
        "transforms",
        "in 7 of 301 transforms the tool leaps, by up to 200 mm",
        leaping(*range(20, 300, 40)),
    ),
    "posture in degrees": (
        "robot_description",
        "joint_posture is outside the joints' limits (radians, or metres): 40 for joint2 (-1.763 to 1.763)",
        {"values": values(joint_posture=[0.0, 40.0, 0.0, -2.0, 0.0, 2.3, 0.0])},
    ),
    "stop is set": ("safety_stop", "safety_stop is set", {"safety_stop": "safety_stop is set by /button"}),
    "policy does not load": ("policy", "no such file", {"trial": PolicyTrial("no such file /models/cogact")}),
    "policy is too slow": ("latency", "over before it comes", {"trial": trial(3.5)}),
}


def failures(snapshot):
    return {(row.check, row.finding.text) for row in examine(snapshot, CHECKS) if row.finding.level is Level.FAIL}


def test_a_healthy_robot_may_move():
    rows = examine(healthy(), CHECKS)
    assert Report(rows).go
    assert [row for row in rows if row.finding.level in (Level.FAIL, Level.SKIPPED)] == []
    assert {row.check for row in rows} == {check.name for check in CHECKS}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault):
    check, text, fields = FAULTS[fault]
    rows = examine(healthy(**fields), CHECKS)
    found = [row.finding for row in rows if row.check == check and row.finding.level is Level.FAIL]
    assert any(text in finding.text for finding in found), rows
    assert all(row.finding.remedy for row in rows if row.finding.level in (Level.FAIL, Level.WARNING))
    assert not Report(rows).go


@pytest.mark.parametrize(
    ("check", "fields"),
    [
        ("controller", controller(interpolate_from_desired_state=False)),
        ("latency", {"trial": trial(1.7)}),
        ("kinematics", {"buffer": transforms(base_from_tool=moved(0.01))}),
        ("listeners", subscribers(joint_trajectory=(LISTENS, endpoint("r", TRAJECTORY, latched=True)))),
        ("gripper", {"values": values(gripper_open=85.0)}),
        ("gripper", {"values": values(gripper_open=85.0, gripper_unit="rad")}),
        ("gripper", finger_at(0.1)),
        ("rates", {"joint_states": joint_states(stamps(15.0, age_s=0.001))}),
        ("rates", {"arrivals": arrivals(camera_info=CAMERA[:10] + CAMERA[14:])}),
        ("transforms", leaping(50)),
        ("transforms", {"frames": frames(origins={"tool0": (Origin("/rsp", "base_link"), Origin("/b", "base_link"))})}),
        ("robot_description", {"description": URDF.replace('velocity="2.175"', 'velocity="0.01"')}),
        ("robot_description", {"description": URDF.replace('velocity="2.175"', 'velocity="1000"')}),
        ("listeners", subscribers(joint_trajectory=(LISTENS, endpoint("recorder", TRAJECTORY)))),
        (
            "controller",
            finger_at(0.01, gripper_output="joint_trajectory") | {"controllers": {"/controller": None}},
        ),
    ],
)
def test_what_is_only_unwise_is_a_warning(check, fields):
    rows = examine(healthy(**fields), CHECKS)
    assert Level.WARNING in {row.finding.level for row in rows if row.check == check}
    assert Report(rows).go


def test_the_policy_node_itself_may_command():
    rows = examine(healthy(**publishers(joint_trajectory=endpoint("policy_node", TRAJECTORY))), CHECKS)
    assert [row for row in rows if row.finding.level is Level.FAIL] == []
    assert "/joint_trajectory: nobody but /policy_node, which runs" in {row.finding.text for row in rows}


@pytest.mark.parametrize("gripper_s", [0.001, 1000.0, None], ids=["one stamp", "old stamps", "zero"])
def test_arm_and_gripper_may_speak_in_turn(gripper_s):
    zero = gripper_s is None
    beside = [dataclasses.replace(a, stamp_ns=0) for a in ARM] if zero else stamps(60.0, age_s=gripper_s)
    rows = examine(healthy(joint_states=parted(ARM, beside)), CHECKS)
    assert [row for row in rows if row.finding.level is Level.FAIL] == []
    assert [row.finding.text[:29] for row in rows if row.check == "rates"][2:] == ["/joint_states: 60.0 Hz, longe"]


def test_an_arm_that_is_slower_than_its_gripper_is_found():
    slow = stamps(1.0, age_s=0.001)
    found = failures(healthy(joint_states=parted(slow, ARM)))
    assert [text for check, text in found if check == "rates" and "longest gap 1000 ms" in text]


@pytest.mark.parametrize(
    ("fields", "check", "text"),
    [
        (
            {"buffer": transforms(until_ns=NOW_NS - 10**9)},
            "transforms",
            "tool0 on /tf published more often",
        ),
        ({"buffer": transforms(camera=False)}, "transforms", "/tf_static (hand-eye calibration)"),
        (
            {"description": None} | publishers(robot_description=endpoint("rsp", "std_msgs/msg/String")),
            "robot_description",
            "/rsp publishes it volatile",
        ),
        ({"values": values(joint_posture=[0.0, 0.0])}, "robot_description", "correct joint_posture"),
        (
            {"trial": PolicyTrial("cannot be reached"), "values": values(checkpoint="ws://127.0.0.1:1")},
            "policy",
            "start `sqap-vla serve` there",
        ),
    ],
)
def test_the_remedy_is_that_of_the_fault(fields, check, text):
    rows = examine(healthy(**fields), CHECKS)
    found = [row.finding.remedy for row in rows if row.check == check and row.finding.level is Level.FAIL]
    assert [remedy for remedy in found if text in remedy]


@pytest.mark.parametrize("behind_s", [0.001, 0.2])
def test_transforms_that_come_within_the_nodes_patience_are_a_go(behind_s):
    assert failures(healthy(tools=tools([moved(0)] * 180, behind_s=behind_s))) == set()


@pytest.mark.parametrize(
    ("output", "kind"),
    [("gripper_command", "GripperCommand"), ("parallel_gripper_command", "ParallelGripperCommand")],
)
def test_a_gripper_server_is_judged_by_its_type(output, kind):
    right = [row.finding for row in examine(healthy(**gripper_server(output, kind)), CHECKS) if row.check == "gripper"]
    assert [finding.level for finding in right] == [Level.OK]
    other = next(name for name in ("gripper_command", "parallel_gripper_command") if name != output)
    wrong = [row.finding for row in examine(healthy(**gripper_server(other, kind)), CHECKS) if row.check == "gripper"]
    assert [finding.remedy for finding in wrong] == [f"gripper_output:={output}"]


def test_gripper_positions_at_the_ends_of_its_joint_pass():
    ends = {"values": values(gripper_closed=0.0, gripper_open=0.0404, gripper_joint="finger"), "description": FINGER}
    levels = {row.finding.level for row in examine(healthy(**ends), CHECKS) if row.check == "gripper"}
    assert levels == {Level.OK}


def test_every_check_ends_without_anything():
    nothing = healthy(
        arrivals={}, images=(), infos=(), joint_states=(), tools=(), description=None, publishers={}, subscribers={},
        kinds={}, controllers={}, trial=None, buffer=type(healthy().buffer)(), now_ns=NOW_NS,
    )  # fmt: skip
    assert {check for check, _ in failures(nothing)} >= {"rates", "qos", "transforms", "listeners"}
