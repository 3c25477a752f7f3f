"""Plays a recording for the policy node and records its answers. See sqap_vla_ros/nodes/launch/table.py.

ros2 launch sqap_vla_ros replay.launch.py bag:=my_bag image:=/camera/image_raw camera_info:=/camera/camera_info \
    checkpoint:=/models/cogact recipe:=sqap record:=answers
"""

from launch import LaunchDescription

from sqap_vla_ros.nodes.launch.description import launch_description


def generate_launch_description() -> LaunchDescription:
    return launch_description("replay")
