"""A snapshot of a healthy robot, made of the simulator's own parts without DDS, for faults to be planted in."""

import dataclasses
from functools import cache
from types import SimpleNamespace

import numpy as np
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState

from sqap_vla_ros.contracts import NS_PER_S, PolicyInfo
from sqap_vla_ros.control.arm.tool_monitor import ToolSample
from sqap_vla_ros.control.conditions import Input
from sqap_vla_ros.nodes.check.snapshot import Arrival, CommandTopic, PolicyTrial, Snapshot
from sqap_vla_ros.nodes.check.transform_watch import Frames, StaticClaim
from sqap_vla_ros.nodes.images import rgb_to_message
from sqap_vla_ros.nodes.messages import time_message, transform_message
from sqap_vla_ros.nodes.policy import parameters
from sqap_vla_ros.nodes.policy.inputs import JOINTS_QOS, TF_QOS, TF_STATIC_QOS
from sqap_vla_ros.nodes.policy.publishers import Listener
from sqap_vla_ros.nodes.simulator.camera import camera_info
from sqap_vla_ros.nodes.tf.api import Buffer
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.kinematics import ArmKinematics

NOW_NS = 1_700_000_000 * NS_PER_S
OPTICAL = "camera_optical_frame"
URDF = share_path("config/robots/tabletop_arm.urdf").read_text("utf-8")
JOINTS = np.array([0.0, 0.4, 0.0, -1.9, 0.0, 2.3, 0.0])
SENSOR = QoSProfile(depth=2, reliability=ReliabilityPolicy.BEST_EFFORT)
TOPICS = {name: f"/{name}" for name in ("image", "camera_info", "joint_states", "robot_description")}


def endpoint(node, kind, *, reliable=True, latched=False):
    """An endpoint as rclpy describes it."""
    qos = QoSProfile(
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )
    return SimpleNamespace(node_name=node, node_namespace="/", topic_type=kind, qos_profile=qos)


@cache
def arm():
    return ArmKinematics.from_urdf(URDF, "base_link", "tool0")


def stamps(rate_hz, *, seconds=3.0, age_s=0.02):
    """Arrivals of a regular stream that ends now."""
    times = NOW_NS - np.arange(int(seconds * rate_hz))[::-1] * round(NS_PER_S / rate_hz)
    return tuple(Arrival(int(t) - round(age_s * NS_PER_S), int(t), int(t - NOW_NS) / NS_PER_S + 100.0) for t in times)


def arrivals(**changed):
    """Arrivals of images and camera_infos, those of a healthy camera but for what is changed."""
    return {f"/{name}": changed.get(name, stamps(10.0)) for name in ("image", "camera_info")}


