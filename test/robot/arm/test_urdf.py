"""URDFs as they come: dialects that tinyxml2 takes, names used twice, limits that make no sense."""

import time

import numpy as np
import pytest

from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.arm.urdf import read_joints
from sqap_vla_ros.robot.kinematics import ArmKinematics, KinematicsError

LIMIT = '<limit lower="-2" upper="2" effort="10" velocity="1"/>'


ORIGIN = 'xyz="1 0 0"'
FAR = '<joint name="w" type="fixed"><origin xyz="{} 0 0"/><parent link="{}"/><child link="{}"/></joint>'
WORLD, LAMP = '<link name="world"/>', '<link name="lamp"/>' + FAR.format("1e300", "tool", "lamp")


def urdf(limit: str = LIMIT, *, extra: str = "", inside: str = "", attribute: str = "", kind: str = "revolute") -> str:
    """Two joints, j1 and j2; `limit` and `extra` are of j2, `inside` lies before the links."""
    return (
        f'<robot name="r"{attribute}>{inside}<link name="base"/><link name="l1"/><link name="tool"/>'
        f'<joint name="j1" type="revolute"><parent link="base"/><child link="l1"/><axis xyz="0 0 1"/>{LIMIT}</joint>'
        f'<joint name="j2" type="{kind}"><origin xyz="1 0 0"/><parent link="l1"/><child link="tool"/>'
        f'<axis xyz="0 1 0"/>{limit}{extra}</joint></robot>'
    )


