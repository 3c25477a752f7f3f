"""A robot cell in stepped time around policy_node's engine: an arm that follows its commands, its sensors, a policy.

Every sensor and the arm have switches that a test turns: that is how faults are made. The arm follows joint
trajectories, tool poses or twists through a low pass of `lag_s`, as its controllers would.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sensor_msgs.msg import CameraInfo, JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger

from sqap_vla_ros.contracts import NS_PER_S, ActionChunk, Observation
from sqap_vla_ros.nodes import messages
from sqap_vla_ros.nodes.images import rgb_to_message
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.conventions import pose_distance, rotation_from_rotvec
from sqap_vla_ros.robot.kinematics import ArmKinematics
from sqap_vla_ros.simulation.joint_path import JointPath, TrajectoryRejectedError, accept_trajectory
from stepped.node_double import HORIZON, SteppedClock, WorkerDouble, engine

TICK_NS, STEPS = 20_000_000, 2  # of the node; steps of the arm in each
IMAGE_NS = 100_000_000
HOME_JOINTS = np.array([0.0, -0.35, 0.0, -2.3, 0.0, 2.0, 0.785])
WIDTH, HEIGHT, FOCAL = 32, 24, 30.0
TWIST_TIMEOUT_NS = 200_000_000


@functools.cache
def described() -> tuple[str, ArmKinematics]:
    """The URDF of the cell's arm, and its kinematics."""
    urdf = share_path("config/robots/tabletop_arm.urdf").read_text("utf-8")
    return urdf, ArmKinematics.from_urdf(urdf, "base_link", "tool0")


@dataclass
class Switches:
    """What a fault turns. Everything is as it should be at first.

    *_silent: nothing comes. *_age_s: added to the age of stamps. *_edit: changes what is measured before it is sent;
    None for nothing. blocked: the arm stands whatever it is told. stalled: the executor calls no callback.
    chunk_edit: changes the policy's chunks; text for a failed prediction, None for a policy that hangs.
    latency_s: of the policy.
    """

    image_silent: bool = False
    info_silent: bool = False
    tf_silent: bool = False
    joints_silent: bool = False
    image_age_s: float = 0.0
    tf_age_s: float = 0.0
    joints_age_s: float = 0.0
    image_frozen: bool = False
    image_edit: Callable[[np.ndarray], np.ndarray] | None = None
    image_stamp: int | None = None
    focal: float = FOCAL
    tf_edit: Callable[[np.ndarray], np.ndarray | None] | None = None
    joints_edit: Callable[[list[str], list[float]], tuple[list[str], list[float]]] | None = None
    second_joints: np.ndarray | None = None
    second_tf: np.ndarray | None = None
    blocked: bool = False
    stalled: bool = False
    chunk_edit: Callable[[ActionChunk], Any] | None = None
    latency_s: float = 0.1


@dataclass
class SentCommand:
    """A message on a command topic, and what was so when it was sent."""

    topic: str
    message: Any
    sent_ns: int
    ros_ns: int
    may_move: bool  # the node was enabled
    arm: np.ndarray  # base_from_tool [4, 4]
    joints: np.ndarray  # [7]
    speed: float  # rad/s of the fastest joint


