import dataclasses

import numpy as np
import pytest
import torch

from sqap_vla_ros.cli import main
from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.compress import compress, decoder_inputs
from sqap_vla_ros.compression.files.job import compress_to_file
from sqap_vla_ros.compression.layer_work import collect
from sqap_vla_ros.compression.layers import compress_layer
from sqap_vla_ros.compression.load import load_policy
from sqap_vla_ros.compression.recipe import (
    AcceleratorSpec,
    PruningSpec,
    QuantizationSpec,
    Recipe,
    RecipeError,
    load_recipe,
)
from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.quantization.linear import QuantizedLinear, WeightOnlyLinear, use_backend

OBSERVATIONS = synthetic_observations(3)
HELD_OUT = synthetic_observations(3, seed=5)
WORDS = ("lift the can", "put the blue cube on the green plate", "move the yellow spoon near the white cup")


@pytest.fixture(scope="module")
def stream():
    policy = micro_policy()
    return policy, decoder_inputs(policy, OBSERVATIONS)


def layer_error(spec: QuantizationSpec, stream, outlier: float = 1.0) -> float:
    """Relative output error of the first decoder layer, W and A quantised, with one loud channel in the stream."""
    _policy, hidden = stream
    decoder = micro_policy().model.decoder
    hidden = [h.clone() for h in hidden]
    for h in hidden:
        h[..., 5] *= outlier

    def rotary(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = decoder.rotary(x.shape[1], x)
        return cos[None], sin[None]

    if spec.rotation == "hadamard":
        from sqap_vla_ros.compression.folding import residual_rotation

        hidden = [residual_rotation(128)(h) for h in hidden]
    with torch.no_grad():
        reports, _ = compress_layer(decoder.layers[0], spec, decoder.config, hidden=hidden, rotary=rotary)
    return reports[0].output_error


def test_order_of_the_schemes_on_a_stream_with_an_outlier(stream):
    naive = layer_error(QuantizationSpec(), stream, 20.0)
    smooth = layer_error(QuantizationSpec(equalization="smoothquant"), stream, 20.0)
    rotated = layer_error(QuantizationSpec(rotation="hadamard"), stream, 20.0)
    gptq = layer_error(
        QuantizationSpec(rotation="hadamard", rounding="gptq", weight_clip=True, activation_clip=None), stream, 20.0
    )
    assert naive > smooth > rotated > gptq
    assert gptq < 0.6 * naive


@pytest.mark.parametrize("equalization", ["smoothquant", "awq", "omniquant"])
def test_equalized_schemes_beat_plain_rounding_where_they_were_calibrated(equalization, stream, monkeypatch):
    monkeypatch.setattr("sqap_vla_ros.quantization.omniquant.EPOCHS", 6)
    bits = {"activation_bits": 16, "weight_group": 32, "weight_symmetric": False} if equalization == "awq" else {}
    plain = layer_error(QuantizationSpec(**bits), stream, 10.0)
    assert layer_error(QuantizationSpec(**bits, equalization=equalization), stream, 10.0) < plain


@pytest.mark.parametrize("recipe", ["rtn_w8a8", "w8a8_smoothquant", "rtn_w8a16"])
def test_eight_bits_hardly_change_the_actions(recipe):
    policy = load_policy("micro", recipe, dtype="float32")
    for observation in HELD_OUT[:2]:
        expected = micro_policy().predict(observation).normalized
        assert np.sqrt(np.square(policy.predict(observation).normalized - expected).mean()) < 0.05


def test_w4a4_replaces_every_decoder_linear_and_nothing_else():
    policy = micro_policy()
    reports = compress(policy, load_recipe("w4a4"), OBSERVATIONS)
    quantized = {n for n, m in policy.model.named_modules() if isinstance(m, QuantizedLinear)}
    assert quantized == {
        f"decoder.layers.{i}.{group.holder}.{name}" for i in range(6) for group in COGACT.groups for name in group.names
    }
    assert len(reports) == 42
    assert all(0.65 <= r.activation_clip <= 1.0 for r in reports)
    assert {(r.weight_bits, r.activation_bits) for r in reports} == {(4, 4)}


def test_inputs_are_quantised_once_for_those_that_share_them():
    policy = load_policy("micro", "w4a4_rotated")
    attention, mlp = policy.model.decoder.layers[0].self_attn, policy.model.decoder.layers[0].mlp
    assert attention.q_proj.activation is attention.k_proj.activation is attention.v_proj.activation
    assert mlp.gate_proj.activation is mlp.up_proj.activation
    assert attention.o_proj.activation is not attention.q_proj.activation


def test_paper_scheme_is_per_tensor_and_rotates_only_the_query_input():
    policy = load_policy("micro", "sqap_paper")
    layer = policy.model.decoder.layers[0]
    assert layer.self_attn.q_proj.activation.rotation is not None
    assert layer.mlp.down_proj.activation.rotation is None
    assert layer.self_attn.o_proj.activation.granularity == "tensor"
    assert policy.info.selector == "sqap"


def test_overrides_change_one_linear():
    layer = load_policy("micro", "w4a4_down8").model.decoder.layers[0]
    assert (layer.mlp.down_proj.bits, layer.mlp.down_proj.activation.bits) == (8, 8)
    assert (layer.mlp.up_proj.bits, layer.mlp.up_proj.activation.bits) == (4, 4)


def test_weight_only_keeps_its_activations():
    layer = load_policy("micro", "rtn_w4a16").model.decoder.layers[0]
    assert isinstance(layer.mlp.down_proj, WeightOnlyLinear)


def test_backends_predict_the_same():
    first, second = (load_policy("micro", "w4a4_rotated") for _ in range(2))
    reference = micro_policy()
    spec = load_recipe("w4a4_rotated")
    compress(reference, spec)
    use_backend(reference.model, "reference")
    fast = micro_policy()
    compress(fast, spec)
    use_backend(fast.model)
    for observation in HELD_OUT[:1]:
        np.testing.assert_array_equal(reference.predict(observation).normalized, fast.predict(observation).normalized)
        np.testing.assert_array_equal(first.predict(observation).normalized, second.predict(observation).normalized)


def test_a_batch_is_its_rows():
    policy = load_policy("micro", "sqap", dtype="float32")
    rows = policy.predict_batch(HELD_OUT)
    for row, observation in zip(rows, HELD_OUT, strict=True):
        np.testing.assert_allclose(row.normalized, policy.predict(observation).normalized, atol=5e-3)


@pytest.mark.parametrize("recipe", ["fp32", "w4a4_rotated", "rtn_w4a16"])
def test_packed_weights_count_as_parameters(recipe):
    plain = micro_policy()
    exact = sum(parameter.numel() for parameter in plain.model.parameters())
    assert plain.info.parameters == exact
    norm = plain.model.decoder.norm.weight.numel() if recipe == "w4a4_rotated" else 0  # it keeps its weight beside
    assert load_policy("micro", recipe).info.parameters == exact + norm


def test_calibration_is_asked_for():
    with pytest.raises(RecipeError, match="'w4a4' needs calibration observations: give --calibration"):
        compress(micro_policy(), load_recipe("w4a4"))
    decoder = micro_policy().model.decoder
    with pytest.raises(ValueError, match="needs calibration observations and got none"):
        compress_layer(decoder.layers[0], load_recipe("w4a4").quantization, decoder.config)


@pytest.mark.parametrize(
    ("section", "match"),
    [
        ({"pruning": PruningSpec("sqapp")}, "recipe 'mine': unknown token selector 'sqapp'"),
        ({"pruning": PruningSpec("sqap", {"ratoi": 0.4})}, "recipe 'mine': token selector 'sqap'.*ratoi"),
        ({"pruning": PruningSpec("sqap", {"prune_layer": 6})}, r"before decoder layer 6; this model has layers 0 to 5"),
        ({"accelerator": AcceleratorSpec("mole")}, "recipe 'mine': unknown accelerator 'mole'"),
        ({"accelerator": AcceleratorSpec("efficient_vla", {"remove": 6})}, "takes 6 layers out of a decoder of 6"),
        ({"accelerator": AcceleratorSpec("efficient_vla", {"remove": 4})}, r"layer 2; this model has layers 0 to 1"),
    ],
)
def test_what_cannot_be_put_on_the_policy_is_refused_before_anything_is_compressed(tmp_path, section, match):
    recipe = Recipe("mine", quantization=QuantizationSpec(), **section)
    policy = micro_policy()
    with pytest.raises(RecipeError, match=match):
        compress_to_file(policy, recipe, [], tmp_path / "policy.safetensors")
    with pytest.raises(RecipeError, match=match):
        compress(policy, recipe)
    assert not list(tmp_path.iterdir())
    assert not any(isinstance(module, QuantizedLinear) for module in policy.model.modules())


@pytest.mark.parametrize("text", ["selector: sqapp", "selector: sqap, parameters: {ratoi: 0.4}"])
def test_pruning_that_cannot_load_is_refused_before_the_checkpoint_is_read(text, tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"extends: rtn_w4a4\npruning: {{{text}}}\n")
    monkeypatch.setattr("sqap_vla_ros.compression.load.load_uncompressed", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(RecipeError, match=r"recipe 'mine': .*(sqapp|ratoi)"):
        load_policy("micro", str(recipe))
    out = tmp_path / "policy.safetensors"
    assert main(["compress", "--checkpoint", "micro", "--recipe", str(recipe), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "recipe 'mine': " in error
    assert error.count("\n") == 1


def test_collect_sees_what_the_weights_see(stream):
    _policy, hidden = stream
    layer = micro_policy().model.decoder.layers[0]
    norm = layer.input_layernorm(hidden[0])
    stats = collect(layer, lambda: layer.self_attn.q_proj(norm))
    torch.testing.assert_close(stats["q_proj"].absmax, norm.abs().flatten(0, 1).amax(0))
    assert stats["down_proj"].tokens == 0
    assert layer.self_attn.q_proj._forward_pre_hooks == {}


def test_damaged_weights_are_named():
    policy = micro_policy()
    with torch.no_grad():
        policy.model.decoder.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    spec = dataclasses.replace(load_recipe("rtn_w4a4"))
    with pytest.raises(ValueError, match="weight holds NaN"):
        compress(policy, spec)


def cognition(policy, observations, *, together: bool = False) -> torch.Tensor:
    """[n, D] what the decoder hands to the action head, one observation or all of them at a time."""
    seen: list[torch.Tensor] = []
    handle = policy.model.decoder.register_forward_hook(lambda _, __, output: seen.append(output.cognition))
    for some in [observations] if together else [[observation] for observation in observations]:
        policy.predict_batch(some)
    handle.remove()
    return torch.cat(seen)


def test_wide_text_brings_the_cognition_feature_nearer_alone_and_in_a_batch():
    observations = [dataclasses.replace(o, instruction=words) for o, words in zip(HELD_OUT, WORDS, strict=True)]
    expected = cognition(micro_policy(), observations)
    errors = {}
    for name in ("w4a4", "w4a4_text8"):
        policy = load_policy("micro", name, dtype="float32")
        alone = cognition(policy, observations)
        errors[name] = (alone - expected).norm()
        together = cognition(policy, observations, together=True)  # prompts of different length, padded
        assert (together - alone).norm() < 0.2 * errors[name]  # roundings that fall the other way
    assert errors["w4a4_text8"] < 0.95 * errors["w4a4"]
