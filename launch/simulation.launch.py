"""Starts a simulated arm and the policy node that drives it, as sqap_vla_ros/nodes/launch/table.py lists them.

ros2 launch sqap_vla_ros simulation.launch.py task:=pick
ros2 service call /policy_node/enable std_srvs/srv/SetBool "{data: true}"
"""

from launch import LaunchDescription

from sqap_vla_ros.nodes.launch.description import launch_description


def generate_launch_description() -> LaunchDescription:
    return launch_description("simulation")
