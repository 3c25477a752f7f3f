"""The working half of policy_node: what exists between configure and cleanup, and the way of an image to a command.

Thread ownership: everything here runs in the node's executor thread, one callback at a time, so nothing is locked. The
worker's reader thread only triggers a guard condition. Callbacks store and return; the longest, planning a chunk,
takes a few milliseconds. The timer runs on the steady clock, so that the watchdog also works when simulated time stops.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Bool, String

from sqap_vla_ros.contracts import NS_PER_S, ActionChunk
from sqap_vla_ros.control.executive import Executive, Input, Step, Task
from sqap_vla_ros.control.image_gate import ImageGate, Order
from sqap_vla_ros.control.joint_monitor import JointMonitor
from sqap_vla_ros.control.motion import MalformedChunk, Motion, UnsafeChunk
from sqap_vla_ros.control.time_sync import ImageInfoSync
from sqap_vla_ros.nodes import images
from sqap_vla_ros.nodes.policy import parameters
from sqap_vla_ros.nodes.policy.observer import Frame, ObservationProblem, Observer, TransformMissing, View
from sqap_vla_ros.nodes.policy.services import Services
from sqap_vla_ros.nodes.policy.sinks import GripperSink, JointSink, Measured, MeasuredTool, PoseSink, Sink, TwistSink
from sqap_vla_ros.nodes.policy.status import Prediction, Reporter
from sqap_vla_ros.nodes.tf.choice import Buffer, TransformListener
from sqap_vla_ros.robot.kinematics import KinematicsError
from sqap_vla_ros.serving.supervisor import WorkerSupervisor
from sqap_vla_ros.serving.worker import Event, LoadFailed, Lost, PolicyWorker, PredictFailed, Progress, Ready, Result

LATCHED_QOS = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
FLUSH_S = 0.5  # how long the last command may take to be acknowledged
RETRY_S = 0.002  # between looks whether the transforms of an image have come; a look costs a tenth of that
WAITING_IMAGES = 8  # images that may wait for their transforms at the same time


@dataclass(frozen=True)
class _InFlight:
    """What the worker is computing. usable_s: since when both the image and the free policy were there."""

    request: int
    view: View
    task: Task
    usable_s: float
    submitted_s: float


class ControlLoop:
    """Subscriptions, the worker, the state machine and the sinks, tied together."""

    def __init__(self, node: Any, values: Mapping[str, Any], worker_factory: str) -> None:
        """Creates everything and starts the worker; `poll_worker` until it is ready. values: checked parameters."""
        self.values = values
        self.active = False
        self._node = node
        self._log = node.get_logger()
        self.executive = Executive(parameters.executive_config(values), dry_run=values["dry_run"])
        self.gate = ImageGate(parameters.image_gate_config(values))
        self.motion = Motion(parameters.motion_config(values), parameters.safety_limits(values))
        self.arm = JointMonitor(values["base_frame"], values["tool_frame"], values["joint_states_timeout_s"])
        if values["robot_description"]:
            self._on_description(String(data=values["robot_description"]))
        self._waiting: deque[Frame] = deque(maxlen=WAITING_IMAGES)
        self._in_flight: _InFlight | None = None
        self._task: Task | None = None  # of the newest chunk
        self._idle_since_s = time.monotonic()
        self._active_since_s = time.monotonic()
        self._observation_problem: dict[Input, str] = {}  # why the newest image could not be used
        self._commanded = False  # something was commanded since the last hold
        self.superseded = 0
        self.changed = 0  # chunks that were slowed down or kept inside the workspace
        self.safety_stop = False

        self._guard = node.create_guard_condition(self._on_worker)
        config = parameters.worker_config(values, worker_factory)
        self.supervisor = WorkerSupervisor(
            lambda: PolicyWorker(config, self._guard.trigger), values["prediction_timeout_s"]
        )
        self._create_inputs()
        self.sink = self._create_sink()
        self.gripper = GripperSink(
            node,
            closed_m=values["gripper_closed_m"],
            open_m=values["gripper_open_m"],
            open_above=values["gripper_open_above"],
            close_below=values["gripper_close_below"],
        )
        self.reporter = Reporter(node, self)
        self.services = Services(node, self)
        self._jumps = node.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=False),
            post_callback=lambda jump: self._on_time_jump("ROS time went backwards"),
        )
        self._timer = node.create_timer(
            1.0 / values["command_rate"], self._on_timer, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )
        self._retry = node.create_timer(RETRY_S, self._on_retry, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._retry.cancel()
        self.supervisor.start()

    # Setting up and taking down

    def _create_inputs(self) -> None:
        node, values = self._node, self.values
        compressed = values["image_transport"] == "compressed"
        image_qos = QoSProfile(
            depth=values["image_depth"],
            reliability=ReliabilityPolicy.RELIABLE
            if values["image_reliability"] == "reliable"
            else ReliabilityPolicy.BEST_EFFORT,
        )
        self.sync = ImageInfoSync(self._on_pair)
        self.image_subscription = node.create_subscription(
            CompressedImage if compressed else Image,
            "image/compressed" if compressed else "image",
            self._on_image,
            image_qos,
        )
        self.info_subscription = node.create_subscription(CameraInfo, "camera_info", self.sync.add_info, image_qos)
        self._subscriptions = [
            self.image_subscription,
            self.info_subscription,
            node.create_subscription(JointState, "joint_states", self._on_joint_states, QoSProfile(depth=5)),
            node.create_subscription(String, "robot_description", self._on_description, LATCHED_QOS),
            node.create_subscription(String, "instruction", self._on_instruction, LATCHED_QOS),
            node.create_subscription(Bool, "safety_stop", self._on_safety_stop, QoSProfile(depth=1)),
        ]
        self.buffer = Buffer()
        self._tf_listener = TransformListener(self.buffer, node, spin_thread=False)
        self.observer = Observer(
            self.buffer,
            self.gate,
            images.compressed_to_rgb if compressed else images.to_rgb,
            base_frame=values["base_frame"],
            tool_frame=values["tool_frame"],
            rectified=values["image_rectified"],
            optical_frame_rectified=values["optical_frame_rectified"],
            contract=parameters.camera_contract(values),
            topics=(self.image_subscription.topic_name, self.info_subscription.topic_name),
        )

    def _create_sink(self) -> Sink:
        mode, base_frame = self.values["output_mode"], self.values["base_frame"]
        if mode == "joint":
            return JointSink(self._node, self.arm, self.motion.limits)
        return PoseSink(self._node, base_frame) if mode == "pose" else TwistSink(self._node, base_frame)

    def activate(self) -> None:
        """Begin to publish; what commands needs ~/enable on top."""
        self.active = True
        self._active_since_s = time.monotonic()

    def deactivate(self, why: str) -> None:
        """Hold, as the last command, and publish nothing more."""
        self.executive.disable(time.monotonic(), why)
        self.advance()
        self._hold(why)
        self.active = False

    def set_dry_run(self, dry_run: bool) -> None:
        """Only while disabled."""
        self.executive.dry_run = dry_run
        if dry_run:
            self.executive.report(Input.JOINT_STATES, None)

    def destroy(self) -> None:
        """End the worker and remove everything from the node."""
        self.supervisor.close()
        self._node.destroy_timer(self._timer)
        self._node.destroy_timer(self._retry)
        self._jumps.unregister()
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._tf_listener.unregister()
        for publisher in (self.sink.publisher, self.gripper.publisher):
            self._node.destroy_lifecycle_publisher(publisher)
        self.services.destroy()
        self.reporter.destroy()
        self._node.destroy_guard_condition(self._guard)

    # Inputs

    def _on_image(self, message: Any) -> None:
        self.sync.add_image(message)

    def _on_pair(self, image: Any, camera_info: Any) -> None:
        now_s = time.monotonic()
        stamp = image.header.stamp
        stamp_ns = stamp.sec * NS_PER_S + stamp.nanosec
        order = self.gate.arrive(stamp_ns, now_s)
        if order is Order.JUMPED_BACK:
            self._on_time_jump("the images' stamps went backwards")
            order = self.gate.arrive(stamp_ns, now_s)
        if order is not Order.NEW:
            return
        while self._waiting and now_s - self._waiting[0].arrived_s > self.values["tf_timeout_s"]:
            self._waiting.popleft()
            self.superseded += 1
        self._waiting.append(Frame(image, camera_info, stamp_ns, now_s))
        self.advance()

    def _on_joint_states(self, message: JointState) -> None:
        self.arm.update(message, time.monotonic())

    def _on_description(self, message: String) -> None:
        if (problem := self.arm.set_description(message.data)) is not None:
            self._log.error(problem)

    def _on_instruction(self, message: String) -> None:
        self.executive.set_instruction(message.data, time.monotonic())
        self.advance()

    def _on_safety_stop(self, message: Bool) -> None:
        self.safety_stop = message.data
        if message.data:
            self.executive.stop("safety_stop is set", time.monotonic())
            self.advance()

    def _on_time_jump(self, what: str) -> None:
        self._log.warning(f"{what}: forgetting images, transforms and the current chunk")
        self.executive.time_jumped(what, time.monotonic())
        self.motion.clear()
        self.gate.reset()
        self.sync.reset()
        self.buffer.clear()
        self._waiting.clear()
        self._observation_problem = {}
        self._in_flight = None
        self.supervisor.reset_policy()
        self.advance()

    def _forget_future_transforms(self) -> None:
        """After a jump back a transform of the old time may come last; the buffer then refuses all of the new."""
        if Input.TF not in self._observation_problem:
            return
        try:
            _, stamp_ns = self.observer.measured_tool()
        except TransformMissing:
            return
        if stamp_ns - self.now_ns() > self.gate.config.jump_back_s * NS_PER_S:
            self._log.warning("forgetting transforms from the future, of before the time jumped")
            self.buffer.clear()

    def _on_retry(self) -> None:
        self._retry.cancel()
        self.advance()

    def _on_timer(self) -> None:
        self._on_worker()
        self.sync.expire(time.monotonic())
        self._forget_future_transforms()
        self.advance()
        self._command()
        self.services.tick(time.monotonic())

    # The worker

    def _on_worker(self) -> None:
        for event in self.poll_worker():
            if isinstance(event, Result):
                self._on_result(event)
            elif isinstance(event, (PredictFailed, Lost, LoadFailed)):
                flight, self._in_flight = self._in_flight, None
                if isinstance(event, PredictFailed) and flight is not None:
                    self._reject(f"the policy failed: {event.text}", flight, malformed=True)
            self._idle_since_s = time.monotonic()
            self.advance()

    def poll_worker(self) -> list[Event]:
        """The worker's events, after logging them and keeping the executive informed."""
        restarts = self.supervisor.restarts
        events = self.supervisor.poll(time.monotonic())
        for event in events:
            if isinstance(event, Progress):
                self._log.info(event.text)
            elif isinstance(event, Ready):
                self._log.info(f"policy ready, {event.warm_latency_s * 1e3:.0f} ms a prediction: {event.info}")
                self.observer.needs_projection = event.info.selector not in ("", "none")
                self.reporter.publish_model_info(event.info)
            elif isinstance(event, (Lost, LoadFailed)):
                self._log.error(event.text)
        if self.supervisor.restarts != restarts:
            self._log.warning("starting the policy worker again")
        self.executive.counters.worker_restarts = self.supervisor.restarts
        self.executive.report(Input.WORKER, self.supervisor.problem)
        return events

    def _on_result(self, result: Result) -> None:
        flight, self._in_flight = self._in_flight, None
        if flight is None or flight.request != result.request or flight.task is not self.executive.task:
            return  # of a task that is over, or of a time that was left
        assert self.supervisor.info is not None
        chunk, view = result.chunk, flight.view
        try:
            self.motion.validate(chunk, self.supervisor.info.horizon)
        except MalformedChunk as error:
            self._reject(str(error), flight, malformed=True)
            return
        whole = self.reporter.publish_chunk(chunk, view)
        published_s, now_ns = time.monotonic(), self.now_ns()
        self.executive.counters.chunks_published += 1
        self._execute(chunk, flight, now_ns, published_s)
        self.reporter.publish_prediction(
            Prediction(
                chunk,
                view,
                whole,
                overhead_s=published_s - flight.usable_s - result.policy_s,
                queued_s=flight.usable_s - view.frame.arrived_s,
                age_s=(now_ns - chunk.stamp_ns) / NS_PER_S,
            )
        )

    def _execute(self, chunk: ActionChunk, flight: _InFlight, now_ns: int, published_s: float) -> None:
        """Plan, check and command a chunk; in a dry run everything but command."""
        view = flight.view
        if flight.task is not self._task:
            self._task = flight.task
            self.motion.new_task()
        self._report_inputs(time.monotonic())
        if (obstacle := self.executive.obstacle()) is not None:
            self._reject(obstacle, flight, malformed=False)
            return
        measured = self._measured()
        tool = measured.base_from_tool if measured.base_from_tool is not None else view.base_from_tool
        if not self.executive.moving and (astray := self.motion.tracking_error(tool, now_ns)) is not None:
            # The last motion is over and did not get there: what follows begins where the arm is.
            self._log.warning(f"starting anew from the measured pose: {astray}")
            self.motion.clear()
        try:
            plan = self.motion.plan(chunk, view.base_from_tool, tool, now_ns, self.observer.measured_twist())
            trajectory = plan.trajectory
            if not self.executive.dry_run:
                trajectory = self.sink.start(trajectory, measured)
                self.motion.commit(trajectory)
                self._commanded = True
        except (UnsafeChunk, KinematicsError) as error:
            self._reject(str(error), flight, malformed=False)
            return
        if plan.note:
            self.changed += 1
            self._log.info(f"chunk {plan.note}", throttle_duration_sec=5.0)
        latency_s = (now_ns - chunk.stamp_ns) / NS_PER_S
        self.executive.accepted(chunk.stamp_ns, trajectory.end_ns, chunk.dt_s, latency_s, published_s)

    def _reject(self, why: str, flight: _InFlight, *, malformed: bool) -> None:
        now_s = time.monotonic()
        self._log.warning(f"chunk rejected: {why}", throttle_duration_sec=1.0)
        latency_s = (self.now_ns() - flight.view.frame.stamp_ns) / NS_PER_S
        self.executive.rejected(why, malformed=malformed, latency_s=latency_s, now_s=now_s)

    # Deciding

    def advance(self) -> None:
        """Tell the executive what is known, do what it says, and start a prediction if one is wanted and possible."""
        now_s, now_ns = time.monotonic(), self.now_ns()
        self._report_inputs(now_s)
        self._do(self.executive.tick(now_ns, now_s))
        if self.active and self._waiting and self.supervisor.idle and self.executive.wants_prediction(now_ns):
            self._request(now_ns, now_s)
        self.reporter.tick(now_s)

    def _report_inputs(self, now_s: float) -> None:
        """What is wrong with the inputs: of several problems the one that explains the others."""
        if self.executive.task is None:
            self._observation_problem = {}  # nothing was looked at since
        found = dict(self._observation_problem)
        if (unpaired := self.sync.problem(now_s)) is not None:
            topics = f"{self.image_subscription.topic_name}, {self.info_subscription.topic_name}"
            found = {Input.CAMERA_INFO: f"{unpaired} ({topics})"}
        elif (silence := self.gate.silence(now_s, self._active_since_s)) is not None:
            found = {Input.IMAGE: f"{silence} on {self.image_subscription.topic_name}"}
        for source in (Input.IMAGE, Input.CAMERA_INFO, Input.TF):
            self.executive.report(source, found.get(source))
        if self.values["output_mode"] == "joint" and not self.executive.dry_run:
            self.executive.report(Input.JOINT_STATES, self.arm.problem(now_s))

    def _request(self, now_ns: int, now_s: float) -> None:
        """Predict from the newest image whose transforms have come; older ones are superseded."""
        assert self.executive.task is not None
        for frame in reversed(tuple(self._waiting)):
            try:
                view = self.observer.observe(frame, self.executive.task.instruction, now_ns)
            except TransformMissing as error:
                if now_s - frame.arrived_s <= self.values["tf_timeout_s"]:
                    continue  # it may still come; an older image may have its transforms already
                self._observation_problem = {Input.TF: str(error)}
            except ObservationProblem as error:
                if frame is self._waiting[-1]:
                    self._observation_problem = {error.source: str(error)}
            else:
                self._observation_problem = {}
                self._submit(view, now_s)
            # Used or useless: so are the older ones.
            while self._waiting and self._waiting[0].stamp_ns <= frame.stamp_ns:
                self._waiting.popleft()
                self.superseded += 1
            break
        if self._waiting:
            self._retry.reset()

    def _submit(self, view: View, now_s: float) -> None:
        assert self.executive.task is not None
        request = self.supervisor.submit(view.observation, seed=self.values["seed"], now_s=now_s)
        if request is not None:
            self.superseded -= 1  # this one was used
            usable_s = max(view.frame.arrived_s, self._idle_since_s)
            self._in_flight = _InFlight(request, view, self.executive.task, usable_s, now_s)

    def _do(self, step: Step) -> None:
        if step.hold is not None:
            self._hold(step.hold)
        if step.ended is not None:
            if not self.executive.moving:
                self.motion.clear()  # whatever moves the arm until the next task, that one begins where the arm is
            self.services.task_ended(step.ended)
            self.gripper.reset()
            self.supervisor.reset_policy()

    def _hold(self, why: str) -> None:
        """Command the measured pose, once."""
        self.motion.clear()
        if not self._commanded:
            return
        self._commanded = False
        self._log.warning(f"holding the measured pose: {why}")
        self.sink.hold(self._measured(), self.now_ns())
        self.sink.publisher.wait_for_all_acked(Duration(seconds=FLUSH_S))

    def _command(self) -> None:
        """Send what is due of the current trajectory, and watch that the arm follows it."""
        if not self.executive.moving or self.motion.current is None:
            return
        now_ns, lag_ns = self.now_ns(), self.motion.lag_ns
        tool = None
        try:
            base_from_tool, stamp_ns = self.observer.measured_tool()
            tool = MeasuredTool(base_from_tool, (stamp_ns or now_ns) - lag_ns)
        except TransformMissing as error:
            self._observation_problem = {Input.TF: str(error)}
        self.sink.tick(now_ns, tool)
        # The fingers close where the tool is, not where it is told to be: as late as the arm.
        self.gripper.update(self.motion.current.sample(now_ns - lag_ns)[1])
        if tool is None:
            return
        error_text = self.motion.tracking_error(tool.base_from_tool, tool.shows_ns + lag_ns)
        if error_text is not None:
            self.executive.tracking_error(error_text, time.monotonic())
            self.advance()

    def _measured(self) -> Measured:
        try:
            base_from_tool = self.observer.measured_tool()[0]
        except TransformMissing:
            base_from_tool = None
        return Measured(base_from_tool, self.arm.joints)

    def now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)
