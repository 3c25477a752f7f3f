"""`stand_in`: any arm with a URDF and a robot file, without the arm.

    ros2 run sqap_vla_ros stand_in --ros-args -p robot:=ur5e -p urdf:=ur5e.urdf

It publishes what the drivers of that robot publish (joint_states, /tf, robot_description, and a camera's image and
camera_info), under the topics of the robot file. It obeys joint trajectories by the rules of
joint_trajectory_controller, poses as a Cartesian controller does and twists as moveit_servo does. It has no dynamics,
no collisions and no objects. Parameters: `stand_in/parameters.py`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.exceptions import InvalidParameterTypeException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes import parameter_table
from sqap_vla_ros.nodes.images import rgb_to_message
from sqap_vla_ros.nodes.launch.robots import RobotFile, read_robot
from sqap_vla_ros.nodes.launch.table import dds_environment
from sqap_vla_ros.nodes.messages import pose_from_message, time_message, time_ns, transform_message
from sqap_vla_ros.nodes.policy import parameters as policy_parameters
from sqap_vla_ros.nodes.spinning import Interruption
from sqap_vla_ros.nodes.stand_in.arm import StandInArm
from sqap_vla_ros.nodes.stand_in.gripper import ACTIONS, GripperServer
from sqap_vla_ros.nodes.stand_in.parameters import OF_THE_ROBOT, PARAMETERS
from sqap_vla_ros.nodes.stand_in.picture import StandInCamera
from sqap_vla_ros.nodes.tf.api import StaticTransformBroadcaster, TransformBroadcaster
from sqap_vla_ros.robot.arm.inverse import InverseConfig
from sqap_vla_ros.robot.safety import SafetyLimits
from sqap_vla_ros.simulation.joint_path import TrajectoryRejectedError

OPTICAL_FRAME = "stand_in_camera_optical_frame"
MOVES = 1e-3  # rad/s or m/s of a joint
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def arm_of(robot: RobotFile, urdf: str, values: Mapping[str, Any]) -> StandInArm:
    """Return the arm of a robot file. values: parameters of the stand-in. Raises ValueError where they do not fit."""
    given = robot.parameters
    exact = InverseConfig()
    inverse = InverseConfig(
        tuple(given.get("orientation_residual_rad", exact.orientation_residual_rad)),
        tuple(given.get("orientation_weights", exact.orientation_weights)),
        tuple(given.get("joint_posture", exact.posture)),
    )
    return StandInArm(
        urdf,
        given["base_frame"],
        given["tool_frame"],
        gripper_joint=given.get("gripper_joint", ""),
        gripper_open=float(given.get("gripper_open", 0.0)),
        gripper_in_trajectory=given.get("gripper_output") == "joint_trajectory",
        inverse=inverse,
        lag_s=values["lag_s"],
        interpolate_from_desired_state=values["interpolate_from_desired_state"],
    )


def camera_of(robot: RobotFile) -> StandInCamera:
    """Return a camera that sees the workspace of a robot file, with its training camera's calibration if stated."""
    limits = SafetyLimits()
    low, high = (
        np.array(robot.parameters.get(f"workspace_{end}_m", getattr(limits, f"workspace_{end}_m")), dtype=np.float64)
        for end in ("min", "max")
    )
    calibration = tuple(map(float, robot.parameters.get("training_camera", ())))
    return StandInCamera(low, high, calibration if any(calibration) else None)


