from dataclasses import replace

import numpy as np

from sqap_vla_ros.compression.load import checkpoint_path
from sqap_vla_ros.contracts import TRAINED_POLICY
from sqap_vla_ros.policies import load_policy
from sqap_vla_ros.policy.config import named_config
from sqap_vla_ros.shipped import CALIBRATION_SOURCES, SHIPPED
from sqap_vla_ros.simulation.observations import expert_observations


def test_every_shipped_policy_is_there_and_is_named_like_its_geometry():
    for name in SHIPPED:
        assert named_config(name).name == name
        checkpoint_path(name, SHIPPED)  # raises where the weights are missing


def test_the_tabletop_policy_calibrates_on_the_simulated_expert():
    (one,) = SHIPPED[TRAINED_POLICY].observations(1)
    (other,) = CALIBRATION_SOURCES["simulator"](1)
    (expected,) = expert_observations(1)
    assert (one.image == expected.image).all()
    assert (other.image == expected.image).all()
    assert SHIPPED[TRAINED_POLICY].calibration_count == 48


def test_the_libero_policy_calibrates_on_pictures_that_ship_of_all_ten_tasks():
    shipped = SHIPPED["libero_object"]
    found = shipped.observations(shipped.calibration_count)
    assert len(found) == shipped.calibration_count == 48
    assert len({one.instruction for one in found}) == 10
    assert {one.image.shape for one in found} == {(224, 224, 3)}
    assert all(one.image.std() > 20 for one in found)


def test_the_libero_policy_obeys_its_instruction():
    """Of two pictures with several objects, what is asked for decides where the hand goes."""
    policy = load_policy("libero_object")
    shown = SHIPPED["libero_object"].observations(48)[0]
    chunks = {
        name: policy.predict(replace(shown, instruction=f"pick up the {name} and place it in the basket")).deltas
        for name in ("alphabet soup", "milk")
    }
    assert np.abs(chunks["alphabet soup"][:8, :2].sum(0) - chunks["milk"][:8, :2].sum(0)).max() > 0.02
