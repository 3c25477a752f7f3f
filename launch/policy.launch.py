"""Starts policy_node for a real arm. The arguments and nodes are those of sqap_vla_ros/nodes/launch/table.py.

ros2 launch sqap_vla_ros policy.launch.py checkpoint:=/models/cogact recipe:=coverage_w4a8 image:=/camera/image_raw \
    camera_info:=/camera/camera_info joint_trajectory:=/arm_controller/joint_trajectory dry_run:=true
"""

from launch import LaunchDescription

from sqap_vla_ros.nodes.launch.description import launch_description


def generate_launch_description() -> LaunchDescription:
    return launch_description("policy")
