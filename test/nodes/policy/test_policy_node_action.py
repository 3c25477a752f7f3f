"""The RunPolicy action: one task at a time, always with an end, and the end is always told."""

import os
import signal

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from policy_node_rig import TIMEOUT_S, Rig, assert_silent
from rclpy.action import ActionClient
from sqap_vla_ros.action import RunPolicy

from sqap_vla_ros.nodes import messages

DISABLED, WAITING, RUNNING, HOLDING, STOPPED, FAULT = range(6)
CANCELED, DEADLINE, STOPPED_BY, FAULTED, INPUT_LOST = range(5)


@pytest.fixture(scope="module")
def process():
    with Rig(task_deadline_s=2.0, input_lost_s=1.5) as rig:
        rig.client = ActionClient(rig.node, RunPolicy, "policy_node/run_policy")
        rig.wait_for_state(DISABLED)
        yield rig
        rig.client.destroy()


@pytest.fixture
def rig(process: Rig) -> Rig:
    process.home()
    assert process.enable().success
    return process


def send(rig: Rig, instruction: str, seconds: float = 0.0, feedback: list | None = None):
    goal = RunPolicy.Goal(instruction=instruction, max_duration=messages.duration_message(round(seconds * 1e9)))
    assert rig.client.wait_for_server(TIMEOUT_S)
    future = rig.client.send_goal_async(
        goal, feedback_callback=None if feedback is None else lambda m: feedback.append(m.feedback)
    )
    rig.wait(future.done, "the goal's answer")
    return future.result()


def result(rig: Rig, goal):
    future = goal.get_result_async()
    rig.wait(future.done, "the goal's result")
    return future.result().status, future.result().result


def test_a_goal_runs_with_feedback_until_its_deadline_and_holds(rig):
    feedback: list = []
    goal = send(rig, "pick the cube", 1.3, feedback)
    assert goal.accepted
    rig.wait_for_state(RUNNING)
    assert rig.status.instruction == "pick the cube"
    status, outcome = result(rig, goal)
    assert status == GoalStatus.STATUS_SUCCEEDED
    assert outcome.termination_reason == DEADLINE
    assert "deadline of 1.3 s" in outcome.message
    assert messages.time_ns(outcome.elapsed) == pytest.approx(1.3e9, abs=0.3e9)
    assert outcome.chunks > 3
    assert feedback
    assert feedback[-1].chunks > 0
    rig.wait_for_state(HOLDING, "deadline")
    last = messages.pose_from_message(rig.got("target_pose")[-1].pose)
    np.testing.assert_allclose(last, rig.tool, atol=2e-3)


def test_without_a_duration_the_default_deadline_counts(rig):
    _, outcome = result(rig, send(rig, "pick the cube"))
    assert outcome.termination_reason == DEADLINE
    assert "deadline of 2 s" in outcome.message


def test_a_second_goal_is_rejected_and_the_first_goes_on(rig):
    first = send(rig, "pick the cube", 5.0)
    assert first.accepted
    assert not send(rig, "open the drawer", 5.0).accepted
    rig.wait(lambda: "goal rejected: already running 'pick the cube'" in rig.log)
    rig.wait_for_state(RUNNING)
    assert rig.status.instruction == "pick the cube"
    rig.wait(first.cancel_goal_async().done)
    result(rig, first)


def test_cancel_holds_and_is_told(rig):
    goal = send(rig, "pick the cube", 10.0)
    rig.wait(lambda: rig.got("target_pose"), "a command")
    future = goal.cancel_goal_async()
    rig.wait(future.done)
    status, outcome = result(rig, goal)
    assert status == GoalStatus.STATUS_CANCELED
    assert outcome.termination_reason == CANCELED
    rig.wait_for_state(HOLDING, "canceled")


