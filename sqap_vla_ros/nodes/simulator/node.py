"""`simulator_node`: the embedded tabletop as a robot on ROS 2, with an arm, a camera and a task.

It stands where the drivers of a real cell stand: it publishes what a camera driver, robot_state_publisher and
joint_state_broadcaster publish and obeys what joint_trajectory_controller, a Cartesian controller and
forward_command_controller obey. Parameters: config/simulator.yaml. Topics: `SimulatorNode`.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Sequence

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.exceptions import InvalidParameterTypeException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes.messages import pose_from_message, time_message, time_ns
from sqap_vla_ros.nodes.simulator import parameters as simulator_parameters
from sqap_vla_ros.nodes.simulator.camera import SimulatorCamera
from sqap_vla_ros.nodes.simulator.frames import BASE_FRAME, TOOL_FRAME, SimulatorFrames
from sqap_vla_ros.nodes.simulator.gripper import SimulatorGripper
from sqap_vla_ros.nodes.spinning import Interruption
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.simulation.commander import ArmCommander
from sqap_vla_ros.simulation.joint_path import TrajectoryRejectedError, accept_trajectory
from sqap_vla_ros.simulation.layout import VARIATIONS, sample_layout
from sqap_vla_ros.simulation.scene import ARM_JOINTS, FINGER_JOINTS
from sqap_vla_ros.simulation.world import TabletopWorld

STEPS_PER_TICK = 2
LATE_S = 0.25  # physics this far behind the clock lets the time go instead of rushing after it
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class SimulatorNode(Node):
    """One tabletop in real time.

    Publishes image, camera_info, joint_states, /tf, /tf_static, robot_description, instruction, ~/success and, when
    asked to, /clock. Obeys joint_trajectory, target_pose, delta_twist_cmds, gripper_command and goals of the action
    gripper_cmd (control_msgs/GripperCommand); `~/reset` starts the next episode.

    Threads: the executor's takes messages, `physics` lets time pass on a steady clock, `camera` renders. `_lock`
    guards the world and the commander; it is held for well under a millisecond at a time (a reset: a few).
    """

    def __init__(self) -> None:
        super().__init__("simulator")
        simulator_parameters.declare(self)
        values = simulator_parameters.read(self)
        self._values = values
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.world = TabletopWorld()
        self._episode = -1
        self._succeeded: bool | None = None
        self._sim_time = bool(values["publish_clock"])
        self._time_ns = 0 if self._sim_time else self.get_clock().now().nanoseconds

        self._clock_publisher = self.create_publisher(Clock, "/clock", 10) if self._sim_time else None
        self._joint_states = self.create_publisher(JointState, "joint_states", 10)
        self._instruction = self.create_publisher(String, "instruction", LATCHED)
        self._success = self.create_publisher(Bool, "~/success", LATCHED)
        self._description = self.create_publisher(String, "robot_description", LATCHED)
        self._description.publish(String(data=share_path("config/robots/tabletop_arm.urdf").read_text("utf-8")))
        self._frames = SimulatorFrames(self, self.world)
        self._camera = SimulatorCamera(self, self.world, self._lock, values)
        self._arm = ArmCommander(
            self.world,
            max_joint_velocity_rad_s=values["max_joint_velocity"],
            twist_timeout_s=values["twist_timeout_s"],
            interpolate_from_desired_state=values["interpolate_from_desired_state"],
        )
        self._reset_world()

        self.create_subscription(JointTrajectory, "joint_trajectory", self._on_trajectory, 1)
        self.create_subscription(PoseStamped, "target_pose", self._on_pose, 1)
        self.create_subscription(TwistStamped, "delta_twist_cmds", self._on_twist, 1)
        self._gripper = SimulatorGripper(self, self.world, self._lock)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self._physics_error: Exception | None = None
        self._physics = threading.Thread(target=self._run_physics, name="physics")

    def start(self) -> None:
        """Let time pass."""
        self._physics.start()
        self._camera.start()

    def stop(self) -> None:
        """End the threads (the camera closes its OpenGL context); after this only `destroy_node` makes sense."""
        self._stopped.set()
        self._physics.join()
        self._camera.stop()

    @property
    def error(self) -> Exception | None:
        """The exception that ended a thread of the node, None while all is well."""
        return self._physics_error or self._camera.error

    # -- commands -----------------------------------------------------------------------------------------------------

    def _on_trajectory(self, message: JointTrajectory) -> None:
        start = time_ns(message.header.stamp)
        with self._lock:
            start = start or self._time_ns  # a zero stamp means now
            position, velocity = self._arm.start_state()
            try:
                path = accept_trajectory(
                    ARM_JOINTS,
                    names=message.joint_names,
                    times_ns=[start + time_ns(point.time_from_start) for point in message.points],
                    positions=[point.positions for point in message.points],
                    velocities=[point.velocities for point in message.points],
                    accelerations=[point.accelerations for point in message.points],
                    efforts=[point.effort for point in message.points],
                    now_ns=self._time_ns,
                    position=position,
                    velocity=velocity,
                )
            except TrajectoryRejectedError as error:
                self.get_logger().error(f"joint_trajectory rejected: {error}", throttle_duration_sec=1.0)
                return
            self._arm.follow(path)

    def _on_pose(self, message: PoseStamped) -> None:
        if message.header.frame_id != BASE_FRAME:
            self._refuse("target_pose", f"frame_id must be {BASE_FRAME!r}, got {message.header.frame_id!r}")
            return
        try:
            pose = pose_from_message(message.pose)
            with self._lock:
                self._arm.move_to(pose)
        except ValueError as error:  # ReachError is one
            self._refuse("target_pose", str(error))

    def _on_twist(self, message: TwistStamped) -> None:
        linear, angular = message.twist.linear, message.twist.angular
        twist = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])
        frame = message.header.frame_id
        if frame not in (BASE_FRAME, TOOL_FRAME):
            self._refuse("delta_twist_cmds", f"frame_id must be {BASE_FRAME!r} or {TOOL_FRAME!r}, got {frame!r}")
        elif not np.isfinite(twist).all():
            self._refuse("delta_twist_cmds", f"the twist is not finite: {twist.tolist()}")
        else:
            with self._lock:
                if frame == TOOL_FRAME:
                    rotation = self.world.forward(self._arm.position)[:3, :3]
                    twist = np.concatenate([rotation @ twist[:3], rotation @ twist[3:]])
                self._arm.move_along(twist, self._time_ns)

    def _refuse(self, topic: str, reason: str) -> None:
        self.get_logger().error(f"{topic} rejected: {reason}", throttle_duration_sec=1.0)

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._reset_world()
        assert self.world.layout is not None
        response.success, response.message = True, self.world.layout.task.instruction
        return response

    # -- time ---------------------------------------------------------------------------------------------------------

    def _reset_world(self) -> None:
        with self._lock:
            self._episode += 1
            seed = self._values["seed"] + self._episode
            layout = sample_layout(
                seed,
                self._values["task"] or None,
                VARIATIONS[self._values["variation"]],
                instruction=self._values["instruction"],
            )
            self.world.reset(layout)
            self._arm.restart()
            self._succeeded = None
            self._frames.publish_static(self._time_ns)
        self._instruction.publish(String(data=layout.task.instruction))
        self.get_logger().info(f"episode {self._episode} (seed {seed}): {layout.task.instruction}")

    def _run_physics(self) -> None:
        try:
            self._advance()
        except Exception as error:  # a thread's exception goes nowhere: `main` ends the node with it
            self.get_logger().fatal("".join(traceback.format_exception(error)))
            self._physics_error = error

    def _advance(self) -> None:
        """Let physics follow a steady clock, tick by tick. Stamps are what the ROS clock says when a tick is due."""
        tick_s = STEPS_PER_TICK * self.world.timestep_s
        wall_s = tick_s / self._values["real_time_factor"]
        due_s = time.monotonic()
        while not self._stopped.is_set():
            due_s += wall_s
            wait_s = due_s - time.monotonic()
            if wait_s > 0:
                self._stopped.wait(wait_s)
            elif wait_s < -LATE_S:
                self.get_logger().warning(
                    f"the simulation is {-wait_s:.2f} s late and does not catch up: this computer is too busy",
                    throttle_duration_sec=5.0,
                )
                due_s = time.monotonic()
            if self._sim_time:
                self._tick(self._time_ns + round(NS_PER_S * tick_s))
            else:
                self._tick(self.get_clock().now().nanoseconds - round(NS_PER_S * (time.monotonic() - due_s)))

    def _tick(self, now_ns: int) -> None:
        dt_s = self.world.timestep_s
        with self._lock:
            before_ns, self._time_ns = self._time_ns, now_ns
            for i in range(1, STEPS_PER_TICK + 1):
                step_ns = before_ns + (now_ns - before_ns) * i // STEPS_PER_TICK
                self.world.command_arm(self._arm.update(step_ns, dt_s))
                self.world.step()
            picture_due = _crossed(before_ns, now_ns, self._values["camera_rate"])
            state_due = picture_due or _crossed(before_ns, now_ns, self._values["state_rate"])
            if state_due:
                self.world.refresh()
                states = self._joint_state(now_ns)
                frames = self._frames.moving(now_ns)
            if picture_due:
                self._camera.capture(now_ns, self._episode)
            succeeded = self._success_if_changed() if picture_due else None
        if self._clock_publisher is not None:
            self._clock_publisher.publish(Clock(clock=time_message(now_ns)))
        if state_due:
            self._joint_states.publish(states)
            self._frames.broadcast(frames)
        if succeeded is not None:
            self._success.publish(Bool(data=succeeded))

    def _success_if_changed(self) -> bool | None:
        assert self.world.layout is not None
        succeeded = self.world.layout.task.succeeded(self.world.state())
        if succeeded == self._succeeded:
            return None
        self._succeeded = succeeded
        return succeeded

    def _joint_state(self, now_ns: int) -> JointState:
        message = JointState(name=[*ARM_JOINTS, *FINGER_JOINTS])
        message.header.stamp = time_message(now_ns)
        message.position = [*self.world.arm_position.tolist(), *self.world.finger_position.tolist()]
        message.velocity = [*self.world.arm_velocity.tolist(), *self.world.finger_velocity.tolist()]
        return message


def _crossed(before_ns: int, now_ns: int, rate_hz: float) -> bool:
    """Return whether a multiple of the period lies in (before, now]."""
    period_ns = NS_PER_S / rate_hz
    return int(now_ns // period_ns) > int(before_ns // period_ns)


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM. Returns the exit status."""
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    interrupted = Interruption.by_signals()
    try:
        node = SimulatorNode()
    except (ValueError, FileNotFoundError, InvalidParameterTypeException) as error:
        print(f"simulator_node: {error}", file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    node.start()
    while not interrupted.is_set() and node.error is None:
        executor.spin_once(timeout_sec=0.1)
    status = 0
    if node.error is not None:
        print(f"simulator_node: {node.error}", file=sys.stderr)
        status = 1
    executor.shutdown()
    node.stop()
    node.destroy_node()
    rclpy.try_shutdown()
    return status


if __name__ == "__main__":
    sys.exit(main())
