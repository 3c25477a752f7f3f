"""Checks of those who obey and of those who command: controller, gripper, other publishers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rclpy.duration import Infinite
from rclpy.qos import LivelinessPolicy, QoSCompatibility, QoSProfile, qos_check_compatible

from sqap_vla_ros.control.description import joint_limits
from sqap_vla_ros.nodes.check.finding import Finding, fail, ok, skipped, warning
from sqap_vla_ros.nodes.check.snapshot import Snapshot
from sqap_vla_ros.nodes.policy import configuration
from sqap_vla_ros.nodes.policy.grippers.table import GRIPPER_SINKS
from sqap_vla_ros.nodes.policy.publishers import node_name
from sqap_vla_ros.nodes.policy.sinks.sink import COMMAND_QOS
from sqap_vla_ros.robot.gripper.state import GripperRange

PLAUSIBLE = {"m": 0.5, "rad": 2.0 * math.pi}  # the furthest position of a gripper whose joint nobody describes
FAR_SHARE = 2.0  # of the way between open and closed, that a gripper cannot be beyond both
SLACK_SHARE = 0.02  # of a joint's range: drivers and URDFs round its ends
# Of our commands, as the graph tells it: what a publisher leaves open has no end there.
OFFERED = QoSProfile(
    depth=COMMAND_QOS.depth,
    reliability=COMMAND_QOS.reliability,
    durability=COMMAND_QOS.durability,
    deadline=Infinite,
    liveliness=LivelinessPolicy.AUTOMATIC,
    liveliness_lease_duration=Infinite,
)
CONTINUES = ("interpolate_from_desired_state", "open_loop_control")  # since Jazzy, and before


def check_commanders(snapshot: Snapshot) -> Iterator[Finding]:
    """Look who else publishes on the topics of the commands."""
    for command in snapshot.commands:
        names = [node_name(publisher) for publisher in snapshot.publishers.get(command.topic, ())]
        others = [name for name in names if name != snapshot.node]
        if others:
            yield fail(
                f"{', '.join(sorted(set(others)))} publish{'es' if len(set(others)) == 1 else ''} on {command.topic}",
                "end it, or give it another topic: the controller obeys whoever spoke last",
            )
        elif len(names) > 1:
            yield fail(f"{len(names)} nodes are called {snapshot.node}", "end all but one")
        else:
            yield ok(f"{command.topic}: nobody {f'but {snapshot.node}, which runs' if names else 'else'}")


def check_listeners(snapshot: Snapshot) -> Iterator[Finding]:
    """Look who obeys the commands."""
    for command in snapshot.commands:
        subscribers = snapshot.subscribers.get(command.topic, ())
        typed = [endpoint for endpoint in subscribers if endpoint.topic_type == command.kind]
        deaf = {node_name(endpoint): why for endpoint in typed if (why := _deaf(endpoint)) is not None}
        fitting = sorted(node_name(endpoint) for endpoint in typed if _deaf(endpoint) is None)
        for name, why in deaf.items():
            yield (warning if fitting else fail)(
                f"{name} listens to {command.topic}, but hears no command: {why}",
                "give its subscription the default QoS: volatile, without deadline, liveliness or lifespan of its own",
            )
        if len(set(fitting)) > 1 and command.subject == "arm":
            yield _several(snapshot, command.topic, sorted(set(fitting)))
        elif fitting:
            yield ok(f"{command.topic}: {', '.join(fitting)}")
        if typed:
            continue
        if subscribers:
            kinds = ", ".join(sorted({endpoint.topic_type for endpoint in subscribers}))
            text = f"{command.topic} is listened to as {kinds}, the {command.subject}'s commands are {command.kind}"
        else:
            text = f"nobody listens to {command.topic}, the {command.subject}'s commands"
        others = sorted(t for t, kinds in snapshot.kinds.items() if command.kind in kinds and t != command.topic)
        there = f"topics of its type: {', '.join(others)}" if others else "there is no topic of its type"
        yield fail(text, f"activate the controller, or name its topic ({there})")


def _several(snapshot: Snapshot, topic: str, names: list[str]) -> Finding:
    """Judge several nodes that hear the arm's commands: an arm and its simulation, say, or an arm and a recorder."""
    controllers = [name for name in names if snapshot.controllers.get(name)]
    if len(controllers) > 1:
        return fail(
            f"{topic} is obeyed by {len(controllers)} controllers: {', '.join(controllers)}",
            "end all but one, or give them topics or a ROS_DOMAIN_ID of their own: each would move an arm",
        )
    return warning(
        f"{len(names)} nodes listen to {topic}: {', '.join(names)}",
        "see that one of them alone moves an arm; a recorder or a screen does no harm",
    )