def test_a_goal_sent_as_soon_as_the_one_before_is_cancelled_leaves_both_their_results(rig):
    """Without results kept by goal, the end of the first was given to the second, and the first waited for ever."""
    for round_ in range(6):
        first = send(rig, f"first {round_}", 20.0)
        first_result = first.get_result_async()
        rig.wait(lambda round_=round_: rig.status.instruction == f"first {round_}")
        sent: list = []
        goal = RunPolicy.Goal(instruction="second", max_duration=messages.duration_message(20 * 10**9))
        cancel = first.cancel_goal_async()
        cancel.add_done_callback(lambda _, goal=goal, sent=sent: sent.append(rig.client.send_goal_async(goal)))
        rig.wait(lambda sent=sent: sent and sent[0].done(), "the second goal's answer")
        second = sent[0].result()
        assert second.accepted
        rig.wait(first_result.done, "the first goal's result")
        assert first_result.result().status == GoalStatus.STATUS_CANCELED
        rig.wait(lambda: rig.status.instruction == "second", "the second goal")
        second_result = second.get_result_async()
        rig.wait(second.cancel_goal_async().done)
        rig.wait(second_result.done, "the second goal's result")
        assert second_result.result().status == GoalStatus.STATUS_CANCELED
        rig.wait_for_state(HOLDING, "canceled")


def test_a_goal_overrides_the_instruction_topic_which_does_not_resume_by_itself(rig):
    rig.instruct("from the topic")
    rig.wait(lambda: rig.got("action_chunk"))
    goal = send(rig, "from the goal", 1.5)
    rig.wait(lambda: rig.got("action_chunk")[-1].instruction == "from the goal")
    result(rig, goal)
    rig.wait_for_state(HOLDING)
    assert_silent(rig, "action_chunk")


@pytest.mark.parametrize(
    ("instruction", "seconds", "enabled", "text"),
    [
        ("", 1.0, True, "instruction is empty"),
        ("\u200b", 1.0, True, "instruction has no visible character"),
        ("pick", -1.0, True, "max_duration must not be negative"),
        ("pick", 1.0, False, "call ~/enable"),
    ],
)
def test_goals_that_cannot_run_are_rejected(rig, instruction, seconds, enabled, text):
    begin = len(rig.log)
    rig.enable(enabled)
    assert not send(rig, instruction, seconds).accepted
    rig.wait(lambda: text in rig.log[begin:], text)


def test_stop_ends_a_goal(rig):
    goal = send(rig, "pick the cube", 10.0)
    rig.wait(lambda: rig.got("target_pose"), "a command")
    rig.trigger("stop")
    status, outcome = result(rig, goal)
    assert status == GoalStatus.STATUS_ABORTED
    assert outcome.termination_reason == STOPPED_BY
    assert "~/stop" in outcome.message


def test_a_fault_ends_a_goal(rig):
    status, outcome = result(rig, send(rig, "not finite", 10.0))
    assert status == GoalStatus.STATUS_ABORTED
    assert outcome.termination_reason == FAULTED
    assert "not finite" in outcome.message


def test_inputs_that_stay_away_end_a_goal(rig):
    goal = send(rig, "pick the cube", 15.0)
    rig.images = False
    _, outcome = result(rig, goal)
    assert outcome.termination_reason == INPUT_LOST
    assert "no new image" in outcome.message


def test_a_worker_killed_in_the_middle_of_a_goal_is_restarted_and_the_goal_ends_as_it_should(rig):
    goal = send(rig, "pick the cube", 4.0)
    rig.wait(lambda: rig.got("target_pose"), "a command")
    os.kill(int(rig.diagnostics("policy worker")["pid"]), signal.SIGKILL)
    rig.wait_for_state(HOLDING, "SIGKILL")
    _, outcome = result(rig, goal)
    # On a busy computer the restart may outlast input_lost_s; the client is told either way.
    assert outcome.termination_reason in (DEADLINE, INPUT_LOST)
    rig.wait(lambda: "starting the policy worker again" in rig.log)
    rig.wait(lambda: rig.log.count("policy ready") >= 2, "the policy to be loaded again")


def test_the_default_deadline_also_ends_a_task_from_the_topic(rig):
    rig.instruct("pick the cube")
    rig.wait_for_state(RUNNING)
    rig.wait_for_state(HOLDING, "the deadline of 2 s passed")
