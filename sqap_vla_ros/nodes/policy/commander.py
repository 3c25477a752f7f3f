"""The half of the engine that commands: motion, sink, gripper, and the watch over the measured arm.

Thread ownership: the node's executor thread calls everything but `emergency`, which the watchdog's thread calls while
the executor stands still. The lock keeps the two from commanding at the same time; once `emergency` has acted, the
executor's thread commands nothing before it has made a turn.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import CONTINUATIONS, NS_PER_S, ActionChunk
from sqap_vla_ros.control.arm.arm_watch import AGREE_M, AGREE_RAD, ArmWatch
from sqap_vla_ros.control.arm.progress import ProgressBounds, ProgressWatch
from sqap_vla_ros.control.arm.tool_monitor import ToolSample
from sqap_vla_ros.control.clock_monitor import Pace
from sqap_vla_ros.control.conditions import Hold
from sqap_vla_ros.control.motion import ArmWasLed, Motion, SafeMotion, UnsafeChunk
from sqap_vla_ros.nodes.policy import configuration
from sqap_vla_ros.nodes.policy.grippers.gripper import GripperParts
from sqap_vla_ros.nodes.policy.grippers.table import GRIPPER_SINKS
from sqap_vla_ros.nodes.policy.inputs import Inputs
from sqap_vla_ros.nodes.policy.observer import View
from sqap_vla_ros.nodes.policy.sinks.sink import HoldOrder, Measured, MeasuredTool, SinkParts
from sqap_vla_ros.nodes.policy.sinks.table import SINKS
from sqap_vla_ros.robot.conventions import pose_distance
from sqap_vla_ros.robot.gripper.state import GripperReport
from sqap_vla_ros.robot.holding import ArmSample, Evidence, EvidenceBounds, HoldReason
from sqap_vla_ros.robot.kinematics import KinematicsError
from sqap_vla_ros.robot.trajectory import PoseTrajectory

REST_S = 2.0  # the node waits so long for the arm to come to rest before it is deactivated
START_AGE_NS = 250_000_000  # a motion from rest starts at a pose that is measured no longer ago
STANDS_M_S, STANDS_RAD_S = 0.02, 0.1  # a tool no faster than this stands
LED_M, LED_RAD = 0.02, 0.1  # an arm that is so far from where it came to rest was led there
PUSHED_M, PUSHED_RAD = 0.005, 0.03  # or pushed, where joint_states and TF agree on less
UNSEEN_NS = 500_000_000  # between two measurements nobody saw the arm, when they are further apart
LOCKED_S = 0.05  # the watchdog waits so long for a command that is being sent
BRING_BACK = (
    "is the tool's transform right? Bring the arm back, publish joint_states and robot_description, which tell whether "
    "it is, or clean up and configure the node again to start where it is"
)
EMERGENCY = Hold("the node's executor stands still", HoldReason.INPUT)


class Commander:
    """Turns checked motions into commands, and brings the arm to rest."""

    def __init__(
        self,
        node: Any,
        values: Mapping[str, Any],
        inputs: Inputs,
        now_ns: Callable[[], int],
        *,
        simulated_time: bool = False,
    ) -> None:
        """now_ns: tells ROS time, also while nothing calls the executor's callbacks."""
        self._node = node
        self._log = node.get_logger()
        self._inputs = inputs
        self._now_ns = now_ns
        self._simulated_time = simulated_time
        self._period_s = 1.0 / values["command_rate"]
        self._continuation: str = values["chunk_continuation"]
        self._pace = Pace(self._period_s, simulated=simulated_time)
        self.motion = Motion(configuration.motion_config(values), configuration.safety_limits(values))
        parts = SinkParts(inputs.arm, self.motion.limits, values["base_frame"])
        self.sink = SINKS[values["output_mode"]](node, parts)
        gripper = GripperParts(configuration.gripper_config(values), self.sink, inputs.arm)
        self._gripper = GRIPPER_SINKS[values["gripper_output"]](node, gripper)
        self._carries = f", has it the joint {values['gripper_joint']}" if self._gripper.IN_TRAJECTORY else ""
        self.watch = ArmWatch(values["max_tracking_m"], values["max_tracking_rad"])
        config = self.motion.config
        self._progress = ProgressWatch(
            ProgressBounds.of(config.standstill_timeout_s, config.max_lead_m, config.max_lead_rad)
        )
        self._tool: MeasuredTool | None = None  # when commands were last due
        self._lock = threading.Lock()
        self._emergency_ns: int | None = None  # when the watchdog took over the commands: the executor stood still
        self.commanded = False  # something was commanded since the last hold
        self.blind = False  # velocities add up while the measurement stands to the last bit: nobody knows where to
        self._held_at: NDArray[np.float64] | None = None  # where the arm was measured at the last hold
        self._stood: NDArray[np.float64] | None = None  # where the arm was measured when it had come to rest
        self._seen: ToolSample | None = None  # where it was measured last
        self._nearest: tuple[float, float] | None = None  # how near (m, rad) it came to where it was told to rest
        self._begun = False  # the task has moved the arm
        self._ever = False  # some task has
        self._returned = False  # the command went back to the arm since a motion last started from rest
        self._in_motion_ns = 0  # when the arm was last under way, or held

    @property
    def publishers(self) -> list[Any]:
        """Publishers of the arm's and the gripper's commands."""
        return [p for p in (self.sink.publisher, self._gripper.publisher) if p is not None]

    @property
    def residual_rad(self) -> tuple[float, ...] | None:
        """As `Health.residual_rad`."""
        return None if self.sink.residual_rad is None else tuple(self.sink.residual_rad.tolist())

    def measure(self, now_ns: int, *, moving: bool) -> str | None:
        """Look where the arm is. Return what is wrong with it, once several samples say so. moving: it executes."""
        self._tool = None
        if moving or not self.sink.at_rest(now_ns):
            self._in_motion_ns = now_ns
        measured = self._inputs.measure_tool()
        if measured is None:
            return None
        stamp_ns = measured.stamp_ns or now_ns
        if moving:
            self._tool = MeasuredTool(measured.pose, stamp_ns - self.motion.lag_ns)
        shown_ns = stamp_ns - self.motion.lag_ns
        told = self.motion.commanded(stamp_ns) if moving else None
        self._note_rest(ToolSample(measured.pose, stamp_ns), now_ns, moving=moving)
        sample = ArmSample(
            stamp_ns,
            measured.pose,
            self._inputs.tool_by_joints(stamp_ns),
            told if told is not None else self.sink.commanded_tool(shown_ns),
        )
        astray = self.motion.tracking_error(measured.pose, stamp_ns) if moving else None
        stands = self._progress.note(stamp_ns, measured.pose, told)
        self.blind = stands is not None and not self._progress.lives and not self.sink.KEEPS_POSE
        if stands is not None and astray is None:
            astray = (
                f"{stands}: is its controller active and listening on {self.sink.publisher.topic_name}{self._carries}, "
                "do joint_states and TF still come from it, or is it blocked?"
            )
        return self.watch.note(sample, astray)

    def _note_rest(self, seen: ToolSample, now_ns: int, *, moving: bool) -> None:
        """Note where the arm stands once it has come to rest, and how near it has come to its command.

        One that nobody saw for a while, and not come to rest either, has come there or was led.
        """
        before, self._seen = self._seen, seen
        if moving or not self.sink.at_rest(now_ns):
            self._stood = self._nearest = None
            return
        if (commanded := self.sink.commanded_tool(now_ns)) is not None:
            ways = [pose_distance(sample.pose, commanded) for sample in (before, seen) if sample is not None]
            ways += [self._nearest] if self._nearest is not None else []
            if self._stood is None and before is not None and seen.stamp_ns - before.stamp_ns > UNSEEN_NS:
                ways.append((0.0, 0.0))
            self._nearest = min(way_m for way_m, _ in ways), min(way_rad for _, way_rad in ways)
        if self._stood is None and _stands(self._inputs.observer.measured_twist()):
            self._stood = seen.pose

    def _led(self, tool: NDArray[np.float64] | None, now_ns: int, by_m: float = LED_M, by_rad: float = LED_RAD) -> bool:
        """Return whether the arm is measured elsewhere than where it had come to rest; never in output mode twist.

        Also where nobody saw it stand before, because its transform was missing: what follows a command that rests only
        comes nearer to it.
        """
        if tool is None or not self.sink.KEEPS_POSE:
            return False
        if self._stood is not None and _beyond(tool, self._stood, by_m, by_rad):
            return True
        commanded = self.sink.commanded_tool(now_ns)
        if self._nearest is None or commanded is None:
            return False
        away_m, away_rad = pose_distance(tool, commanded)
        return away_m > self._nearest[0] + by_m or away_rad > self._nearest[1] + by_rad

    def committed(self, view: View, dt_s: float, latency_s: float) -> View:
        """Return the view with what its chunk is to go on from, where `chunk_continuation` asks for that.

        dt_s: between the policy's actions. latency_s: expected from the image to the chunk.
        """
        if self._continuation == CONTINUATIONS[0]:
            return view
        commitment = self.motion.commitment(view.observation.stamp_ns, dt_s, latency_s, self._continuation)
        return replace(view, observation=replace(view.observation, commitment=commitment))

    def predates_rest(self, stamp_ns: int) -> bool:
        """Return whether an image shows a motion that is over and forgotten.

        How much of its chunk the arm did before it was held is not known any more: done from the first action on, the
        chunk would take the arm back, and open a gripper that has closed since.
        """
        return self.motion.current is None and stamp_ns - self.motion.lag_ns < self._in_motion_ns

    def execute(
        self, chunk: ActionChunk, view: View, now_ns: int, *, moving: bool, dry_run: bool
    ) -> tuple[SafeMotion, int]:
        """Plan, check and command a chunk; return the motion and when it is at rest. In a dry run command nothing.

        Raises UnsafeChunk and KinematicsError.
        """
        if not self.sink.at_rest(now_ns) and not moving:
            raise UnsafeChunk("the arm is still coming to rest")
        newest = self._inputs.measure_tool()
        if not moving and newest is not None and 0 < newest.stamp_ns < now_ns - START_AGE_NS:
            age_s = (now_ns - newest.stamp_ns) / NS_PER_S
            raise UnsafeChunk(f"the motion would start where the arm was {age_s:.2f} s ago: no newer transform came")
        if not moving and self._inputs.tool.doubted:
            raise UnsafeChunk("the tool's transform has just jumped: a motion would start where the arm may not be")
        if not (moving or dry_run or self._ever) and (parted := self.watch.parted) is not None:
            raise UnsafeChunk(parted)  # and no command yet that the arm could be compared with
        measured = self._inputs.measured()
        tool = measured.base_from_tool if measured.base_from_tool is not None else view.base_from_tool
        left = not moving and self.sink.left_rest(now_ns, measured)
        moved = left or (not moving and self._pushed(tool, now_ns))
        if not moving and ((astray := self.motion.tracking_error(tool, now_ns)) is not None or moved):
            # The last motion is over and did not get there: what follows does not continue it.
            if self.motion.current is not None:
                self._log.warning(f"starting anew: {astray or 'the arm was moved from where it was told to rest'}")
            self.motion.clear(now_ns)
        if not dry_run and self.predates_rest(chunk.stamp_ns):
            raise UnsafeChunk("its image was taken before the arm had come to rest: a newer one decides")
        twist = self._inputs.observer.measured_twist()
        goes_on = self.motion.current is not None
        start = tool if goes_on else self._rest(tool, twist, now_ns, dry_run=dry_run, left=left)
        commitment = view.observation.commitment
        safe = self.motion.plan(chunk, view.base_from_tool, start, now_ns, twist, commitment=commitment)
        trajectory = safe.trajectory
        if not dry_run:
            try:
                trajectory = self._start(trajectory, measured, self.motion.latest_ns(chunk.stamp_ns))
            except (UnsafeChunk, KinematicsError):
                self.motion.refused()
                raise
        return safe, trajectory.end_ns

    def _start(self, trajectory: PoseTrajectory, measured: Measured, latest_ns: int) -> PoseTrajectory:
        with self._lock:
            if self._emergency_ns is not None:
                raise UnsafeChunk("the node's executor stood still")
            trajectory = self.sink.start(trajectory, measured, latest_ns)
            self.motion.commit(trajectory)
            self.commanded = self._begun = self._ever = True
            return trajectory

    def _rest(
        self, tool: NDArray[np.float64], twist: NDArray[np.float64] | None, now_ns: int, *, dry_run: bool, left: bool
    ) -> NDArray[np.float64]:
        """Return the pose [4, 4] at which a motion starts from rest: where the controller keeps the arm, if it does.

        From where an arm is measured that did not move since it came to rest, the command would leap, to a place that
        the measurement may be wrong about: the motion leads there. Beyond a tracking error nothing starts before the
        two are together: the command goes slowly to where the arm is measured, once, and not further than a blocked arm
        can be. An arm that moved since was led elsewhere, and its controller has it there: from where it rested before,
        it would be fetched back in a leap. So it starts where it is, if joints and TF agree on that, in every output
        mode; where TF alone says so, and may have slipped, nothing starts. A task that has moved the arm does not
        go on by itself then. left: the joints say that it is elsewhere. Raises UnsafeChunk.
        """
        commanded = self.sink.commanded_tool(now_ns) if self.sink.KEEPS_POSE else None
        if commanded is None or dry_run:
            return tool
        away_m, away_rad = pose_distance(tool, commanded)
        away = f"the arm is {away_m * 1e3:.0f} mm and {away_rad:.2f} rad from where it was told to rest"
        # Joints that say so, and are not the very numbers of the last hold, which may be frozen.
        left = left and not (self._held_at is not None and np.array_equal(tool, self._held_at))
        if left or (self._led(tool, now_ns) and _beyond(tool, commanded, LED_M, LED_RAD)):
            if not (self.sink.NEEDS_JOINTS or self._joints_agree(tool)):
                raise UnsafeChunk(f"{away}, and was moved there since: {BRING_BACK}")
            if not _stands(twist):
                raise UnsafeChunk(f"{away}, and still moves")
            if self._begun:
                raise ArmWasLed(
                    f"{away}: somebody moved it while its task was held, and the task does not go on by itself"
                )
            self._returned = False
            return tool
        if self._pushed(tool, now_ns) and _beyond(tool, commanded, PUSHED_M, PUSHED_RAD) and _stands(twist):
            self._returned = False
            return tool  # the command comes to the arm, and not the arm to the command
        config = self.motion.config
        if away_m <= config.max_lead_m and away_rad <= config.max_lead_rad:
            self._returned = False
            return commanded
        if not _stands(twist):
            raise UnsafeChunk(f"{away}, and still moves")
        share = max(away_m / config.max_tracking_m, away_rad / config.max_tracking_rad)
        if share <= 1.0:
            self._returned = False
            return commanded
        if share > EvidenceBounds.reach or self._returned:
            raise UnsafeChunk(f"{away}: {BRING_BACK}")
        with self._lock:
            if self._emergency_ns is None:
                order = HoldOrder(now_ns, now_ns, Evidence.BLOCKED, HoldReason.TRACKING, self._inputs.measured())
                self._log.warning(f"{away}: {self.sink.hold(order)}")
                self._returned = self.commanded = True
        raise UnsafeChunk(f"{away}: its command goes back to it first")

    def _pushed(self, tool: NDArray[np.float64], now_ns: int) -> bool:
        """Return whether the arm was led, or at least pushed, since it had come to rest."""
        return self._led(tool, now_ns) or (self._led(tool, now_ns, PUSHED_M, PUSHED_RAD) and self._joints_agree(tool))

    def _joints_agree(self, tool: NDArray[np.float64]) -> bool:
        """Return whether joint_states are known and have the tool [4, 4] at the same place, give or take."""
        newest = self._inputs.tool.newest
        by_joints = None if newest is None else self._inputs.tool_by_joints(newest.stamp_ns)
        return by_joints is not None and not _beyond(by_joints, tool, AGREE_M, AGREE_RAD)

    def go_on(self, now_ns: int) -> int:
        """Let a stream that paused go on from what was sent last, not from where its path would be by now.

        Return how much later (ns) all that is left comes. Called before anything is planned or sent.
        """
        with self._lock:
            return self._go_on(now_ns)

    def tick(self, now_ns: int) -> None:
        """Send what is due, at the command rate."""
        with self._lock:
            self.sink.tick(now_ns, self._tool)
            self._pace.note(now_ns)
            if self._emergency_ns is None and (opening := self.motion.opening(now_ns)) is not None:
                self._gripper.update(opening)

    def hold(self, hold: Hold, now_ns: int) -> None:
        """Bring the arm to rest, if anything was commanded since the last hold."""
        with self._lock:
            if self.commanded:
                self._hold(hold, now_ns, now_ns)
            self.motion.clear(now_ns)
            self._in_motion_ns = now_ns
        self._progress.forget()

    def time_jumped(self, what: str, left_ns: int, now_ns: int) -> None:
        """Bring what is under way to rest in the new time, a hold too.

        An arm at rest is kept where it is by its controller, whatever the clock was set to. Where time is simulated, a
        jump is a world that begins anew, and what was commanded before is forgotten.
        left_ns: this moment by the time before the jump.
        """
        with self._lock:
            self._gripper.time_jumped(left_ns, now_ns)
            self._pace.forget()
            if self.sink.at_rest(left_ns):
                if self._simulated_time:
                    self.sink.forget()
                else:
                    self.sink.rest_since(now_ns)
                self.commanded = False
            else:
                self._hold(Hold(what, HoldReason.TIME), now_ns, left_ns)
            self.motion.clear(left_ns)
            self._in_motion_ns = now_ns
        self.watch.forget()
        self._progress.forget()

    def emergency(self, stands_still: Callable[[], bool]) -> None:
        """Bring the arm to rest, and go on sending what is due; called again and again by the watchdog's thread.

        stands_still: whether the executor's thread does, asked once its lock is free: it may have gone on meanwhile,
        and nothing would end an emergency that begins after `resume`.
        """
        if not self._lock.acquire(timeout=LOCKED_S):
            return
        try:
            if not stands_still():
                return
            now_ns = self._now_ns()
            # What was executed is left alone: the executor's thread may stand still while it plans with it.
            if self._emergency_ns is None:
                self._emergency_ns = now_ns
                if self.commanded:
                    self._hold(EMERGENCY, now_ns, now_ns)
            if not self.sink.at_rest(now_ns):
                self._in_motion_ns = now_ns
            self.sink.go_on(now_ns, self._pace.longest_ns)
            self.sink.tick(now_ns, None)
        finally:
            self._lock.release()

    def resume(self) -> None:
        """Let the executor's thread command again."""
        with self._lock:
            if self._emergency_ns is not None:
                self.motion.clear(self._emergency_ns)
                self._emergency_ns = None

    def come_to_rest(self) -> None:
        """Send commands until the arm is at rest, and the end is delivered. Blocks, for REST_S at most."""
        begin_s = time.monotonic()
        while time.monotonic() - begin_s < REST_S:
            now_ns = self._now_ns()
            self.go_on(now_ns)
            self.tick(now_ns)
            if self.sink.at_rest(now_ns) and self.sink.delivered():
                return
            time.sleep(self._period_s)

    def at_rest(self, now_ns: int) -> bool:
        """Return whether no command is under way."""
        return self.sink.at_rest(now_ns)

    def new_task(self) -> None:
        """Do not average what comes next with what came before: it follows another instruction."""
        self._begun = False
        self.motion.new_task()

    def task_over(self, *, moving: bool) -> None:
        """Say the gripper's next command again, and begin the next motion where the arm is."""
        if not moving:
            self.motion.clear(self._now_ns())
        self._gripper.reset()

    def gripper(self) -> GripperReport:
        """Return what the gripper does."""
        return self._gripper.report()

    def destroy(self) -> None:
        """Remove what commands from the node."""
        self._node.destroy_lifecycle_publisher(self.sink.publisher)
        self._gripper.destroy()

    def _go_on(self, now_ns: int) -> int:
        if (left := self.sink.go_on(now_ns, self._pace.longest_ns)) is None:
            return 0
        at_ns, pause_ns = left
        self.motion.interrupted(at_ns, pause_ns)
        return pause_ns

    def _hold(self, hold: Hold, now_ns: int, at_ns: int) -> None:
        """at_ns: moment of the commanded path that is left; other than now_ns only where ROS time jumped."""
        self.commanded = False
        measured = self._inputs.measured()
        self._held_at = measured.base_from_tool
        if self.sink.at_rest(at_ns) and self._led(measured.base_from_tool, now_ns):
            self._log.warning(f"holding: {hold.why} (nothing is commanded: the arm was led away from where it rested)")
            return
        evidence = Evidence.STALE if hold.reason is HoldReason.TIME else self.watch.evidence(now_ns)
        order = HoldOrder(at_ns, now_ns, evidence, hold.reason, measured)
        self._log.warning(f"holding: {hold.why} ({self.sink.hold(order)})")


def _stands(twist: NDArray[np.float64] | None) -> bool:
    """Return whether a tool of this twist [6] stands; False where it is not known."""
    return twist is not None and bool(
        np.linalg.norm(twist[:3]) < STANDS_M_S and np.linalg.norm(twist[3:]) < STANDS_RAD_S
    )


def _beyond(a: NDArray[np.float64], b: NDArray[np.float64], metres: float, radians: float) -> bool:
    """Return whether two poses [4, 4] are further apart than that."""
    away_m, away_rad = pose_distance(a, b)
    return away_m > metres or away_rad > radians
