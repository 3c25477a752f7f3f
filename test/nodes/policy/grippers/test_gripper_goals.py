"""A gripper behind an action, in stepped time: what is sent, what is cancelled, and what is said about it."""

from types import SimpleNamespace

import pytest
from action_msgs.msg import GoalStatus

pytest.importorskip("control_msgs", reason="control_msgs is not installed: make setup")

from rclpy.task import Future
from sqap_vla_ros.msg import PolicyStatus

from sqap_vla_ros.nodes.policy.grippers import actions
from sqap_vla_ros.nodes.policy.grippers.gripper import GripperConfig, GripperParts
from sqap_vla_ros.robot.gripper.state import GripperState

CLOSED, OPEN = -0.1, 0.8
CONFIG = GripperConfig(CLOSED, OPEN, "rad", max_effort=5.0, joint="jaw", action="/hand/gripper_cmd")


class Handle:
    """A goal at the server, which the test lets be accepted and end."""

    def __init__(self, message, feedback):
        self.message, self._feedback = message, feedback
        self.answer, self.result = Future(), Future()
        self.accepted, self.cancelled = False, 0

    def decide(self, accepted=True):
        self.accepted = accepted
        self.answer.set_result(self)

    def get_result_async(self):
        return self.result

    def cancel_goal_async(self):
        self.cancelled += 1
        return Future()

    def feedback(self, **fields):
        self._feedback(SimpleNamespace(feedback=SimpleNamespace(**fields)))

    def end(self, status=GoalStatus.STATUS_SUCCEEDED, position=0.0, stalled=False, reached_goal=False):
        fields = SimpleNamespace(position=position, effort=0.0, stalled=stalled, reached_goal=reached_goal)
        self.result.set_result(SimpleNamespace(status=status, result=fields))


class Client:
    """An action's client; `ready` is whether its server is there."""

    def __init__(self, node, kind, name):
        self.ready, self.sent, self.destroyed = True, [], False
        node.client = self

    def server_is_ready(self):
        return self.ready

    def send_goal_async(self, message, feedback_callback):
        self.sent.append(Handle(message, feedback_callback))
        return self.sent[-1].answer

    def destroy(self):
        self.destroyed = True


class Cell:
    """A gripper of the kind under test, and its client's other end."""

    def __init__(self, kind, config=CONFIG):
        self.now_s = 100.0
        self.servers = [b"first"]
        self._node = SimpleNamespace(get_namespace=lambda: "/left", get_publishers_info_by_topic=self._publishers)
        joints = SimpleNamespace(gripper=None)
        self.gripper = kind(self._node, GripperParts(config, SimpleNamespace(), joints))
        self.client = self._node.client
        self.ticks = 0

    def _publishers(self, topic):
        assert topic.endswith("/gripper_cmd/_action/status")
        return [SimpleNamespace(endpoint_gid=list(gid)) for gid in self.servers]

    def want(self, opening, seconds=0.02):
        """Let the policy ask for an opening for this long, at 50 Hz."""
        for _ in range(max(1, round(seconds / 0.02))):
            self.gripper.update(opening)
            self.now_s += 0.02

    @property
    def sent(self):
        return self.client.sent

    @property
    def positions(self):
        return [handle.message.command.position for handle in self.sent]

    def says(self):
        report = self.gripper.report()
        return report.state, report.text


@pytest.fixture
def cell(monkeypatch):
    monkeypatch.setattr(actions, "ActionClient", Client)
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    made = Cell(actions.GripperCommandAction)
    monkeypatch.setattr("time.monotonic", lambda: made.now_s)
    return made