class StandIn(Node):
    """The drivers of an arm and a camera, in one thread."""

    def __init__(self) -> None:
        """Raises ValueError or FileNotFoundError, with the remedy, where robot file and URDF do not fit."""
        super().__init__("stand_in")
        parameter_table.declare(self, PARAMETERS, read_only=True, beside=OF_THE_ROBOT)
        values = {p.name: self.get_parameter(p.name).value for p in PARAMETERS}
        if found := parameter_table.problems(PARAMETERS, values):
            raise ValueError("; ".join(found))
        for name in ("robot", "urdf"):
            if not values[name]:
                raise ValueError(f"{name} is required: --ros-args -p robot:=ur5e -p urdf:=ur5e.urdf")
        robot = self._as_given(read_robot(values["robot"]))
        file = Path(values["urdf"]).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"urdf:={values['urdf']}: there is no such file")
        urdf = file.read_text("utf-8")
        self.arm = arm_of(robot, urdf, values)
        gripper_joint = robot.parameters.get("gripper_joint", "")
        if gripper_joint and gripper_joint not in self.arm.links.joint_names:
            self.get_logger().warning(
                f"the URDF has no movable joint {gripper_joint!r} (gripper_joint): only joint_states show the gripper"
            )
        self._camera = camera_of(robot)
        self._base_frame: str = robot.parameters["base_frame"]
        self._twist_timeout_s: float = values["incoming_command_timeout"]
        self._image_period_ns = round(NS_PER_S / values["camera_rate"])
        self._before_ns = self._image_ns = self.get_clock().now().nanoseconds

        def topic(name: str) -> str:
            return robot.arguments.get(name, name)

        self._joint_states = self.create_publisher(JointState, topic("joint_states"), 10)
        self._images = self.create_publisher(Image, topic("image"), qos_profile_sensor_data)
        self._infos = self.create_publisher(CameraInfo, topic("camera_info"), qos_profile_sensor_data)
        self._description = self.create_publisher(String, topic("robot_description"), LATCHED)
        self._description.publish(String(data=urdf))
        self._frames = TransformBroadcaster(self)
        self._static_frames = StaticTransformBroadcaster(self)
        fixed = [*self.arm.links.fixed(), (self._base_frame, OPTICAL_FRAME, self._camera.base_from_optical)]
        self._static_frames.sendTransform(
            [transform_message(pose, self._before_ns, parent, child) for parent, child, pose in fixed]
        )
        self.create_subscription(JointTrajectory, topic("joint_trajectory"), self._on_trajectory, 10)
        self.create_subscription(PoseStamped, topic("target_pose"), self._on_pose, 10)
        self.create_subscription(TwistStamped, topic("delta_twist_cmds"), self._on_twist, 10)
        self.create_subscription(Float64MultiArray, topic("gripper_command"), self._on_gripper, 10)
        self._gripper = self._served_gripper(robot)
        self.create_timer(1.0 / values["state_rate"], self._tick)
        listens = ", ".join(
            self.resolve_topic_name(topic(name)) for name in ("joint_trajectory", "target_pose", "delta_twist_cmds")
        )
        self.get_logger().info(f"stand-in for {robot.path.stem}: {len(self.arm.joints)} joints listen to {listens}")

    def _as_given(self, robot: RobotFile) -> RobotFile:
        """Return the robot with what was given to this node beside it. Raises ValueError for a value that cannot be."""
        table = [
            replace(p, default=robot.parameters.get(p.name, p.default))
            for p in policy_parameters.PARAMETERS
            if p.name in OF_THE_ROBOT
        ]
        parameter_table.declare(self, table, read_only=True, beside=None)
        values = {p.name: p.clean(self.get_parameter(p.name).value) for p in table}
        if found := parameter_table.problems(table, values):
            raise ValueError("; ".join(found))
        return replace(robot, parameters=robot.parameters | values)

    def _served_gripper(self, robot: RobotFile) -> GripperServer | None:
        kind, name = robot.parameters["gripper_output"], robot.parameters["gripper_action"]
        if kind not in ACTIONS or not name:
            return None
        try:
            return GripperServer(self, self.arm, kind, name)
        except ImportError:
            self.get_logger().warning(f"no action server {name}: control_msgs is not installed")
            return None

    def _on_trajectory(self, message: JointTrajectory) -> None:
        try:
            self.arm.follow(message, self.get_clock().now().nanoseconds)
        except TrajectoryRejectedError as error:
            self.get_logger().error(f"joint_trajectory rejected: {error}", throttle_duration_sec=1.0)

    def _on_pose(self, message: PoseStamped) -> None:
        if self._in_base("target_pose", message.header.frame_id):
            try:
                self.arm.go_to(pose_from_message(message.pose))
            except ValueError as error:  # no rotation, or out of reach
                self.get_logger().error(f"target_pose rejected: {error}", throttle_duration_sec=1.0)

    def _on_twist(self, message: TwistStamped) -> None:
        linear, angular = message.twist.linear, message.twist.angular
        twist = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])
        if not np.isfinite(twist).all():
            self.get_logger().error(f"delta_twist_cmds rejected: {twist.tolist()} is not finite")
        elif self._in_base("delta_twist_cmds", message.header.frame_id):
            self.arm.drive(twist, time_ns(message.header.stamp), self._twist_timeout_s)

    def _in_base(self, topic: str, frame: str) -> bool:
        """Return whether a command is in the base frame, the only one that the stand-in knows; log where it is not."""
        if frame != self._base_frame:
            text = f"{topic} rejected: it is in {frame!r}, and base_frame is {self._base_frame!r}"
            self.get_logger().error(text, throttle_duration_sec=1.0)
        return frame == self._base_frame

    def _on_gripper(self, message: Float64MultiArray) -> None:
        if len(message.data) == 1 and np.isfinite(message.data[0]):
            self.arm.move_gripper(float(message.data[0]))
        else:
            self.get_logger().error(f"gripper_command needs one finite value, got {list(message.data)}")

    def _tick(self) -> None:
        now_ns = self.get_clock().now().nanoseconds
        self.arm.update(now_ns, max(now_ns - self._before_ns, 0) / NS_PER_S)
        self._before_ns = now_ns
        if self._gripper is not None:
            self._gripper.tick()
        positions = self.arm.positions()
        links = self.arm.links.moving(positions)
        states = JointState(name=list(positions), position=list(positions.values()))
        states.header.stamp = time_message(now_ns)
        self._joint_states.publish(states)
        self._frames.sendTransform([transform_message(pose, now_ns, parent, child) for parent, child, pose in links])
        if np.abs(self.arm.velocity).max() > MOVES:
            xyz = ", ".join(f"{c:.3f}" for c in self.arm.tool()[:3, 3])
            self.get_logger().info(f"the tool moves: ({xyz}) m", throttle_duration_sec=2.0)
        if now_ns - self._image_ns >= self._image_period_ns:
            self._image_ns = now_ns
            self._publish_image(now_ns)

    def _publish_image(self, now_ns: int) -> None:
        camera, stamp = self._camera, time_message(now_ns)
        info = CameraInfo(width=camera.width, height=camera.height, distortion_model="plumb_bob", d=[0.0] * 5)
        info.header.stamp, info.header.frame_id = stamp, OPTICAL_FRAME
        info.k = camera.matrix.ravel().tolist()
        info.r = np.eye(3).ravel().tolist()
        info.p = np.hstack([camera.matrix, np.zeros((3, 1))]).ravel().tolist()
        self._infos.publish(info)
        picture = camera.draw(self.arm.skeleton(), self.arm.tool())
        self._images.publish(rgb_to_message(picture, stamp=stamp, frame_id=OPTICAL_FRAME))


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM. Returns the exit status."""
    os.environ.update(dds_environment(os.environ))  # as the launch files do: images do not fit the default
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    interrupted = Interruption.by_signals()
    try:
        node = StandIn()
    except (ValueError, FileNotFoundError, InvalidParameterTypeException) as error:
        print(f"stand_in: {error}", file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while not interrupted.is_set():
        executor.spin_once(timeout_sec=0.1)
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
