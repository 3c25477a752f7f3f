"""A slice of benchmarks/safety_campaign.py: no sequence of faults makes the node send what it must not send."""

import copy

import pytest

from benchmarks import safety_campaign

PER_SLICE = 20


@pytest.mark.parametrize("first", range(0, 60, PER_SLICE))
def test_sequences_of_faults(first):
    rows = [safety_campaign.sequence(seed) for seed in range(first, first + PER_SLICE)]
    assert [row for row in rows if row["violations"]] == []
    assert sum(row["commands"] for row in rows) > 20 * PER_SLICE


def test_the_checks_see_what_they_are_to_see():
    """A node that commands the measured pose as its hold, as this one once did, breaks several rules."""
    cell = safety_campaign.Cell("pose", 1, parameters={"ensemble_chunks": 1})
    with cell:
        cell.run(0.2)
        cell.instruct("pick")
        cell.enable()
        cell.run(1.0)
        glitch = copy.deepcopy(cell.commands[-1].message)
        glitch.pose.position.z -= 0.5
        cell.node.create_publisher(None, "target_pose", None).publish(glitch)
        cell.trigger("stop")
        cell.run(0.8)
        limits = cell.loop.commander.motion.limits
        assert {v.what for v in safety_campaign.CommandChecks(cell, limits).judge()} >= {"step", "start"}
