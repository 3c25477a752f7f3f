"""The state machine with a clock that only the test moves."""

import pytest

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.conditions import Input
from sqap_vla_ros.control.executive import Executive, State
from sqap_vla_ros.control.executive_config import ExecutiveConfig
from sqap_vla_ros.control.mission import Termination

DT_S = 0.1


class Rig:
    """An executive, its two clocks, and what it told the node to do."""

    def __init__(self, *, dry_run: bool = False, **config) -> None:
        self.executive = Executive(ExecutiveConfig(**config), dry_run=dry_run)
        self.s = 100.0
        self.ns = 5_000 * NS_PER_S
        self.holds: list[str] = []
        self.ends: list[tuple[Termination, str]] = []
        self.tick()  # the node makes turns all along

    def tick(self, seconds: float = 0.0, *, ros_seconds: float | None = None) -> None:
        self.s += seconds
        self.ns += round((seconds if ros_seconds is None else ros_seconds) * NS_PER_S)
        self.executive.decide(self.ns, self.s)
        step = self.executive.take_step()
        if step.hold is not None:
            self.holds.append(step.hold.why)
        self.ends += [(end.termination, end.message) for end in step.ended]

    def accept(self, length_s: float = 1.6, latency_s: float = 0.05) -> None:
        stamp_ns = self.ns - round(latency_s * NS_PER_S)
        self.executive.accepted(stamp_ns, stamp_ns + round(length_s * NS_PER_S), DT_S, latency_s, self.s)

    @property
    def state(self) -> State:
        return self.executive.state()[0]

    @property
    def reason(self) -> str:
        return self.executive.state()[1]


@pytest.fixture
def rig() -> Rig:
    """Enabled, with an instruction, and moving."""
    rig = Rig()
    rig.executive.set_instruction("pick the cube")
    assert rig.executive.enable() is None
    rig.tick()
    rig.accept()
    rig.tick(0.1)
    assert rig.state is State.RUNNING
    assert rig.executive.moving
    return rig


def test_disabled_at_the_start_and_then_nothing_is_predicted():
    rig = Rig()
    rig.executive.set_instruction("pick the cube")
    rig.tick(1.0)
    assert rig.state is State.DISABLED
    assert "~/enable" in rig.reason
    assert not rig.executive.wants_prediction(rig.ns)
    assert rig.holds == []


def test_dry_run_is_the_default():
    assert Executive().dry_run


def test_enabled_without_an_instruction_it_waits_and_says_so():
    rig = Rig()
    rig.executive.enable()
    rig.tick(1.0)
    assert rig.state is State.WAITING
    assert "no instruction" in rig.reason
    assert not rig.executive.wants_prediction(rig.ns)
    rig.executive.set_instruction("open the drawer")
    assert rig.executive.wants_prediction(rig.ns)
    assert rig.state is State.RUNNING


def test_a_dry_run_predicts_and_never_moves():
    rig = Rig(dry_run=True)
    rig.executive.set_instruction("pick the cube")
    rig.executive.enable()
    assert rig.executive.wants_prediction(rig.ns)
    rig.accept()
    rig.tick(0.1)
    assert rig.state is State.RUNNING
    assert not rig.executive.moving
    rig.executive.stop("test")
    rig.tick()
    assert rig.holds == []


@pytest.mark.parametrize("source", [Input.IMAGE, Input.TF, Input.CAMERA_INFO])
def test_a_missing_input_lets_the_chunk_finish_and_then_holds_once(rig, source):
    rig.executive.report(source, "gone")
    rig.tick(0.5)
    assert rig.state is State.RUNNING
    assert rig.reason == "finishing the current chunk: gone"
    assert rig.holds == []
    rig.tick(1.5)
    assert rig.holds == ["gone"]
    assert rig.state is State.HOLDING
    rig.tick(1.0)
    assert rig.holds == ["gone"]


@pytest.mark.parametrize("source", [Input.WORKER, Input.JOINT_STATES])
def test_a_lost_worker_or_lost_joints_hold_at_once(rig, source):
    rig.executive.report(source, "gone")
    rig.tick()
    assert rig.holds == ["gone"]
    assert not rig.executive.moving
    assert rig.state is State.HOLDING


