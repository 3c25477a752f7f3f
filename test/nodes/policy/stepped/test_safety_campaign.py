"""A slice of benchmarks/safety_campaign.py: no sequence of faults makes the node send what it must not send."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from builtin_interfaces.msg import Duration
from stepped import faults
from trajectory_msgs.msg import JointTrajectoryPoint

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


def test_the_checks_see_a_jerk_that_breaks_no_other_limit():
    with safety_campaign.Cell("joint", 1, parameters={"ensemble_chunks": 1}) as cell:
        cell.run(0.2)
        cell.instruct("pick")
        cell.enable()
        cell.run(1.0)
        jerky = copy.deepcopy(cell.commands[-1].message)
        first = np.array(jerky.points[0].positions)
        velocity = np.zeros(7)
        velocity[3] = 0.35  # up and down, by 35 rad/s^2 in 10 ms each
        jerky.points = [
            JointTrajectoryPoint(
                positions=list(first + (step // 2) * 0.01 * velocity + (step % 2) * 0.005 * velocity),
                velocities=list(velocity * (step % 2)),
                time_from_start=Duration(nanosec=step * 10_000_000),
            )
            for step in range(7)
        ]
        cell.node.create_publisher(None, "joint_trajectory", None).publish(jerky)
        limits = cell.loop.commander.motion.limits
        found = {v.what for v in safety_campaign.CommandChecks(cell, limits).judge()}
        assert "joint jerk" in found
        assert "joint acceleration" not in found


def test_the_checks_see_an_arm_that_is_pushed_too_far():
    wide = {"max_tracking_m": 0.3, "max_tracking_rad": 2.0, "ensemble_chunks": 1}
    with safety_campaign.Cell("pose", 1, parameters=wide) as cell:
        cell.run(0.2)
        cell.instruct("pick")
        cell.enable()
        cell.run(0.5)
        faults.blocked_and_pushed(cell, np.random.default_rng(1))
        cell.run(1.5)
        motion = cell.loop.commander.motion
        assert safety_campaign.CommandChecks(cell, motion.limits).judge() == []
        motion.config = replace(motion.config, max_tracking_m=0.02)
        assert {v.what for v in safety_campaign.CommandChecks(cell, motion.limits).judge()} == {"push"}
