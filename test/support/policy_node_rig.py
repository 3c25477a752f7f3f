"""A policy_node process with a policy double, and around it a camera, TF, joints and a controller to break."""

import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from beside import ProcessRig, ros_arguments
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TransformStamped, TwistStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from places import ROOT, SUPPORT
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from sqap_vla_ros.msg import ActionChunk, PolicyStatus, TokenSelection
from std_msgs.msg import Bool, Float64MultiArray, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes import messages
from sqap_vla_ros.nodes.images import rgb_to_message
from sqap_vla_ros.nodes.tf.api import StaticTransformBroadcaster, TransformBroadcaster

DISABLED, WAITING, RUNNING, HOLDING, STOPPED, FAULT = range(6)  # states of PolicyStatus
TIMEOUT_S = 40.0  # several times what it takes on a busy computer
STATE_PERIOD_S = 0.02
ENDED_S = 3.0  # in which a stream has ended: braking, the repetition of its end, and both on a busy computer
WIDTH, HEIGHT, FOCAL = 160, 120, 150.0
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)

# The tool points down; the camera looks straight down from a metre above it.
DOWN = np.diag([1.0, -1.0, -1.0, 1.0])
HOME = DOWN.copy()
HOME[:3, 3] = 0.4, 0.0, 0.3
BASE_FROM_CAMERA = DOWN.copy()
BASE_FROM_CAMERA[:3, 3] = 0.4, 0.0, 1.3

QUICK = {
    "image_timeout_s": 0.4,
    "image_max_age_s": 0.5,
    "frozen_s": 0.4,
    "frozen_motion_m": 0.005,
    "max_open_loop_s": 1.0,
    "ramp_s": 0.3,
    "tf_timeout_s": 0.25,
    "input_lost_s": 15.0,
    "joint_states_timeout_s": 0.4,
    "workspace_max_m": [0.85, 0.6, 1.5],
    # The same camera at twice the resolution.
    "training_camera": [2.0 * WIDTH, 2.0 * HEIGHT, 2.0 * FOCAL, 2.0 * FOCAL, WIDTH + 0.5, HEIGHT + 0.5],
}