def test_after_a_hold_the_next_chunk_moves_again(rig):
    rig.executive.report(Input.WORKER, "gone")
    rig.tick()
    rig.executive.report(Input.WORKER, None)
    assert rig.executive.wants_prediction(rig.ns)
    rig.accept()
    assert rig.state is State.RUNNING
    assert rig.executive.moving


def test_open_loop_ends_by_the_steady_clock_when_ros_time_stands_still():
    rig = Rig(max_open_loop_s=2.0)
    rig.executive.set_instruction("pick the cube")
    rig.executive.enable()
    rig.accept()
    rig.tick(0.1, ros_seconds=0.0)
    rig.executive.report(Input.IMAGE, "no new image")
    rig.tick(1.0, ros_seconds=0.0)
    assert rig.executive.moving
    rig.tick(1.0, ros_seconds=0.0)
    assert rig.holds == ["no new image"]
    assert not rig.executive.moving


def test_running_out_of_a_chunk_without_a_problem_is_no_hold(rig):
    rig.tick(2.0)
    assert rig.holds == []
    assert rig.executive.counters.starved == 1
    assert rig.state is State.RUNNING


def test_continuous_replanning_wants_a_chunk_for_every_action(rig):
    assert rig.executive.wants_prediction(rig.ns)
    rig.accept(latency_s=0.05)
    rig.tick(0.04)
    assert not rig.executive.wants_prediction(rig.ns)
    rig.tick(0.02)  # an action is 0.1 s
    assert rig.executive.wants_prediction(rig.ns)


def test_horizon_replanning_waits_until_little_motion_remains():
    rig = Rig(replan="horizon", request_margin_s=0.1)
    rig.executive.set_instruction("pick the cube")
    rig.executive.enable()
    assert rig.executive.wants_prediction(rig.ns)
    rig.accept(length_s=1.6, latency_s=0.3)  # 1.3 s remain; to request at 0.3 + 0.1 s before the end
    rig.tick(0.85)
    assert not rig.executive.wants_prediction(rig.ns)
    rig.tick(0.1)
    assert rig.executive.wants_prediction(rig.ns)


@pytest.mark.parametrize("usual", [1, 2, 5, 30])
@pytest.mark.parametrize("later", [0, 1])
def test_one_hitch_or_two_among_few_predictions_say_nothing_about_the_next(usual, later):
    rig = Rig(replan="horizon")
    rig.executive.set_instruction("pick the cube")
    rig.executive.enable()
    assert rig.executive.latency_s(95) == 0.0
    for latency_s in [5.0] + [0.3] * (usual + later) + [4.0] * later:  # the first one had kernels to build
        rig.accept(latency_s=latency_s)
    assert rig.executive.latency_s(95) == pytest.approx(0.3)


def test_latencies_that_only_scatter_all_count():
    rig = Rig(replan="horizon")
    rig.executive.set_instruction("pick the cube")
    rig.executive.enable()
    for latency_s in (0.2, 0.5):
        rig.accept(latency_s=latency_s)
    assert rig.executive.latency_s(95) > 0.48


def test_horizon_replanning_uses_the_p95_latency():
    rig = Rig(replan="horizon", request_margin_s=0.1)
    rig.executive.set_instruction("pick the cube")
    rig.executive.enable()
    for latency_s in [0.05] * 17 + [0.5] * 3:
        rig.accept(latency_s=latency_s)
    rig.accept(length_s=1.65, latency_s=0.05)
    assert rig.executive.latency_s(50) == pytest.approx(0.05)
    assert rig.executive.latency_s(95) == pytest.approx(0.5)
    rig.tick(0.95)
    assert not rig.executive.wants_prediction(rig.ns)
    rig.tick(0.1)
    assert rig.executive.wants_prediction(rig.ns)


@pytest.mark.parametrize(("before", "after"), [(0.1, 0.8), (0.8, 0.1), (0.4, 0.6)])
def test_the_expected_latency_follows_a_policy_that_becomes_slower_or_faster(before, after):
    rig = Rig(replan="horizon")
    rig.executive.set_instruction("pick the cube")
    rig.executive.enable()
    for _ in range(200):
        rig.accept(latency_s=before)
    needed = 0
    while rig.executive.latency_s(95) != pytest.approx(after):
        rig.accept(latency_s=after)
        needed += 1
    assert needed <= (3 if after > before else 20), "slower is found out by being late, faster costs only new images"