def _deaf(subscriber: Any) -> str | None:
    """Return which policy keeps a subscriber from hearing our commands, or None."""
    compatible, why = qos_check_compatible(OFFERED, subscriber.qos_profile)
    if compatible != QoSCompatibility.ERROR:
        return None
    return ", ".join(text.removeprefix("ERROR: ") for text in why.split(";") if text.startswith("ERROR: "))


def check_controller(snapshot: Snapshot) -> Iterator[Finding]:
    """Read the controller's parameters where it tells them."""
    if not snapshot.controllers:
        yield skipped("nobody obeys the arm's commands")
    for name, parameters in snapshot.controllers.items():
        if not parameters:
            yield skipped(f"{name} tells none of the parameters that matter")
        else:
            found = list(_controller_problems(snapshot, name, parameters))
            yield from found or [ok(f"{name}: {', '.join(f'{key} {value}' for key, value in parameters.items())}")]
        if (carried := _carried(snapshot)) and not (parameters or {}).get("joints"):
            yield warning(
                f"{name} does not tell its joints: has it {', '.join(carried)}, which every trajectory carries?",
                "look in its settings: it rejects every trajectory with a joint that it lacks",
            )


def _carried(snapshot: Snapshot) -> list[str]:
    """Return the gripper's joint where it goes along in the arm's trajectories."""
    in_trajectory = GRIPPER_SINKS[snapshot.values["gripper_output"]].IN_TRAJECTORY
    return [snapshot.values["gripper_joint"]] if in_trajectory else []


def _controller_problems(snapshot: Snapshot, name: str, parameters: Mapping[str, Any]) -> Iterator[Finding]:
    continues = [parameters[key] for key in CONTINUES if key in parameters]
    if continues and not any(continues):
        yield warning(
            f"{name} begins each trajectory at the measured arm, and makes up for its lag at once",
            "set interpolate_from_desired_state (in Humble open_loop_control) to true",
        )
    if parameters.get("command_in_type", "speed_units") != "speed_units":
        yield fail(
            f"{name} takes command_in_type {parameters['command_in_type']!r}, which scales every command",
            "set Servo's command_in_type to speed_units",
        )
    interfaces = parameters.get("command_interfaces")
    if interfaces and "position" not in interfaces:
        yield warning(f"{name} commands {', '.join(interfaces)} and no position", "see that its gains are tuned")
    joints = parameters.get("joints")
    if not joints or isinstance(snapshot.arm, str):
        return
    ours = {*snapshot.arm.joint_names, *_carried(snapshot)}
    if missing := sorted(ours - set(joints)):
        yield fail(f"{name} has no joint {', '.join(missing)}", "name another controller, or correct tool_frame")
    elif (more := sorted(set(joints) - ours)) and not parameters.get("allow_partial_joints_goal"):
        yield fail(
            f"{name} also has {', '.join(more)}, and refuses trajectories without",
            "set its allow_partial_joints_goal to true",
        )


def check_gripper(snapshot: Snapshot) -> Iterator[Finding]:
    """Look for what the gripper is commanded with, and whether it can go where it is sent."""
    kind = GRIPPER_SINKS[snapshot.values["gripper_output"]]
    output = f"gripper_output {snapshot.values['gripper_output']}"
    if kind.ACTION:
        yield _action(snapshot, output, kind.ACTION)
    elif kind.TOPIC:
        yield ok(f"{output}: by topic, see listeners")
    else:
        yield ok(f"{output}: joint {snapshot.values['gripper_joint']} of the arm's controller")
    joint = snapshot.values["gripper_joint"]
    if not isinstance(snapshot.arm, str) and joint in snapshot.arm.joint_names:
        yield fail(f"gripper_joint {joint} is a joint of the arm, before tool_frame", "name the gripper's own joint")
    yield from _out_of_reach(snapshot)
    yield from _elsewhere(snapshot)


