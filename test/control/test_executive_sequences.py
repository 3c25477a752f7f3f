"""Random sequences of orders, chunks and faults: every goal ends exactly once, and no stop is lost."""

import random

import pytest

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.conditions import Input
from sqap_vla_ros.control.executive import Executive, State
from sqap_vla_ros.control.executive_config import ExecutiveConfig
from sqap_vla_ros.control.mission import MAX_INSTRUCTION_CHARS, Termination

STEPS = 400


class Play:
    """An executive, a clock, and the books that a node would keep."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.executive = Executive(ExecutiveConfig(task_deadline_s=3.0, input_lost_s=1.0), dry_run=False)
        self.s, self.ns = 10.0, 1_000 * NS_PER_S
        self.goals = 0
        self.open: set[int] = set()  # accepted, without a result
        self.ended: list[int] = []
        self.turn()

    def turn(self) -> None:
        self.executive.decide(self.ns, self.s)
        was_moving = self.executive.moving
        step = self.executive.take_step()
        for end in step.ended:
            if end.mission.goal is not None:
                assert end.mission.goal in self.open, f"goal {end.mission.goal} ended a second time"
                self.open.remove(end.mission.goal)
                self.ended.append(end.mission.goal)
        if step.hold is not None:
            assert not was_moving

    def act(self) -> None:
        executive = self.executive
        action = self.random.choice(
            [
                "time",
                "time",
                "goal",
                "goal",
                "cancel",
                "cancel any",
                "instruct",
                "clear",
                "long",
                "enable",
                "disable",
                "stop",
                "reset",
                "fault",
                "accept",
                "accept",
                "reject",
                "malformed",
                "tracking",
                "jump",
                "problem",
                "ok",
            ]
        )
        match action:
            case "time":
                step_s = self.random.choice([0.02, 0.5, 2.0])
                self.s += step_s
                self.ns += round(step_s * NS_PER_S)
            case "goal":
                if executive.goal_refusal("pick") is None:
                    self.goals += 1
                    self.open.add(self.goals)
                    executive.start_goal(self.goals, "pick", self.random.choice([0.0, 0.1, 5.0]))
            case "cancel":
                if self.open:
                    executive.cancel_goal(max(self.open))
            case "cancel any":
                executive.cancel_goal(self.random.randint(0, self.goals + 1))
            case "instruct":
                executive.set_instruction(self.random.choice(["open the drawer", "pick the cube"]))
            case "clear":
                executive.set_instruction("")
            case "long":
                executive.set_instruction("x" * (MAX_INSTRUCTION_CHARS + 1))
            case "enable":
                refusal = executive.enable()
                assert (refusal is None) == (executive.latched() is None)
            case "disable":
                executive.disable()
            case "stop":
                executive.stop("stop")
                assert executive.latched()
            case "reset":
                executive.reset_fault()
            case "fault":
                executive.fault("fault")
            case "accept":
                if executive.mission is not None:
                    executive.accepted(self.ns, self.ns + NS_PER_S, 0.1, 0.05, self.s)
            case "reject" | "malformed":
                if executive.mission is not None:
                    executive.rejected("no", malformed=action == "malformed", latency_s=0.1)
            case "tracking":
                executive.tracking_error("off", self.s)
            case "jump":
                self.ns += self.random.choice([-5, 5]) * NS_PER_S
                executive.time_jumped("jumped")
            case "problem":
                executive.report(self.random.choice(list(Input)), "gone")
            case "ok":
                for source in Input:
                    executive.report(source, None)


@pytest.mark.parametrize("seed", range(50))
def test_every_goal_ends_exactly_once_and_nothing_moves_while_stopped(seed):
    play = Play(seed)
    for _ in range(STEPS):
        play.act()
        if play.random.random() < 0.7:  # several orders may come between two turns
            play.turn()
        executive = play.executive
        state, reason = executive.state()
        if executive.latched() or not executive.enabled:
            assert not executive.moving
            assert executive.mission is None
            assert not executive.wants_prediction(play.ns)
            assert state in (State.STOPPED, State.FAULT, State.DISABLED)
        if not executive.moving:
            assert reason, f"{state.name} without a reason"
        running = executive.mission.goal if executive.mission is not None else None
        play.turn()
        # Whatever has no result is the mission of now.
        assert play.open <= {running} or play.open == {executive.mission and executive.mission.goal}
    play.executive.disable()
    play.turn()
    assert play.open == set()
    assert sorted(play.ended) == list(range(1, play.goals + 1))


def test_a_repeated_instruction_renews_no_deadline():
    executive = Executive(ExecutiveConfig(task_deadline_s=2.0), dry_run=False)
    executive.enable()
    ends = []
    for step in range(100):
        executive.set_instruction("pick the cube")  # at 10 Hz, as a node that repeats what it wants would
        executive.decide(step * NS_PER_S // 10, 0.1 * step)
        ends += executive.take_step().ended
    assert [end.termination for end in ends] == [Termination.DEADLINE]
    executive.set_instruction("open the drawer")  # another one is a new mission
    assert executive.mission is not None


def test_an_instruction_that_is_too_long_ends_the_one_before_and_is_named():
    executive = Executive(ExecutiveConfig(), dry_run=False)
    executive.enable()
    executive.set_instruction("pick the cube")
    executive.set_instruction("x" * 1_000_000)
    assert executive.mission is None
    assert executive.state() == (
        State.WAITING,
        f"the instruction has 1000000 characters, the limit is {MAX_INSTRUCTION_CHARS}",
    )
    assert "limit" in executive.goal_refusal("x" * 1_000_000)


def test_an_instruction_without_words_ends_the_one_before_and_is_named():
    executive = Executive(ExecutiveConfig(), dry_run=False)
    executive.enable()
    executive.set_instruction("pick the cube")
    executive.set_instruction("\0")
    assert executive.mission is None
    state, reason = executive.state()
    assert state is State.WAITING
    assert "the instruction has no visible character ('\\x00')" in reason
    assert "no visible character" in executive.goal_refusal("\u200b ")
    executive.set_instruction("  ")  # a blank one only ends the task
    assert "waiting for a new instruction" in executive.state()[1]


def test_deadlines_run_in_ros_time_where_it_is_simulated():
    executive = Executive(ExecutiveConfig(task_deadline_s=2.0, deadlines_in_ros_time=True), dry_run=False)
    executive.decide(0, 0.0)
    executive.enable()
    executive.set_instruction("pick the cube")
    executive.decide(NS_PER_S, 100.0)  # a paused simulation
    assert executive.mission is not None
    executive.time_jumped("the simulation was reset")
    executive.decide(-50 * NS_PER_S, 101.0)
    executive.decide(-49_500_000_000, 102.0)
    assert executive.mission is not None
    assert executive.elapsed_s == pytest.approx(1.5)
    executive.decide(-48_900_000_000, 103.0)
    assert executive.take_step().ended[0].termination is Termination.DEADLINE


def test_nothing_to_execute_is_a_reason():
    executive = Executive(ExecutiveConfig(), dry_run=False)
    executive.enable()
    executive.set_instruction("pick the cube")
    executive.decide(0, 10.0)
    assert executive.state() == (State.RUNNING, "nothing to execute yet: no prediction was started")
    executive.requested(10.0)
    executive.decide(0, 12.5)
    assert "the policy has been computing for 2.5 s" in executive.state()[1]
