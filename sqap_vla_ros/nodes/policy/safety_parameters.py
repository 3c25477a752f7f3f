"""The rows of the parameter table of policy_node that bound missions and motions."""

from __future__ import annotations

from sqap_vla_ros.control.executive_config import ExecutiveConfig
from sqap_vla_ros.control.motion import MotionConfig
from sqap_vla_ros.nodes.parameter_table import Parameter
from sqap_vla_ros.robot.safety import SafetyLimits

SAFETY = (
    Parameter.of(
        ExecutiveConfig,
        "task_deadline_s",
        "A task ends and the arm is held after this time, unless the goal states its own. A VLA policy never ends by "
        "itself.",
        above=0.0,
    ),
    Parameter.of(
        ExecutiveConfig,
        "input_lost_s",
        "A task ends when nothing could be predicted for this long.",
        above=0.0,
    ),
    Parameter.of(
        ExecutiveConfig,
        "malformed_limit",
        "This many consecutive chunks that are not finite or have the wrong shape latch a fault.",
        minimum=1,
    ),
    Parameter.of(
        SafetyLimits,
        "workspace_min_m",
        "Lower corner of the box that the tool must stay in, in the base frame.",
        length=3,
    ),
    Parameter.of(
        SafetyLimits,
        "workspace_max_m",
        "Upper corner of that box. A chunk that leaves the box is rejected.",
        length=3,
    ),
    Parameter.of(
        SafetyLimits,
        "workspace_cut_m",
        "A motion that would leave the box by no more than this stops at its border and continues along it, for a "
        "border the arm works at, such as a table top. A motion that leads further out is rejected; 0 rejects all.",
        minimum=0.0,
    ),
    Parameter(
        "speed_scale",
        1.0,
        "Share of the speed limits of tool and joints that is used: 0.1 for the first motions of an arm. Chunks are "
        "slowed down on their path, and hard_ratio counts from the full limits.",
        minimum=0.01,
        maximum=1.0,
    ),
    Parameter.of(
        SafetyLimits,
        "max_linear_velocity",
        "Speed limit of the tool (m/s). A faster chunk is slowed down on the same path; one that exceeds the limit "
        "hard_ratio times is rejected.",
        above=0.0,
    ),
    Parameter.of(SafetyLimits, "max_linear_acceleration", "The same for its acceleration (m/s^2).", above=0.0),
    Parameter.of(
        SafetyLimits,
        "max_linear_jerk",
        "The same for its jerk (m/s^3), a difference over short steps: leave room.",
        above=0.0,
    ),
    Parameter.of(SafetyLimits, "max_angular_velocity", "The same for its angular velocity (rad/s).", above=0.0),
    Parameter.of(
        SafetyLimits, "max_angular_acceleration", "The same for its angular acceleration (rad/s^2).", above=0.0
    ),
    Parameter.of(SafetyLimits, "max_angular_jerk", "The same for its angular jerk (rad/s^3).", above=0.0),
    Parameter.of(
        SafetyLimits,
        "hard_ratio",
        "A chunk that exceeds a limit by more than this factor is an error, not haste, and is rejected.",
        minimum=1.0,
    ),
    Parameter.of(
        SafetyLimits,
        "max_step_m",
        "Longest distance between two consecutive poses of a chunk; a chunk with a longer one is rejected.",
        above=0.0,
    ),
    Parameter.of(SafetyLimits, "max_step_rad", "The same for the rotation.", above=0.0),
    Parameter.of(
        SafetyLimits,
        "max_start_m",
        "Largest distance between the start of a trajectory and the measured tool. Set it to at least max_tracking_m, "
        "because a trajectory starts at the commanded pose.",
        above=0.0,
    ),
    Parameter.of(SafetyLimits, "max_start_rad", "The same for the orientation.", above=0.0),
    Parameter.of(
        SafetyLimits,
        "max_joint_velocity",
        "Speed limit of every joint (rad/s or m/s), beside the URDF's own; a faster motion is slowed down as above.",
        above=0.0,
    ),
    Parameter.of(
        SafetyLimits,
        "max_joint_acceleration",
        "Acceleration limit of every joint (rad/s^2 or m/s^2), beside the URDF's own, at the peaks of the cubic that "
        "the controller draws. URDFs seldom state one: take your arm's, with a margin.",
        above=0.0,
    ),
    Parameter.of(
        SafetyLimits,
        "max_joint_jerk",
        "The same for the jerk (rad/s^3 or m/s^3), the change of the mean acceleration from one hundredth of a second "
        "to the next.",
        above=0.0,
    ),
    Parameter.of(
        SafetyLimits,
        "joint_margin",
        "Distance kept from the joint limits of the URDF (rad or m). Output mode 'joint', which also keeps the URDF's "
        "velocity limits.",
        minimum=0.0,
    ),
    Parameter.of(
        MotionConfig,
        "max_tracking_m",
        "Largest distance between the measured tool and the commanded pose. A larger one means contact, a wrong "
        "controller or a lost command, and the arm is held. It covers the controller's lag at full speed.",
        above=0.0,
    ),
    Parameter.of(MotionConfig, "max_tracking_rad", "The same for the orientation.", above=0.0),
    Parameter.of(
        MotionConfig,
        "standstill_timeout_s",
        "An arm whose tool has not moved for so long, while it is told to by a command that leads it by half of "
        "max_lead_*, is held like one astray: its controller does not listen, its measurements stand still, or it is "
        "blocked. Choose it well above the controller's lag.",
        minimum=0.5,
    ),
    Parameter.of(
        ExecutiveConfig,
        "tracking_limit",
        "This many tracking errors, or arms that stand still, within a few seconds latch a fault.",
        minimum=1,
    ),
)
