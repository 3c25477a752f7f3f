"""Checkpoints of which rows cannot be scored are refused in a sentence; a layer that was taken out is not."""

import dataclasses

import pytest
import torch

from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.compress import compress, decoder_inputs, make_plan
from sqap_vla_ros.compression.files.job import compress_to_file
from sqap_vla_ros.compression.files.storage import CompressedFileError
from sqap_vla_ros.compression.files.unfinished_scoring import StoredScoring
from sqap_vla_ros.compression.recipe import QuantizationSpec, Recipe, RowBits
from sqap_vla_ros.compression.sensitivity.backward import make_cotangents
from sqap_vla_ros.compression.sensitivity.scores import METRICS
from sqap_vla_ros.compression.sensitivity.soundness import ScoringError, require_damage, require_finite
from sqap_vla_ros.compression.sensitivity.towers import score_towers
from sqap_vla_ros.compression.sensitivity.unfinished import Scoring
from sqap_vla_ros.policy.micro.policy import micro_policy

OBSERVATIONS = synthetic_observations(4)
NEAREST = QuantizationSpec(activation_bits=8, row_bits=RowBits(3.0, probes=1))
PLAIN = dataclasses.replace(NEAREST, rounding="gptq")
WEIGHTED = dataclasses.replace(PLAIN, hessian="weighted")
UNIFORM = dataclasses.replace(WEIGHTED, row_bits=None)
TOWERS = dataclasses.replace(NEAREST, row_bits=RowBits(3.0, probes=1, vision=4.0))


def scaled(path, factor):
    policy = micro_policy()
    with torch.no_grad():
        policy.model.get_submodule(path).weight.mul_(factor)
    return policy


LAST = "action_head.final_layer.linear"
DOWN = "decoder.layers.2.mlp.down_proj"


@pytest.mark.parametrize(
    ("path", "factor", "spec", "said"),
    [
        (LAST, 1e22, PLAIN, rf"action's gradient .* is not finite; .* weights of {LAST}, .* one is \d\.\d+e\+22"),
        (LAST, torch.nan, UNIFORM, rf"action's gradient .* is not finite; .* weights of {LAST}, .* one is nan"),
        (LAST, 0.0, UNIFORM, rf"does not depend on the decoder's output.* weights of {LAST} are all 0; train"),
        ("action_head.z_embedder.linear", 0.0, NEAREST, r"weights of action_head\.z_embedder\.linear are all 0; train"),
        (DOWN, 1e30, NEAREST, r"look at the weights of decoder\.layers\.2\.down_proj, of which one is \d"),
    ],
)
def test_it_is_refused_before_anything_is_written(tmp_path, path, factor, spec, said):
    out = tmp_path / "policy.safetensors"
    with pytest.raises(ScoringError, match=f"{said}.* without row_bits and with hessian: plain"):
        compress_to_file(scaled(path, factor), Recipe("mine", quantization=spec), OBSERVATIONS, out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (NEAREST, r"the damage of rounding a row to 2 bits is (inf|nan) for \d+ of 128 rows"),
        (WEIGHTED, r"the traces of its weighted and its plain Hessian must be finite, got (inf|nan) and"),
        (UNIFORM, r"the traces of its weighted and its plain Hessian must be finite, got (inf|nan) and"),
    ],
)
def test_the_linear_is_named_where_squares_overflow(tmp_path, monkeypatch, spec, said):
    def loud(*args, **kwargs):
        return [[1e24 * each for each in probes] for probes in make_cotangents(*args, **kwargs)]

    monkeypatch.setattr("sqap_vla_ros.compression.sensitivity.plan.make_cotangents", loud)
    out = tmp_path / "policy.safetensors"
    with pytest.raises(ScoringError, match=rf"^decoder\.layers\.5\.q_proj: {said}.*; look at the weights of "):
        compress_to_file(micro_policy(), Recipe("mine", quantization=spec), OBSERVATIONS, out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("spec", "path"),
    [(WEIGHTED, "self_attn.o_proj"), (WEIGHTED, "mlp.up_proj"), (UNIFORM, "self_attn.v_proj")],
)
def test_a_layer_that_was_zeroed_is_rounded_on_its_inputs(spec, path):
    policy = scaled(f"decoder.layers.2.{path}", 0.0)
    reports = compress(policy, Recipe("mine", quantization=spec), OBSERVATIONS)
    assert all(report.weight_error < 1.0 for report in reports)
    (zeroed,) = (report for report in reports if report.name == f"decoder.layers.2.{path.split('.')[1]}")
    assert zeroed.weight_error == 0.0
    assert torch.isfinite(torch.from_numpy(policy.predict(OBSERVATIONS[0]).normalized)).all()


def test_gradients_are_not_asked_for_where_no_score_needs_them():
    rows = RowBits(3.0, probes=1, metric="released")
    policy = scaled(LAST, 0.0)
    plan = make_plan(policy, dataclasses.replace(PLAIN, row_bits=rows), decoder_inputs(policy, OBSERVATIONS))
    assert plan is not None
    assert len(plan.bits) == 6 * 7


def test_scores_are_finite_and_not_all_zero():
    policy, linear = micro_policy(), (3, "v_proj")
    with pytest.raises(ScoringError, match=r"decoder\.layers\.3\.v_proj: .* to 4 bits is inf for 1 of 2 rows"):
        require_finite(linear, {2: torch.ones(2), 4: torch.tensor([1.0, torch.inf])}, policy)
    with pytest.raises(ScoringError, match=r"every row of the decoder has a score of 0"):
        require_damage({linear: {2: torch.zeros(2)}}, policy)
    require_damage({linear: {2: torch.zeros(2)}, (4, "v_proj"): {2: torch.ones(2)}}, policy)


def test_towers_are_checked_as_the_decoder_is():
    policy = micro_policy()
    size = policy.model.config.vision.image_size
    probed = [torch.zeros(1, 3, size, size, dtype=torch.uint8)], [[torch.full((1, 300, 128), 1e24)]]
    with pytest.raises(ScoringError, match=r"^vision\.\S+: the damage of rounding a row to 2 bits is (inf|nan) for"):
        score_towers(policy, TOWERS, METRICS["epsilon"], probed, probed, {})


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_stored_scores_and_hessians_that_are_not_finite_are_refused(tmp_path, value):
    store = StoredScoring(tmp_path, "remove it")
    store.write(Scoring(2, [], [], {(3, "v_proj"): {2: torch.tensor([1.0, value])}}))
    with pytest.raises(CompressedFileError, match=r"holds scores/003_v_proj/2, which is not finite; remove it"):
        store.read()
    store.hessians[3, "v_proj"] = torch.full((2, 2), value)
    with pytest.raises(CompressedFileError, match=r"hessian_003_v_proj\.safetensors is not finite; remove it"):
        store.hessians[3, "v_proj"]