def test_unusable_chunks_in_a_row_latch_a_fault(rig):
    for count in range(3):
        assert rig.state is not State.FAULT, count
        rig.executive.rejected("not finite", malformed=True, latency_s=0.05)
    assert rig.state is State.FAULT
    assert "3 unusable chunks in a row, the last one not finite" in rig.reason
    rig.tick()
    assert len(rig.holds) == 1
    assert rig.ends == [(Termination.FAULT, "3 unusable chunks in a row, the last one not finite")]
    assert not rig.executive.wants_prediction(rig.ns)
    assert rig.executive.counters.chunks_rejected == 3


def test_a_good_chunk_in_between_starts_the_count_again(rig):
    for _ in range(4):
        for _ in range(2):
            rig.executive.rejected("not finite", malformed=True, latency_s=0.05)
        rig.accept()
    assert rig.state is State.RUNNING


def test_an_unsafe_chunk_is_not_executed_and_does_not_latch(rig):
    for _ in range(20):
        rig.executive.rejected("outside the workspace", malformed=False, latency_s=0.05)
    assert rig.state is State.RUNNING
    assert "outside the workspace" in rig.reason
    rig.tick(2.0)
    assert rig.holds == ["chunk rejected: outside the workspace"]
    assert rig.state is State.HOLDING
    assert rig.executive.wants_prediction(rig.ns)


def test_only_an_explicit_reset_clears_a_fault_and_it_stays_disabled(rig):
    rig.executive.fault("broken")
    assert "broken" in rig.executive.enable()
    assert "~/reset_fault" in rig.executive.goal_refusal("pick")
    rig.executive.set_instruction("another")
    rig.tick(1.0)
    assert rig.state is State.FAULT
    rig.executive.reset_fault()
    assert rig.state is State.DISABLED
    assert rig.executive.enable() is None


def test_the_first_fault_is_kept(rig):
    rig.executive.fault("the cause")
    rig.executive.fault("a consequence")
    assert "the cause" in rig.reason


def test_stop_latches_and_holds_once(rig):
    rig.executive.stop("stopped through ~/stop")
    rig.tick()
    rig.executive.stop("safety_stop")
    rig.tick()
    assert rig.holds == ["stopped through ~/stop"]
    assert rig.ends == [(Termination.STOPPED, "stopped through ~/stop")]
    assert rig.state is State.STOPPED
    assert rig.executive.enable() is not None


def test_disable_holds(rig):
    rig.executive.disable()
    rig.tick()
    assert len(rig.holds) == 1
    assert rig.state is State.DISABLED


def test_tracking_errors_hold_and_then_latch(rig):
    for count in (1, 2):
        rig.executive.tracking_error("20 cm off", rig.s)
        rig.tick()
        assert rig.holds == ["20 cm off"] * count
        assert rig.state is State.HOLDING
        rig.accept()
        rig.tick(1.0)
    rig.executive.tracking_error("20 cm off", rig.s)
    rig.tick()
    assert rig.state is State.FAULT
    assert len(rig.holds) == 3


def test_a_chunk_that_is_rejected_after_a_hold_does_not_hide_why_it_was_held(rig):
    rig.executive.tracking_error("20 cm off", rig.s)
    rig.tick()
    rig.executive.rejected("it starts elsewhere", malformed=False, latency_s=0.1)
    assert rig.reason == "chunk rejected: it starts elsewhere (held before: 20 cm off)"


def test_tracking_errors_far_apart_do_not_add_up():
    rig = Rig(task_deadline_s=1000.0)
    rig.executive.set_instruction("pick the cube")
    rig.executive.enable()
    rig.accept()
    for _ in range(6):
        rig.executive.tracking_error("20 cm off", rig.s)
        rig.tick()
        rig.accept()
        rig.tick(11.0)
        rig.accept()
    assert rig.executive.counters.tracking_errors == 6
    assert rig.state is not State.FAULT