@dataclass
class Cell:
    """mode: output mode. seed: of the policy's motion and of the noise. lag_s: of the arm. simulated: the time is.

    described: robot_description and joint_states are published also where the output mode needs none.
    """

    mode: str
    seed: int = 0
    lag_s: float = 0.06
    simulated: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)
    described: bool = False

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.urdf, self.kinematics = described()
        self.clock = SteppedClock(simulated=self.simulated)
        self.steady_ns = 0
        self.switches = Switches()
        self.commands: list[SentCommand] = []
        self.statuses: list[tuple[int, int, str]] = []  # steady ns, state, reason: when they changed
        self.joints = HOME_JOINTS.copy()
        self.target = HOME_JOINTS.copy()
        self.tool = self.kinematics.forward(self.joints)
        self.tool_target = self.tool.copy()
        self.joint_speed = 0.0
        self.setpoints: list[tuple[int, np.ndarray]] = []  # (steady ns, joints), of output mode joint
        self.refusals: list[tuple[int, str]] = []  # of the trajectory controller
        self.relocated_ns: list[int] = []
        self.stopped_ns: list[int] = []  # when the node was disabled, for whatever reason
        self.enabled_ns: list[int] = []
        self.stalls: list[tuple[int, int]] = []
        self.asked_ns: list[int] = []  # steady times at which the policy was handed an observation
        self.way: list[tuple[int, np.ndarray]] = []  # (steady ns, where the tool was)
        self.leads: list[tuple[int, float, float]] = []  # (steady ns, m, rad) of the command, while the arm was blocked
        self._path: JointPath | None = None
        self._path_offset_ns = 0  # the controller's clock runs on when ROS time jumps
        self._twist: tuple[np.ndarray, int] | None = None
        self._delayed: list[tuple[int, str, Any]] = []
        self._image = self.rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        self._way = np.zeros(6)
        self._turn_at_ns = 0
        self._stalled_ns = 0
        self._deaf_since_ns = 0

    def __enter__(self) -> Cell:
        self._engine = engine(
            self.clock, self._on_sent, self._predict, self._sleep, output_mode=self.mode, **self.parameters
        )
        self.loop, self.node, self.workers = self._engine.__enter__()
        self.watchdog = self.loop._watchdog
        self.place_camera()
        if self.mode == "joint" or self.described:
            self.publish("robot_description", String(data=self.urdf))
        self.loop.activate()
        return self

    def __exit__(self, *error: object) -> None:
        self._engine.__exit__(*error)

    # What a test does

    def publish(self, topic: str, message: Any) -> None:
        """A message from outside."""
        self.node.subscriptions[topic](message)
        self._note_enabled()

    def instruct(self, text: str) -> None:
        """On the instruction topic."""
        self.publish("instruction", String(data=text))

    def safety_stop(self, on: bool) -> None:
        """On the safety_stop topic."""
        self.publish("safety_stop", Bool(data=on))

    def enable(self, on: bool = True) -> Any:
        """Call ~/enable."""
        response = self.node.services["~/enable"](SetBool.Request(data=on), SetBool.Response())
        self._note_enabled()
        return response

    def trigger(self, name: str) -> Any:
        """Call one of the other services."""
        response = self.node.services[f"~/{name}"](Trigger.Request(), Trigger.Response())
        self._note_enabled()
        return response

    def place_camera(self, base_from_camera: np.ndarray | None = None) -> None:
        """Publish the camera's static transform."""
        if base_from_camera is None:
            base_from_camera = np.diag([1.0, -1.0, -1.0, 1.0])
            base_from_camera[:3, 3] = 0.45, 0.0, 1.4
        message = messages.transform_message(base_from_camera, 0, "base_link", "camera")
        self.node.transforms.set_transform_static(message, "cell")

    def relocate(self, joints: np.ndarray) -> None:
        """Put the arm somewhere at once, as another controller does that is then switched off again."""
        self._path = None
        self.relocated_ns.append(self.steady_ns)
        self.joints, self.target = joints.copy(), joints.copy()
        self.tool = self.kinematics.forward(joints)
        self.tool_target = self.tool.copy()

    @property
    def worker(self) -> WorkerDouble:
        """The newest worker."""
        return self.workers[-1]

    def run(self, seconds: float) -> None:
        """Let time pass, tick by tick."""
        for _ in range(round(seconds * NS_PER_S / TICK_NS)):
            self._tick()

    def told(self) -> str:
        """Everything that the node says is wrong now."""
        return "; ".join([self.loop.executive.state()[1], *self.loop.executive.problems().values()])

    def left_behind(self) -> tuple[float, float]:
        """Distance (m, rad) between the tool and where it was told to be by now.

        Twists tell no place: what counts is the path that they are made from. Added up, they lead further, for each
        corrects what a blocked arm has not done of those before.
        """
        if self.mode == "twist":
            told = self.loop.commander.sink.commanded_tool(self.clock.ros_ns)
        else:
            told = self.kinematics.forward(self.target) if self.mode == "joint" else self.tool_target
        return (0.0, 0.0) if told is None else pose_distance(told, self.tool)

    def moves_again(self, stopped_ns: int, at_ns: int) -> bool:
        """Whether the node was enabled between a stop and a later moment."""
        return any(stopped_ns <= enabled_ns <= at_ns for enabled_ns in self.enabled_ns)

    def stood_still(self, begin_ns: int, end_ns: int) -> bool:
        """Whether the executor stood still at some time between two moments."""
        return any(begin <= end_ns and end >= begin_ns for begin, end in self.stalls)

    # Inside

    def _note_enabled(self) -> None:
        enabled = self.loop.executive.enabled
        if enabled != (len(self.enabled_ns) > len(self.stopped_ns)):
            (self.enabled_ns if enabled else self.stopped_ns).append(self.steady_ns)

    def _tick(self) -> None:
        if self.clock.deaf and not self.switches.stalled:
            self.clock.deaf = False
            self.clock.jump((self.steady_ns - self._deaf_since_ns) / NS_PER_S)  # the executor hears /clock again
        elif self.switches.stalled and not self.clock.deaf:
            self.clock.deaf, self._deaf_since_ns = self.clock.simulated, self.steady_ns
        for _ in range(STEPS):
            self.clock.advance(TICK_NS / STEPS / NS_PER_S)
            self.steady_ns += TICK_NS // STEPS
            self._move(TICK_NS / STEPS / NS_PER_S)
        if self.switches.stalled:
            self._stalled_ns += TICK_NS
            self.stalls.append((self.steady_ns - TICK_NS, self.steady_ns))
            if self.watchdog.armed and self._stalled_ns / NS_PER_S > self.watchdog.timeout_s:
                self.watchdog.stalled_s = self._stalled_ns / NS_PER_S
                self.watchdog.act(lambda: True)
            return
        self._stalled_ns = 0
        self.way.append((self.steady_ns, self.tool[:3, 3].copy()))
        if self.switches.blocked:
            self.leads.append((self.steady_ns, *self.left_behind()))
        self._publish_state()
        if self.steady_ns % IMAGE_NS == 0:
            self._publish_image()
        for guard in self.node.guards:
            if guard.triggered:
                guard.triggered = False
                guard.callback()
        for timer in self.node.timers:
            if timer.running:
                timer.callback()
        self.node.action.step()
        self._note_enabled()

    def _sleep(self, seconds: float) -> None:
        """The node waits: the world goes on, and the node's callbacks do not."""
        steps = max(round(seconds * NS_PER_S / (TICK_NS / STEPS)), 1)
        for _ in range(steps):
            self.clock.advance(seconds / steps)
            self.steady_ns += round(seconds / steps * NS_PER_S)
            self._move(seconds / steps)

    def _on_sent(self, topic: str, message: Any) -> None:
        if topic == "~/status":
            if not self.statuses or self.statuses[-1][1:] != (message.state, message.reason):
                self.statuses.append((self.steady_ns, message.state, message.reason))
        elif topic in ("joint_trajectory", "target_pose", "delta_twist_cmds"):
            enabled = self.loop.executive.enabled
            self.commands.append(
                SentCommand(
                    topic, message, self.steady_ns, self.clock.ros_ns, enabled, self.tool.copy(), self.joints.copy(),
                    self.joint_speed,
                )
            )  # fmt: skip
            self._obey(topic, message)

    def _obey(self, topic: str, message: Any) -> None:
        if topic == "joint_trajectory":
            start_ns = messages.time_ns(message.header.stamp)
            try:
                self._path = accept_trajectory(
                    self.kinematics.joint_names,
                    names=message.joint_names,
                    times_ns=[start_ns + messages.time_ns(p.time_from_start) for p in message.points],
                    positions=[p.positions for p in message.points],
                    velocities=[p.velocities for p in message.points],
                    now_ns=self.clock.ros_ns,
                    position=self.joints,
                    velocity=np.zeros(7),
                )
                self._path_offset_ns = self.clock.ros_ns - self.steady_ns
            except TrajectoryRejectedError as error:
                self.refusals.append((self.steady_ns, str(error)))
        elif topic == "target_pose":
            self.tool_target = messages.pose_from_message(message.pose)
        else:
            v, w = message.twist.linear, message.twist.angular
            self._twist = np.array([v.x, v.y, v.z, w.x, w.y, w.z]), self.steady_ns

    def _move(self, dt_s: float) -> None:
        """The arm, through its low pass."""
        share = min(1.0, dt_s / self.lag_s)
        if self._path is not None:
            self.target = self._path.sample(self.steady_ns + self._path_offset_ns)[0]
            self.setpoints.append((self.steady_ns, self.target))
        if self._twist is not None:
            twist, since_ns = self._twist
            if self.steady_ns - since_ns > TWIST_TIMEOUT_NS:
                twist = np.zeros(6)
            self.tool_target[:3, 3] += twist[:3] * dt_s
            self.tool_target[:3, :3] = rotation_from_rotvec(twist[3:] * dt_s) @ self.tool_target[:3, :3]
        if self.switches.blocked:
            self.joint_speed = 0.0
            return
        if self.mode == "joint":
            move = share * (self.target - self.joints)
            self.joints = self.joints + move
            self.joint_speed = float(np.abs(move).max() / dt_s)
            self.tool = self.kinematics.forward(self.joints)
        else:
            before = self.tool[:3, 3].copy()
            self.tool = self.tool.copy()
            self.tool[:3, 3] += share * (self.tool_target[:3, 3] - self.tool[:3, 3])
            turn = self.tool_target[:3, :3] @ self.tool[:3, :3].T
            axis = 0.5 * np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
            self.tool[:3, :3] = rotation_from_rotvec(share * axis) @ self.tool[:3, :3]  # small angles
            self.joint_speed = float(np.linalg.norm(self.tool[:3, 3] - before) / dt_s)

    def _stamp(self, age_s: float) -> int:
        return self.clock.ros_ns - round(age_s * NS_PER_S)

    def _publish_state(self) -> None:
        switches = self.switches
        if not switches.tf_silent:
            self._send_tf(switches.tf_edit(self.tool.copy()) if switches.tf_edit else self.tool, switches.tf_age_s)
        if switches.second_tf is not None:
            self.clock.ros_ns += 1
            self._send_tf(switches.second_tf, switches.tf_age_s)
        if self.mode != "joint" and not self.described:
            return
        if not switches.joints_silent:
            names, values = list(self.kinematics.joint_names), (self.joints + self._noise(7)).tolist()
            if switches.joints_edit is not None:
                names, values = switches.joints_edit(names, values)
            self._send_joints(names, values, switches.joints_age_s)
        if switches.second_joints is not None:
            self.clock.ros_ns += 1
            self._send_joints(list(self.kinematics.joint_names), switches.second_joints.tolist(), 0.0)

    def _noise(self, count: int) -> np.ndarray:
        return self.rng.normal(size=count) * 1e-4

    def _send_joints(self, names: list[str], values: list[float], age_s: float) -> None:
        message = JointState(name=names)
        message.position = values
        message.header.stamp = messages.time_message(self._stamp(age_s))
        self.publish("joint_states", message)

    def _send_tf(self, pose: np.ndarray | None, age_s: float) -> None:
        if pose is None:
            return
        finite = np.isfinite(pose).all()
        message = messages.transform_message(pose if finite else np.eye(4), self._stamp(age_s), "base_link", "tool0")
        if not finite:
            t, q = message.transform.translation, message.transform.rotation
            t.x, t.y, t.z = map(float, pose[:3, 3])
            q.x = q.y = q.z = q.w = float("nan")
        self.node.transforms.set_transform(message, "cell")

    def _publish_image(self) -> None:
        switches = self.switches
        if not switches.image_frozen:
            self._image = np.roll(self._image, 1, axis=0)
            self._image[0] = self.rng.integers(0, 256, (WIDTH, 3), np.uint8)
        image = switches.image_edit(self._image) if switches.image_edit else self._image
        stamp_ns = self._stamp(switches.image_age_s) if switches.image_stamp is None else switches.image_stamp
        stamp = messages.time_message(stamp_ns)
        if not switches.info_silent:
            info = CameraInfo(width=image.shape[1], height=image.shape[0], distortion_model="plumb_bob")
            info.header.stamp, info.header.frame_id = stamp, "camera"
            info.k = [switches.focal, 0.0, WIDTH / 2, 0.0, switches.focal, HEIGHT / 2, 0.0, 0.0, 1.0]
            self.publish("camera_info", info)
        if not switches.image_silent:
            self.publish("image", rgb_to_message(image, stamp=stamp, frame_id="camera"))

    def _predict(self, observation: Observation) -> tuple[float, Any]:
        """A drift that turns back towards the middle of the workspace now and then."""
        self.asked_ns.append(self.steady_ns)
        pose = observation.base_from_tool
        away = pose[:3, 3] - (0.45, 0.0, 0.35)
        if self.steady_ns >= self._turn_at_ns:
            self._turn_at_ns = self.steady_ns + int(self.rng.integers(300, 1500)) * 1_000_000
            self._way = self.rng.uniform(-1.0, 1.0, 6) * ([0.012] * 3 + [0.04] * 3)
            self._way[:3] -= 0.08 * away
        deltas = np.tile(np.append(self._way, float(self.rng.uniform() > 0.5)), (HORIZON, 1))
        deltas[:, :6] += self.rng.normal(size=(HORIZON, 6)) * ([0.001] * 3 + [0.004] * 3)
        chunk = ActionChunk(observation.stamp_ns, deltas, 0.1, deltas)
        answer = self.switches.chunk_edit(chunk) if self.switches.chunk_edit else chunk
        return self.switches.latency_s, answer
