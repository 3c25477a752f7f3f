"""The table of checks: a new one is a function and a row here."""

from __future__ import annotations

from sqap_vla_ros.nodes.check.checks.arm import (
    check_description,
    check_joint_states,
    check_kinematics,
    check_workspace,
)
from sqap_vla_ros.nodes.check.checks.camera import check_camera_info, check_gripper_pixel, check_image
from sqap_vla_ros.nodes.check.checks.camera_distance import check_camera_distance
from sqap_vla_ros.nodes.check.checks.clocks import check_clocks
from sqap_vla_ros.nodes.check.checks.commands import (
    check_commanders,
    check_controller,
    check_gripper,
    check_listeners,
)
from sqap_vla_ros.nodes.check.checks.policy import check_latency, check_worker
from sqap_vla_ros.nodes.check.checks.streams import check_qos, check_rates, check_safety_stop
from sqap_vla_ros.nodes.check.checks.transforms import check_transforms
from sqap_vla_ros.nodes.check.finding import Check

CHECKS = (
    Check("rates", check_rates),
    Check("qos", check_qos),
    Check("clocks", check_clocks),
    Check("camera_info", check_camera_info, by_policy=True),
    Check("image", check_image),
    Check("transforms", check_transforms),
    Check("robot_description", check_description),
    Check("joint_states", check_joint_states),
    Check("kinematics", check_kinematics),
    Check("workspace", check_workspace),
    Check("gripper pixel", check_gripper_pixel, by_policy=True),
    Check("camera distance", check_camera_distance, by_policy=True),
    Check("commanders", check_commanders),
    Check("listeners", check_listeners),
    Check("controller", check_controller),
    Check("gripper", check_gripper),
    Check("safety_stop", check_safety_stop),
    Check("policy", check_worker, by_policy=True),
    Check("latency", check_latency, by_policy=True),
)
