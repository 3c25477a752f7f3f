import numpy as np
import pytest
import torch

from sqap_vla_ros.compression import load
from sqap_vla_ros.compression.calibration import simulator_observations, synthetic_observations
from sqap_vla_ros.compression.load import load_policy
from sqap_vla_ros.compression.recipe import RecipeError
from sqap_vla_ros.policy.actions import ActionStatistics
from sqap_vla_ros.policy.checkpoints.checkpoint import save_checkpoint
from sqap_vla_ros.policy.cogact import CogACT, CogACTPolicy
from sqap_vla_ros.policy.config import MICRO, named_config
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.policy.micro.tokenizer import micro_tokenizer
from sqap_vla_ros.quantization.linear import QuantizedLinear

DEPTH = named_config("tabletop").decoder.depth


@pytest.fixture
def tabletop(tmp_path, monkeypatch):
    """A stand-in for the shipped policy: its geometry, random bfloat16 weights, where `tabletop` is looked for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CogACT(named_config("tabletop")).bfloat16()
    bound = np.array([0.05] * 6 + [1.0])
    statistics = {"tabletop": ActionStatistics(-bound, bound, np.array([True] * 6 + [False]), dt_s=0.2)}
    path = tmp_path / "tabletop.safetensors"
    save_checkpoint(CogACTPolicy(model, micro_tokenizer(), statistics), path)
    monkeypatch.setitem(load.SHIPPED, "tabletop", path)
    monkeypatch.setitem(load.CALIBRATION_OBSERVATIONS, "tabletop", 3)
    monkeypatch.setattr(load, "RANKING_OBSERVATIONS", 2)
    return path


def test_the_shipped_policy_by_name(tabletop):
    policy = load_policy("tabletop")
    assert policy.info.checkpoint == "tabletop"
    assert policy.info.unnorm_key == "tabletop"
    assert len(policy.info.checkpoint_sha256) == 64
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}
    half = load_policy("tabletop", "bf16")
    assert half.model.decoder.embed_tokens.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("by_name", [True, False])
def test_calibrated_recipes_calibrate_it_in_the_simulator(tabletop, by_name, monkeypatch):
    asked = []
    monkeypatch.setattr(load, "simulator_observations", lambda count: asked.append(count) or simulator_observations(1))
    policy = load_policy("tabletop" if by_name else str(tabletop), "sqap")
    assert asked == [3]
    assert (policy.info.recipe, policy.info.selector) == ("sqap", "sqap")
    assert sum(isinstance(m, QuantizedLinear) for m in policy.model.modules()) == 7 * DEPTH
    assert np.isfinite(policy.predict(synthetic_observations(1)[0]).normalized).all()


def test_accelerators_that_choose_layers_look_at_the_simulator(tabletop, monkeypatch):
    asked = []
    monkeypatch.setattr(load, "simulator_observations", lambda count: asked.append(count) or simulator_observations(1))
    policy = load_policy("tabletop", "efficient_vla_small")
    assert asked == [2]
    assert len(policy.model.decoder.layers) == DEPTH - 1
    load_policy("tabletop", "vla_cache")
    assert asked == [2]  # nothing to choose


def test_the_head_may_compute_in_bfloat16():
    policy, exact = load_policy("micro", "w4a4"), load_policy("micro", "w4a4")
    exact.model.action_head.float()
    assert policy.model.action_head.positional_embedding.dtype == torch.bfloat16
    observation = synthetic_observations(1, seed=3)[0]
    chunk, expected = (p.predict(observation).normalized for p in (policy, exact))
    assert 0 < np.sqrt(np.square(chunk - expected).mean()) < 0.02 * np.sqrt(np.square(expected).mean())
    # another dtype is a wish for exactness: the head keeps it
    assert load_policy("micro", "w4a4", dtype="float32").model.action_head.positional_embedding.dtype == torch.float32


def test_a_missing_shipped_policy_is_explained(monkeypatch, tmp_path):
    monkeypatch.setitem(load.SHIPPED, "tabletop", tmp_path / "tabletop.safetensors")
    with pytest.raises(FileNotFoundError, match=r"'tabletop' is not in this installation .* is missing\): reinstall"):
        load_policy("tabletop", "w4a4")


def test_other_policies_are_told_to_calibrate_once(tmp_path):
    policy = micro_policy()
    policy.model.config = MICRO.replace(name="mine")
    path = tmp_path / "mine.safetensors"
    save_checkpoint(policy, path)
    with pytest.raises(RecipeError, match=r"recipe 'w4a4' needs calibration: run `sqap-vla compress --checkpoint"):
        load_policy(str(path), "w4a4")