def test_a_decision_is_sent_once_and_its_end_is_said(cell):
    assert cell.says() == (GripperState.UNKNOWN, "nothing was commanded")
    cell.want(0.1, seconds=0.5)
    (close,) = cell.sent
    assert (close.message.command.position, close.message.command.max_effort) == (CLOSED, 5.0)
    close.decide()
    close.feedback(position=0.5, effort=1.0, stalled=False, reached_goal=False)
    assert cell.says() == (GripperState.MOVING, "closing at 0.5 rad")
    close.end(position=CLOSED, reached_goal=True)
    assert cell.says() == (GripperState.REACHED, "closed, nothing held at -0.1 rad")
    cell.want(0.0, seconds=1.0)
    assert len(cell.sent) == 1


def test_an_object_that_is_held_is_no_failure_although_the_goal_is_aborted(cell):
    cell.want(0.0)
    cell.sent[0].decide()
    cell.sent[0].end(GoalStatus.STATUS_ABORTED, position=0.3, stalled=True)
    assert cell.says() == (GripperState.HOLDING, "closed on an object at 0.3 rad")
    assert cell.gripper.report().problem is None
    cell.want(0.0, seconds=3.0)
    assert len(cell.sent) == 1
    assert not cell.sent[0].cancelled


def test_a_server_that_keeps_the_goal_while_it_holds_says_so_by_its_feedback(cell):
    cell.want(0.0)
    cell.sent[0].decide()
    cell.sent[0].feedback(position=0.3, effort=5.0, stalled=True, reached_goal=False)
    cell.now_s += 60.0
    assert cell.says()[0] is GripperState.HOLDING


def test_a_goal_that_is_contradicted_is_cancelled_before_the_next(cell):
    cell.want(0.0)
    close = cell.sent[0]
    close.decide()
    cell.want(1.0, seconds=0.1)
    assert (close.cancelled, len(cell.sent)) == (1, 1)
    assert cell.says()[0] is GripperState.MOVING
    close.end(GoalStatus.STATUS_CANCELED)
    cell.want(1.0, seconds=0.1)
    assert cell.positions == [CLOSED, OPEN]
    assert cell.gripper.report().problem is None


def test_a_goal_that_does_not_end_when_cancelled_is_replaced_after_a_while(cell):
    cell.want(0.0)
    cell.sent[0].decide()
    cell.want(1.0, seconds=actions.CANCEL_S - 0.1)
    assert len(cell.sent) == 1
    cell.want(1.0, seconds=0.2)
    assert cell.positions == [CLOSED, OPEN]
    cell.sent[1].decide()
    cell.sent[0].end(GoalStatus.STATUS_ABORTED)  # late: of no interest any more
    cell.sent[1].end(position=OPEN, reached_goal=True)
    assert cell.says()[0] is GripperState.REACHED


def test_nothing_is_cancelled_where_a_new_task_asks_for_what_is_under_way(cell):
    cell.want(0.0)
    cell.sent[0].decide()
    cell.gripper.reset()
    cell.want(0.0, seconds=1.0)
    assert len(cell.sent) == 1
    assert not cell.sent[0].cancelled


def test_a_new_task_says_it_again_once_the_goal_has_ended(cell):
    cell.want(0.0)
    cell.sent[0].decide()
    cell.sent[0].end(position=0.3, stalled=True)
    cell.gripper.reset()
    cell.want(0.0, seconds=1.0)
    assert cell.positions == [CLOSED, CLOSED]


def test_without_a_server_nothing_waits_and_the_goal_goes_out_when_it_comes(cell):
    cell.client.ready = False
    text = "no action server /hand/gripper_cmd: does the gripper's driver run?"
    assert cell.says() == (GripperState.UNKNOWN, "nothing was commanded")  # it may not be discovered yet
    cell.now_s += actions.DISCOVERY_S + 0.1
    assert cell.says() == (GripperState.FAILED, text)
    cell.want(0.0, seconds=1.0)
    assert not cell.sent
    assert cell.says() == (GripperState.FAILED, text)
    cell.client.ready = True
    cell.want(0.0)
    assert cell.positions == [CLOSED]


def test_what_was_not_sent_is_forgotten_with_the_task(cell):
    cell.client.ready = False
    cell.want(0.0, seconds=0.2)
    cell.gripper.reset()
    cell.client.ready = True
    cell.want(0.5, seconds=1.0)  # the next task has not decided yet
    assert not cell.sent


