import numpy as np

from sqap_vla_ros.simulation.observations import expert_observations


def test_the_simulator_gives_all_families_as_its_node_renders_them():
    found = expert_observations(13)
    assert len(found) == 13
    instructions = [o.instruction for o in found]
    for words in ("pick up", "near", "open the drawer", "close the drawer", "in the drawer", "in the bowl"):
        assert any(words in text for text in instructions), instructions
    first = found[0]
    assert first.image.shape == (480, 640, 3)
    # the gripper is where the tool frame projects, and the arm has moved within the episode
    assert first.gripper_pixel is not None
    assert np.linalg.norm(found[1].base_from_tool[:3, 3] - first.base_from_tool[:3, 3]) > 0.01
    assert found[1].stamp_ns > first.stamp_ns == 0


def test_expert_observations_repeat_and_follow_the_seed():
    one, again, other = (expert_observations(2, seed=seed) for seed in (900_000, 900_000, 900_100))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(one, again, strict=True))
    assert not np.array_equal(one[0].image, other[0].image)