def test_a_task_ends_at_the_default_deadline():
    rig = Rig(task_deadline_s=2.0)
    rig.executive.set_instruction("pick the cube")
    rig.executive.enable()
    for _ in range(19):
        rig.accept()
        rig.tick(0.1)
    assert rig.ends == []
    rig.tick(0.11)
    assert rig.ends == [(Termination.DEADLINE, "the deadline of 2 s passed")]
    assert rig.holds == ["the deadline of 2 s passed"]
    assert rig.state is State.HOLDING
    assert not rig.executive.wants_prediction(rig.ns)
    rig.executive.enable()  # asked again, it goes on
    assert rig.executive.wants_prediction(rig.ns)


def test_a_goal_overrides_the_topic_and_its_deadline_counts(rig):
    rig.executive.start_goal("goal", "open the drawer", 0.5)
    rig.tick()
    assert rig.executive.mission.instruction == "open the drawer"
    assert rig.ends == [(Termination.CANCELED, "an action goal took over")]
    rig.executive.set_instruction("something else")
    assert rig.executive.mission.instruction == "open the drawer"
    rig.accept()
    rig.tick(0.6)
    assert rig.ends[-1] == (Termination.DEADLINE, "the deadline of 0.5 s passed")
    assert rig.executive.mission is None  # the topic's instruction does not start by itself after a goal
    assert rig.state is State.HOLDING


def test_two_goals_the_second_is_refused(rig):
    rig.executive.start_goal("goal", "open the drawer", 0.0)
    assert "already running 'open the drawer'" in rig.executive.goal_refusal("close the drawer")


def test_a_goal_needs_an_instruction_and_an_enabled_node():
    rig = Rig()
    assert "~/enable" in rig.executive.goal_refusal("pick")
    rig.executive.enable()
    assert "empty" in rig.executive.goal_refusal("  ")
    assert rig.executive.goal_refusal("pick") is None


def test_cancel_holds(rig):
    rig.executive.start_goal("goal", "open the drawer", 0.0)
    rig.tick()
    rig.accept()
    rig.executive.cancel_goal("goal")
    rig.tick()
    assert rig.ends[-1] == (Termination.CANCELED, "canceled")
    assert rig.holds == ["canceled"]


def test_a_new_instruction_takes_over_without_a_stop_and_an_empty_one_holds(rig):
    rig.executive.set_instruction("open the drawer")
    rig.tick()
    assert rig.executive.mission.instruction == "open the drawer"
    assert rig.holds == []
    rig.executive.set_instruction("")
    rig.tick()
    assert rig.executive.mission is None
    assert len(rig.holds) == 1


def test_a_task_ends_when_its_inputs_stay_away(rig):
    rig.executive.report(Input.TF, "no transform")
    rig.tick(9.0)
    assert rig.ends == []
    rig.tick(1.5)
    assert rig.ends[0][0] is Termination.INPUT_LOST
    assert "no transform" in rig.ends[0][1]


def test_an_input_that_comes_back_in_time_keeps_the_task(rig):
    for _ in range(5):
        rig.executive.report(Input.TF, "no transform")
        rig.tick(6.0)
        rig.executive.report(Input.TF, None)
        rig.tick(0.1)
    assert rig.executive.mission is not None


def test_a_time_jump_holds_and_forgets_what_was_late(rig):
    rig.executive.report(Input.IMAGE, "stale")
    rig.executive.time_jumped("ROS time went backwards")
    rig.tick(0.0, ros_seconds=-3000.0)
    assert rig.holds == ["ROS time went backwards"]
    assert rig.executive.problems().get(Input.IMAGE) is None
    assert rig.executive.wants_prediction(rig.ns)


@pytest.mark.parametrize("source", [Input.WORKER, Input.JOINT_STATES])
def test_what_holds_at_once_also_keeps_the_next_chunk_from_moving(rig, source):
    rig.executive.report(source, "gone")
    assert rig.executive.obstacle() == "gone"
    assert not rig.executive.wants_prediction(rig.ns)
    rig.executive.report(source, None)
    assert rig.executive.obstacle() is None
    assert rig.executive.wants_prediction(rig.ns)


@pytest.mark.parametrize(
    ("name", "value"),
    [("replan", "sometimes"), ("task_deadline_s", 0.0), ("malformed_limit", 0), ("request_margin_s", -1)],
)
def test_bad_configuration_names_itself(name, value):
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        ExecutiveConfig(**{name: value})
