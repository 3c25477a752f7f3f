import numpy as np
import pytest

from sqap_vla_ros.compression.accelerators import with_pruning
from sqap_vla_ros.compression.accelerators.vla_cache import VlaCachePolicy
from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.load import load_policy
from sqap_vla_ros.compression.recipe import PruningSpec
from sqap_vla_ros.policy.micro.policy import micro_policy

SELECTORS = ["fastv", "random_drop", "random_same_budget", "uniform_grid", "divprune", "fastervlm", "visionzip"]


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_has_a_recipe_that_runs(name):
    chunk = load_policy("micro", name).predict(synthetic_observations(1)[0])
    assert chunk.selection.method == name
    assert len(chunk.selection.indices) == {"fastv": 56, "random_drop": 112}.get(name, 154)
    assert np.isfinite(chunk.deltas).all()


def test_one_door_for_selectors_and_accelerators():
    observations = synthetic_observations(2)
    assert with_pruning(micro_policy(seed=0), None).info.selector == "none"
    assert with_pruning(micro_policy(seed=0), PruningSpec("sqap", {"ratio": 0.6})).info.selector == "sqap"
    assert with_pruning(micro_policy(seed=0), PruningSpec("tome")).info.selector == "tome"
    assert isinstance(with_pruning(micro_policy(seed=0), PruningSpec("vla_cache")), VlaCachePolicy)
    slim = with_pruning(micro_policy(seed=0), PruningSpec("efficient_vla", {"remove": 2}), observations)
    assert len(slim.model.decoder.layers) == 4
    assert len(slim.predict(observations[0]).selection.indices) == 112


@pytest.mark.parametrize("name", ["tome", "efficient_vla", "vla_cache"])
def test_accelerators_run_on_a_quantised_policy(name):
    policy = load_policy("micro", "rtn_w8a8")
    parameters = {"removed_layers": [3]} if name == "efficient_vla" else {}
    chunk = with_pruning(policy, PruningSpec(name, parameters)).predict(synthetic_observations(1)[0])
    assert np.isfinite(chunk.deltas).all()
