from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import yaml

from sqap_vla_ros.compression.accelerators.base import Accelerator, Savings
from sqap_vla_ros.compression.accelerators.table import ACCELERATORS, make_accelerator
from sqap_vla_ros.compression.accelerators.vla_cache import VlaCachePolicy
from sqap_vla_ros.compression.bops import relative_bops, workload_of
from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.compress import require_loadable
from sqap_vla_ros.compression.load import equip, load_policy
from sqap_vla_ros.compression.recipe import AcceleratorSpec, PruningSpec, Recipe, RecipeError, load_recipe
from sqap_vla_ros.policy.config import MICRO
from sqap_vla_ros.policy.micro.policy import micro_policy

SELECTORS = ["fastv", "random_drop", "random_same_budget", "uniform_grid", "divprune", "fastervlm", "visionzip"]
OBSERVATIONS = synthetic_observations(2)


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_has_a_recipe_that_runs(name):
    chunk = load_policy("micro", name).predict(OBSERVATIONS[0])
    assert chunk.selection.method == name
    assert len(chunk.selection.indices) == {"fastv": 56, "random_drop": 112}.get(name, 154)
    assert np.isfinite(chunk.deltas).all()


def test_one_door_for_selectors_and_accelerators():
    assert equip(micro_policy(), Recipe("plain")).info.selector == "none"
    assert equip(micro_policy(), Recipe("mine", pruning=PruningSpec("sqap", {"ratio": 0.6}))).info.selector == "sqap"
    assert equip(micro_policy(), Recipe("mine", accelerator=AcceleratorSpec("tome"))).info.selector == "tome"
    assert isinstance(equip(micro_policy(), load_recipe("vla_cache")), VlaCachePolicy)
    slim = Recipe("slim", accelerator=AcceleratorSpec("efficient_vla", {"remove": 2}))
    policy = equip(micro_policy(), slim, lambda: OBSERVATIONS)
    assert len(policy.model.decoder.layers) == 4
    assert len(policy.predict(OBSERVATIONS[0]).selection.indices) == 112


def test_observations_are_made_only_for_accelerators_that_look_at_them():
    def never():
        raise AssertionError("nothing looks at them")

    equip(micro_policy(), load_recipe("tome"), never)
    equip(micro_policy(), load_recipe("sqap"), never)


@pytest.mark.parametrize("name", ACCELERATORS)
def test_accelerators_run_on_a_quantised_policy(name):
    parameters = {"removed_layers": [3]} if name == "efficient_vla" else {}
    recipe = Recipe("mine", accelerator=AcceleratorSpec(name, parameters))
    chunk = equip(load_policy("micro", "rtn_w8a8"), recipe).predict(OBSERVATIONS[0])
    assert np.isfinite(chunk.deltas).all()


def test_a_wrong_name_or_parameter_is_named():
    with pytest.raises(ValueError, match=r"unknown accelerator 'mole'.*vla_cache"):
        make_accelerator("mole")
    with pytest.raises(ValueError, match=r"accelerator 'efficient_vla'.*layer_count"):
        make_accelerator("efficient_vla", layer_count=3)


@pytest.mark.parametrize("name", ["efficient_vla", "tome", "vla_cache"])
def test_recipes_that_name_an_accelerator_as_a_selector_keep_loading(name):
    """Recipe files and compressed files from before recipes had accelerators."""
    former = Recipe.from_dict({"name": "former", "dtype": "bfloat16", "pruning": {"selector": name}})
    assert former.accelerator == AcceleratorSpec(name)
    assert former.pruning is None
    assert former.digest == load_recipe(name).digest


def test_layers_that_are_not_there_are_refused_before_anything_is_loaded():
    recipe = Recipe("mine", accelerator=AcceleratorSpec("efficient_vla", {"removed_layers": [1, 9], "selector": None}))
    require_loadable(recipe, 10)
    with pytest.raises(RecipeError, match=r"'mine': efficient_vla: cannot remove layers \[1, 9\] of a decoder with 4"):
        require_loadable(recipe, 4)


def test_a_recipe_has_a_selector_or_an_accelerator():
    with pytest.raises(RecipeError, match=r"'tome' brings its own choice of tokens.*the selector 'sqap'"):
        Recipe("both", pruning=PruningSpec("sqap"), accelerator=AcceleratorSpec("tome"))


@dataclass(frozen=True)
class Shallow(Accelerator):
    """A toy: the last layers are left out."""

    name: ClassVar[str] = "shallow"
    layers: int = 2

    @property
    def savings(self):
        return Savings(removed_layers=self.layers)

    def install(self, policy, calibration=()):
        policy.model.decoder.layers = policy.model.decoder.layers[: -self.layers]
        return policy


def test_a_new_accelerator_is_one_class_and_one_row(monkeypatch, tmp_path):
    monkeypatch.setitem(ACCELERATORS, Shallow.name, Shallow)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"accelerator": {"name": "shallow", "parameters": {"layers": 3}}}))
    policy = load_policy("micro", str(path))
    assert len(policy.model.decoder.layers) == 3
    assert np.isfinite(policy.predict(OBSERVATIONS[0]).deltas).all()
    assert relative_bops(workload_of(load_recipe(path), MICRO)) < 1.0
