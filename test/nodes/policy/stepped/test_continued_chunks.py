"""Chunks that go on from the motion under way: by repeating it (Real-Time Chunking), or out of one that was slowed."""

from dataclasses import replace

import numpy as np
import pytest
from stepped.running import QUICK, moving, told, violations
from stepped.simulated_cell import Cell

from sqap_vla_ros.nodes import messages
from sqap_vla_ros.nodes.policy import configuration
from sqap_vla_ros.nodes.policy.parameters import defaults
from sqap_vla_ros.robot.trajectory import anchor_chunk

DT_S = 0.1


class ContinuingCell(Cell):
    """A policy that turns with every chunk, but for the actions that its observation commits it to."""

    def _predict(self, observation):
        latency_s, chunk = super()._predict(observation)
        deltas, goes_on = chunk.deltas.copy(), observation.commitment
        angle = 2.4 * len(self.asked_ns)
        deltas[:] = [0.005 * np.cos(angle), 0.005 * np.sin(angle), 0.0, 0.0, 0.0, 0.0, 1.0]
        if goes_on is not None:
            deltas[: goes_on.executed] = goes_on.actions[: goes_on.executed]
        chunk = replace(chunk, deltas=deltas, normalized=deltas)
        self.continued = [*getattr(self, "continued", []), (observation, chunk)]
        return latency_s, chunk


def commanded(cell, at_ns):
    """Return where the tool was told to be at times [n] of ROS time."""
    sent = [(c.ros_ns, messages.pose_from_message(c.message.pose)[:3, 3]) for c in cell.commands]
    times = np.array([ns - sent[0][0] for ns, _ in sent]) * 1e-9
    wanted = (np.asarray(at_ns) - sent[0][0]) * 1e-9
    return np.column_stack([np.interp(wanted, times, [p[axis] for _, p in sent]) for axis in range(3)])


def away(cell):
    """Return how far (m) the arm was led from each chunk that continued, from its image on until the next took over."""
    latency_s = cell.switches.latency_s
    found = []
    for (observation, chunk), taken_ns in zip(cell.continued[6:-2], cell.asked_ns[6:-2], strict=True):
        assert observation.commitment is not None  # and the delay has become known
        start = commanded(cell, [observation.stamp_ns])[0]
        anchor = np.eye(4)
        anchor[:3, 3] = start
        path = anchor_chunk(chunk.deltas, anchor, observation.stamp_ns, DT_S)
        offset_ns = cell.clock.ros_ns - cell.steady_ns
        times = np.array([taken_ns + offset_ns + round(s * 1e9) for s in np.linspace(0.0, 2.0 * latency_s, 9)])
        poses, _ = path.sample_many(times)
        found.append(np.linalg.norm(poses[:, :3, 3] - commanded(cell, times), axis=1).max())
    return found


@pytest.mark.parametrize("latency_s", [0.2, 0.4])
def test_the_arm_follows_a_chunk_from_its_image_on(latency_s):
    parameters = {**QUICK, "chunk_continuation": "guided", "replan": "continuous"}
    with ContinuingCell("pose", lag_s=0.02, parameters=parameters) as cell:
        cell.switches.latency_s = latency_s
        moving(cell, 5.0)
        committed = [observation.commitment for observation, _ in cell.continued]
        assert committed[0] is None  # the arm stood still
        late = [goes_on.executed * DT_S for goes_on in committed[2:] if goes_on is not None]
        assert len(late) > 6
        assert all(latency_s < delay_s < latency_s + 0.31 for delay_s in late)
        assert {goes_on.continuation for goes_on in committed[1:] if goes_on is not None} == {"guided"}
        assert max(away(cell)) < 0.002
        assert not violations(cell)
        assert "chunk rejected" not in told(cell)


def test_without_it_nothing_is_committed():
    with ContinuingCell("pose", parameters=QUICK) as cell:
        moving(cell, 2.0)
        assert all(observation.commitment is None for observation, _ in cell.continued)


def test_an_average_of_chunks_repeats_none_and_is_refused():
    (problem,) = configuration.problems({**defaults(), "chunk_continuation": "guided", "ensemble_chunks": 2})
    assert problem.startswith("chunk_continuation 'guided' needs ensemble_chunks 1")
    assert problem.endswith("got 2")


class TurningCell(Cell):
    """A fast policy whose chunks turn by a third of a circle each time, and are slowed down a lot."""

    def _predict(self, observation):
        latency_s, chunk = super()._predict(observation)
        number = len(self.asked_ns)
        back = 0.05 * (observation.base_from_tool[:3, 3] - (0.45, 0.0, 0.35))
        deltas = np.zeros_like(chunk.deltas)
        deltas[:, :3] = 0.02 * np.array([np.cos(1.3 * number), np.sin(1.3 * number), np.sin(2.1 * number)]) - back
        deltas[:, 3:6] = np.random.default_rng(number).uniform(-0.08, 0.08, 3)
        deltas[:, 6] = 1.0
        return latency_s, replace(chunk, deltas=deltas, normalized=deltas)


@pytest.mark.parametrize("join", ["path", "clock"])
@pytest.mark.parametrize("speed_scale", [0.3, 0.5])
def test_a_motion_of_joints_that_was_slowed_down_is_left_at_its_speed(join, speed_scale):
    """Its cubics, a second long, leave the straight lines: a chunk must not begin beside them, and not at rest."""
    with TurningCell("joint", parameters={**QUICK, "speed_scale": speed_scale, "chunk_join": join}) as cell:
        cell.run(0.2)
        cell.instruct("pick")
        assert cell.enable().success
        cell.run(7.0)
        assert cell.loop.executive.counters.chunks_published > 12
        way = np.diff([joints for _, joints in cell.setpoints], axis=0)
        apart_s = np.diff([ns for ns, _ in cell.setpoints])[:, None] * 1e-9
        speeds = np.abs(way / apart_s)
        assert speeds.max() < 1.05 * speed_scale * defaults()["max_joint_velocity"]
        limit = cell.loop.commander.motion.limits.max_joint_acceleration
        assert np.abs(np.diff(way / apart_s, axis=0)).max() < 3.0 * limit * apart_s.max()
        assert violations(cell) == []
