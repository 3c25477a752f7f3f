"""Vision towers, projector and action head in integers: compressed, stored, loaded."""

import dataclasses

import numpy as np
import pytest

from sqap_vla_ros.compression.bops import Definition, Workload, bops
from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.compress import compress
from sqap_vla_ros.compression.files.job import compress_to_file
from sqap_vla_ros.compression.files.storage import CompressedFile
from sqap_vla_ros.compression.load import _finish, load_policy, load_uncompressed
from sqap_vla_ros.compression.parts import quantize_parts
from sqap_vla_ros.compression.recipe import QuantizationSpec, Recipe, RecipeError, load_recipe
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.quantization.layer_fusion import prepare_inference
from sqap_vla_ros.quantization.linear import QuantizedLinear
from sqap_vla_ros.quantization.quantizers import quantize_weight

PARTS = {"vision": 8, "projector": 8, "action_head": 8}
OBSERVATIONS = synthetic_observations(4)
HELD_OUT = synthetic_observations(1, seed=7)[0]


def test_a_file_predicts_what_compression_in_memory_predicts(tmp_path):
    shipped = load_recipe("w4a8_full")
    recipe = dataclasses.replace(shipped, quantization=dataclasses.replace(shipped.quantization, parts=PARTS))
    in_memory = load_uncompressed("micro", recipe)
    reports = compress(in_memory, recipe, OBSERVATIONS)
    quantized = {name for name, module in in_memory.model.named_modules() if isinstance(module, QuantizedLinear)}
    assert {"projector.4", "vision.siglip.encoder.layers.0.mlp.fc1", "action_head.blocks.0.attn.qkv"} < quantized
    assert len(quantized) == len(reports)
    out = tmp_path / "policy.safetensors"
    compress_to_file(load_uncompressed("micro", recipe), recipe, OBSERVATIONS, out)
    header = CompressedFile(out).header
    assert header.recipe == recipe
    assert sorted(row["name"] for row in header.report) == sorted(report.name for report in reports)
    loaded = load_policy(str(out), "bf16")
    prepare_inference(in_memory.model)
    prepared = _finish(in_memory, recipe, {}, "cpu")
    np.testing.assert_array_equal(loaded.predict(HELD_OUT).normalized, prepared.predict(HELD_OUT).normalized)
    assert loaded.info.parameters == prepared.info.parameters == load_policy("micro", "w4a8").info.parameters


def test_linears_that_share_an_input_share_their_quantiser_and_are_rounded_to_nearest():
    policy = micro_policy()
    block = policy.model.vision.dino.encoder.layer[0]
    expected = quantize_weight(block.attention.k_proj.weight.data, 8)
    spec = QuantizationSpec(parts={"vision": 8})
    reports = quantize_parts(policy.model, spec, ("vision", "projector"))
    attention = block.attention
    assert attention.q_proj.activation is attention.k_proj.activation is attention.v_proj.activation
    assert attention.q_proj.activation.consumers == 3
    assert (attention.k_proj.quantized_weight().values == expected.values).all()
    assert all(report.name.startswith("vision.") for report in reports)
    assert max(report.weight_error for report in reports) < 0.01
    assert not isinstance(policy.model.projector[0], QuantizedLinear)


def test_eight_bits_hardly_change_the_action():
    policy = micro_policy()
    expected = policy.predict(HELD_OUT).normalized
    quantize_parts(policy.model, QuantizationSpec(parts=PARTS), tuple(PARTS))
    difference = policy.predict(HELD_OUT).normalized - expected
    assert 0 < np.sqrt(np.square(difference).mean()) < 0.05


@pytest.mark.parametrize("name", ["w4a8", "sqap_w4a8", "coverage_w4a8"])
def test_shipped_recipes_add_nothing_but_the_parts(name):
    full, plain = load_recipe(f"{name}_full"), load_recipe(name)
    assert full.quantization.parts == {"vision": 8, "projector": 8}
    assert dataclasses.replace(full.quantization, parts={}) == plain.quantization
    assert (full.pruning, full.dtype, full.head_dtype) == (plain.pruning, plain.dtype, plain.head_dtype)


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({"towers": 8}, r"quantization\.parts must be one of vision, projector, action_head, got 'towers'"),
        ({"vision": 3}, r"quantization\.parts\.vision must be one of 4, 8, got 3"),
    ],
)
def test_bad_parts_are_refused(parts, match):
    with pytest.raises(RecipeError, match=match):
        Recipe.from_dict({"name": "mine", "quantization": {"parts": parts}})


def test_operations_of_the_parts_count_at_their_bits():
    config = micro_policy().model.config
    plain = bops(Workload(config), QuantizationSpec(activation_bits=8))
    full = bops(Workload(config), QuantizationSpec(activation_bits=8, parts=PARTS), Definition.PAPER)
    assert full["projector"] == plain["projector"] / 2
    for name in ("vision.dino", "vision.siglip", "action_head"):
        assert plain[name] / 2 < full[name] < plain[name]  # attention, embeddings and read-out stay