def test_a_goal_that_is_rejected_is_named_and_sent_again_after_a_pause(cell):
    cell.want(0.0)
    cell.sent[0].decide(accepted=False)
    assert cell.says() == (GripperState.FAILED, "did not close: action server /hand/gripper_cmd rejected the goal")
    cell.want(0.0, seconds=actions.RETRY_S - 0.1)
    assert len(cell.sent) == 1
    cell.want(0.0, seconds=0.2)
    assert cell.positions == [CLOSED, CLOSED]


def test_a_new_decision_does_not_wait_for_the_pause_after_a_rejection(cell):
    cell.want(0.0)
    cell.sent[0].decide(accepted=False)
    cell.want(1.0)
    assert cell.positions == [CLOSED, OPEN]


def test_a_server_that_does_not_answer_is_named_and_asked_again(cell):
    cell.want(0.0, seconds=actions.ANSWER_S + 0.1)
    assert "did not answer within 2 s" in cell.says()[1]
    cell.want(0.0, seconds=actions.RETRY_S + 0.1)
    assert len(cell.sent) == 2
    cell.sent[0].decide()  # too late
    cell.sent[1].decide()
    cell.sent[1].end(position=CLOSED, reached_goal=True)
    assert cell.says()[0] is GripperState.REACHED


def test_a_gripper_that_never_arrives_is_named_and_keeps_its_goal(cell):
    cell.want(0.0)
    cell.sent[0].decide()
    cell.sent[0].feedback(position=0.7, effort=0.0, stalled=False, reached_goal=False)
    cell.want(0.0, seconds=CONFIG.timeout_s + 1.0)
    state, text = cell.says()
    assert state is GripperState.LATE
    assert text == "closing to -0.1 rad for 6 s at 0.7 rad: neither there nor stalled"
    assert len(cell.sent) == 1
    assert not cell.sent[0].cancelled


def test_a_server_that_goes_away_is_named_and_told_again_when_it_is_back(cell):
    cell.want(0.0)
    cell.sent[0].decide()
    cell.client.ready = False
    cell.want(0.0, seconds=0.1)
    assert cell.says()[0] is GripperState.FAILED
    cell.client.ready = True
    cell.want(0.0, seconds=actions.RETRY_S)
    assert cell.positions == [CLOSED, CLOSED]


def test_a_server_that_was_started_again_is_told_again(cell):
    """DDS counts a driver that was killed as there for a while, and the new one knows nothing of the goal."""
    cell.want(0.0)
    cell.sent[0].decide()
    cell.want(0.0, seconds=1.0)
    cell.servers = [b"first", b"second"]
    cell.want(0.0, seconds=actions.LOOK_S + 0.1)
    assert cell.says() == (
        GripperState.FAILED,
        "did not close: action server /hand/gripper_cmd was started again",
    )
    cell.want(0.0, seconds=actions.RETRY_S)
    assert cell.positions == [CLOSED, CLOSED]
    cell.sent[1].decide()
    cell.want(0.0, seconds=3.0)
    cell.servers = [b"second"]  # the first one's lease ended
    cell.want(0.0, seconds=3.0)
    assert len(cell.sent) == 2


def test_a_server_that_goes_away_while_the_arm_stands_is_named_and_sent_nothing(cell):
    cell.want(0.0)
    cell.sent[0].decide()
    cell.client.ready = False
    assert cell.says() == (GripperState.FAILED, "no action server /hand/gripper_cmd: does the gripper's driver run?")
    cell.client.ready = True
    cell.now_s += 10.0
    assert cell.says() == (GripperState.FAILED, "did not close: action server /hand/gripper_cmd went away, and is back")
    assert len(cell.sent) == 1
    cell.want(0.0)  # it moves again
    assert cell.positions == [CLOSED, CLOSED]


