"""Real-Time Chunking over DDS: the node commits, the worker or a server's policy goes on from that, the arm follows."""

import contextlib

import numpy as np
import pytest
from policy_doubles import DT_S
from policy_node_rig import Rig, pose_of
from workers.served import Served

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes import messages
from sqap_vla_ros.robot.trajectory import anchor_chunk

CHUNKS = 18
ENOUGH = 5  # a busy computer makes a node pause, and its arm rest
LATENCY_S = 0.25  # of the double
CONTINUED = {"chunk_continuation": "guided", "ensemble_chunks": 1, "replan": "continuous", "max_open_loop_s": 2.0}


@pytest.fixture(scope="module", params=["worker", "server"])
def run(request):
    """(chunks, how many actions each repeats, commands) of a run."""
    with contextlib.ExitStack() as stack:
        if request.param == "server":
            served = stack.enter_context(Served("policy_doubles:turning"))
            rig = stack.enter_context(Rig(factory="", checkpoint=served.url, **CONTINUED))
        else:
            rig = stack.enter_context(Rig(factory="turning", **CONTINUED))
        rig.run()
        rig.wait(lambda: len(rig.got("action_chunk")) >= CHUNKS, "chunks")
        rig.settle(1.0)  # so that the last one's actions are commanded too
        chunks = [messages.chunk_from_message(message)[0] for message in rig.got("action_chunk")][:CHUNKS]
        commands = [(messages.time_ns(message.header.stamp), pose_of(message)) for message in rig.got("target_pose")]
    return chunks, [round(chunk.normalized[1, 0]) for chunk in chunks], commands


def test_the_first_chunk_is_free_and_the_others_are_committed(run):
    chunks, executed, _ = run
    assert executed[0] == 0
    late = [(chunk, count) for chunk, count in zip(chunks[2:], executed[2:], strict=True) if count]
    assert len(late) >= ENOUGH
    assert all(chunk.normalized[1, 1] == 1.0 and count * DT_S > LATENCY_S for chunk, count in late)


def test_the_actions_that_a_chunk_repeats_are_what_the_arm_was_told_meanwhile(run):
    chunks, executed, commands = run
    told_ns = np.array([stamp_ns for stamp_ns, _ in commands])
    told = np.array([pose[:3, 3] for _, pose in commands])
    first_ns = told_ns[0]

    def commanded(times_ns):
        seconds = (np.asarray(times_ns) - first_ns) / NS_PER_S
        return np.column_stack([np.interp(seconds, (told_ns - first_ns) / NS_PER_S, told[:, i]) for i in range(3)])

    apart_m = []
    for chunk, count in zip(chunks, executed, strict=True):
        anchor = np.eye(4)
        anchor[:3, 3] = commanded([chunk.stamp_ns])[0]
        repeated = anchor_chunk(chunk.deltas, anchor, chunk.stamp_ns, DT_S)
        if count and repeated.times_ns[count - 1] < told_ns[-1]:
            between = commanded(repeated.times_ns[:count]) - repeated.poses[:count, :3, 3]
            apart_m.append(float(np.linalg.norm(between, axis=1).max()))
    assert len(apart_m) >= ENOUGH
    assert np.median(apart_m) < 0.002, apart_m  # an action is 5 mm long, and no chunk keeps the direction
