"""A policy that acts at another rate than the simulator."""

import numpy as np
import pytest

from sqap_vla_ros.contracts import ActionChunk
from sqap_vla_ros.evaluation.closed_loop.episodes import EpisodeRun, Execution
from sqap_vla_ros.simulation.environment import CONTROL_DT_S, TabletopEnv
from sqap_vla_ros.simulation.gl import RenderingUnavailableError
from sqap_vla_ros.simulation.vocabulary import TaskFamily

SUITE = "visual_matching"


@pytest.fixture
def env():
    with TabletopEnv(shadows=False, antialiasing=False) as env:
        env.reset(0)
        try:
            env.render()
        except RenderingUnavailableError as error:
            pytest.skip(f"no OpenGL here: {error}")
        yield env


def chunk(dt_s: float) -> ActionChunk:
    """A chunk that goes along x, each action by 0.1 mm more than the one before."""
    deltas = np.zeros((16, 7))
    deltas[:, 0] = 1e-3 + 1e-4 * np.arange(16)
    return ActionChunk(0, deltas, dt_s, deltas)


def test_a_policy_at_twice_the_simulators_rate_moves_as_far_in_the_same_time(env, monkeypatch):
    actions, step = [], env.step
    monkeypatch.setattr(env, "step", lambda action: actions.append(np.array(action)) or step(action))
    episode, twice = EpisodeRun(env, SUITE, TaskFamily.PICK, 0, Execution(horizon=10)), chunk(0.5 * CONTROL_DT_S)
    episode.observe()
    episode.act(twice)
    x = twice.deltas[:, 0]
    np.testing.assert_allclose(np.array(actions)[:, 0], x[::2] + x[1::2], atol=1e-12)  # eight actions are all there is


def test_a_continuation_needs_the_simulators_rate(env):
    late = Execution(4, latency_s=0.4, continuation="replace")
    episode = EpisodeRun(env, SUITE, TaskFamily.PICK, 0, late)
    episode.observe()
    episode.act(chunk(0.5 * CONTROL_DT_S))  # the first one continues nothing
    episode.observe()
    with pytest.raises(ValueError, match=r"needs a policy that acts every 0.2 s.*got 0.1 s"):
        episode.act(chunk(0.5 * CONTROL_DT_S))
