from dataclasses import replace

import numpy as np
import pytest

from sqap_vla_ros.simulation.environment import TabletopEnv
from sqap_vla_ros.simulation.experts import expert, plan_actions
from sqap_vla_ros.simulation.layout import VARIANT_AGGREGATION
from sqap_vla_ros.simulation.scene import FINGER_RANGE_M
from sqap_vla_ros.simulation.vocabulary import TaskFamily
from sqap_vla_ros.simulation.world import ReachError, tool_pose


@pytest.fixture(scope="module")
def env() -> TabletopEnv:
    return TabletopEnv(width=320, height=240)


def run_expert(env: TabletopEnv, seed: int, family: TaskFamily) -> tuple[bool, int]:
    task = env.reset(seed, family)
    while True:
        result = env.step(expert(task, env.state))
        if result.terminated or result.truncated:
            return result.terminated, env.steps


@pytest.mark.slow
@pytest.mark.parametrize("family", TaskFamily)
def test_the_expert_does_every_task(env, family):
    outcomes = [run_expert(env, seed, family) for seed in range(1000, 1020)]
    assert sum(done for done, _ in outcomes) >= 19


@pytest.mark.parametrize("family", TaskFamily)
def test_doing_nothing_is_no_success(env, family):
    env.reset(3, family)
    for gripper in (0.0, 1.0):
        for _ in range(5):
            result = env.step(np.array([0, 0, 0, 0, 0, 0, gripper]))
            assert not result.terminated


def test_an_episode_is_cut_off_in_time(env):
    task = env.reset(0, "close_drawer")
    for step in range(1, task.max_steps + 1):
        assert env.step(np.array([0, 0, 0, 0, 0, 0, 1.0])).truncated == (step == task.max_steps)


def test_episodes_repeat_exactly():
    images, states = [], []
    for _ in range(2):
        with TabletopEnv(variation=VARIANT_AGGREGATION, width=160, height=120) as env:
            env.reset(99, "pick")  # an episode before it leaves no trace
            task = env.reset(7, "place_in_bowl")
            for _ in range(12):
                env.step(expert(task, env.state))
            images.append(env.render())
            states.append(env.world.data.qpos.copy())
    np.testing.assert_array_equal(states[0], states[1])
    np.testing.assert_array_equal(images[0], images[1])


def test_actions_move_the_tool_as_the_conventions_say(env):
    env.reset(2, "pick")
    before = env.world.base_from_tool
    env.step(np.array([0.02, -0.03, 0.01, 0, 0, 0.3, 1]))
    for _ in range(3):
        env.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    after = env.world.base_from_tool
    np.testing.assert_allclose(after[:3, 3] - before[:3, 3], (0.02, -0.03, 0.01), atol=2e-3)
    turned = after[:3, :3] @ before[:3, :3].T
    expected = np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])
    np.testing.assert_allclose(turned, expected, atol=0.02)


@pytest.mark.parametrize("action", [np.zeros(6), np.full(7, np.nan), np.zeros((7, 1))])
def test_wrong_actions_are_refused(env, action):
    env.reset(0, "pick")
    steps = env.steps
    with pytest.raises(ValueError, match="an action is 7 finite numbers"):
        env.step(action)
    assert env.steps == steps


@pytest.mark.parametrize("family", TaskFamily)
def test_plan_foresees_what_physics_does(env, family):
    """Executing a plan without looking again leads where the plan says: labels are worth learning from."""
    task = env.reset(11, family)
    planned = plan_actions(task, env.state, horizon=8)
    start = env.world.base_from_tool[:3, 3]
    for action in planned:
        env.step(action)
    moved = env.world.base_from_tool[:3, 3] - start
    np.testing.assert_allclose(moved, planned[:, :3].sum(axis=0), atol=0.02)
    np.testing.assert_array_equal(planned[0], expert(task, _restarted(env, family)))


def _restarted(env: TabletopEnv, family: TaskFamily):
    env.reset(11, family)
    return env.state


def test_plans_reach_the_end_of_every_task(env):
    """Kinematic roll-outs, chained without physics, end in what the detector calls success."""
    for family in (TaskFamily.OPEN_DRAWER, TaskFamily.CLOSE_DRAWER, TaskFamily.PICK):
        task = env.reset(5, family)
        actions = plan_actions(task, env.state, horizon=40)
        assert np.isfinite(actions).all()
        assert np.linalg.norm(actions[-1, :3]) < 0.051
        if family == TaskFamily.PICK:
            assert actions[-1, 6] == 0.0
            assert actions[:, 6].max() == 1.0


@pytest.mark.parametrize("family", TaskFamily)
def test_plan_goes_on_from_where_committed_actions_lead(env, family):
    task = env.reset(11, family)
    state = env.state
    rng = np.random.default_rng(3)
    committed = np.zeros((4, 7))
    committed[:, :3] = rng.normal((0.0, 0.0, 0.01), 0.01, (4, 3))
    committed[:, 5], committed[:, 6] = 0.05, 1.0
    planned = plan_actions(task, state, committed=committed)
    np.testing.assert_array_equal(planned[:4], committed)
    moved = replace(
        state,
        tool_xyz_m=state.tool_xyz_m + committed[:, :3].sum(axis=0),
        tool_yaw_rad=state.tool_yaw_rad + committed[:, 5].sum(),
        gripper_open=True,
        finger_m=FINGER_RANGE_M[1],
    )
    np.testing.assert_allclose(planned[4:], plan_actions(task, moved, 12), atol=1e-9)
    plain = plan_actions(task, state)
    assert np.abs(planned[4:] - plain[4:]).max() > 0.005
    np.testing.assert_allclose(plan_actions(task, state, committed=plain[:9]), plain, atol=1e-12)


def test_the_world_must_be_reset_first():
    with pytest.raises(RuntimeError, match="call reset first"):
        _ = TabletopEnv().task


def test_out_of_reach_is_said(env):
    env.reset(0, "pick")
    with pytest.raises(ReachError, match=r"cannot put its tool at \[2\.0, 0\.0, 0\.3\] m"):
        env.world.reach(tool_pose(np.array([2.0, 0.0, 0.3])), env.world.arm_position)
