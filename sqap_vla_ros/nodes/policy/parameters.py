"""The parameters of policy_node: one table that declares, validates and documents them.

`config/policy.yaml` is written from this table (`python -m sqap_vla_ros.nodes.policy.parameters > config/policy.yaml`);
a test keeps the two equal. Angles are radians, lengths metres, times seconds.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from sqap_vla_ros.control.executive import ExecutiveConfig
from sqap_vla_ros.control.image_gate import ImageGateConfig
from sqap_vla_ros.control.motion import MotionConfig
from sqap_vla_ros.robot.camera_contract import CameraContract
from sqap_vla_ros.robot.safety import SafetyLimits
from sqap_vla_ros.serving.worker import WorkerConfig

Value = bool | int | float | str | list[float]

# The only parameter that may change after configure, and only while the node is disabled.
RUNTIME = frozenset({"dry_run"})


@dataclass(frozen=True)
class Parameter:
    """One parameter. minimum and maximum are inclusive; above is an exclusive lower bound; length is that of a list."""

    name: str
    default: Value
    description: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    length: int | None = None

    def problem(self, value: Any) -> str | None:
        """Why this value is refused, or None."""
        if self.choices and value not in self.choices:
            return f"{self.name} must be one of {', '.join(map(repr, self.choices))}, got {value!r}"
        if self.length is not None and len(value) != self.length:
            return f"{self.name} must have {self.length} values, got {list(value)}"
        numbers = [] if isinstance(value, (bool, str)) else [value] if isinstance(value, (int, float)) else list(value)
        for number in numbers:
            if not math.isfinite(number):
                return f"{self.name} must be finite, got {number}"
            if self.minimum is not None and number < self.minimum:
                return f"{self.name} must be at least {self.minimum:g}, got {number:g}"
            if self.maximum is not None and number > self.maximum:
                return f"{self.name} must be at most {self.maximum:g}, got {number:g}"
            if self.above is not None and number <= self.above:
                return f"{self.name} must be above {self.above:g}, got {number:g}"
        return None


PARAMETERS: tuple[Parameter, ...] = (
    # What runs
    Parameter(
        "checkpoint",
        "micro",
        "The policy: a CogACT checkpoint folder, a compressed .safetensors file, or 'micro', a tiny policy with random "
        "weights that moves the arm without purpose and serves to try everything around it.",
    ),
    Parameter(
        "recipe",
        "sqap_pruning",
        "How the policy is compressed: a recipe of config/recipes by name, or a path to one. A compressed checkpoint "
        "already holds its recipe.",
    ),
    Parameter("device", "cpu", "Where the policy runs: 'cpu', 'cuda', 'cuda:1'."),
    Parameter("dtype", "", "Floating point type of what is not quantised, e.g. 'bfloat16'; '' takes the recipe's."),
    Parameter(
        "unnorm_key",
        "",
        "Data set whose action statistics turn the network's output into metres and radians. A wrong one scales every "
        "motion wrongly. '' takes the only one of the checkpoint.",
    ),
    Parameter(
        "seed",
        0,
        "Seed of the diffusion noise. Every prediction uses the same one, so that equal images give equal chunks and "
        "consecutive chunks do not differ by their noise.",
        minimum=0,
    ),
    Parameter("threads", 0, "CPU threads of the policy; 0 leaves the choice to torch.", minimum=0),
    Parameter(
        "load_timeout_s",
        900.0,
        "Configuring fails when the policy is not loaded and warm by then. Seven billion parameters from a slow disk "
        "take minutes.",
        above=0.0,
    ),
    Parameter(
        "prediction_timeout_s",
        30.0,
        "A prediction that takes longer is taken for hung: its process is ended and started again.",
        above=0.0,
    ),
    Parameter("autostart", True, "Configure and activate at start, without a lifecycle manager."),
    # Frames
    Parameter("base_frame", "base_link", "Frame that the actions' axes are those of, and every pose is expressed in."),
    Parameter("tool_frame", "tool0", "Frame that the actions move; its origin is what the ring of tokens protects."),
    Parameter(
        "tf_timeout_s",
        0.2,
        "How long an image waits for the transforms at its stamp. Longer than the delay of the slowest TF publisher; "
        "after that the image is given up and nothing is predicted from it.",
        minimum=0.0,
    ),
    # Images
    Parameter(
        "image_transport", "raw", "'raw' takes `image`, 'compressed' `image/compressed`.", choices=("raw", "compressed")
    ),
    Parameter(
        "image_rectified",
        False,
        "The image topic is a rectified one (image_rect*): the P matrix of camera_info applies, without distortion.",
    ),
    Parameter(
        "optical_frame_rectified",
        False,
        "What TF calls the image's frame is the rectified camera's, as with calibrated stereo pairs: the matrix R "
        "of camera_info is then applied the other way. Only matters where R is not the identity.",
    ),
    Parameter(
        "training_camera",
        [0.0] * 6,
        "The camera of the images that the policy was trained on: width, height, fx, fy, cx, cy in pixels. Nothing is "
        "predicted from a camera that sees differently, by field of view, principal point, distortion or region of "
        "interest; the resolution does not matter. Zeros: unknown, not compared.",
        length=6,
    ),
    Parameter(
        "training_camera_tolerance",
        0.05,
        "How far from its place in the training image a direction may appear, as a share of the image's side.",
        above=0.0,
        maximum=0.5,
    ),
    Parameter(
        "image_reliability",
        "best_effort",
        "QoS of the image subscription. 'best_effort' never waits for a lost image; 'reliable' for links that lose "
        "large messages and drivers that offer it.",
        choices=("best_effort", "reliable"),
    ),
    Parameter("image_depth", 2, "QoS depth of image and camera_info: more only makes old images wait.", minimum=1),
    Parameter(
        "image_timeout_s", 1.0, "No new image for this long: the camera is lost. Several frame periods.", above=0.0
    ),
    Parameter(
        "image_max_age_s",
        0.5,
        "An image older than this when its prediction would begin is not used. Covers exposure, transport and TF "
        "delay; a larger value acts on an older world.",
        above=0.0,
    ),
    Parameter(
        "image_max_future_s", 0.1, "A stamp further ahead than this means clocks that are not synchronised.", above=0.0
    ),
    Parameter(
        "frozen_s",
        1.0,
        "With frozen_motion_m: identical pixels for this long while the tool moved that far mean a frozen camera.",
        above=0.0,
    ),
    Parameter("frozen_motion_m", 0.02, "See frozen_s.", above=0.0),
    Parameter(
        "joint_states_timeout_s",
        0.5,
        "Measured joints older than this are not known: the arm is held and nothing is commanded. Output mode 'joint'.",
        above=0.0,
    ),
    # Commands
    Parameter(
        "dry_run", True, "Predict and publish everything except commands. May change while the node is disabled."
    ),
    Parameter(
        "output_mode",
        "joint",
        "'joint': trajectory_msgs/JointTrajectory for joint_trajectory_controller, by inverse kinematics. 'pose': "
        "PoseStamped samples for Cartesian controllers. 'twist': TwistStamped samples for moveit_servo.",
        choices=("joint", "pose", "twist"),
    ),
    Parameter(
        "robot_description",
        "",
        "URDF text for output mode 'joint'. '' waits for the robot_description topic.",
    ),
    Parameter(
        "command_rate",
        50.0,
        "Hz of pose and twist samples, of the gripper and of all monitoring.",
        minimum=5.0,
        maximum=1000.0,
    ),
    Parameter(
        "replan",
        "continuous",
        "'continuous' predicts from the newest image whenever the policy is free, while moving at most once an action. "
        "'horizon' waits until the motion that remains is shorter than the p95 latency and request_margin_s: with "
        "execution_horizon, a few actions of each chunk are executed, which many policies need to get anywhere.",
        choices=("continuous", "horizon"),
    ),
    Parameter(
        "execution_horizon",
        0,
        "Actions of a chunk that are executed, and checked, at most; 0 is all. What lies beyond is mostly replaced by "
        "the next chunk anyway. At least the policy's latency, in actions, plus a few.",
        minimum=0,
    ),
    Parameter("request_margin_s", 0.1, "See replan. Covers the jitter of the latency.", minimum=0.0),
    Parameter(
        "arm_lag_s",
        0.0,
        "How late the arm follows its commands. Commands are sent that much earlier, so that the arm is on time: "
        "without, chunks that name the way to a goal overshoot it. /diagnostics tells the measured lag.",
        minimum=0.0,
        maximum=1.0,
    ),
    Parameter(
        "max_lead_m",
        0.05,
        "A chunk is composed onto the commanded pose that its image shows, at most this far from where the tool was "
        "measured then. 0 composes it onto the measured tool: an arm that follows t seconds late then moves "
        "1 / (1 + t / period) as far as the policy means, with a new chunk every period. More pushes a blocked arm "
        "harder. Not above max_tracking_m.",
        minimum=0.0,
    ),
    Parameter("max_lead_rad", 0.3, "The same for the orientation; not above max_tracking_rad.", minimum=0.0),
    Parameter(
        "max_open_loop_s",
        4.0,
        "Motion never reaches further than this past the image it was computed from, also when this node dies. At "
        "least the policy's latency plus a few actions.",
        above=0.0,
    ),
    Parameter(
        "blend_s",
        0.2,
        "Time in which a new chunk takes over from the old one. Shorter leaves jerk at the seam, longer delays "
        "reactions; none at all would be a jump.",
        minimum=0.02,
    ),
    Parameter(
        "ramp_s",
        1.0,
        "The same for the first chunk after standing still, from the measured pose.",
        minimum=0.02,
    ),
    Parameter(
        "ensemble_chunks",
        2,
        "Consecutive chunks that are averaged where they speak of the same moment (CogACT's adaptive ensemble, by "
        "time); 1 executes the newest alone.",
        minimum=1,
        maximum=16,
    ),
    Parameter("ensemble_alpha", 0.1, "How much less a chunk weighs there that disagrees with the newest.", minimum=0.0),
    Parameter("gripper_closed_m", 0.0, "Command for a closed gripper: opening of one finger.", minimum=0.0),
    Parameter("gripper_open_m", 0.04, "Command for an open gripper: opening of one finger.", minimum=0.0),
    Parameter(
        "gripper_open_above",
        0.6,
        "The gripper is told to open when the policy's opening rises above this, to close when it falls below "
        "gripper_close_below, and nothing in between: the output hovers.",
        above=0.0,
        maximum=1.0,
    ),
    Parameter("gripper_close_below", 0.4, "See gripper_open_above.", minimum=0.0, maximum=1.0),
    # Safety. Not certified: the emergency stop and the controller's own limits stay in charge.
    Parameter(
        "task_deadline_s",
        60.0,
        "A task ends and the arm is held after this, unless its goal says otherwise. A VLA policy never ends by "
        "itself.",
        above=0.0,
    ),
    Parameter("input_lost_s", 10.0, "A task ends when nothing could be predicted for this long.", above=0.0),
    Parameter(
        "malformed_limit",
        3,
        "This many chunks in a row that are not finite or have the wrong shape latch a fault.",
        minimum=1,
    ),
    Parameter(
        "workspace_min_m", [0.15, -0.6, 0.0], "Lower corner of the box the tool must stay in, base frame.", length=3
    ),
    Parameter(
        "workspace_max_m", [0.85, 0.6, 0.8], "Upper corner of that box. A chunk that leaves it is rejected.", length=3
    ),
    Parameter(
        "workspace_cut_m",
        0.0,
        "A motion that would leave the box by no more than this stops at its border and goes on along it: for a border "
        "that work is done at, such as a table. What leads further out is rejected. 0 rejects all.",
        minimum=0.0,
    ),
    Parameter(
        "max_linear_velocity",
        0.4,
        "m/s of the tool. A faster chunk is slowed down, its path kept; beyond hard_ratio times the limit it is "
        "rejected.",
        above=0.0,
    ),
    Parameter("max_linear_acceleration", 4.0, "m/s² of the tool, likewise.", above=0.0),
    Parameter(
        "max_linear_jerk", 200.0, "m/s³ of the tool, likewise. Differences over short steps: leave room.", above=0.0
    ),
    Parameter("max_angular_velocity", 1.5, "rad/s of the tool, likewise.", above=0.0),
    Parameter("max_angular_acceleration", 15.0, "rad/s² of the tool, likewise.", above=0.0),
    Parameter("max_angular_jerk", 750.0, "rad/s³ of the tool, likewise.", above=0.0),
    Parameter(
        "hard_ratio", 3.0, "See max_linear_velocity: so far beyond a limit is an error and not haste.", minimum=1.0
    ),
    Parameter(
        "max_step_m", 0.1, "Longest motion between two poses of a chunk; beyond it the chunk is rejected.", above=0.0
    ),
    Parameter("max_step_rad", 0.5, "The same for the rotation.", above=0.0),
    Parameter(
        "max_start_m",
        0.15,
        "A trajectory must begin this near to the measured tool. Not below max_tracking_m: it begins where the "
        "arm was told to be.",
        above=0.0,
    ),
    Parameter("max_start_rad", 0.8, "The same for the orientation.", above=0.0),
    Parameter(
        "max_joint_velocity",
        2.0,
        "rad/s (m/s) of any joint, on top of the URDF's own limits; faster is slowed down, likewise.",
        above=0.0,
    ),
    Parameter(
        "joint_margin",
        0.02,
        "Distance kept from the joint limits of the URDF, rad or m. Output mode 'joint', which also keeps its "
        "velocity limits.",
        minimum=0.0,
    ),
    Parameter(
        "max_tracking_m",
        0.1,
        "The measured tool may be this far from the commanded pose; further means contact, a wrong controller or a "
        "lost command, and the arm is held. Covers the controller's lag at full speed.",
        above=0.0,
    ),
    Parameter("max_tracking_rad", 0.6, "The same for the orientation.", above=0.0),
    Parameter("tracking_limit", 3, "This many tracking errors within a few seconds latch a fault.", minimum=1),
)

_HEADINGS = {
    "checkpoint": "What runs",
    "base_frame": "Frames",
    "image_transport": "Images",
    "dry_run": "Commands",
    "task_deadline_s": "Safety. Not certified: the emergency stop and the controller's own limits stay in charge",
}


def defaults() -> dict[str, Value]:
    """Every parameter's default by name."""
    return {parameter.name: parameter.default for parameter in PARAMETERS}