class Rig(ProcessRig):
    """Use as a context manager. What the test may switch off or change is in the public attributes."""

    def __init__(self, *, factory: str = "by_instruction", sim_time: bool = False, **parameters: Any) -> None:
        super().__init__()
        self.images = self.infos = self.transforms = self.joints = self.follow = True
        self.noise = True  # every image differs from the one before
        self.image_delay_ns = 0  # stamps lie this far in the past
        self.transform_delay_s = 0.0
        self.frame_id = "camera"
        self.slash = ""  # before the frames of transforms, as ROS 1 wrote them
        self.focal = FOCAL
        self.info_width = WIDTH
        self.tool = HOME.copy()
        self.joint_positions: dict[str, float] = {}
        self.move_joints: Callable[[int], None] | None = None
        self.stamps: dict[int, np.ndarray] = {}  # of the images sent -> tool pose then
        self.sent_ns: dict[int, int] = {}  # of the images sent -> when, by the steady clock
        self.received: dict[str, list[Any]] = {}
        self._sim_ns: int | None = 1_000 * NS_PER_S if sim_time else None
        self._jumps_ns: deque[int] = deque()  # by which simulated time jumps with the next image
        self._parameters = {"dry_run": False, "output_mode": "pose", **QUICK, **parameters}
        self._factory = factory
        self._velocity = np.zeros(3)  # as the last twist said
        self._late: list[tuple[float, Any]] = []
        self._random = np.random.default_rng(0)
        self._image = self._random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)

    # Life

    def __enter__(self) -> Self:
        super().__enter__()
        self.start_process()
        return self

    def start_process(self) -> None:
        code = (
            f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(SUPPORT)!r}]\n"
            "import node_defect; node_defect.install()\n"
            "from sqap_vla_ros.nodes.policy.node import main\n"
            f"sys.exit(main(worker_factory={f'policy_doubles:{self._factory}' if self._factory else ''!r}))"
        )
        clock = {"use_sim_time": True} if self._sim_ns is not None else {}
        self.start_python("-c", code, *ros_arguments({**self._parameters, **clock}))

    # What a test does

    def wait(self, condition: Callable[[], Any], what: str = "", timeout_s: float = TIMEOUT_S) -> Any:
        """The condition's first true value."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if value := condition():
                return value
            time.sleep(0.01)
        raise AssertionError(f"waited {timeout_s:g} s for {what or condition}; {self.summary()}")

    def wait_for_state(self, state: int, reason: str = "") -> PolicyStatus:
        if state == DISABLED and not reason:
            reason = "call ~/enable"  # and not because it is still loading

        def reached() -> Any:
            status = self.status
            return status if status is not None and status.state == state and reason in status.reason else None

        return self.wait(reached, f"state {state} with {reason!r}")

    def wait_for_silence(self, topic: str, quiet_s: float = 0.4, within_s: float = TIMEOUT_S) -> None:
        """Nothing has come on this topic for a while. The end of a stream is repeated until it is acknowledged."""
        begin_s = changed_s = time.monotonic()
        count = len(self.got(topic))
        while (now_s := time.monotonic()) - changed_s < quiet_s:
            assert now_s - begin_s < within_s, f"{topic} still comes; {self.summary()}"
            time.sleep(0.01)
            if len(self.got(topic)) != count:
                count, changed_s = len(self.got(topic)), time.monotonic()

    def settle(self, seconds: float) -> None:
        """Let things that must not happen have the time to happen."""
        time.sleep(seconds)

    def call(self, name: str, kind: Any, request: Any) -> Any:
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, f"policy_node/{name}")
        client = self._clients[name]
        assert client.wait_for_service(TIMEOUT_S), name
        # A service of a node that has just started may answer before it has discovered who listens, and the answer is
        # lost (rmw: "client will not receive response"). Every request here may be repeated.
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            future = client.call_async(request)
            with contextlib.suppress(AssertionError):
                self.wait(future.done, name, timeout_s=5.0)
                return future.result()
        raise AssertionError(f"waited {TIMEOUT_S:g} s for {name}; {self.summary()}")

    def enable(self, on: bool = True) -> SetBool.Response:
        return self.call("enable", SetBool, SetBool.Request(data=on))

    def enable_when_active(self) -> SetBool.Response:
        """Enable the node once it has loaded its policy: its services answer before that."""
        return self.wait(
            lambda: (answer := self.enable()) and ("not active yet" not in answer.message) and answer, "an active node"
        )

    def trigger(self, name: str) -> Trigger.Response:
        return self.call(name, Trigger, Trigger.Request())

    def set_parameter(self, name: str, value: Any) -> Any:
        message: ParameterMessage = Parameter(name, value=value).to_parameter_msg()
        response = self.call("set_parameters", SetParameters, SetParameters.Request(parameters=[message]))
        return response.results[0]

    def instruct(self, text: str) -> None:
        self._instruction.publish(String(data=text))

    def safety_stop(self, on: bool) -> None:
        self._safety_stop.publish(Bool(data=on))

    def home(self) -> None:
        """Everything as at the start: disabled, nothing latched, all inputs there, the tool at home."""
        self.__dict__.update(
            images=True, infos=True, transforms=True, joints=True, follow=True, noise=True, image_delay_ns=0,
            transform_delay_s=0.0, frame_id="camera", focal=FOCAL, info_width=WIDTH,
        )  # fmt: skip
        self.instruct("")
        self.safety_stop(False)
        self.enable(False)
        self.wait(lambda: self.trigger("reset_fault").success, "reset_fault")
        self.set_parameter("dry_run", self._parameters["dry_run"])
        self.wait_for_state(PolicyStatus.DISABLED)
        for topic in ("target_pose", "delta_twist_cmds", "joint_trajectory"):
            self.wait_for_silence(topic)
        led = not np.allclose(self.tool, HOME, atol=5e-3)
        self.tool = HOME.copy()
        self.settle(0.2)
        if led and self._parameters["output_mode"] == "pose":  # from where TF alone leads the arm nothing starts
            self.start_anew()
        for name, kept in self.received.items():
            if name == "status":
                del kept[:-1]
            elif name not in ("model_info", "diagnostics"):
                kept.clear()

    def start_anew(self) -> None:
        """Clean up, configure and activate the node, so that it starts where the arm is."""
        for transition in (
            Transition.TRANSITION_DEACTIVATE,
            Transition.TRANSITION_CLEANUP,
            Transition.TRANSITION_CONFIGURE,
        ):
            self.change(transition)
        self.wait(lambda: self.change(Transition.TRANSITION_ACTIVATE), "an active node")
        self.wait_for_state(PolicyStatus.DISABLED)

    def change(self, transition: int) -> bool:
        """Ask for a transition of the lifecycle; return whether it was made."""
        request = ChangeState.Request(transition=Transition(id=transition))
        return bool(self.call("change_state", ChangeState, request).success)

    def run(self, instruction: str = "pick the cube") -> None:
        """Enabled, with an instruction, and moving."""
        self.instruct(instruction)
        assert self.enable_when_active().success
        self.wait(lambda: self.got("target_pose"), "a command")
        self.wait_for_state(PolicyStatus.RUNNING)

    def got(self, topic: str) -> list[Any]:
        return self.received.setdefault(topic, [])

    @property
    def status(self) -> PolicyStatus | None:
        kept = self.got("status")
        return kept[-1] if kept else None

    def diagnostics(self, name: str) -> dict[str, str]:
        """Values of the newest entry whose name ends so, once there is one."""
        return self.wait(lambda: self._diagnostics(name), f"diagnostics of {name}")

    def _diagnostics(self, name: str) -> dict[str, str] | None:
        for message in reversed(self.got("diagnostics")):
            for status in message.status:
                if status.name.endswith(f": {name}"):
                    return {"message": status.message, **{value.key: value.value for value in status.values}}
        return None

    def summary(self) -> str:
        status = self.status
        state = None if status is None else (status.state, status.reason)
        counts = {name: len(kept) for name, kept in self.received.items()}
        return f"state {state}, received {counts}, log:\n{self.log[-3000:]}"

    def jump_clock(self, seconds: float) -> None:
        """Let simulated time jump: images first, as they may over DDS, and the clock with the next state."""
        assert self._sim_ns is not None
        self._jumps_ns.append(round(seconds * NS_PER_S))

    def predicted_since(self, begin_ns: int) -> list[int]:
        """Stamps of the chunks of images that were sent after a moment."""
        stamps = [messages.time_ns(message.header.stamp) for message in self.got("action_chunk")]
        return [stamp_ns for stamp_ns in stamps if self.sent_ns[stamp_ns] > begin_ns]

    def now_ns(self) -> int:
        return self._sim_ns if self._sim_ns is not None else time.time_ns()

    # Inside

    def create(self) -> None:
        node = self.node
        fast = QoSProfile(depth=2, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._image_publisher = node.create_publisher(Image, "image", fast)
        self._compressed = node.create_publisher(CompressedImage, "image/compressed", fast)
        self._info = node.create_publisher(CameraInfo, "camera_info", fast)
        self._joints = node.create_publisher(JointState, "joint_states", 5)
        self.description = node.create_publisher(String, "robot_description", LATCHED)
        self._instruction = node.create_publisher(String, "instruction", LATCHED)
        self._safety_stop = node.create_publisher(Bool, "safety_stop", 1)
        self._clock = node.create_publisher(Clock, "/clock", 1)
        self._tf = TransformBroadcaster(node)
        self._static = StaticTransformBroadcaster(node)
        self._static.sendTransform(messages.transform_message(BASE_FROM_CAMERA, 0, "base_link", "camera"))
        self._clients: dict[str, Any] = {}
        for topic, kind, qos in (
            ("policy_node/status", PolicyStatus, LATCHED),
            ("policy_node/action_chunk", ActionChunk, 10),
            ("policy_node/token_selection", TokenSelection, 10),
            ("policy_node/model_info", String, LATCHED),
            ("target_pose", PoseStamped, 10),
            ("delta_twist_cmds", TwistStamped, 10),
            ("joint_trajectory", JointTrajectory, 10),
            ("gripper_command", Float64MultiArray, 10),
            ("/diagnostics", DiagnosticArray, 10),
        ):
            self.subscribe(topic, kind, qos)
        node.create_timer(STATE_PERIOD_S, self._publish_state)
        node.create_timer(0.05, self._publish_image)

    def subscribe(self, topic: str, kind: Any, qos: Any = 10) -> None:
        name = topic.rpartition("/")[2]
        self.node.create_subscription(kind, topic, lambda message: self._receive(name, message), qos)

    def _receive(self, name: str, message: Any) -> None:
        self.got(name).append(message)
        if name == "target_pose" and self.follow:
            self.tool = messages.pose_from_message(message.pose)
        if name == "delta_twist_cmds":
            v = message.twist.linear
            self._velocity = np.array([v.x, v.y, v.z])

    def _publish_state(self) -> None:
        if self._sim_ns is not None:
            self._sim_ns += round(STATE_PERIOD_S * NS_PER_S)
            self._clock.publish(Clock(clock=messages.time_message(self._sim_ns)))
        now_ns = self.now_ns()
        self.tool[:3, 3] += self._velocity * STATE_PERIOD_S
        if self.move_joints is not None:
            self.move_joints(now_ns)
        if self.transforms:
            message = self._transform(now_ns)
            self._late.append((time.monotonic() + self.transform_delay_s, message))
        while self._late and self._late[0][0] <= time.monotonic():
            self._tf.sendTransform(self._late.pop(0)[1])
        if self.joints and self.joint_positions:
            state = JointState(name=list(self.joint_positions), position=list(self.joint_positions.values()))
            state.header.stamp = messages.time_message(now_ns)
            self._joints.publish(state)

    def _transform(self, stamp_ns: int) -> TransformStamped:
        return messages.transform_message(self.tool, stamp_ns, f"{self.slash}base_link", f"{self.slash}tool0")

    def _publish_image(self) -> None:
        while self._sim_ns is not None and self._jumps_ns:  # in this thread, which also lets the time pass
            self._sim_ns += self._jumps_ns.popleft()
        if not self.images:
            return
        self.send_image(self.now_ns() - self.image_delay_ns)

    def send_image(self, stamp_ns: int) -> None:
        if self.noise:
            self._image[self._random.integers(HEIGHT), self._random.integers(WIDTH), 0] ^= 0xFF
        image = rgb_to_message(self._image, stamp=messages.time_message(stamp_ns), frame_id=self.frame_id)
        self.stamps[stamp_ns], self.sent_ns[stamp_ns] = self.tool.copy(), time.monotonic_ns()
        if self.transforms and self.image_delay_ns == 0:
            # A transform of the very stamp: what the node finds there needs no interpolation.
            message = self._transform(stamp_ns)
            self._late.append((time.monotonic() + self.transform_delay_s, message))
        self._image_publisher.publish(image)
        if self._parameters.get("image_transport") == "compressed":
            import cv2

            data = cv2.imencode(".png", self._image[..., ::-1])[1].tobytes()
            self._compressed.publish(
                CompressedImage(header=image.header, format="rgb8; png compressed bgr8", data=data)
            )
        if self.infos:
            info = CameraInfo(header=image.header, width=self.info_width, height=HEIGHT, distortion_model="plumb_bob")
            info.k = [self.focal, 0.0, WIDTH / 2, 0.0, self.focal, HEIGHT / 2, 0.0, 0.0, 1.0]
            self._info.publish(info)


def pose_of(message: PoseStamped) -> np.ndarray:
    return messages.pose_from_message(message.pose)


def assert_silent(rig: Rig, topic: str = "target_pose", seconds: float = 0.4) -> None:
    """Nothing more comes on this topic, once the arm has come to rest and that was said again until acknowledged."""
    rig.wait_for_silence(topic, seconds, within_s=ENDED_S)


def assert_holding_at_the_measured_pose(rig: Rig) -> None:
    assert_silent(rig)
    np.testing.assert_allclose(pose_of(rig.got("target_pose")[-1]), rig.tool, atol=2e-3)
