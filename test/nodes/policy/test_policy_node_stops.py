"""policy_node as a process over DDS: chunks that fail, stops, transitions, a worker or process that ends."""

import os
import signal

import numpy as np
import pytest
from lifecycle_msgs.msg import Transition
from policy_node_rig import (
    DISABLED,
    FAULT,
    HOLDING,
    RUNNING,
    STOPPED,
    WAITING,
    assert_holding_at_the_measured_pose,
    assert_silent,
    pose_of,
)

# Chunks that fail


@pytest.mark.parametrize(
    ("behaviour", "text"),
    [
        ("not finite", "not finite"),
        ("misshapen", "[16, 6]"),
        ("raise", "always fails"),
        ("nothing", "returned NoneType"),
    ],
)
def test_unusable_chunks_publish_nothing_and_latch_a_fault(rig, behaviour, text):
    rig.instruct(behaviour)
    rig.enable()
    status = rig.wait_for_state(FAULT, "3 unusable chunks in a row")
    assert text in status.reason
    assert not rig.got("action_chunk")
    assert not rig.got("target_pose")
    assert status.chunks_rejected >= 3
    response = rig.enable()
    assert not response.success
    assert "~/reset_fault" in response.message
    assert rig.trigger("reset_fault").success
    rig.wait_for_state(DISABLED)


def test_a_fault_while_moving_holds(rig):
    rig.run()
    rig.instruct("not finite")
    rig.wait_for_state(FAULT)
    assert_holding_at_the_measured_pose(rig)


def test_a_chunk_that_leaves_the_workspace_is_not_executed(rig):
    rig.instruct("far")
    rig.enable()
    rig.wait_for_state(WAITING, "outside the workspace")
    assert rig.got("action_chunk")  # people may see what the policy wanted
    assert not rig.got("target_pose")


def test_a_tool_that_is_not_where_it_was_told_to_be_is_held_and_latches_in_the_end(rig):
    rig.run()
    rig.follow = False

    def faulty() -> bool:
        return rig.status.state == FAULT

    for push in range(12):  # three do, unless a busy computer holds the arm for another reason just then
        rig.wait(lambda: faulty() or (rig.status.state, rig.status.reason) == (RUNNING, ""), "a motion")
        count = len(rig.got("target_pose"))
        rig.wait(lambda count=count: faulty() or len(rig.got("target_pose")) > count + 3, "commands")
        if faulty():
            break
        seen = len(rig.got("status"))
        rig.tool[1, 3] += 0.15 * (-1) ** push
        rig.wait(lambda seen=seen: any(s.state != RUNNING for s in rig.got("status")[seen:]), "a hold")
    status = rig.wait_for_state(FAULT, "tracking error: the tool is 1")
    assert "3 times in a row" in status.reason
    rig.wait(lambda: int(rig.diagnostics("safety")["tracking errors"]) >= 3, "the diagnostics")
    # TF alone proves no blocked arm: the hold ends on the commanded path, not where one measurement has the tool.
    assert_silent(rig)
    last = pose_of(rig.got("target_pose")[-1])
    assert abs(last[1, 3] - rig.tool[1, 3]) == pytest.approx(0.15, abs=0.01)


# Stopping


def test_stop_latches_and_holds(rig):
    rig.run()
    assert rig.trigger("stop").success
    rig.wait_for_state(STOPPED, "~/stop")
    assert_holding_at_the_measured_pose(rig)
    assert not rig.enable().success
    rig.trigger("reset_fault")
    rig.wait_for_state(DISABLED)


def test_safety_stop_latches_until_it_is_released_and_reset(rig):
    rig.run()
    rig.safety_stop(True)
    rig.wait_for_state(STOPPED, "safety_stop")
    assert_holding_at_the_measured_pose(rig)
    assert not rig.trigger("reset_fault").success
    rig.safety_stop(False)
    rig.settle(0.2)
    assert rig.status.state == STOPPED  # a release alone clears nothing
    assert rig.trigger("reset_fault").success
    rig.wait_for_state(DISABLED)


