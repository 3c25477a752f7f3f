"""Checks of the arm: joint states, the URDF, the workspace, and whether they agree with TF."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rclpy.qos import DurabilityPolicy

from sqap_vla_ros.control.arm.arm_watch import AGREE_M, AGREE_RAD
from sqap_vla_ros.control.arm.joint_monitor import JointMonitor
from sqap_vla_ros.nodes.check.finding import Finding, fail, ok, skipped, warning
from sqap_vla_ros.nodes.check.snapshot import Snapshot
from sqap_vla_ros.nodes.policy import configuration
from sqap_vla_ros.nodes.policy.grippers.table import GRIPPER_SINKS
from sqap_vla_ros.nodes.policy.observer import ObservationProblem
from sqap_vla_ros.nodes.policy.publishers import node_name
from sqap_vla_ros.nodes.policy.sinks.table import SINKS
from sqap_vla_ros.robot.conventions import pose_distance
from sqap_vla_ros.robot.kinematics import ArmKinematics, KinematicsError

CLOSE_M, CLOSE_RAD = 0.005, 0.02  # of two descriptions of one arm that stands
# rad/s or m/s of a joint. Robots' URDFs state 0.2 (fingers) to 10; one in degrees has 180, a placeholder 100 or 1000.
SLOWEST, FASTEST = 0.05, 30.0


def check_joint_states(snapshot: Snapshot) -> Iterator[Finding]:
    """Judge joint_states as the node does."""
    if isinstance(snapshot.arm, str):
        yield skipped("there is no usable robot_description")
        return
    if snapshot.timeless:
        yield skipped("there is no /clock to judge stamps by")
        return
    monitor = _monitor(snapshot)
    if (problem := monitor.problem(snapshot.now_ns)) is not None:
        yield fail(problem, f"see the driver behind {snapshot.topics['joint_states']}; joint_states:=… names another")
        return
    yield ok(f"{len(snapshot.arm.joint_names)} joints: {', '.join(snapshot.arm.joint_names)}")
    joint = snapshot.values["gripper_joint"]
    if joint and monitor.gripper is None:
        text = f"joint_states have no gripper_joint {joint}"
        if GRIPPER_SINKS[snapshot.values["gripper_output"]].IN_TRAJECTORY:
            yield fail(f"{text}, so that no trajectory can carry it: nothing is commanded", "correct gripper_joint")
        else:
            yield warning(text, "correct gripper_joint, or leave it empty")


def _monitor(snapshot: Snapshot) -> JointMonitor:
    """Return the monitor after all joint states."""
    monitor = JointMonitor(snapshot.values["joint_states_timeout_s"], snapshot.values["gripper_joint"])
    if not isinstance(snapshot.arm, str):
        monitor.adopt(snapshot.arm)
    for message, arrival in snapshot.joint_states:
        monitor.update(message.name, message.position, arrival.stamp_ns, arrival.now_ns)
    return monitor


def check_description(snapshot: Snapshot) -> Iterator[Finding]:
    """Read the URDF, and compare its limits with the parameters and the measured joints."""
    arm = snapshot.arm
    if isinstance(arm, str):
        needed = SINKS[snapshot.values["output_mode"]].NEEDS_JOINTS
        finding = fail if needed else warning
        yield finding(f"robot_description: {arm}", _description_remedy(snapshot, arm))
        return
    if len(texts := set(snapshot.descriptions.values())) > 1:
        topic = snapshot.topics["robot_description"]
        names = sorted(node_name(publisher) for publisher in snapshot.publishers.get(topic, ()))
        yield fail(
            f"{len(texts)} different descriptions came on {topic}, from {', '.join(names)}",
            "end all publishers but the one of this arm: whichever is heard last counts",
        )
    yield ok(f"{len(arm.joint_names)} joints between {snapshot.values['base_frame']} and {arm.tool_frame}")
    if unlimited := [n for n, v in zip(arm.joint_names, arm.velocity_limit, strict=True) if not np.isfinite(v)]:
        yield warning(
            f"no velocity limit of {', '.join(unlimited)}", "max_joint_velocity alone holds: state them in the URDF"
        )
    yield from _odd_speeds(snapshot, arm)
    joints = _monitor(snapshot).joints
    if joints is None:
        return
    outside = [
        f"{name} at {value:.3f} (limits {low:.3f} to {high:.3f})"
        for name, value, low, high in zip(arm.joint_names, joints, arm.lower, arm.upper, strict=True)
        if not low <= value <= high
    ]
    if outside:
        yield fail(f"outside its limits: {', '.join(outside)}", "move the arm, or use the URDF of this arm")


def _odd_speeds(snapshot: Snapshot, arm: ArmKinematics) -> Iterator[Finding]:
    """Name velocity limits that no arm has: too high ones limit nothing, too low ones everything."""
    stated = [(n, v) for n, v in zip(arm.joint_names, arm.velocity_limit, strict=True) if np.isfinite(v)]
    slow = [f"{name} {speed:.3g}" for name, speed in stated if speed < SLOWEST]
    fast = [f"{name} {speed:.3g}" for name, speed in stated if speed > FASTEST]
    if slow:
        yield warning(
            f"velocity limits in the URDF, rad/s or m/s, that no arm is as slow as: {', '.join(slow)}",
            "correct them: chunks are slowed down to them, or refused",
        )
    if fast:
        yield warning(
            f"velocity limits in the URDF, rad/s or m/s, that no arm is as fast as: {', '.join(fast)}",
            f"correct them (degrees, or a placeholder?): max_joint_velocity {snapshot.values['max_joint_velocity']:g} "
            "alone holds",
        )


def _description_remedy(snapshot: Snapshot, problem: str) -> str:
    if snapshot.description:
        if "joint_posture" in problem:
            return "correct joint_posture in the robot file: a value for each joint, or [0.0] for the middle"
        return "publish the URDF of this arm (robot_state_publisher), and correct base_frame and tool_frame"
    publishers = snapshot.publishers.get(snapshot.topics["robot_description"], ())
    volatile = [p for p in publishers if p.qos_profile.durability == DurabilityPolicy.VOLATILE]
    if volatile:
        return (
            f"{', '.join(sorted(map(node_name, volatile)))} publishes it volatile, so that nobody hears later what was "
            "said before: make it transient local (latched), as robot_state_publisher does"
        )
    return "publish the URDF of this arm (robot_state_publisher), or name its topic as robot_description:=…"


def check_kinematics(snapshot: Snapshot) -> Iterator[Finding]:
    """Compare forward kinematics of joint_states with TF at the same stamps."""
    arm = snapshot.arm
    if isinstance(arm, str) or not snapshot.joint_states:
        yield skipped("needs robot_description and joint_states")
        return
    apart = []
    base, tool = snapshot.values["base_frame"], snapshot.values["tool_frame"]
    for message, arrival in snapshot.arm_joint_states[-100:]:
        try:
            joints = arm.configuration(message.name, message.position)
            pose = snapshot.observer.transform(base, tool, arrival.stamp_ns)
        except (KinematicsError, ObservationProblem):
            continue
        apart.append(pose_distance(pose, arm.forward(joints)))
    if not apart:
        yield skipped("no joint_states at whose stamp TF knows the tool")
        return
    away_m, away_rad = np.median(apart, axis=0)
    text = f"TF and joint_states have the tool {1e3 * away_m:.1f} mm and {away_rad:.3f} rad apart"
    remedy = "let robot_state_publisher and this node use one robot_description, and calibrated kinematics in both"
    if away_m > AGREE_M or away_rad > AGREE_RAD:
        yield fail(text, remedy)
    elif away_m > CLOSE_M or away_rad > CLOSE_RAD:
        yield warning(text, remedy)
    else:
        yield ok(text)


def check_workspace(snapshot: Snapshot) -> Iterator[Finding]:
    """Look whether the tool is inside the workspace."""
    if not snapshot.tools:
        yield skipped("the tool's pose is not known")
        return
    limits = configuration.safety_limits(snapshot.values)
    position = snapshot.tools[-1][0].pose[:3, 3]
    low, high = np.asarray(limits.workspace_min_m), np.asarray(limits.workspace_max_m)
    where = ", ".join(f"{axis} {value:.3f}" for axis, value in zip("xyz", position, strict=True))
    if ((position < low) | (position > high)).any():
        yield fail(
            f"the tool is at {where} m, outside the workspace {low.tolist()} to {high.tolist()}",
            "move the arm into it, or correct workspace_min_m and workspace_max_m",
        )
    else:
        margin = float(np.minimum(position - low, high - position).min())
        yield ok(f"the tool is at {where} m, {1e3 * margin:.0f} mm inside")