def transforms(*, base_from_tool=None, camera=True, until_ns=NOW_NS, base_from_camera=None, leaps=()):
    """A buffer with the tool over the last three seconds, and with the camera, which looks down at it.

    leaps: numbers of the transforms, the newest being 0, in which the tool is 0.2 m aside.
    """
    buffer = Buffer()
    pose = arm().forward(JOINTS) if base_from_tool is None else base_from_tool
    aside = pose.copy()
    aside[0, 3] += 0.2
    for step in range(301):
        at = aside if step in leaps else pose
        buffer.set_transform(transform_message(at, until_ns - step * NS_PER_S // 100, "base_link", "tool0"), "test")
    if camera:
        pose = looking_down() if base_from_camera is None else base_from_camera
        buffer.set_transform_static(transform_message(pose, NOW_NS, "base_link", OPTICAL), "test")
    return buffer


def frames(*others, norms=None, infinite=None, stamps_ns=(), origins=None):
    """The tree of frames. others: what more publishers say of the camera, as [4, 4] base_from_camera."""
    claims = [StaticClaim(f"/calibration{i}", "base_link", pose) for i, pose in enumerate((looking_down(), *others))]
    parents, statics = {"tool0": "base_link", OPTICAL: "base_link"}, {OPTICAL: tuple(claims)}
    return Frames(parents, statics, norms or {}, infinite or {}, {"tool0": tuple(stamps_ns)}, origins or {})


def looking_down():
    down = np.diag([1.0, -1.0, -1.0, 1.0])
    down[:3, 3] = arm().forward(JOINTS)[:3, 3] + (0.0, 0.0, 0.8)
    return down


def images(arrivals, rgb=None):
    rgb = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8) if rgb is None else rgb
    return tuple(rgb_to_message(rgb, stamp=time_message(a.stamp_ns), frame_id=OPTICAL) for a in arrivals[-3:])


def infos(arrivals, **fields):
    found = []
    for arrival in arrivals[-3:]:
        message = camera_info(0.8, 160, 120)
        message.header.stamp = time_message(arrival.stamp_ns)
        for name, value in fields.items():
            setattr(message, name, value)
        found.append(message)
    return tuple(found)


def joint_states(arrivals, positions=JOINTS, names=None):
    names = list(arm().joint_names if names is None else names)
    found = []
    for arrival in arrivals:
        message = JointState(name=names, position=[float(p) for p in positions])
        message.header.stamp = time_message(arrival.stamp_ns)
        found.append((message, arrival))
    return tuple(found)


def values(**changed):
    return {p.name: p.clean(p.default) for p in parameters.PARAMETERS} | changed


def trial(latency_s=0.1, selector="sqap"):
    info = PolicyInfo("micro", "", "sqap", 1000, 16, 0.2, 224, (16, 16), "micro", selector)
    return PolicyTrial(None, (latency_s,) * 10, info, None, 1.0)


def healthy(**changed):
    """The snapshot with some fields changed."""
    camera, joints = stamps(10.0), stamps(60.0, age_s=0.001)
    tool = arm().forward(JOINTS)
    kinds = {
        "/image": "sensor_msgs/msg/Image",
        "/camera_info": "sensor_msgs/msg/CameraInfo",
        "/joint_states": "sensor_msgs/msg/JointState",
        "/robot_description": "std_msgs/msg/String",
        "/tf": "tf2_msgs/msg/TFMessage",
        "/tf_static": "tf2_msgs/msg/TFMessage",
    }
    qos = {"/image": SENSOR, "/camera_info": SENSOR, "/joint_states": JOINTS_QOS, "/tf": TF_QOS}
    qos["/tf_static"] = TF_STATIC_QOS
    latched = ("/robot_description", "/tf_static")
    commands = (
        CommandTopic("arm", "/joint_trajectory", "trajectory_msgs/msg/JointTrajectory"),
        CommandTopic("gripper", "/gripper_command", "std_msgs/msg/Float64MultiArray"),
    )
    snapshot = Snapshot(
        values=values(),
        node="/policy_node",
        topics=TOPICS,
        simulated_time=False,
        now_ns=NOW_NS,
        listened_s=3.0,
        passed_s=3.0,
        listeners=tuple(Listener(Input.IMAGE, topic, kind, qos.get(topic)) for topic, kind in kinds.items()),
        commands=commands,
        buffer=transforms(),
        arrivals={"/image": camera, "/camera_info": camera},
        images=images(camera),
        infos=infos(camera),
        joint_states=joint_states(joints),
        tools=tuple((ToolSample(tool, a.stamp_ns), a.now_ns) for a in joints),
        description=URDF,
        descriptions={b"driver": URDF},
        frames=frames(),
        publishers={topic: (endpoint("driver", kind, latched=topic in latched),) for topic, kind in kinds.items()},
        subscribers={command.topic: (endpoint("controller", command.kind),) for command in commands},
        kinds={topic: (kind,) for topic, kind in kinds.items()},
        controllers={"/controller": {"interpolate_from_desired_state": True, "joints": list(arm().joint_names)}},
        trial=trial(),
    )
    return dataclasses.replace(snapshot, **changed)
