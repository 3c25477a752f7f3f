import dataclasses

import numpy as np
import pytest
import torch

from sqap_vla_ros.commands.policy_checks import require_fitting
from sqap_vla_ros.compression import load
from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.files.job import compress_to_file
from sqap_vla_ros.compression.load import (
    RANDOM_WEIGHTS,
    ShippedPolicy,
    checkpoint_digest,
    checkpoint_path,
    load_policy,
    load_uncompressed,
)
from sqap_vla_ros.compression.recipe import RecipeError, load_recipe
from sqap_vla_ros.policy.actions import ActionStatistics
from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
from sqap_vla_ros.policy.cogact import CogACT, CogACTPolicy
from sqap_vla_ros.policy.config import MICRO, named_config
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.policy.micro.tokenizer import micro_tokenizer
from sqap_vla_ros.policy.settings import CheckpointSettings
from sqap_vla_ros.quantization.linear import QuantizedLinear

DEPTH = named_config("tabletop").decoder.depth


@pytest.fixture
def asked():
    """How many observations of the stand-in's scenes were asked for, in order."""
    return []


@pytest.fixture
def shipped(tmp_path, asked):
    """A table with a stand-in for the shipped policy: its geometry, random bfloat16 weights, made-up scenes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CogACT(named_config("tabletop")).bfloat16()
    bound = np.array([0.05] * 6 + [1.0])
    statistics = {"tabletop": ActionStatistics(-bound, bound, np.array([True] * 6 + [False]), dt_s=0.2)}
    path = tmp_path / "tabletop.safetensors"
    save_checkpoint(CogACTPolicy(model, micro_tokenizer(), statistics), path)

    def observations(count):
        asked.append(count)
        return synthetic_observations(1)

    known = ShippedPolicy(observations, "stand-ins", calibration_count=3, ranking_count=2, weights=path)
    return {"tabletop": known, **RANDOM_WEIGHTS}


def test_the_shipped_policy_by_name(shipped):
    policy = load_policy("tabletop", shipped=shipped)
    assert policy.info.checkpoint == "tabletop"
    assert policy.info.unnorm_key == "tabletop"
    assert len(policy.info.checkpoint_sha256) == 64
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}
    half = load_policy("tabletop", "bf16", shipped=shipped)
    assert half.model.decoder.embed_tokens.weight.dtype == torch.bfloat16


def test_a_dataset_that_a_made_policy_has_not_is_refused():
    with pytest.raises(ValueError, match="unnorm_key 'bridge_orig' is not among them"):
        load_policy("micro", unnorm_key="bridge_orig")


@pytest.mark.parametrize("by_name", [True, False])
def test_calibrated_recipes_calibrate_it_on_its_own_scenes(shipped, asked, by_name):
    policy = load_policy("tabletop" if by_name else str(shipped["tabletop"].weights), "sqap", shipped=shipped)
    assert asked == [3]
    assert (policy.info.recipe, policy.info.selector) == ("sqap", "sqap")
    assert sum(isinstance(m, QuantizedLinear) for m in policy.model.modules()) == 7 * DEPTH
    assert np.isfinite(policy.predict(synthetic_observations(1)[0]).normalized).all()


def test_accelerators_that_choose_layers_look_at_its_own_scenes(shipped, asked):
    policy = load_policy("tabletop", "efficient_vla_small", shipped=shipped)
    assert asked == [2]
    assert len(policy.model.decoder.layers) == DEPTH - 1
    load_policy("tabletop", "vla_cache", shipped=shipped)
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


@pytest.mark.parametrize(
    ("changed", "settings"),
    [
        ({"ddim_steps": 2}, "ddim 2 steps, guidance 1.5, "),
        ({"guidance": 3.0}, "ddim 10 steps, guidance 3, "),
        ({"crop": "deployment"}, "ddim 10 steps, guidance 1.5, "),
    ],
)
def test_a_policy_s_description_tells_it_from_the_same_one_with_other_settings(changed, settings):
    plain = load_policy("micro", "fp32").info
    other = load_policy("micro", "fp32", settings=CheckpointSettings(**changed)).info
    assert other.settings.startswith(settings)
    assert load_policy("micro", "fp32").info == plain
    assert other.differences(plain).startswith(("settings ", "crop "))


def test_a_policy_s_description_tells_recipes_of_one_name_apart(tmp_path):
    infos = []
    for kept in ("prune_layer: 0", "prune_layer: 1"):
        recipe = tmp_path / "mine.yaml"
        recipe.write_text(f"pruning: {{selector: random_drop, parameters: {{{kept}}}}}\n")
        infos.append(load_policy("micro", str(recipe)).info)
    assert infos[0].recipe == infos[1].recipe
    assert infos[0].settings != infos[1].settings


def test_a_missing_shipped_policy_is_explained(shipped, tmp_path):
    gone = {"tabletop": dataclasses.replace(shipped["tabletop"], weights=tmp_path / "gone.safetensors")}
    with pytest.raises(FileNotFoundError, match=r"'tabletop' is not in this installation .* is missing\): reinstall"):
        load_policy("tabletop", "w4a4", shipped=gone)


def test_an_unknown_checkpoint_lists_the_names(shipped):
    with pytest.raises(FileNotFoundError, match=r"checkpoint table does not exist; .* one of tabletop, micro"):
        load_policy("table", shipped=shipped)


def test_where_a_checkpoint_lies_and_its_digest(shipped):
    assert checkpoint_path("tabletop", shipped) == shipped["tabletop"].weights
    assert len(checkpoint_digest("tabletop", shipped)) == 64
    assert (checkpoint_path("micro"), checkpoint_digest("micro")) == (None, "micro")


def test_a_shipped_policy_has_weights_or_is_made(tmp_path):
    with pytest.raises(ValueError, match="has weights or is made, one of the two"):
        ShippedPolicy(synthetic_observations, "scenes", 8)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("w4a4", r"recipe 'w4a4' needs calibration: run `sqap-vla compress --checkpoint \S+/mine\.safetensors --"),
        ("sqap", "recipe 'sqap' needs calibration: run `sqap-vla compress"),
        ("efficient_vla_small", "'efficient_vla_small': efficient_vla looks at observations, and .* has none: give"),
    ],
)
def test_a_policy_without_scenes_of_its_own_is_not_loaded_for_a_recipe_that_looks_at_some(
    recipe, said, tmp_path, monkeypatch
):
    policy = micro_policy()
    policy.model.config = MICRO.replace(name="mine")
    path = tmp_path / "mine.safetensors"
    save_checkpoint(policy, path)
    monkeypatch.setattr(load, "load_uncompressed", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(RecipeError, match=said):
        load_policy(str(path), recipe)
    with pytest.raises(RecipeError, match=said):
        require_fitting(str(path), (recipe,))  # evaluate, replay and demo ask before they start anything


def test_a_compressed_file_is_not_loaded_for_layers_that_must_be_ranked_first(tmp_path, monkeypatch):
    plain = load_recipe("rtn_w4a4")
    policy = load_uncompressed("micro", plain)
    policy.model.config = MICRO.replace(name="mine")
    file = tmp_path / "mine_w4a4.safetensors"
    compress_to_file(policy, plain, [], file)
    monkeypatch.setattr(
        "sqap_vla_ros.compression.files.storage.load_compressed", lambda *_, **__: pytest.fail("loaded")
    )
    with pytest.raises(RecipeError, match=r"'rtn_w4a4\+efficient_vla_small': efficient_vla looks at observations"):
        load_policy(str(file), "efficient_vla_small")


def test_a_compressed_file_is_not_loaded_for_a_recipe_that_does_not_fit_its_decoder(tmp_path, monkeypatch):
    file, recipe = tmp_path / "small.safetensors", tmp_path / "deep.yaml"
    plain = load_recipe("rtn_w4a4")
    compress_to_file(load_uncompressed("micro", plain), plain, [], file)
    recipe.write_text("pruning: {selector: fastv, parameters: {prune_layer: 40}}")
    monkeypatch.setattr(
        "sqap_vla_ros.compression.files.storage.load_compressed", lambda *_, **__: pytest.fail("loaded")
    )
    with pytest.raises(RecipeError, match=r"'rtn_w4a4\+deep' drops tokens before decoder layer 40; this model has lay"):
        load_policy(str(file), str(recipe))


@pytest.mark.parametrize(
    ("device", "seen", "said"),
    [
        ("cuda", 0, "device 'cuda': PyTorch sees no CUDA device here; use device='cpu'"),
        ("cuda:7", 1, r"device 'cuda:7': PyTorch sees 1 CUDA device\(s\) here; use device='cpu'"),
        ("mps", 0, "device 'mps': must be cpu, cuda or cuda:N, got 'mps'"),
        ("nonsense", 0, "device 'nonsense': must be cpu, cuda or cuda:N"),
        ("", 0, "device '': must be cpu, cuda or cuda:N"),
    ],
)
@pytest.mark.parametrize("recipe", ["fp32", "w4a4"])
def test_a_device_that_is_not_there_is_named_before_anything_is_loaded(device, seen, said, recipe, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    with pytest.raises(ValueError, match=said):
        load_policy("micro", recipe, device=device)


def test_a_driver_that_does_not_fit_is_said_in_the_first_line_of_its_own_words(monkeypatch):
    def broken():
        raise RuntimeError("Error 804: forward compatibility\nwas attempted on non supported HW")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    with pytest.raises(ValueError, match=r"cannot use the CUDA driver here \(Error 804: forward compatibility\); use"):
        load_policy("micro", device="cuda:0")