def test_a_new_task_does_not_trust_a_goal_whose_time_is_over(cell):
    cell.want(0.0)
    cell.sent[0].decide()
    cell.want(0.0, seconds=CONFIG.timeout_s + 0.1)
    cell.gripper.reset()
    cell.want(0.0, seconds=1.0)
    assert cell.positions == [CLOSED, CLOSED]
    assert not cell.sent[0].cancelled


def test_a_position_in_another_unit_is_no_object(cell):
    cell.want(0.0)
    cell.sent[0].decide()
    cell.sent[0].end(position=17.0, stalled=True)
    assert cell.says() == (
        GripperState.STALLED,
        "stalled at 17 rad while closing to -0.1 rad; that is far from -0.1 to 0.8 rad: does its driver use another "
        "unit?",
    )


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (GoalStatus.STATUS_ABORTED, "did not close: its server aborted the goal"),
        (GoalStatus.STATUS_CANCELED, "did not close: the goal was cancelled"),
    ],
)
def test_an_end_without_arriving_is_named_and_not_repeated(cell, status, text):
    cell.want(0.0)
    cell.sent[0].decide()
    cell.sent[0].end(status)
    assert cell.says() == (GripperState.FAILED, text)
    cell.want(0.0, seconds=3.0)
    assert len(cell.sent) == 1


def test_a_position_that_is_not_finite_is_unknown(cell):
    cell.want(1.0)
    cell.sent[0].decide()
    cell.sent[0].end(position=float("nan"), reached_goal=True)
    report = cell.gripper.report()
    assert (report.state, report.position) == (GripperState.REACHED, None)


def test_answers_in_another_measure_are_brought_back_to_what_is_commanded(monkeypatch):
    # A Franka hand is sent the way of one finger, 0 to 0.04 m, and answers with the width between both.
    monkeypatch.setattr(actions, "ActionClient", Client)
    franka = Cell(actions.GripperCommandAction, GripperConfig(closed=0.0, opened=0.04, answer_scale=0.5))
    franka.want(1.0)
    assert franka.positions == [0.04]
    franka.sent[0].decide()
    franka.sent[0].feedback(position=0.06, effort=0.0, stalled=False, reached_goal=False)
    assert franka.says() == (GripperState.MOVING, "opening at 0.03 m")
    franka.sent[0].end(position=0.08, reached_goal=True)
    assert franka.says() == (GripperState.REACHED, "open at 0.04 m")


def test_an_opening_that_is_not_finite_is_refused_and_sends_nothing(cell):
    with pytest.raises(ValueError, match="opening must be finite"):
        cell.gripper.update(float("nan"))
    assert not cell.sent


def test_the_parallel_gripper_is_commanded_by_its_joint(monkeypatch):
    monkeypatch.setattr(actions, "ActionClient", Client)
    cell = Cell(actions.ParallelGripperCommandAction)
    cell.want(0.0)
    command = cell.sent[0].message.command
    assert (list(command.name), list(command.position), list(command.effort)) == (["jaw"], [CLOSED], [5.0])
    cell.sent[0].decide()
    state = SimpleNamespace(name=["other", "jaw"], position=[0.0, 0.25])
    cell.sent[0].feedback(state=state)
    assert cell.gripper.report().position == 0.25
    result = SimpleNamespace(state=SimpleNamespace(name=[], position=[0.3]), stalled=True, reached_goal=False)
    cell.sent[0].result.set_result(SimpleNamespace(status=GoalStatus.STATUS_ABORTED, result=result))
    report = cell.gripper.report()
    assert (report.state, report.position) == (GripperState.HOLDING, 0.3)
    cell.gripper.destroy()
    assert cell.client.destroyed


def test_the_status_message_names_every_state():
    named = {name: value for name, value in vars(type(PolicyStatus)).items() if name.startswith("GRIPPER_")}
    constants = {name: getattr(PolicyStatus, name) for name in named}
    assert constants == {f"GRIPPER_{state.name}": int(state) for state in GripperState}
