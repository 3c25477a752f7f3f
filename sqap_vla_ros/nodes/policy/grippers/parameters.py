"""Rows of the parameter table about the gripper. Positions and efforts are in the gripper's own unit."""

from __future__ import annotations

from sqap_vla_ros.nodes.parameter_table import Parameter
from sqap_vla_ros.nodes.policy.grippers.gripper import GripperConfig
from sqap_vla_ros.nodes.policy.grippers.table import GRIPPER_SINKS

GRIPPER = (
    Parameter(
        "gripper_output",
        "forward_command",
        "Form of the gripper's commands. " + " ".join(f"'{name}': {g.SUMMARY}" for name, g in GRIPPER_SINKS.items()),
        choices=tuple(GRIPPER_SINKS),
    ),
    Parameter.of(
        GripperConfig,
        "gripper_closed",
        "Position of the closed gripper, in gripper_unit, as its driver counts it: 0.0 for a Franka hand, 0.8 for a "
        "Robotiq 2F-85. It may be negative, and above gripper_open.",
        field="closed",
    ),
    Parameter.of(
        GripperConfig,
        "gripper_open",
        "Position of the open gripper, in gripper_unit: 0.04 for a Franka hand (of one finger), 0.0 for a Robotiq "
        "2F-85.",
        field="opened",
    ),
    Parameter.of(
        GripperConfig,
        "gripper_unit",
        "Unit of the gripper's positions, for messages to people.",
        field="unit",
        choices=("m", "rad"),
    ),
    Parameter.of(
        GripperConfig,
        "gripper_max_effort",
        "Largest effort of the gripper's actions, N or Nm. 0 leaves it to the gripper; one that is controlled by "
        "effort does not move with 0.",
        field="max_effort",
        minimum=0.0,
    ),
    Parameter.of(
        GripperConfig,
        "gripper_joint",
        "Joint of the gripper. Needed where it is commanded by name; with the other kinds its position in joint_states "
        "tells whether the gripper arrived or holds something. '' where nobody knows.",
        field="joint",
    ),
    Parameter.of(
        GripperConfig,
        "gripper_action",
        "Name of the gripper's action, such as '/robotiq_gripper_controller/gripper_cmd'. ROS 2 cannot remap actions.",
        field="action",
    ),
    Parameter.of(
        GripperConfig,
        "gripper_answer_scale",
        "The positions in the answers of action control_msgs/GripperCommand times this are those that are commanded: "
        "0.5 for a Franka hand, which is sent the way of one finger and answers with the width between both.",
        field="answer_scale",
        above=0.0,
    ),
    Parameter.of(
        GripperConfig,
        "gripper_travel_s",
        "Time between open and closed in the arm's trajectory, gripper_output 'joint_trajectory'. The joint's peak "
        "speed is 1.5 times the way over this time.",
        field="travel_s",
        minimum=0.05,
    ),
    Parameter.of(
        GripperConfig,
        "gripper_timeout_s",
        "A gripper that is neither there nor stalled after this time is named in ~/status. The arm goes on.",
        field="timeout_s",
        above=0.0,
    ),
    Parameter.of(
        GripperConfig,
        "gripper_open_above",
        "The gripper is commanded to open when the policy's opening rises above this, and to close when it falls below "
        "gripper_close_below. Nothing is sent in between, because the policy's output hovers.",
        field="open_above",
        above=0.0,
        maximum=1.0,
    ),
    Parameter.of(
        GripperConfig,
        "gripper_close_below",
        "The gripper is commanded to close when the policy's opening falls below this.",
        field="close_below",
        minimum=0.0,
        maximum=1.0,
    ),
)
