from sqap_vla_ros.compression.load import checkpoint_path
from sqap_vla_ros.contracts import TRAINED_POLICY
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
