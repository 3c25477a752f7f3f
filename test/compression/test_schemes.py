"""A new answer to a question of `compression/schemes` is one class and one row: a toy of each, by the front door."""

import numpy as np
import pytest
import torch

from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.files.job import compress_to_file
from sqap_vla_ros.compression.load import load_policy, load_uncompressed
from sqap_vla_ros.compression.recipe import RecipeError, load_recipe
from sqap_vla_ros.compression.schemes.equalization import EQUALIZATIONS, Equalization
from sqap_vla_ros.compression.schemes.execution import EXECUTIONS, WeightOnlyExecution
from sqap_vla_ros.compression.schemes.rotation import ROTATIONS, Rotation
from sqap_vla_ros.compression.schemes.rounding import ROUNDINGS, Rounding
from sqap_vla_ros.policy.architecture import ARCHITECTURES, COGACT
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.quantization.linear import WeightOnlyLinear
from sqap_vla_ros.quantization.quantizers import QuantizedWeight, quantize_weight

OBSERVATION = synthetic_observations(1)[0]


def predict(tmp_path, text):
    """The chunk of `micro` under a recipe, compressed in memory; loading the compressed file must give the same."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    policy = load_policy("micro", str(path))
    chunk = policy.predict(OBSERVATION).normalized
    out = tmp_path / "policy.safetensors"
    compress_to_file(load_uncompressed("micro", load_recipe(path)), load_recipe(path), synthetic_observations(8), out)
    np.testing.assert_array_equal(load_policy(str(out)).predict(OBSERVATION).normalized, chunk)
    return policy, chunk


class Mirror(Rotation):
    """A toy: every channel of the MLP's hidden layer changes its sign, in the weights alone."""

    def turn_layer(self, layer, heads):
        layer.mlp.up_proj.weight.data.neg_()
        layer.mlp.down_proj.weight.data.neg_()


def test_a_rotation(tmp_path, monkeypatch):
    monkeypatch.setitem(ROTATIONS, "mirror", Mirror())
    policy, chunk = predict(tmp_path, "quantization: {weight_bits: 8, activation_bits: 8, rotation: mirror}")
    plain = micro_policy().model.decoder.layers[0].mlp.up_proj.weight
    turned = policy.model.decoder.layers[0].mlp.up_proj
    assert torch.sign(turned.weight_scale).min() == 1
    expected = load_policy("micro", "rtn_w8a8", dtype="float32").predict(OBSERVATION).normalized
    np.testing.assert_allclose(chunk, expected, atol=1e-5)
    assert plain.shape == (turned.out_features, turned.in_features)


class Halve(Equalization):
    """A toy: the MLP's first norm doubles, the linears behind it halve."""

    needs_calibration = False

    def balance(self, work):
        from sqap_vla_ros.quantization.equalization import move_scale

        self.seen = len(work.hidden)
        linears = work.linears(("gate_proj", "up_proj"))
        move_scale(torch.full((linears[0].in_features,), 0.5), work.layer.post_attention_layernorm, linears)


def test_an_equalization(tmp_path, monkeypatch):
    monkeypatch.setitem(EQUALIZATIONS, "halve", Halve())
    policy, _ = predict(
        tmp_path, "quantization: {weight_bits: 8, activation_bits: 8, equalization: halve, activation_clip: null}"
    )
    assert policy.model.decoder.layers[0].post_attention_layernorm.weight.unique().tolist() == [2.0]
    assert EQUALIZATIONS["halve"].seen == 8


class TowardsZero(Rounding):
    """A toy: truncate."""

    def round(self, work, name, weight, hessian):
        grid = quantize_weight(weight, work.settings.bits(name)[0])
        values = (weight / grid.scale).trunc().to(torch.int8)
        return QuantizedWeight(values, grid.scale, None, grid.bits)


def test_a_rounding(tmp_path, monkeypatch):
    monkeypatch.setitem(ROUNDINGS, "truncate", TowardsZero())
    policy, _ = predict(tmp_path, "quantization: {weight_bits: 4, activation_bits: 16, rounding: truncate}")
    stored = policy.model.decoder.layers[0].mlp.up_proj.quantized_weight().dequantize()
    assert (stored.abs() <= micro_policy().model.decoder.layers[0].mlp.up_proj.weight.abs() + 1e-6).all()


class TwiceChecked(WeightOnlyExecution):
    """A toy: weight-only, under another width."""


def test_an_execution(tmp_path, monkeypatch):
    monkeypatch.setitem(EXECUTIONS, 12, TwiceChecked())
    policy, _ = predict(tmp_path, "quantization: {weight_bits: 4, activation_bits: 12, weight_group: 32}")
    assert isinstance(policy.model.decoder.layers[0].mlp.up_proj, WeightOnlyLinear)


def test_recipes_name_only_what_is_in_the_tables(tmp_path):
    path = tmp_path / "mine.yaml"
    for key, known in (("rotation", ROTATIONS), ("equalization", EQUALIZATIONS), ("rounding", ROUNDINGS)):
        path.write_text(f"quantization: {{{key}: mirror}}")
        with pytest.raises(RecipeError, match=rf"quantization\.{key} must be one of {', '.join(known)}, got 'mirror'"):
            load_recipe(path)


def test_the_architecture_names_the_linears_of_its_decoder_layers():
    layer = micro_policy().model.decoder.layers[0]
    found = [name.rpartition(".")[2] for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)]
    assert list(COGACT.linears) == found
    assert COGACT.linear(layer, "down_proj") is layer.mlp.down_proj
    assert COGACT.holder(layer, "k_proj") is layer.self_attn
    assert {COGACT.name: COGACT} == ARCHITECTURES
