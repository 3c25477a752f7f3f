"""The engine of policy_node: everything that exists between configure and cleanup, and the turn that drives it.

Thread ownership: the node's executor thread runs all of it, one callback at a time, so nothing is locked. Callbacks
store what came and make a turn; the longest part of a turn, planning a chunk, takes a few milliseconds. The timer runs
on the steady clock, so that the engine turns when simulated time stops. Three other threads exist: the worker's reader
and the reader of robot descriptions only trigger a guard condition, and the watchdog brings the arm to rest through
`Commander.emergency` when the executor stands still.
"""

from __future__ import annotations

import dataclasses
import math
import time
import traceback
from collections.abc import Mapping
from typing import Any

from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration

from sqap_vla_ros.contracts import NS_PER_S, ActionChunk
from sqap_vla_ros.control.clock_monitor import SIMULATED_JUMP_S, ClockMonitor, read_clocks
from sqap_vla_ros.control.conditions import REFUSES_ENABLE, Hold, Input
from sqap_vla_ros.control.executive import REJECTED, Executive, State
from sqap_vla_ros.control.mission import Mission
from sqap_vla_ros.control.motion import ArmWasLed, MalformedChunk, UnsafeChunk
from sqap_vla_ros.control.watchdog import Watchdog
from sqap_vla_ros.nodes.policy import configuration
from sqap_vla_ros.nodes.policy.commander import Commander
from sqap_vla_ros.nodes.policy.health import Health
from sqap_vla_ros.nodes.policy.inputs import Inputs
from sqap_vla_ros.nodes.policy.prediction import InFlight, Prediction
from sqap_vla_ros.nodes.policy.publishers import Listener, PublisherWatch
from sqap_vla_ros.nodes.policy.reports.status import Reporter
from sqap_vla_ros.nodes.policy.safety_stop import SafetyStop
from sqap_vla_ros.nodes.policy.services import Services
from sqap_vla_ros.robot.holding import HoldReason
from sqap_vla_ros.robot.kinematics import KinematicsError
from sqap_vla_ros.serving.events import Event, LoadFailed, LoadProgress, Lost, PredictFailed, Ready, Result
from sqap_vla_ros.serving.supervisor import WorkerSupervisor
from sqap_vla_ros.serving.worker import PolicyWorker

PAUSE_S = 0.25  # between two turns; a stream of commands that pauses for longer is brought to rest
WATCH_S = 1.0  # between looks at the publishers in the graph
LOOKED_AT = frozenset(Input) - {Input.WORKER, Input.CHUNK}