def _action(snapshot: Snapshot, output: str, kind: str) -> Finding:
    """Compare the gripper's action server with the action that is called."""
    name = snapshot.gripper_action
    found = snapshot.actions.get(name, ())
    if kind in found and len(snapshot.gripper_servers) > 1:
        servers = ", ".join(snapshot.gripper_servers)
        return fail(
            f"{name} has {len(snapshot.gripper_servers)} servers: {servers}",
            "end all but the gripper's driver: each of them takes every goal, and the first answer counts (one that "
            "crashed is forgotten within half a minute)",
        )
    if kind in found:
        return ok(f"{output}: {name}")
    if found:
        fitting = [key for key, sink in GRIPPER_SINKS.items() if sink.ACTION in found]
        remedy = (
            f"gripper_output:={fitting[0]}" if fitting else "no gripper_output calls it: name another gripper_action"
        )
        return fail(f"{output} calls {kind}, but {name} is {', '.join(found)}", remedy)
    there = f"action servers: {', '.join(sorted(snapshot.actions))}" if snapshot.actions else "there is none"
    return fail(
        f"{output}: no action server {name}", f"start the gripper's driver, or give gripper_action:=… ({there})"
    )


def _out_of_reach(snapshot: Snapshot) -> Iterator[Finding]:
    """Compare the gripper's two positions with its joint's limits, or with what a gripper of its unit can reach."""
    values = snapshot.values
    unit, limits = values["gripper_unit"], _gripper_limits(snapshot)
    low, high = limits or (-PLAUSIBLE[unit], PLAUSIBLE[unit])
    whose = f"the limits of {values['gripper_joint']} in the URDF" if limits else f"what a gripper in {unit} reaches"
    for name in ("gripper_closed", "gripper_open"):
        if not _within(values[name], (low, high)):
            yield (fail if limits else warning)(
                f"{name} is {values[name]:g} {unit}, outside {whose} ({low:.4g} to {high:.4g})",
                f"give {name} in metres or radians as the gripper's driver counts it, and gripper_unit with it",
            )


def _elsewhere(snapshot: Snapshot) -> Iterator[Finding]:
    """Compare where joint_states have the gripper with where it is sent."""
    joint, unit = snapshot.values["gripper_joint"], snapshot.values["gripper_unit"]
    positions = [
        float(position)
        for message, _ in snapshot.joint_states
        for name, position in zip(message.name, message.position, strict=False)
        if joint and name == joint and math.isfinite(position)
    ]
    if not positions:
        return
    span, limits, position = (
        configuration.gripper_config(snapshot.values).span,
        _gripper_limits(snapshot),
        positions[-1],
    )
    if span.holds(position):
        return
    far = not GripperRange(span.closed, span.opened, unit, beyond=FAR_SHARE).holds(position)
    odd = max(abs(span.closed), abs(span.opened)) > PLAUSIBLE[unit]
    ends = " to ".join(f"{end:g}" for end in sorted((span.closed, span.opened)))
    yield (fail if (far or odd if limits is None else not _within(position, limits)) else warning)(
        f"joint_states have {joint} at {position:.4g} {unit}, it is sent to {ends} {unit}",
        f"give gripper_closed and gripper_open as joint_states and the gripper's driver count {joint}, or correct "
        "gripper_joint",
    )


def _gripper_limits(snapshot: Snapshot) -> tuple[float, float] | None:
    """Return the limits of the gripper's joint in the URDF, None where it tells none."""
    joint = snapshot.values["gripper_joint"]
    return joint_limits(snapshot.description, joint) if snapshot.description and joint else None


def _within(value: float, limits: tuple[float, float]) -> bool:
    low, high = limits
    slack = SLACK_SHARE * (high - low)
    return low - slack <= value <= high + slack
