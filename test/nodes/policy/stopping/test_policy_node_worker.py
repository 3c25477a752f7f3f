"""A worker that stands still must not make the node deaf."""

import os
import signal
import time

from policy_node_rig import Rig
from sqap_vla_ros.msg import PolicyStatus

ANSWERED_S = 1.0  # many times what ~/stop takes, far below the prediction's time-out


def stop(rig: Rig) -> float:
    """Seconds until ~/stop answered."""
    begin = time.monotonic()
    assert rig.trigger("stop").success
    return time.monotonic() - begin


def test_stop_is_answered_while_the_worker_stands_still_and_instructions_pour_in(rig):
    rig.run()
    worker = int(rig.diagnostics("policy worker")["pid"])
    os.kill(worker, signal.SIGSTOP)
    try:
        for number in range(500):  # each ends a task and begins another, which the policy is to be told
            rig.instruct(f"{number} " + "x" * 900)
            time.sleep(0.002)  # the node's queue holds few
        assert stop(rig) < ANSWERED_S
        rig.wait_for_state(PolicyStatus.STOPPED)
    finally:
        os.kill(worker, signal.SIGCONT)


def test_an_instruction_of_a_megabyte_is_refused_by_its_size(rig):
    rig.instruct("x" * 1_000_000)
    rig.enable()
    rig.wait(lambda: "the instruction has 1000000 characters" in rig.status.reason, "the refusal")
    assert not rig.got("target_pose")
    assert stop(rig) < ANSWERED_S
