"""A robot file's stand-in around policy_node's engine, in stepped time and without a middleware."""

from __future__ import annotations

from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import CameraInfo, JointState
from sqap_vla_ros.msg import PolicyStatus
from std_msgs.msg import String
from std_srvs.srv import SetBool

from sqap_vla_ros.contracts import NS_PER_S, ActionChunk, Observation
from sqap_vla_ros.nodes import messages
from sqap_vla_ros.nodes.images import rgb_to_message
from sqap_vla_ros.nodes.launch.robots import RobotFile
from sqap_vla_ros.nodes.stand_in.node import arm_of, camera_of
from stepped.node_double import HORIZON, SteppedClock, engine

TICK_S = 0.02
DT_S = 0.2
LATENCY_S = 0.1
TIMEOUT_S = 0.1  # of moveit_servo


class StandInCell:
    """The node, the robot file's arm, and a policy that moves the tool by `step` [7] in every action.

    refusals: of the arm's controllers. accepted: commands that they executed. ahead_s: by which their clock is ahead of
    the node's. lag_s: of the joints behind what the controller wants.
    """

    def __init__(
        self,
        robot: RobotFile,
        urdf: str,
        step: np.ndarray,
        *,
        ahead_s: float = 0.0,
        lag_s: float = 0.05,
        **changed: Any,
    ) -> None:
        self.urdf, self.step = urdf, step
        self.arm = arm_of(robot, urdf, {"lag_s": lag_s, "interpolate_from_desired_state": True})
        self._camera = camera_of(robot)
        self._base: str = robot.parameters["base_frame"]
        self._tool: str = robot.parameters["tool_frame"]
        self._parameters = robot.parameters | {"ensemble_chunks": 1, "ramp_s": 0.3, "output_mode": "joint"} | changed
        # Actions need a middleware, and have tests of their own; only trajectories carry a gripper.
        if robot.parameters.get("gripper_action") or self._parameters["output_mode"] != "joint":
            self._parameters["gripper_output"] = "forward_command"
        self.clock = SteppedClock()
        self.refusals: list[str] = []
        self.accepted = 0
        self.diagnostics: DiagnosticArray | None = None  # the newest
        self.status = PolicyStatus()  # the newest
        self._ticks = 0
        self._ahead_ns = round(ahead_s * NS_PER_S)

    def __enter__(self) -> StandInCell:
        self._engine = engine(self.clock, self._on_sent, self._predict, self.clock.advance, **self._parameters)
        self.loop, self.node, _ = self._engine.__enter__()
        camera = messages.transform_message(self._camera.base_from_optical, 0, self._base, "camera")
        self.node.transforms.set_transform_static(camera, "cell")
        for parent, child, pose in self.arm.links.fixed():
            self.node.transforms.set_transform_static(messages.transform_message(pose, 0, parent, child), "cell")
        self._publish("robot_description", String(data=self.urdf))
        self.loop.activate()
        return self

    def __exit__(self, *error: object) -> None:
        self._engine.__exit__(*error)

    def start(self, instruction: str = "move") -> None:
        """Let everything arrive, then enable the node with an instruction."""
        self.run(0.3)
        self._publish("instruction", String(data=instruction))
        response = self.node.services["~/enable"](SetBool.Request(data=True), SetBool.Response())
        assert response.success, response.message

    def run(self, seconds: float) -> None:
        """Let time pass, tick by tick."""
        for _ in range(round(seconds / TICK_S)):
            self.clock.advance(TICK_S)
            self._ticks += 1
            self.arm.update(self._controllers_ns, TICK_S)
            self._publish_state()
            for guard in self.node.guards:
                if guard.triggered:
                    guard.triggered = False
                    guard.callback()
            for timer in self.node.timers:
                if timer.running:
                    timer.callback()
            self.node.action.step()

    @property
    def _controllers_ns(self) -> int:
        return self.clock.ros_ns + self._ahead_ns

    def _publish(self, topic: str, message: Any) -> None:
        self.node.subscriptions[topic](message)

    def _publish_state(self) -> None:
        now_ns = self.clock.ros_ns
        positions = self.arm.positions()
        states = JointState(name=list(positions), position=list(positions.values()))
        states.header.stamp = messages.time_message(now_ns)
        self._publish("joint_states", states)
        for parent, child, pose in self.arm.links.moving(positions):
            self.node.transforms.set_transform(messages.transform_message(pose, now_ns, parent, child), "cell")
        if self._ticks % 10 == 0:
            camera, stamp = self._camera, messages.time_message(now_ns)
            info = CameraInfo(width=camera.width, height=camera.height, distortion_model="plumb_bob")
            info.header.stamp, info.header.frame_id = stamp, "camera"
            info.k = camera.matrix.ravel().tolist()
            self._publish("camera_info", info)
            picture = camera.draw(self.arm.skeleton(), self.arm.tool())
            self._publish("image", rgb_to_message(picture, stamp=stamp, frame_id="camera"))

    def _on_sent(self, topic: str, message: Any) -> None:
        try:
            match topic:
                case "joint_trajectory":
                    self.arm.follow(message, self._controllers_ns)
                case "target_pose":
                    self.arm.go_to(messages.pose_from_message(message.pose))
                case "delta_twist_cmds":
                    linear, angular = message.twist.linear, message.twist.angular
                    twist = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])
                    self.arm.drive(twist, messages.time_ns(message.header.stamp), TIMEOUT_S)
                case "/diagnostics":
                    self.diagnostics = message
                    return
                case "~/status":
                    self.status = message
                    return
                case _:
                    return
            self.accepted += 1
        except ValueError as error:  # TrajectoryRejectedError and KinematicsError are such
            self.refusals.append(f"{topic}: {error}")

    def _predict(self, observation: Observation) -> tuple[float, ActionChunk]:
        deltas = np.tile(self.step, (HORIZON, 1))
        return LATENCY_S, ActionChunk(observation.stamp_ns, deltas, DT_S, deltas)
