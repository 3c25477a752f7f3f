"""Configurations from the parameters of policy_node: read, checked together, filled into the dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rclpy.exceptions import InvalidTopicNameException
from rclpy.validate_topic_name import validate_topic_name

from sqap_vla_ros.control.camera.image_gate import ImageGateConfig
from sqap_vla_ros.control.executive_config import ExecutiveConfig
from sqap_vla_ros.control.motion import MotionConfig
from sqap_vla_ros.nodes import parameter_table
from sqap_vla_ros.nodes.parameter_table import configured
from sqap_vla_ros.nodes.policy.grippers.gripper import GripperConfig
from sqap_vla_ros.nodes.policy.grippers.table import GRIPPER_SINKS
from sqap_vla_ros.nodes.policy.parameters import PARAMETERS
from sqap_vla_ros.nodes.policy.sinks.table import SINKS
from sqap_vla_ros.robot.arm.inverse import InverseConfig
from sqap_vla_ros.robot.camera_contract import CameraContract
from sqap_vla_ros.robot.safety import SafetyLimits
from sqap_vla_ros.serving.frames import is_remote
from sqap_vla_ros.serving.worker import WorkerConfig


def declare(node: Any, *, read_only: bool = False) -> None:
    """Declare every parameter on a rclpy node. read_only: none may change later, and `read` alone judges ranges."""
    parameter_table.declare(node, PARAMETERS, read_only=read_only)


def read(node: Any) -> dict[str, Any]:
    """Return the values a node has now. Raises ValueError naming every one that is wrong."""
    values = {p.name: p.clean(node.get_parameter(p.name).value) for p in PARAMETERS}
    if found := problems(values):
        raise ValueError("; ".join(found))
    return values


def problems(values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a complete set of values, each by itself and together."""
    if found := parameter_table.problems(PARAMETERS, values):
        return found
    if any(low >= high for low, high in zip(values["workspace_min_m"], values["workspace_max_m"], strict=True)):
        found.append(
            f"workspace_min_m must be below workspace_max_m in every axis, got {list(values['workspace_min_m'])} and "
            f"{list(values['workspace_max_m'])}"
        )
    found += _gripper_problems(values)
    try:
        camera_contract(values)
    except ValueError as error:
        found.append(f"training_camera: {error}")
    try:
        inverse_config(values)
    except ValueError as error:
        found.append(str(error))
    if (continuation := values["chunk_continuation"]) != "none" and values["ensemble_chunks"] != 1:
        found.append(
            f"chunk_continuation '{continuation}' needs ensemble_chunks 1, for an average repeats no chunk's actions; "
            f"got {values['ensemble_chunks']}"
        )
    for unit in ("m", "rad"):
        lead, tracking = values[f"max_lead_{unit}"], values[f"max_tracking_{unit}"]
        if lead > tracking:
            found.append(f"max_lead_{unit} must not exceed max_tracking_{unit}, got {lead:g} and {tracking:g}")
    return found


def _gripper_problems(values: Mapping[str, Any]) -> list[str]:
    found = []
    kind, name = GRIPPER_SINKS[values["gripper_output"]], values["gripper_output"]
    if values["gripper_close_below"] > values["gripper_open_above"]:
        found.append(
            f"gripper_close_below must not exceed gripper_open_above, got {values['gripper_close_below']:g} and "
            f"{values['gripper_open_above']:g}"
        )
    if values["gripper_closed"] == values["gripper_open"]:
        found.append(f"gripper_closed and gripper_open must differ, got {values['gripper_open']:g} for both")
    try:
        validate_topic_name(values["gripper_action"])
    except InvalidTopicNameException:
        found.append(f"gripper_action must be a name as topics have, got '{values['gripper_action']}'")
    if kind.NEEDS_JOINT and not values["gripper_joint"]:
        found.append(f"gripper_output '{name}' needs gripper_joint, the name of the gripper's joint")
    if kind.IN_TRAJECTORY and not SINKS[values["output_mode"]].CARRIES_GRIPPER:
        able = ", ".join(repr(mode) for mode, sink in SINKS.items() if sink.CARRIES_GRIPPER)
        found.append(f"gripper_output '{name}' needs output_mode {able}, got '{values['output_mode']}'")
    if missing := kind.missing():
        found.append(f"gripper_output '{name}' needs {missing}")
    return found


def worker_config(values: Mapping[str, Any], factory: str = "") -> WorkerConfig:
    """Return what the policy's process loads. factory: see WorkerConfig."""
    others = {name: values[name] for name in ("checkpoint", "recipe")}
    return configured(WorkerConfig, PARAMETERS, values, **others, factory=factory)


def executive_config(values: Mapping[str, Any], *, simulated_time: bool = False) -> ExecutiveConfig:
    """Return the configuration of the state machine. simulated_time: the node follows /clock."""
    others = {"max_open_loop_s": values["max_open_loop_s"], "deadlines_in_ros_time": simulated_time}
    if is_remote(checkpoint := values["checkpoint"]):
        others["policy"] = f"the server at {checkpoint}"
    return configured(ExecutiveConfig, PARAMETERS, values, **others)


def motion_config(values: Mapping[str, Any]) -> MotionConfig:
    """Return the configuration of the execution of chunks."""
    others = {name: values[name] for name in ("gripper_open_above", "gripper_close_below")}
    return configured(MotionConfig, PARAMETERS, values, **others)


def safety_limits(values: Mapping[str, Any]) -> SafetyLimits:
    """Return the limits that a trajectory must satisfy, the speed limits scaled by `speed_scale`."""
    limits = configured(SafetyLimits, PARAMETERS, values)
    scale = values["speed_scale"]
    return replace(
        limits,
        max_linear_velocity=scale * limits.max_linear_velocity,
        max_angular_velocity=scale * limits.max_angular_velocity,
        max_joint_velocity=scale * limits.max_joint_velocity,
        hard_ratio=limits.hard_ratio / scale,
    )


def gripper_config(values: Mapping[str, Any]) -> GripperConfig:
    """Return the configuration of the gripper's commands."""
    return configured(GripperConfig, PARAMETERS, values)


def inverse_config(values: Mapping[str, Any]) -> InverseConfig:
    """Return how poses become joint values. Raises ValueError for weights or residuals that are out of range."""
    return configured(InverseConfig, PARAMETERS, values, joint_margin=values["joint_margin"])


def camera_contract(values: Mapping[str, Any]) -> CameraContract | None:
    """Return the camera that the policy was trained with; None when unknown. Raises ValueError if it is no camera."""
    if not any(values["training_camera"]):
        return None
    names = ("width", "height", "fx", "fy", "cx", "cy")
    return configured(CameraContract, PARAMETERS, values, **dict(zip(names, values["training_camera"], strict=True)))


def image_gate_config(values: Mapping[str, Any]) -> ImageGateConfig:
    """Return the limits on the image stream."""
    return configured(ImageGateConfig, PARAMETERS, values)
