"""The state machine of the policy node, without ROS: decides when to predict, to move and to hold, and says why.

Nothing here has a clock, a thread or a publisher: every method is told the time it needs, and answers what to do. Two
clocks run through it and must not be mixed: `now_ns` is ROS time (what image stamps and trajectories are in, may be
simulated, may jump) and `now_s` is a steady clock (what watchdogs are in, always advances).

Failure directions: while an input is missing or wrong, nothing new is commanded; what was commanded before is finished,
never for longer than `max_open_loop_s` after its image, and then the arm is brought to rest. A lost worker, lost joint
states or a tracking error hold at once. Stops and faults latch; only `reset_fault` clears them, and it leaves the node
disabled.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.conditions import ENDS_OPEN_LOOP, HOLD_AT_ONCE, MEASURES_THE_ARM, REFUSES_ENABLE, Hold, Input
from sqap_vla_ros.control.executive_config import ExecutiveConfig
from sqap_vla_ros.control.mission import Mission, MissionClock, MissionEnd, Termination, instruction_problem
from sqap_vla_ros.control.settling import Settling
from sqap_vla_ros.robot.holding import HoldReason

TRACKING_MEMORY_S = 10.0
STOPPING_NS = 300_000_000  # a motion is brought to rest in less
HITCH = 3.0  # times the median: a prediction that took longer says nothing about the next
RECENT = 20  # latencies that are looked back on: enough for a 95th percentile, few enough to follow a change
REJECTED = "chunk rejected: "  # begins the reason of a chunk that is not executed


class State(enum.IntEnum):
    """The values of `sqap_vla_ros/msg/PolicyStatus`."""

    DISABLED = 0
    WAITING = 1
    RUNNING = 2
    HOLDING = 3
    STOPPED = 4
    FAULT = 5


@dataclass
class Counters:
    """Counts since the node was configured."""

    chunks_published: int = 0
    chunks_rejected: int = 0
    holds: int = 0
    starved: int = 0
    tracking_errors: int = 0
    worker_restarts: int = 0


@dataclass(frozen=True)
class Step:
    """Orders to the node. hold: bring the arm to rest, and why. ended: missions that are over."""

    hold: Hold | None = None
    ended: tuple[MissionEnd, ...] = ()


@dataclass
class _Execution:
    """The motion under way. stamp_ns: of its image; end_ns: when it comes to rest.

    held_ns: when it is brought to rest before its end, which a pause of the node made too late.
    """

    stamp_ns: int
    end_ns: int
    dt_s: float
    held_ns: float = math.inf


@dataclass
class Executive:
    """The state machine. dry_run: predict and report, never command."""

    config: ExecutiveConfig = field(default_factory=ExecutiveConfig)
    dry_run: bool = True
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        self.enabled = False
        self.mission: Mission | None = None
        self.elapsed_s = 0.0  # since the mission began, by the clock of its deadline
        self._clock = MissionClock(ros_time=self.config.deadlines_in_ros_time)
        self._topic_instruction = ""
        self._topic_begun = False  # a mission of that very instruction was begun already
        self._refused: str | None = None  # why the topic's instruction cannot be followed
        self._stop: str | None = None
        self._fault: str | None = None
        self._held: str | None = None
        self._motion: _Execution | None = None
        self._problems: dict[Input, str] = {}
        self.settling = Settling()
        self._ok_at_s = 0.0  # elapsed_s when the mission could last predict
        self._input_ok_s = 0.0  # when nothing was missing while moving (steady clock)
        self._requested_s: float | None = None  # since when a prediction is being computed (steady clock)
        self.coming_to_rest = False  # the arm still executes a hold, or the end of its last motion
        self._now_s = 0.0
        self._malformed = 0
        self._tracking = 0
        self._tracking_s = -math.inf
        self._chunks = 0
        self._latencies_s: deque[float] = deque(maxlen=RECENT)
        self._pending_ends: list[MissionEnd] = []
        self._pending_hold: Hold | None = None

    # Commands of people and other nodes

    def enable(self) -> str | None:
        """Allow commands, and start on the instruction of the topic if there is one. Return why not, or None."""
        if latched := self.latched():
            return f"{latched}: call ~/reset_fault first"
        self.enabled = True
        self._topic_begun = False
        self._begin_from_topic()
        return None

    def disable(self, why: str = "disabled through ~/enable") -> None:
        """End the mission, bring the arm to rest and command nothing more."""
        self._halt(Termination.STOPPED, why)
        self.enabled = False

    def stop(self, why: str) -> None:
        """Latch a stop."""
        if self._stop is None and self._fault is None:
            self._halt(Termination.STOPPED, why)
        self._stop = self._stop or why
        self.enabled = False

    def fault(self, why: str, reason: HoldReason = HoldReason.INPUT) -> None:
        """Latch a fault. The first one is kept: what follows is mostly its consequence. reason: for the hold."""
        if self._fault is None:
            self._halt(Termination.FAULT, why, reason)
            self._fault = why
        self.enabled = False

    def latched(self) -> str | None:
        """Return the fault or stop that is latched, or None."""
        return self._fault or self._stop

    def reset_fault(self) -> None:
        """Clear what is latched; the node stays disabled until someone enables it."""
        self._stop = self._fault = self._held = None
        self._malformed = self._tracking = 0
        self._problems.pop(Input.CHUNK, None)

    def set_instruction(self, instruction: str) -> None:
        """Take the topic's instruction: start a new mission, or end the one before if blank.

        One that is repeated changes nothing: the deadline is not renewed, and a mission that ended stays ended. While a
        goal runs it is only remembered. One that cannot be followed ends the mission of the one before.
        """
        instruction = instruction.strip()
        self._refused = instruction_problem(instruction) if instruction else None
        if self._refused:
            instruction = ""
        if instruction == self._topic_instruction and not self._refused:
            self._begin_from_topic()
            return
        if self.mission is not None and self.mission.goal is None:
            message = f"the instruction changed to {instruction!r}" if instruction else "the instruction was cleared"
            self._end(Termination.CANCELED, self._refused or message, hold=not instruction)
        self._topic_instruction = instruction
        self._topic_begun = False
        self._begin_from_topic()

    def goal_refusal(self, instruction: str) -> str | None:
        """Return why a goal cannot be accepted now, or None."""
        if latched := self.latched():
            return f"{latched}: call ~/reset_fault first"
        if not self.enabled:
            return "disabled: call ~/enable with true first"
        if self.mission is not None and self.mission.goal is not None:
            return f"already running {self.mission.instruction!r}: cancel it first"
        return instruction_problem(instruction)

    def start_goal(self, goal: Hashable, instruction: str, duration_s: float) -> None:
        """Follow a goal accepted with `goal_refusal`; duration_s 0 takes the default deadline."""
        if refusal := self.goal_refusal(instruction):
            raise ValueError(refusal)
        if self.mission is not None:
            self._end(Termination.CANCELED, "an action goal took over", hold=False)
        self._begin(Mission(instruction.strip(), goal, duration_s or self.config.task_deadline_s))

    def cancel_goal(self, goal: Hashable) -> None:
        """End the mission of this goal; nothing happens when it is over already."""
        if self.mission is not None and self.mission.goal == goal:
            self._end(Termination.CANCELED, "canceled")

    # What the node observes

    def report(self, source: Input, problem: str | None) -> None:
        """Note that an input has this problem, or None again."""
        problem = self.settling.judge(source, problem, self._now_s)
        if problem is None:
            self._problems.pop(source, None)
        else:
            self._problems[source] = problem

    def problems(self) -> dict[Input, str]:
        """Return what is wrong with each input; empty when nothing is."""
        return dict(self._problems)

    def obstacle(self) -> str | None:
        """Return the problem with which nothing may go on moving, or None."""
        if self._pending_hold is not None:  # it would hold what is accepted now
            return self._pending_hold.why
        return next((text for source, text in self._problems.items() if source in HOLD_AT_ONCE), None)

    def wrong_input(self) -> str | None:
        """Return what is wrong with an input, with which nothing new may be commanded, or None."""
        return next((text for source, text in self._problems.items() if source is not Input.CHUNK), None)

    def wants_prediction(self, now_ns: int) -> bool:
        """Return whether to request a chunk now, if the policy is free and an observation is there."""
        if self.mission is None or not self.enabled or self.latched() or self.obstacle() is not None:
            return False
        if self.dry_run or self._motion is None:
            return True
        if self.config.replan == "continuous":
            return now_ns - self._motion.stamp_ns >= round(self._motion.dt_s * NS_PER_S)
        remaining_s = (self._motion.end_ns - now_ns) / NS_PER_S
        return remaining_s < self.latency_s(95) + self.config.request_margin_s

    def requested(self, now_s: float) -> None:
        """Note that the policy began to compute."""
        self._requested_s = now_s

    def answered(self) -> None:
        """Note that the policy computes no more, whatever came of it."""
        self._requested_s = None

    def accepted(self, stamp_ns: int, end_ns: int, dt_s: float, latency_s: float, now_s: float) -> None:
        """Note that a chunk passed every check and is executed until end_ns (or would be, in a dry run)."""
        assert self.mission is not None, "a chunk of no mission must be dropped, not executed"
        self._predicted(latency_s)
        self._malformed = 0
        self.report(Input.CHUNK, None)
        self._held = None
        self._input_ok_s = now_s
        if not self.dry_run:
            self._motion = _Execution(stamp_ns, end_ns, dt_s)

    def postponed(self, pause_ns: int) -> None:
        """Note that the motion under way paused with the node, and ends so much later."""
        if self._motion is None or pause_ns == 0:
            return
        self._motion.end_ns += pause_ns
        latest_ns = self._motion.stamp_ns + round(self.config.max_open_loop_s * NS_PER_S)
        if self._motion.end_ns > latest_ns:
            self._motion.held_ns = latest_ns - STOPPING_NS

    def rejected(self, why: str, *, malformed: bool, latency_s: float) -> None:
        """Note that a chunk was not executed. malformed: non-finite or misshapen, in a row a fault of the model."""
        self.counters.chunks_rejected += 1
        if why not in self._problems.values():  # what an input has is said already
            self.report(Input.CHUNK, f"{REJECTED}{why}")
        if not malformed:
            self._predicted(latency_s)
            self._malformed = 0
            return
        self._malformed += 1
        if self._malformed >= self.config.malformed_limit:
            self.fault(f"{self._malformed} unusable chunks in a row, the last one {why}")

    def tracking_error(self, what: str, now_s: float, *, latch: bool = False) -> None:
        """Hold, because the arm is not where it was told to be; `latch` a fault at once, or when it happens again."""
        self.counters.tracking_errors += 1
        self._tracking = self._tracking + 1 if now_s - self._tracking_s < TRACKING_MEMORY_S else 1
        self._tracking_s = now_s
        if latch or self._tracking >= self.config.tracking_limit:
            again = f" ({self._tracking} times in a row)" if self._tracking > 1 else ""
            self.fault(f"{what}{again}", HoldReason.TRACKING)
        else:
            self.interrupt(what, HoldReason.TRACKING)

    def interrupt(self, why: str, reason: HoldReason) -> None:
        """Hold if anything is being executed; the mission goes on with the next chunk."""
        if self._motion is not None:
            self._motion = None
            self._pending_hold = Hold(why, reason)

    def end_task(self, why: str) -> None:
        """End the mission and stay enabled: the next instruction, goal or ~/enable begins anew."""
        self.report(Input.CHUNK, None)
        self._end(Termination.STOPPED, why)

    def time_jumped(self, what: str) -> None:
        """Hold, because ROS time jumped: nothing known about times is true any more."""
        self.interrupt(what, HoldReason.TIME)
        for source in (Input.IMAGE, Input.CAMERA_INFO, Input.TF, Input.CHUNK):
            self.report(source, None)
        self._ok_at_s = self.elapsed_s
        self._clock.jumped()

    def decide(self, now_ns: int, now_s: float) -> None:
        """End the mission and the motion that are over; called every turn, before `take_step`."""
        self._now_s = now_s
        self.elapsed_s += self._clock.passed_s(now_ns, now_s)
        if self.mission is not None:
            blocked = self.wrong_input()
            if blocked is None:
                self._ok_at_s = self.elapsed_s
            silent_s = self.elapsed_s - self._ok_at_s
            if self.elapsed_s >= self.mission.deadline_s:
                self._end(Termination.DEADLINE, f"the deadline of {self.mission.deadline_s:g} s passed")
            elif silent_s >= self.config.input_lost_s:
                self._end(Termination.INPUT_LOST, f"no prediction for {silent_s:.1f} s: {blocked}")
        if self._motion is not None:
            if not any(source in self._problems for source in ENDS_OPEN_LOOP):
                self._input_ok_s = now_s
            if (urgent := self.obstacle()) is not None:
                self._hold_for_inputs(urgent)
            elif now_s - self._input_ok_s >= self.config.max_open_loop_s:
                # ROS time may stand still; the motion would never end by it.
                self._hold_for_inputs(self._problem_text())
            elif now_ns >= self._motion.held_ns:
                self.interrupt("the node paused, and would not end in time what was commanded", HoldReason.INPUT)
            elif now_ns >= self._motion.end_ns:
                if self._problems:
                    self._hold_for_inputs(self._problem_text())
                else:
                    self._motion = None
                    self.counters.starved += 1  # the policy is slower than its chunk is long; the arm is at rest

    def take_step(self) -> Step:
        """Return the node's orders, once; they are to be followed at once."""
        step = Step(self._pending_hold, tuple(self._pending_ends))
        self._pending_hold = None
        self._pending_ends.clear()
        if step.hold is not None:
            self._held = step.hold.why
            self.counters.holds += 1
        return step

    # What to report

    @property
    def moving(self) -> bool:
        """True while a chunk is executed."""
        return self._motion is not None

    def state(self) -> tuple[State, str]:
        """Return the state and its present reason, in words for a person."""
        if self._fault is not None:
            return State.FAULT, f"{self._fault} (call ~/reset_fault, then ~/enable)"
        if self._stop is not None:
            return State.STOPPED, f"{self._stop} (call ~/reset_fault, then ~/enable)"
        if not self.enabled:
            refused = [text for source, text in self._problems.items() if source in REFUSES_ENABLE]
            return State.DISABLED, "; then ".join([*refused, "call ~/enable with true to start"])
        problems = self._problem_text()
        if self.mission is None:
            if self._refused is not None:
                return State.WAITING, self._refused
            if self._held is not None:
                return State.HOLDING, f"{self._held}; waiting for a new instruction, goal or ~/enable"
            return State.WAITING, "no instruction: publish one on the instruction topic or send a RunPolicy goal"
        if self._motion is not None:
            return State.RUNNING, f"finishing the current chunk: {problems}" if problems else ""
        if self._held is not None:
            if set(self._problems) == {Input.CHUNK} and not self._held.startswith(REJECTED):  # which is not why
                return State.HOLDING, f"{problems} (held before: {self._held})"
            return State.HOLDING, problems or f"{self._held}; {self._idle_text()}"
        if problems:
            return State.WAITING, problems
        return State.RUNNING, "dry run: nothing is commanded" if self.dry_run else self._idle_text()

    @property
    def mission_chunks(self) -> int:
        """Chunks predicted for the current mission."""
        return self._chunks

    def latency_s(self, percentile: float) -> float:
        """Return a percentile of the time from the image's stamp to the chunk (ROS time, last `RECENT`); 0 before any.

        One or two that took over `HITCH` times the median are left out: among few they would be the answer.
        """
        if not self._latencies_s:
            return 0.0
        ordered = sorted(self._latencies_s)
        usual = [one for one in ordered if one <= HITCH * ordered[(len(ordered) - 1) // 2]]
        return float(np.percentile(usual if len(ordered) - len(usual) <= 2 else ordered, percentile))

    def _problem_text(self) -> str:
        return "; ".join(self._problems.values())

    def _idle_text(self) -> str:
        """Return why nothing is being executed although nothing is wrong."""
        if self._requested_s is not None:
            passed_s = self._now_s - self._requested_s
            return f"nothing to execute yet: {self.config.policy} has been computing for {passed_s:.1f} s"
        if self.coming_to_rest:
            return "nothing to execute yet: the arm is coming to rest"
        return "nothing to execute yet: no prediction was started"

    def _predicted(self, latency_s: float) -> None:
        self._latencies_s.append(latency_s)
        self._chunks += 1
        self._ok_at_s = self.elapsed_s

    def _begin_from_topic(self) -> None:
        if self.enabled and self.mission is None and self._topic_instruction and not self._topic_begun:
            self._topic_begun = True
            self._begin(Mission(self._topic_instruction, None, self.config.task_deadline_s))

    def _begin(self, mission: Mission) -> None:
        self.mission = mission
        self.elapsed_s = self._ok_at_s = 0.0
        self._chunks = 0
        self._held = None
        self._tracking = 0

    def _hold_for_inputs(self, why: str) -> None:
        wrong = set(self._problems) - {Input.CHUNK}
        self.settling.held(wrong, self._now_s)
        self.interrupt(why, HoldReason.MEASUREMENT if MEASURES_THE_ARM & wrong else HoldReason.INPUT)

    def _end(
        self, termination: Termination, message: str, reason: HoldReason = HoldReason.ORDER, *, hold: bool = True
    ) -> None:
        if self.mission is None:
            return
        self._pending_ends.append(MissionEnd(self.mission, termination, message, self.elapsed_s, self._chunks))
        self.mission = None
        if hold and self._motion is not None:
            self.interrupt(message, reason)
        elif hold:
            self._held = message

    def _halt(self, termination: Termination, why: str, reason: HoldReason = HoldReason.ORDER) -> None:
        self._end(termination, why, reason)
        self.interrupt(why, reason)
