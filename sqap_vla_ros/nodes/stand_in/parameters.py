"""Parameters of `stand_in`. Those that a robot file names are the policy node's, so that one file serves both."""

from __future__ import annotations

from sqap_vla_ros.nodes.parameter_table import Parameter

PARAMETERS: tuple[Parameter, ...] = (
    Parameter("robot", "", "Robot to stand in for: a file of config/robots by name, or a path to one. Required."),
    Parameter(
        "urdf",
        "",
        "File with the URDF of that robot, xacro expanded. Required; its meshes are not needed.",
    ),
    Parameter(
        "lag_s", 0.05, "Time constant (s) with which the joints follow their commands.", minimum=0.0, maximum=1.0
    ),
    Parameter(
        "interpolate_from_desired_state",
        True,
        "As joint_trajectory_controller's parameter: a trajectory whose first point is in the future is entered from "
        "the commanded state; with false from the measured one, which lags.",
    ),
    Parameter(
        "incoming_command_timeout",
        0.1,
        "As moveit_servo's parameter: a twist moves the tool for so long (s) after its stamp, unless another follows.",
        above=0.0,
        maximum=10.0,
    ),
    Parameter("state_rate", 50.0, "Hz of joint_states and /tf.", minimum=10.0, maximum=500.0),
    Parameter("camera_rate", 10.0, "Images per second.", above=0.0, maximum=60.0),
)
# Parameters of policy_node that the stand-in reads from the robot file. Given here too, as to the node, they win.
OF_THE_ROBOT = (
    "base_frame",
    "tool_frame",
    "joint_posture",
    "orientation_residual_rad",
    "orientation_weights",
    "workspace_min_m",
    "workspace_max_m",
    "training_camera",
    "gripper_output",
    "gripper_action",
    "gripper_joint",
    "gripper_open",
)