BOMB = (
    '<?xml version="1.0"?>\n<!DOCTYPE lolz [<!ENTITY lol "lol">'
    + "".join(f'<!ENTITY lol{i} "{f"&lol{i - 1 or str()};" * 10}">' for i in range(1, 10))
    + "]>\n"
)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(urdf(), id="plain"),
        pytest.param('<?xml version="1.0" encoding="utf-8"?>' + urdf(), id="declaration"),
        pytest.param('\n<?xml version="1.0"?>' + urdf(), id="a line before the declaration"),
        pytest.param(urdf(inside="<!-- lower arm -- upper arm -->"), id="-- in a comment"),
        pytest.param(urdf(inside='<!-- <joint name="j1"><mimic joint="j2"/></joint> -->'), id="a joint in a comment"),
        pytest.param(
            urdf(inside='<gazebo><![CDATA[<joint name="j1"><mimic joint="j2"/></joint>]]></gazebo>'), id="cdata"
        ),
        pytest.param(
            urdf(inside='<gazebo><joint name="j1"><mimic joint="j2"/></joint></gazebo>'), id="a joint of a plugin"
        ),
        pytest.param(urdf(inside='<xacro:property name="a" value="1"/>'), id="undeclared prefix"),
        pytest.param(urdf(inside='<gazebo><controller:plugin name="c"/></gazebo>'), id="undeclared prefix inside"),
        pytest.param(urdf(inside="<gazebo><x>&nbsp;</x></gazebo>"), id="unknown entity"),
        pytest.param(urdf(inside='<gazebo><x a="a & b"/></gazebo>'), id="bare ampersand"),
        pytest.param(urdf(inside='<gazebo><x a="1 > 0"/></gazebo>'), id="> in an attribute"),
        pytest.param(BOMB + urdf(inside="<gazebo>&lol9;</gazebo>"), id="entity bomb"),
        pytest.param("\ufeff" + urdf(), id="byte order mark"),
        pytest.param(urdf() + "\n<!-- end -->\n", id="comment at the end"),
        pytest.param(urdf() + "<robot/>", id="second root"),
        pytest.param(urdf(attribute=' xmlns="http://www.ros.org"'), id="default namespace"),
        pytest.param(urdf().replace('"', "'"), id="single quotes"),
        pytest.param(urdf().replace("><", ">\n\t<").replace('" ', '"\n  '), id="over many lines"),
    ],
)
def test_every_dialect_that_robot_state_publisher_takes(text):
    start_s = time.perf_counter()
    arm = ArmKinematics.from_urdf(text, "base", "tool")
    assert arm.joint_names == ("j1", "j2")
    np.testing.assert_array_equal(arm.velocity_limit, 1.0)
    assert not np.isfinite(arm.acceleration_limit).any()
    assert time.perf_counter() - start_s < 2.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "no usable URDF", id="empty"),
        pytest.param("hello", "no usable URDF", id="no XML"),
        pytest.param(urdf('<limit lower="2" upper="-2" effort="1" velocity="1"/>'), "'j2'.* swapped", id="swapped"),
        pytest.param(urdf('<limit lower="0" upper="0" effort="0" velocity="0"/>'), "'j2'.* state its range", id="zero"),
        pytest.param(urdf('<limit effort="1" velocity="1"/>'), "'j2'.* state its range", id="no range"),
        pytest.param(
            urdf('<limit lower="-2" upper="2" effort="0" velocity="0"/>'),
            "'j2': its velocity limit is '0', not a positive",
            id="zero velocity",
        ),
        pytest.param(
            urdf('<limit lower="-2" upper="2" effort="1" velocity="-1"/>'), "'j2': its velocity.*'-1'", id="negative"
        ),
        pytest.param(
            urdf('<limit lower="-2" upper="2" effort="1" velocity="nan"/>'), "'j2': its velocity.*'nan'", id="nan"
        ),
        pytest.param(urdf('<limit lower="-2" upper="2" effort="1"/>'), "'j2': its velocity.*None", id="no velocity"),
        pytest.param(
            urdf('<limit lower="nan" upper="2" effort="1" velocity="1"/>'), "'j2': its lower limit is 'nan'", id="lower"
        ),
        pytest.param(
            urdf('<limit lower="-2,0" upper="2,0" effort="1" velocity="1"/>'), "'j2': its lower.*'-2,0'", id="commas"
        ),
        pytest.param(
            urdf('<limit lower="-120" upper="120" effort="1" velocity="90"/>'), "'j2'.*are they degrees", id="degrees"
        ),
        pytest.param(
            urdf('<limit lower="-2" upper="2" effort="1" velocity="1" acceleration="0"/>'),
            "'j2': its acceleration limit is '0'",
            id="zero acceleration",
        ),
        pytest.param(urdf(""), "'j2' is revolute and has no <limit>", id="no limit"),
        pytest.param(urdf().replace("0 1 0", "0 0 0"), "'j2': its axis is '0 0 0'", id="no axis"),
        pytest.param(urdf(extra='<mimic joint="j1"/>'), "'j2' between base and tool is a mimic joint", id="mimic"),
        pytest.param(
            urdf(extra='<mimic joint="j1"/>', attribute=' xmlns="http://www.ros.org"'),
            "'j2' between base and tool is a mimic joint",
            id="mimic under a default namespace",
        ),
        pytest.param(urdf(kind="floating"), "'j2' between base and tool is a JointModelFreeFlyer", id="floating"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_joints_name(text, message):
    with pytest.raises(KinematicsError, match=message):
        ArmKinematics.from_urdf(text, "base", "tool")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (urdf().replace(ORIGIN, 'xyz="1e300 0 0"'), "'j2': its origin has xyz '1e300 0 0', which is not within 100 m"),
        (urdf().replace(ORIGIN, 'xyz="0 -101 0"'), "'j2': its origin"),
        (urdf().replace(ORIGIN, 'xyz="0 nan 0"'), "no usable URDF: joint 'j2': its origin has xyz '0 nan 0'"),
        (urdf().replace(ORIGIN, 'xyz="0,3 0 0"'), "no usable URDF: joint 'j2': its origin has xyz '0,3 0 0'"),
        (urdf().replace(ORIGIN, 'rpy="0 0 90"'), "'j2': its origin has rpy '0 0 90', which is not within 25.1 rad"),
        (urdf(inside=WORLD + FAR.format("1e300", "world", "base")), "'w': its origin has xyz '1e300 0 0'"),
        (urdf().replace("0 1 0", "1e300 0 0"), "'j2': its axis is '1e300 0 0', which is no direction"),
        (urdf().replace("0 1 0", "0 1e-200 0"), "'j2': its axis"),
        (urdf(LIMIT.replace('velocity="1"', 'velocity="1e308"')), "'j2': its velocity limit is 1e308; no joint has"),
        (urdf(LIMIT.replace("velocity", 'acceleration="1e300" velocity')), "'j2': its acceleration limit is 1e300;"),
        (urdf(LIMIT.replace("-2", "1e6").replace('"2"', '"1000001"')), "'j2'.*several turns apart or away"),
        (
            urdf(LIMIT.replace("-2", "-1e300"), kind="prismatic"),
            "'j2': its lower limit is -1e300 m, further than 100 m",
        ),
        (urdf(LIMIT.replace('"2"', '"101"'), kind="prismatic"), "'j2': its upper limit is 101 m"),
    ],
)
def test_numbers_that_no_arm_has_are_refused_with_the_joints_name(text, message):
    with pytest.raises(KinematicsError, match=message):
        ArmKinematics.from_urdf(text, "base", "tool")


