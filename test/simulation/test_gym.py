import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from sqap_vla_ros.simulation.environment import TabletopEnv
from sqap_vla_ros.simulation.experts import expert
from sqap_vla_ros.simulation.gl import RenderingUnavailableError
from sqap_vla_ros.simulation.gym import TabletopGymEnv


@pytest.fixture
def env():
    made = TabletopGymEnv(width=64, height=48, render_mode="rgb_array")
    made.tabletop.reset(0)
    try:
        made.tabletop.render()
    except RenderingUnavailableError as error:
        pytest.skip(f"no OpenGL here: {error}")
    yield made
    made.close()


def test_gymnasium_finds_nothing_wrong(env):
    check_env(env, skip_render_check=True)  # that check makes a second environment by name
    assert env.render().shape == (48, 64, 3)


def test_a_seed_gives_the_episode_of_the_tabletop(env):
    observation, info = env.reset(seed=7, options={"family": "move_near"})
    plain = TabletopEnv(width=64, height=48)
    task = plain.reset(7, "move_near")
    assert observation["instruction"] == task.instruction
    assert info == {"family": "move_near", "layout_seed": 7}
    np.testing.assert_array_equal(observation["image"], plain.render())
    assert observation in env.observation_space
    plain.close()


def test_an_instruction_chooses_the_task(env):
    observation, info = env.reset(seed=1, options={"instruction": "put the red cube in the bowl"})
    assert observation["instruction"] == "put the red cube in the bowl"
    assert info["family"] == "place_in_bowl"
    with pytest.raises(ValueError, match="'speed'"):
        env.reset(seed=1, options={"speed": 2})


def test_episodes_without_a_seed_follow_the_last_one(env):
    env.reset(seed=3)
    drawn = [env.reset()[1]["layout_seed"] for _ in range(3)]
    env.reset(seed=3)
    assert drawn == [env.reset()[1]["layout_seed"] for _ in range(3)]
    assert len(set(drawn)) == 3


def test_success_is_rewarded_once_and_ends_the_episode(env):
    env.reset(seed=1000, options={"family": "open_drawer"})
    rewards, terminated, truncated = [], False, False
    while not (terminated or truncated):
        _, reward, terminated, truncated, info = env.step(expert(env.tabletop.task, env.tabletop.state))
        rewards.append(reward)
    assert terminated
    assert info["success"]
    assert rewards[-1] == 1.0
    assert not any(rewards[:-1])


def test_a_wrong_action_and_a_wrong_mode_are_refused(env):
    env.reset(seed=0)
    with pytest.raises(ValueError, match="7 finite numbers"):
        env.step(np.full(7, np.nan))
    with pytest.raises(ValueError, match="'human'"):
        TabletopGymEnv(render_mode="human")