class ControlLoop:
    """Inputs, the worker, the state machine, the sinks and the reports, tied together by `turn`."""

    def __init__(
        self,
        node: Any,
        values: Mapping[str, Any],
        worker_factory: str,
        safety_stop: SafetyStop,
        *,
        activates_itself: bool = False,
    ) -> None:
        """Create everything and start the worker. values: checked. activates_itself: once the policy is loaded."""
        self.active = False
        self._activates_itself = activates_itself
        self._created_s = time.monotonic()
        self._node = node
        self._log = node.get_logger()
        self.load_failure: str | None = None  # why the policy could not be loaded
        self._safety_stop = safety_stop
        self._seed: int = values["seed"]
        self._instruction: str = values["instruction"]
        self._simulated_time: bool = node.get_parameter("use_sim_time").value
        config = configuration.executive_config(values, simulated_time=self._simulated_time)
        self.executive = Executive(config, dry_run=values["dry_run"])
        self._in_flight: InFlight | None = None
        self._arrived: Result | PredictFailed | None = None  # to be planned this turn
        self._planned: Mission | None = None  # of the newest chunk
        self._idle_since_s = time.monotonic()
        self._command_due = False
        self._clock = ClockMonitor(simulated=self._simulated_time)
        self._turned: tuple[int, float] | None = None  # ROS time and steady clock of the last turn
        self._changed = 0  # chunks that were slowed down or kept inside the workspace

        self._guard = node.create_guard_condition(self.turn)
        loads = configuration.worker_config(values, worker_factory)
        self.supervisor = WorkerSupervisor(
            lambda: PolicyWorker(loads, self._guard.trigger),
            prediction_timeout_s=values["prediction_timeout_s"],
            load_timeout_s=values["load_timeout_s"],
            policy=config.policy,
        )
        self.inputs = Inputs(
            node, values, simulated_time=self._simulated_time, turn=self.turn, wake=self._guard.trigger
        )
        self.commander = Commander(node, values, self.inputs, self._running_ns, simulated_time=self._simulated_time)
        period_s = 1.0 / values["command_rate"]
        self._watchdog = Watchdog(values["executor_timeout_s"], self.commander.emergency, period_s)
        self.reporter = Reporter(
            node,
            base_frame=values["base_frame"],
            tool_frame=values["tool_frame"],
            setup={
                Input.IMAGE: {"topic": self.inputs.image_topic},
                Input.CAMERA_INFO: {"topic": self.inputs.info_topic},
                Input.TF: {"base_frame": values["base_frame"], "tool_frame": values["tool_frame"]},
                Input.JOINT_STATES: {"output_mode": values["output_mode"]},
            },
        )
        self.services = Services(
            node,
            self.executive,
            refusal=self._refusal,
            reset_refusal=safety_stop.reset_refusal,
            reset_policy=self.supervisor.reset_policy,
            turn=self.turn,
        )
        stop = Listener(Input.SAFETY_STOP, safety_stop.topic, "std_msgs/msg/Bool")
        commands = [p.topic_name for p in self.commander.publishers]
        self._publishers = PublisherWatch(node, [stop, *self.inputs.listeners()], commands)
        self._unheard: dict[Input, str] = {}
        self._watched_s = -math.inf
        safety_stop.changed = self.turn
        self._jumps = node.get_clock().create_jump_callback(
            JumpThreshold(
                min_forward=Duration(seconds=SIMULATED_JUMP_S),
                min_backward=Duration(nanoseconds=-1),
                on_clock_change=False,
            ),
            post_callback=lambda jump: self._on_time_jump(
                f"ROS time jumped by {jump.delta.nanoseconds / NS_PER_S:+.2f} s"
            ),
        )
        self._timer = node.create_timer(period_s, self._on_timer, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.supervisor.start()

    # The turn

    def turn(self) -> None:
        """Make one turn of the engine; every callback ends with it."""
        now_ns, now_s = read_clocks(self.now_ns)
        self._look(now_ns, now_s)
        self.executive.decide(now_ns, now_s)
        self._plan()
        self._command(now_ns)
        self._predict(now_ns, now_s)
        self._report()

    def _look(self, now_ns: int, now_s: float) -> None:
        """Tell the executive what happened, where the arm is and what is wrong with the inputs."""
        self._look_at_the_clock(now_ns, now_s)
        for event in self.poll_worker():
            if isinstance(event, (Result, PredictFailed)):
                self._arrived = event
            elif isinstance(event, (Lost, LoadFailed)):
                self._in_flight = None
            self._idle_since_s = now_s
            self.executive.answered()
        if (replaced := self.inputs.new_description()) is not None:
            self.executive.interrupt(replaced, HoldReason.INPUT)
        if self._command_due:
            moving = self.executive.moving
            if (astray := self.commander.measure(now_ns, moving=moving)) is not None and moving:
                self.executive.tracking_error(astray, now_s, latch=self.commander.blind)
        self.inputs.serve(self.executive.mission, moves=not self.executive.dry_run)
        found = self.inputs.problems(now_ns, now_s)
        if self.commander.sink.NEEDS_JOINTS and not self.executive.dry_run:
            unknown = self.inputs.arm.problem(now_ns) or self.commander.watch.contradiction
            found |= {} if unknown is None else {Input.JOINT_STATES: unknown}
        stop = self._safety_stop.reason(now_s)
        found |= {} if stop is None else {Input.SAFETY_STOP: stop}
        self._look_at_publishers(found, now_s)
        for source in LOOKED_AT:
            self.executive.report(source, found.get(source))
        if stop is not None and (self.executive.enabled or self._safety_stop.pressed):
            self.executive.stop(stop)

    def _look_at_publishers(self, found: dict[Input, str], now_s: float) -> None:
        """Add to the problems found that somebody speaks and is not heard, or commands beside this node."""
        if now_s - self._watched_s >= WATCH_S or self._publishers.due:
            self._unheard, self._watched_s = self._publishers.look(), now_s
        for source, unheard in self._unheard.items():
            if source is Input.COMMANDS and self.executive.dry_run:
                continue
            if source in found:
                found[source] += f"; {unheard}"
            elif source in REFUSES_ENABLE:  # one that is not heard is wrong even when another one is
                found[source] = unheard

    def _look_at_the_clock(self, now_ns: int, now_s: float) -> None:
        """Notice that the executor stood still, and that the system's clock was set."""
        if (stalled_s := self._watchdog.feed(armed=self.commander.commanded)) is not None:
            self.commander.resume()
            self._log.error(f"the executor stood still for {stalled_s:.1f} s; the watchdog brought the arm to rest")
            self.executive.interrupt(f"the executor stood still for {stalled_s:.1f} s", HoldReason.INPUT)
        if (jumped := self._clock.jump(now_ns, now_s)) is not None:
            self._forget_time(jumped, now_ns)
        paused_s = 0.0 if self._turned is None else now_s - self._turned[1]
        self.executive.postponed(self.commander.go_on(now_ns))
        if paused_s > PAUSE_S and self.commander.sink.STREAMS:
            self.executive.interrupt(f"no command was sent for {paused_s:.2f} s", HoldReason.INPUT)
        self._turned = (now_ns, now_s)

    def _plan(self) -> None:
        """Make a trajectory of the chunk that arrived, if any, and publish both; or reject it."""
        event, self._arrived = self._arrived, None
        if event is None:
            return
        flight, self._in_flight = self._in_flight, None
        if flight is None or flight.request != event.request or flight.mission is not self.executive.mission:
            return  # of a mission that is over, or of a time that was left
        if isinstance(event, PredictFailed):
            self._reject(f"the policy failed: {event.text}", flight, malformed=True)
            return
        assert self.supervisor.info is not None
        chunk, view = event.chunk, flight.view
        try:
            self.commander.motion.validate(chunk, self.supervisor.info.horizon)
        except MalformedChunk as error:
            self._reject(str(error), flight, malformed=True)
            return
        whole = self.reporter.publish_chunk(chunk, view)
        published_s, now_ns = time.monotonic(), self.now_ns()
        self.executive.counters.chunks_published += 1
        self._execute(chunk, flight, now_ns, published_s)
        prediction = Prediction(
            chunk,
            view,
            whole,
            overhead_s=published_s - flight.usable_s - event.policy_s,
            queued_s=flight.usable_s - view.frame.arrived_s,
            age_s=(now_ns - chunk.stamp_ns) / NS_PER_S,
        )
        self.reporter.publish_prediction(prediction, self.health())

    def _command(self, now_ns: int) -> None:
        """Do what the executive decided: hold, or send what is due."""
        step = self.executive.take_step()
        if step.hold is not None:
            self.commander.hold(step.hold, now_ns)
        for end in step.ended:
            self.services.mission_ended(end)
        if step.ended:
            self.commander.task_over(moving=self.executive.moving)
            self.supervisor.reset_policy()
        if self._command_due:
            self.commander.tick(now_ns)
        self._command_due = False
        self.executive.coming_to_rest = not self.executive.moving and not self.commander.at_rest(now_ns)

    def _predict(self, now_ns: int, now_s: float) -> None:
        """Start a prediction if one is wanted and possible."""
        if not (self.active and self.inputs.waiting and self.supervisor.idle) or self.executive.coming_to_rest:
            return  # what begins now begins at rest
        mission = self.executive.mission
        if mission is None or not self.executive.wants_prediction(now_ns):
            return
        view = self.inputs.take_view(mission.instruction, now_ns, now_s)
        if view is None or self.inputs.problems(now_ns, now_s) or self.executive.settling:
            return  # a good image is not enough: nothing new is commanded while another input is wrong
        if not self.executive.dry_run and self.commander.predates_rest(view.observation.stamp_ns):
            return
        assert self.supervisor.info is not None
        view = self.commander.committed(view, self.supervisor.info.dt_s, self.executive.latency_s(95))
        request = self.supervisor.submit(view.observation, seed=self._seed, now_s=now_s)
        if request is not None:
            usable_s = max(view.frame.arrived_s, self._idle_since_s)
            self._in_flight = InFlight(request, view, mission, usable_s)
            self.executive.requested(now_s)

    def _report(self) -> None:
        """Publish what people and other nodes want to know."""
        health = self.health()
        self.reporter.tick(health)
        self.services.tick(health)

    # Life

    def activate(self) -> None:
        """Begin to publish; commands need ~/enable on top."""
        self.active, self._activates_itself = True, False
        self.inputs.expect_images(time.monotonic())
        if self._instruction:
            self.executive.set_instruction(self._instruction)

    def deactivate(self, why: str) -> None:
        """Bring the arm to rest, whatever else fails, and publish nothing more. Blocks until it is at rest."""
        try:
            self.executive.disable(why)
            self.turn()
        except Exception:  # a defect must not keep the arm moving
            self._log.error(traceback.format_exc())
        self._watchdog.feed(armed=False)
        self.commander.resume()
        self.commander.hold(Hold(why, HoldReason.ORDER), self.now_ns())
        self.commander.come_to_rest()
        self.active = False

    def set_dry_run(self, dry_run: bool) -> None:
        """Switch the dry run; only while disabled."""
        self.executive.dry_run = dry_run

    @property
    def loaded(self) -> bool:
        """True once the policy is loaded and warm."""
        return self.supervisor.info is not None

    def destroy(self) -> None:
        """End the worker and remove everything from the node."""
        self._safety_stop.changed = None
        self._watchdog.close()
        self.supervisor.close()
        self._node.destroy_timer(self._timer)
        self._jumps.unregister()
        self.inputs.destroy()
        self.commander.destroy()
        self.services.destroy()
        self.reporter.destroy()
        self._node.destroy_guard_condition(self._guard)

    def poll_worker(self) -> list[Event]:
        """Return the worker's events, after logging them and telling the executive."""
        restarts = self.supervisor.restarts
        events = self.supervisor.poll(time.monotonic())
        for event in events:
            if isinstance(event, LoadProgress):
                self._log.info(event.text)
            elif isinstance(event, Ready):
                self._log.info(event.in_words())
                self.inputs.observer.needs_projection = event.info.looks_at_gripper
                self.reporter.publish_model_info(event.info)
            elif isinstance(event, (Lost, LoadFailed)):
                self.load_failure = event.text
                self._log.error(event.text)
        if self.supervisor.restarts != restarts:
            self._log.warning("starting the policy worker again")
        self.executive.counters.worker_restarts = self.supervisor.restarts
        self.executive.report(Input.WORKER, self.supervisor.problem)
        return events

    def health(self) -> Health:
        """Return what the node knows about itself now."""
        state, reason = self.executive.state()
        if state is State.DISABLED and not self.active:
            reason = self._inactive()
        return Health(
            stamp_ns=self.now_ns(),
            steady_s=time.monotonic(),
            state=state,
            reason=reason,
            enabled=self.executive.enabled,
            dry_run=self.executive.dry_run,
            mission=self.executive.mission,
            mission_elapsed_s=self.executive.elapsed_s,
            mission_chunks=self.executive.mission_chunks,
            problems=self.executive.problems(),
            counters=dataclasses.replace(self.executive.counters),
            pairing=dataclasses.replace(self.inputs.sync.counters),
            images_dropped=self.inputs.gate.dropped,
            images_superseded=self.inputs.superseded,
            chunks_changed=self._changed,
            arm_lag_s=self.commander.motion.measured_lag_s,
            residual_rad=self.commander.residual_rad,
            gripper=self.commander.gripper(),
            worker_pid=self.supervisor.pid,
            policy=self.supervisor.info,
        )

    def now_ns(self) -> int:
        """Return ROS time."""
        return int(self._node.get_clock().now().nanoseconds)

    def _running_ns(self) -> int:
        """Return ROS time; as it would have gone on, where it is simulated and nobody hears /clock. From any thread."""
        now_ns = self.now_ns()
        return max(now_ns, self._left_ns(now_ns)) if self._simulated_time else now_ns

    def _left_ns(self, now_ns: int) -> int:
        """Return this moment by ROS time as it was in the last turn."""
        before_ns, before_s = self._turned or (now_ns, time.monotonic())
        return before_ns + round((time.monotonic() - before_s) * NS_PER_S)

    def _inactive(self) -> str:
        """Return what a node that is not active waits for, and what a person has to do then."""
        activate = f"ros2 lifecycle set {self._node.get_fully_qualified_name()} activate"
        if self.loaded and not self._activates_itself:
            return f"activate it ({activate})"
        said = self.supervisor.progress and f": {self.supervisor.progress}"
        waits = f"the policy is being loaded ({time.monotonic() - self._created_s:.0f} s so far){said}"
        if self._activates_itself:
            return f"{waits}; the node activates itself then: wait until its status asks for ~/enable"
        return f"{waits}; then activate it ({activate})"

    # Parts of the turn

    def _refusal(self) -> str | None:
        """Return why the node must not be enabled now, or None."""
        if not self.active:
            return f"the node is not active yet: {self._inactive()}"
        unheard = self._publishers.look()
        if self.executive.dry_run:
            unheard.pop(Input.COMMANDS, None)
        named = [unheard[source] for source in REFUSES_ENABLE if source in unheard]
        return self._safety_stop.reason(time.monotonic()) or (named[0] if named else None)

    def _execute(self, chunk: ActionChunk, flight: InFlight, now_ns: int, published_s: float) -> None:
        """Plan, check and command a chunk; in a dry run everything but command."""
        if flight.mission is not self._planned:
            self._planned = flight.mission
            self.commander.new_task()
        if (obstacle := self.executive.obstacle() or self.executive.wrong_input()) is not None:
            self._reject(obstacle.removeprefix(REJECTED), flight, malformed=False)
            return
        try:
            safe, end_ns = self.commander.execute(
                chunk, flight.view, now_ns, moving=self.executive.moving, dry_run=self.executive.dry_run
            )
        except (UnsafeChunk, KinematicsError) as error:
            self._reject(str(error), flight, malformed=False)
            if isinstance(error, ArmWasLed):
                self.executive.end_task(str(error))
            return
        if safe.note:
            self._changed += 1
            self._log.info(f"chunk {safe.note}", throttle_duration_sec=5.0)
        latency_s = (now_ns - chunk.stamp_ns) / NS_PER_S
        self.executive.accepted(chunk.stamp_ns, end_ns, chunk.dt_s, latency_s, published_s)

    def _reject(self, why: str, flight: InFlight, *, malformed: bool) -> None:
        self._log.warning(f"{REJECTED}{why}", throttle_duration_sec=1.0)
        latency_s = (self.now_ns() - flight.view.frame.stamp_ns) / NS_PER_S
        self.executive.rejected(why, malformed=malformed, latency_s=latency_s)

    # Callbacks

    def _on_timer(self) -> None:
        self.inputs.expire(time.monotonic())
        self._command_due = True
        self.turn()

    def _on_time_jump(self, what: str) -> None:
        self._forget_time(what, self.now_ns())
        self.turn()

    def _forget_time(self, what: str, now_ns: int) -> None:
        """Hold where the command is now, by the time before the jump, and forget all that is tied to it."""
        self._log.warning(f"{what}: forgetting images, transforms and the current chunk")
        self.executive.time_jumped(what)
        self.commander.time_jumped(what, self._left_ns(now_ns), now_ns)
        self.inputs.forget()
        self._in_flight = None
        self.supervisor.reset_policy()