def problems(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with a complete set of values, each and together."""
    found = [text for p in PARAMETERS if (text := p.problem(values[p.name])) is not None]
    if found:
        return found
    if any(low >= high for low, high in zip(values["workspace_min_m"], values["workspace_max_m"], strict=True)):
        found.append(
            f"workspace_min_m must be below workspace_max_m in every axis, got {list(values['workspace_min_m'])} and "
            f"{list(values['workspace_max_m'])}"
        )
    if values["gripper_close_below"] > values["gripper_open_above"]:
        found.append(
            f"gripper_close_below must not exceed gripper_open_above, got {values['gripper_close_below']:g} and "
            f"{values['gripper_open_above']:g}"
        )
    try:
        camera_contract(values)
    except ValueError as error:
        found.append(f"training_camera: {error}")
    for unit in ("m", "rad"):
        lead, tracking = values[f"max_lead_{unit}"], values[f"max_tracking_{unit}"]
        if lead > tracking:
            found.append(f"max_lead_{unit} must not exceed max_tracking_{unit}, got {lead:g} and {tracking:g}")
    return found


def worker_config(values: Mapping[str, Any], factory: str = "") -> WorkerConfig:
    """What the policy's process loads."""
    names = ("checkpoint", "recipe", "device", "dtype", "unnorm_key", "seed", "threads")
    return WorkerConfig(**{name: values[name] for name in names}, factory=factory)


def executive_config(values: Mapping[str, Any]) -> ExecutiveConfig:
    """The state machine's part of the parameters."""
    return ExecutiveConfig(**{field.name: values[field.name] for field in fields(ExecutiveConfig)})


def motion_config(values: Mapping[str, Any]) -> MotionConfig:
    """How chunks are executed."""
    return MotionConfig(**{field.name: values[field.name] for field in fields(MotionConfig)})


def safety_limits(values: Mapping[str, Any]) -> SafetyLimits:
    """What a trajectory must satisfy."""
    limits = {field.name: values[field.name] for field in fields(SafetyLimits)}
    limits["workspace_min_m"] = tuple(values["workspace_min_m"])
    limits["workspace_max_m"] = tuple(values["workspace_max_m"])
    return SafetyLimits(**limits)


def camera_contract(values: Mapping[str, Any]) -> CameraContract | None:
    """What the camera must see like; None when it is not known. Raises ValueError for numbers that are no camera."""
    width, height, fx, fy, cx, cy = values["training_camera"]
    if not any((width, height, fx, fy, cx, cy)):
        return None
    return CameraContract(width, height, fx, fy, cx, cy, tolerance=values["training_camera_tolerance"])


def image_gate_config(values: Mapping[str, Any]) -> ImageGateConfig:
    """The image stream's part of the parameters."""
    return ImageGateConfig(
        timeout_s=values["image_timeout_s"],
        max_age_s=values["image_max_age_s"],
        max_future_s=values["image_max_future_s"],
        frozen_s=values["frozen_s"],
        frozen_motion_m=values["frozen_motion_m"],
    )


def declare(node: Any) -> None:
    """Declare every parameter on a rclpy node, with its description and range."""
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    for p in PARAMETERS:
        descriptor = ParameterDescriptor(name=p.name, description=p.description)
        if p.choices:
            descriptor.additional_constraints = "one of " + ", ".join(map(repr, p.choices))
        # Ranges state what the message can say; `problem` has the last word, also on exclusive and open bounds.
        if isinstance(p.default, float) and p.minimum is not None and p.maximum is not None:
            descriptor.floating_point_range = [FloatingPointRange(from_value=p.minimum, to_value=p.maximum)]
        elif isinstance(p.default, int) and not isinstance(p.default, bool) and p.minimum is not None:
            descriptor.integer_range = [IntegerRange(from_value=int(p.minimum), to_value=2**31 - 1)]
        node.declare_parameter(p.name, p.default, descriptor)


def read(node: Any) -> dict[str, Any]:
    """The values a node has now. Raises ValueError naming every one that is wrong."""
    values = {p.name: node.get_parameter(p.name).value for p in PARAMETERS}
    if found := problems(values):
        raise ValueError("; ".join(found))
    return values


def as_yaml() -> str:
    """The annotated parameter file."""
    lines = [
        "# Parameters of policy_node with their defaults. Written from sqap_vla_ros/nodes/policy/parameters.py.",
        "# Lengths are metres, angles radians, times seconds.",
        "/**:",
        "  ros__parameters:",
    ]
    for p in PARAMETERS:
        if p.name in _HEADINGS:
            lines += ["", f"    # ---- {_HEADINGS[p.name]}"]
        lines.append("")
        lines += [f"    # {line}" for line in textwrap.wrap(p.description + _bounds(p), 110)]
        lines.append(f"    {p.name}: {_literal(p.default)}")
    return "\n".join(lines) + "\n"


def _bounds(p: Parameter) -> str:
    bounds = [
        *([f"at least {p.minimum:g}"] if p.minimum is not None else []),
        *([f"above {p.above:g}"] if p.above is not None else []),
        *([f"at most {p.maximum:g}"] if p.maximum is not None else []),
    ]
    return f" [{', '.join(bounds)}]" if bounds else ""


def _literal(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


if __name__ == "__main__":
    print(as_yaml(), end="")