def test_disable_holds(rig):
    rig.run()
    rig.enable(False)
    rig.wait_for_state(DISABLED)
    assert_holding_at_the_measured_pose(rig)


def test_nothing_starts_where_tf_alone_leads_the_arm_between_two_tasks_until_it_is_configured_again(rig):
    """The controller would step there, and TF alone may be wrong about it."""
    rig.run("late")
    rig.wait(lambda: int(rig.diagnostics("safety")["starved"]) > 0, "a motion that ended before the next chunk came")
    rig.enable(False)
    rig.wait_for_state(DISABLED)
    rig.wait_for_silence("target_pose")
    rig.settle(0.3)  # it stands
    rig.tool[0, 3] += 0.06  # by hand, less than what would count as a tracking error
    rig.settle(0.5)  # its transforms arrive
    rig.got("target_pose").clear()
    rig.instruct("pick the cube")
    rig.enable()
    rig.wait_for_state(WAITING, "and was moved there since: is the tool's transform right?")
    assert not rig.got("target_pose")
    rig.instruct("")
    rig.enable(False)
    rig.follow = False  # another controller has the arm
    led = rig.tool.copy()
    rig.start_anew()
    rig.follow = True
    rig.got("target_pose").clear()
    rig.run()
    assert np.linalg.norm(pose_of(rig.got("target_pose")[0])[:3, 3] - led[:3, 3]) < 5e-3


def test_deactivate_holds_as_the_last_command_and_activate_brings_it_back(rig):
    rig.run()
    assert rig.change(Transition.TRANSITION_DEACTIVATE)
    assert_holding_at_the_measured_pose(rig)
    response = rig.enable()
    assert not response.success
    assert "not active" in response.message
    assert rig.change(Transition.TRANSITION_ACTIVATE)
    rig.got("target_pose").clear()
    rig.run()


# The worker


def test_a_killed_worker_is_held_restarted_and_reported(rig):
    rig.run()
    rig.got("diagnostics").clear()
    pid = rig.diagnostics("policy worker")["pid"]
    seen = len(rig.got("status"))
    os.kill(int(pid), signal.SIGKILL)
    rig.images = False  # the next worker, which comes in a second, is to find nothing to predict from yet
    rig.wait(
        lambda: [s for s in rig.got("status")[seen:] if s.state == HOLDING and "ended by SIGKILL" in s.reason],
        "holding for the worker",
    )
    assert_holding_at_the_measured_pose(rig)
    rig.images = True
    rig.wait_for_state(RUNNING)
    count = len(rig.got("target_pose"))
    rig.wait(lambda: len(rig.got("target_pose")) > count + 5, "commands again")
    another = rig.wait(
        lambda: (d := rig.diagnostics("policy worker")) and d["pid"].isdigit() and d["pid"] != pid and d,
        "another worker",
    )
    assert int(another["restarts"]) >= 1


def test_sigterm_holds_as_the_last_command_and_leaves_nothing_behind(rig):
    rig.run()
    pid = int(rig.diagnostics("policy worker")["pid"])
    begin = len(rig.log)
    assert rig.stop_process(signal.SIGTERM) == 0
    assert_holding_at_the_measured_pose(rig)
    assert not os.path.exists(f"/proc/{pid}")
    assert "Traceback" not in rig.log[begin:], rig.log[begin:]
    begin = len(rig.log)
    rig.start_process()
    rig.wait(lambda: "active: call ~/enable" in rig.log[begin:])


def test_an_unexpected_error_holds_before_the_process_ends(rig):
    rig.run()
    rig.instruct("defect")
    assert rig.wait(lambda: rig.process.poll() is not None) is True
    assert rig.process.returncode == 1
    assert_holding_at_the_measured_pose(rig)
    assert "ending after an unexpected error" in rig.log
    begin = len(rig.log)
    rig.start_process()
    rig.wait(lambda: "active: call ~/enable" in rig.log[begin:])