@pytest.mark.parametrize(
    "text",
    [
        urdf(inside=WORLD + FAR.format("99.9", "world", "base")),
        urdf().replace(ORIGIN, 'xyz="1 0 0" rpy="3.1416 -3.1416 6.2832"'),
        urdf(LIMIT.replace('velocity="1"', 'velocity="1000"')),
        urdf(LIMIT.replace("-2", "-6.2832").replace('"2"', '"6.2832"')),
        urdf(LIMIT.replace("-2", "0").replace('"2"', '"12"'), kind="prismatic"),
        urdf().replace("0 1 0", "0 0.7 -0.7"),
        urdf(inside=LAMP),
    ],
    ids=["far world", "turned", "no speed limit", "two turns", "gantry", "slanted axis", "a lamp far away"],
)
def test_numbers_of_large_or_unusual_arms_are_taken(text):
    tool = ArmKinematics.from_urdf(text, "base", "tool").forward([0.3, 0.2])
    np.testing.assert_allclose(tool[:3, :3] @ tool[:3, :3].T, np.eye(3), atol=1e-9)


def test_links_that_hang_on_each_other_without_end_are_refused_and_crash_nothing():
    links = "".join(
        f'<link name="z{i}"/><joint name="zj{i}" type="fixed"><parent link="{"z" + str(i - 1) if i else "tool"}"/>'
        f'<child link="z{i}"/></joint>'
        for i in range(8000)
    )
    with pytest.raises(KinematicsError, match="more than 1000 links"):
        ArmKinematics.from_urdf(urdf().replace("</robot>", links + "</robot>"), "base", "tool")


def test_a_joint_outside_of_the_chain_may_have_any_limits():
    finger = (
        '<link name="finger"/><joint name="f" type="prismatic"><parent link="tool"/><child link="finger"/>'
        '<axis xyz="1 0 0"/><limit lower="0" upper="0" effort="0" velocity="0"/></joint></robot>'
    )
    assert ArmKinematics.from_urdf(urdf().replace("</robot>", finger), "base", "tool").joint_names == ("j1", "j2")


def test_a_link_may_have_the_name_of_a_joint():
    """As in the official SO-100, whose link and joint are both called gripper."""
    jaw = (
        '<link name="jaw"/><joint name="tool" type="revolute"><parent link="tool"/><child link="jaw"/>'
        f'<axis xyz="0 1 0"/>{LIMIT}</joint></robot>'
    )
    text = urdf().replace("</robot>", jaw)
    whole = ArmKinematics.from_urdf(text, "base", "jaw")
    assert whole.joint_names == ("j1", "j2", "tool")
    arm, plain = ArmKinematics.from_urdf(text, "base", "tool"), ArmKinematics.from_urdf(urdf(), "base", "tool")
    assert arm.joint_names == ("j1", "j2")
    np.testing.assert_allclose(arm.forward([0.3, -0.4]), plain.forward([0.3, -0.4]), atol=1e-12)
    other = text.replace('"l1"', '"j1"')  # and the one in the middle
    np.testing.assert_allclose(
        ArmKinematics.from_urdf(other, "base", "tool").forward([0.3, -0.4]), plain.forward([0.3, -0.4]), atol=1e-12
    )


def test_an_acceleration_limit_and_soft_limits_are_kept():
    text = urdf(
        '<limit lower="-2" upper="2" effort="10" velocity="1" acceleration="3.5"/>',
        extra='<safety_controller soft_lower_limit="-1" soft_upper_limit="0.2" k_position="1" k_velocity="1"/>',
    )
    arm = ArmKinematics.from_urdf(text, "base", "tool")
    np.testing.assert_array_equal(arm.acceleration_limit, [np.inf, 3.5])
    np.testing.assert_array_equal(arm.lower, [-2.0, -1.0])
    np.testing.assert_array_equal(arm.upper, [2.0, 0.2])
    unset = urdf(extra='<safety_controller k_velocity="10"/>')  # its bounds default to 0, which nobody means
    np.testing.assert_array_equal(ArmKinematics.from_urdf(unset, "base", "tool").lower, -2.0)


@pytest.mark.parametrize(
    "text",
    [
        "<!--" * 100_000,
        "<![CDATA[" * 100_000,
        "<?" * 100_000,
        "<a " * 100_000,
        '<a b="' * 100_000,
        "<!DOCTYPE r [" + "<!ENTITY a 'b'>" * 100_000,
        urdf(inside="<!--" + "x" * 10_000_000 + "-->"),
    ],
    ids=["comments", "cdata", "instructions", "tags", "quotes", "entities", "a long comment"],
)
def test_reading_takes_one_pass_whatever_the_text(text):
    start_s = time.perf_counter()
    read_joints(text)
    assert time.perf_counter() - start_s < 2.0


def test_the_shipped_arm():
    joints = read_joints(share_path("config/robots/tabletop_arm.urdf").read_text())
    assert {f"joint{k}" for k in range(1, 8)} < set(joints)
    assert all(joint.problem() is None for joint in joints.values())
    assert joints["joint4"].limit["lower"] == "-3.0718"
