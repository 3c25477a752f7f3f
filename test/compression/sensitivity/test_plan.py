"""Recipes with rows of mixed widths, from the plan to a policy in memory and in a file."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import yaml

from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.compress import compress, decoder_inputs, make_plan, prepare_stream
from sqap_vla_ros.compression.files.job import compress_to_file, scores_digest
from sqap_vla_ros.compression.files.storage import CompressedFile, CompressedFileError
from sqap_vla_ros.compression.load import load_policy, load_uncompressed
from sqap_vla_ros.compression.parts import fuse_parts
from sqap_vla_ros.compression.recipe import QuantizationSpec, Recipe, RecipeError, RowBits, load_recipe
from sqap_vla_ros.compression.sensitivity.allocation import averages
from sqap_vla_ros.compression.sensitivity.backward import EVERY_TOKEN
from sqap_vla_ros.compression.sensitivity.plan import TurnedLayers, plan_rows
from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.quantization.layer_fusion import prepare_inference
from sqap_vla_ros.quantization.mixed import MixedLinear, MixedWeightOnlyLinear, quantize_mixed
from sqap_vla_ros.quantization.quantizers import quantize_weight

OBSERVATIONS = synthetic_observations(4)
HELD_OUT = synthetic_observations(1, seed=7)[0]
ROWS = RowBits(3.0, probes=1)
ROWS_AND_TOWERS = dataclasses.replace(ROWS, vision=4.0)
QUICK = Recipe("quick", quantization=QuantizationSpec(activation_bits=8, rotation="hadamard", row_bits=ROWS))


@pytest.fixture(scope="module")
def plan():
    policy = micro_policy()
    hidden, _ = prepare_stream(policy, QUICK.quantization, OBSERVATIONS)
    return make_plan(policy, QUICK.quantization, hidden)


def test_the_plan_keeps_to_the_average_and_covers_every_linear(plan):
    assert len(plan.bits) == 6 * 7
    columns = {(layer, name): 352 if name == "down_proj" else 128 for layer, name in plan.bits}
    assert 2.9 < averages(plan.bits, columns)[0] <= 3.0
    assert all((scores[2] >= 0).all() for scores in plan.scores.values())
    two, four = (sum(float(scores[bits].sum()) for scores in plan.scores.values()) for bits in (2, 4))
    assert two > 4 * four


def test_planning_changes_nothing_in_the_policy():
    policy = micro_policy()
    before = copy.deepcopy(policy.model.state_dict())
    spec = QuantizationSpec(rounding="gptq", hessian="weighted")
    plan = plan_rows(policy, spec, decoder_inputs(policy, OBSERVATIONS))
    assert plan.bits == {}
    assert len(plan.hessians) == 6 * 7
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.model.state_dict().items())


def test_turned_layers_are_what_the_recipe_leaves_behind():
    decoder = micro_policy().model.decoder
    layers = TurnedLayers(decoder, QUICK.quantization)
    assert len(layers) == 6
    assert len(layers[4:]) == 2
    assert layers[1].input_layernorm.weight.unique().tolist() == [1.0]
    assert not torch.equal(layers[1].mlp.up_proj.weight, decoder.layers[1].mlp.up_proj.weight)


@pytest.mark.parametrize(("activation_bits", "kind"), [(8, MixedLinear), (16, MixedWeightOnlyLinear)])
def test_a_file_predicts_what_compression_in_memory_predicts(tmp_path, activation_bits, kind):
    spec = QuantizationSpec(activation_bits=activation_bits, rotation="hadamard", row_bits=ROWS)
    recipe = Recipe("quick", quantization=spec)
    in_memory = micro_policy()
    reports = compress(in_memory, recipe, OBSERVATIONS)
    assert {type(layer.mlp.up_proj) for layer in in_memory.model.decoder.layers} == {kind}
    out = tmp_path / "policy.safetensors"
    compress_to_file(micro_policy(), recipe, OBSERVATIONS, out)
    loaded = load_policy(str(out), "bf16")
    prepare_inference(in_memory.model)
    fuse_parts(in_memory.model)
    np.testing.assert_allclose(loaded.predict(HELD_OUT).normalized, in_memory.predict(HELD_OUT).normalized, atol=1e-5)
    header = CompressedFile(out).header
    assert header.recipe == recipe
    assert [row["stored_bytes"] for row in header.report] == [report.stored_bytes for report in reports]
    assert sum(header.row_counts["decoder.layers.0.up_proj"].values()) == 352
    assert all(row["damage"]["2"] > row["damage"]["8"] >= 0 for row in header.report)
    assert loaded.info.parameters == in_memory.info.parameters


def test_the_vision_towers_take_widths_by_row_too(tmp_path):
    spec = QuantizationSpec(activation_bits=8, row_bits=ROWS_AND_TOWERS, parts={"projector": 8})
    recipe, out = Recipe("towers", quantization=spec), tmp_path / "policy.safetensors"
    in_memory = micro_policy()
    reports = {report.name: report for report in compress(in_memory, recipe, OBSERVATIONS)}
    towers = [report for name, report in reports.items() if name.startswith("vision.")]
    assert len(towers) == 36
    assert "projector.0" in reports
    weights, bits = 0, 0.0
    for report in towers:
        linear = in_memory.model.get_submodule(report.name)
        assert isinstance(linear, MixedLinear)
        assert report.stored_bytes == linear.stored_bytes
        weights += linear.in_features * linear.out_features
        bits += linear.in_features * linear.out_features * report.weight_bits
    assert 3.9 < bits / weights <= 4.0
    compress_to_file(micro_policy(), recipe, OBSERVATIONS, out)
    loaded = load_policy(str(out), "bf16")
    prepare_inference(in_memory.model)
    fuse_parts(in_memory.model)
    np.testing.assert_allclose(loaded.predict(HELD_OUT).normalized, in_memory.predict(HELD_OUT).normalized, atol=1e-5)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("rows", [ROWS_AND_TOWERS, None], ids=["rows", "uniform"])
def test_an_interruption_keeps_the_plan(rows, tmp_path, monkeypatch):
    """Scores, widths and weighted Hessians: the file is what an uninterrupted run writes."""
    spec = QuantizationSpec(activation_bits=8, rounding="gptq", hessian="weighted", row_bits=rows)
    recipe, out, whole = Recipe("quick", quantization=spec), tmp_path / "policy.safetensors", tmp_path / "w.safetensors"
    scored = []

    def interrupt_scoring(stage, done, _):
        if stage == "scoring decoder layers" and done == 4:
            raise Interrupted

    def note(stage, done, _):
        if stage == "scoring decoder layers":
            scored.append(done)

    def interrupt(layer):
        raise Interrupted

    with pytest.raises(Interrupted):
        compress_to_file(micro_policy(), recipe, OBSERVATIONS, out, progress=interrupt_scoring)
    work = out.with_name(out.name + ".partial")
    lost = (work / "hessian_003_o_proj.safetensors").rename(work / "elsewhere")
    with pytest.raises(CompressedFileError, match=r"lacks the Hessian of 003_o_proj; remove .* and start again"):
        compress_to_file(micro_policy(), recipe, OBSERVATIONS, out)
    lost.rename(work / "hessian_003_o_proj.safetensors")
    with pytest.raises(Interrupted):
        compress_to_file(micro_policy(), recipe, OBSERVATIONS, out, progress=note, after_layer=interrupt)
    assert scored == [4, 5, 6]
    assert (work / "scoring.safetensors").stat().st_size < 2**20  # scores without cotangents
    with monkeypatch.context() as patched:
        patched.setattr(
            "sqap_vla_ros.compression.sensitivity.plan.plan_rows", lambda *_, **__: pytest.fail("planned twice")
        )
        compress_to_file(micro_policy(), recipe, OBSERVATIONS, out)
    compress_to_file(micro_policy(), recipe, OBSERVATIONS, whole)
    assert out.read_bytes() == whole.read_bytes()
    assert not work.exists()


@pytest.mark.parametrize(
    ("interrupted", "first"),
    [("scoring", 3), ("quantising", 6)],
)
def test_another_average_goes_on_from_the_scores_of_an_unfinished_compression(tmp_path, interrupted, first):
    """Everything that comes after the scores may differ; the file is what an uninterrupted run writes."""
    spec = QuantizationSpec(activation_bits=8, rounding="gptq", hessian="weighted", row_bits=ROWS_AND_TOWERS)
    rows = dataclasses.replace(ROWS, average=4.5, widths=(4, 8), method="stages", ties="layout", vision=5.0)
    other = dataclasses.replace(spec, activation_bits=16, row_bits=rows)
    out, whole, said, scored = tmp_path / "policy.safetensors", tmp_path / "w.safetensors", [], []

    def interrupt(stage, done, _):
        if stage == f"{interrupted} decoder layers" and done == 3:
            raise Interrupted

    def note(stage, done, _):
        said.append(stage)
        if stage == "scoring decoder layers":
            scored.append(done)

    with pytest.raises(Interrupted):
        compress_to_file(micro_policy(), Recipe("one", quantization=spec), OBSERVATIONS, out, progress=interrupt)
    compress_to_file(micro_policy(), Recipe("other", quantization=other), OBSERVATIONS, out, progress=note)
    assert said[0] == "taking over an unfinished compression with another recipe"
    assert scored == [*range(first, 7)]
    compress_to_file(micro_policy(), Recipe("other", quantization=other), OBSERVATIONS, whole)
    assert out.read_bytes() == whole.read_bytes()


def test_scores_depend_on_no_key_that_comes_after_them():
    spec = QuantizationSpec(activation_bits=8, rounding="gptq", hessian="weighted", row_bits=ROWS)

    def digest(**changes):
        rows = {key: value for key, value in changes.items() if hasattr(RowBits(3.0), key)}
        others = {key: value for key, value in changes.items() if key not in rows}
        changed = dataclasses.replace(spec, **others, row_bits=dataclasses.replace(ROWS, **rows))
        return scores_digest(Recipe("any", quantization=changed))

    same = ({"average": 4.0}, {"zero_share": 0.1, "widths": (0, 2, 4)}, {"ties": "linear"}, {"text_activation_bits": 4})
    assert {digest(**changes) for changes in same} == {digest()}
    others = ({"probes": 2}, {"metric": "eq6"}, {"vision": 4.0}, {"hessian": "plain"}, {"rotation": "hadamard"})
    assert len({digest(), *(digest(**changes) for changes in others), digest(weight_clip=True)}) == 7
    assert digest(vision=4.0) == digest(vision=5.0)
    assert scores_digest(Recipe("any")) is scores_digest(load_recipe("w4a4")) is None


def test_scores_that_lack_a_width_are_made_anew(tmp_path):
    narrow, wide = (
        Recipe(
            "any", quantization=QuantizationSpec(activation_bits=8, row_bits=dataclasses.replace(ROWS, widths=widths))
        )
        for widths in ((2, 4), (2, 4, 8))
    )
    out, scored = tmp_path / "policy.safetensors", []

    def interrupt(layer):
        raise Interrupted

    with pytest.raises(Interrupted):
        compress_to_file(micro_policy(), narrow, OBSERVATIONS, out, after_layer=interrupt)
    with pytest.raises(Interrupted):
        compress_to_file(
            *(micro_policy(), wide, OBSERVATIONS, out),
            progress=lambda stage, done, _: scored.append(done) if stage.startswith("scoring") else None,
            after_layer=interrupt,
        )
    assert scored == [*range(7)]


def test_weighted_hessians_serve_uniform_recipes_too(tmp_path):
    weights = []
    for hessian in ("plain", "weighted"):
        spec = QuantizationSpec(activation_bits=16, rounding="gptq", hessian=hessian)
        policy = load_uncompressed("micro", Recipe("uniform", quantization=spec))
        compress(policy, Recipe("uniform", quantization=spec), OBSERVATIONS)
        weights.append(policy.model.decoder.layers[0].mlp.up_proj.quantized_weight().dequantize())
    assert weights[0].shape == weights[1].shape
    assert not torch.equal(*weights)


CONTRADICTIONS = (
    (
        "row_bits: {average: 4}\n  weight_bits: 8",
        r"row_bits and weight_bits: 8 both say .*, or write 4 where .* extends",
    ),
    (
        "row_bits: {average: 4}\n  overrides: {down_proj: {weight_bits: 8}}",
        r"row_bits and overrides\.down_proj\.weight_bits both say how wide weights are; keep one",
    ),
    ("row_bits: {average: 4, widths: [2, 4, 8, 8]}", r"row_bits\.widths must differ from each other, got 2, 4, 8, 8"),
    ("row_bits: {average: 4, widths: [4, 4, 8]}", r"row_bits\.widths must differ from each other, got 4, 4, 8"),
    (
        "row_bits: {average: 4, zero_share: 0.5}",
        r"row_bits\.zero_share is 0\.5, and widths 2, 4, 8 have no 0; add it, or leave zero_share out",
    ),
)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("row_bits: {average: 1.0}", r"row_bits: an average of 1 bits cannot be met with widths 2, 4, 8"),
        ("row_bits: {average: 4, widths: [3, 4]}", r"row_bits: widths must be two or more of 0, 2, 4, 8, 16"),
        ("row_bits: {average: 4, metric: guess}", r"row_bits\.metric must be one of epsilon, .*, got 'guess'"),
        ("row_bits: {average: 4, method: best}", r"row_bits\.method must be one of heap, stages, got 'best'"),
        ("row_bits: {average: 4, ties: all}", r"row_bits\.ties must be one of none, layout, linear, got 'all'"),
        (
            "row_bits: {average: 4, widths: [0, 4, 8], metric: action}",
            r"row_bits: rows of 0 bits .* epsilon, got 'action'",
        ),
        ("row_bits: {average: 4, probes: 0}", r"row_bits\.probes must be at least 1, got 0"),
        ("row_bits: {mean: 4}", r"row_bits: unknown 'mean'; known: average"),
        ("row_bits: 3.0", r"row_bits must be a mapping with an average, such as \{average: 3\.0\}, got 3\.0"),
        (
            "row_bits: {average: 4, vision: true}",
            r"row_bits\.vision must be the mean bits .* such as 4\.0, .* got true",
        ),
        (
            "row_bits: {average: 3.9, widths: [0, 4], zero_share: 0.5, vision: 4.0}",
            r"row_bits\.vision: the towers' rows cannot have 0 bits, which leaves them 4 of widths 0, 4; give another",
        ),
        ("row_bits: {average: 4}\n  equalization: awq\n  activation_bits: 16", r"cannot be combined with equalization"),
        ("row_bits: {average: 4, vision: 1}", r"row_bits\.vision: an average of 1 bits cannot be met"),
        ("row_bits: {average: 4, vision: 4}\n  parts: {vision: 8}", r"row_bits\.vision and parts\.vision both say"),
        *CONTRADICTIONS,
        ("hessian: weighted", r"hessian: weighted needs rounding: gptq, got 'nearest'"),
        ("hessian: diagonal", r"hessian must be one of plain, weighted, got 'diagonal'"),
    ],
)
def test_bad_recipes_are_one_sentence(tmp_path, text, match):
    path = tmp_path / "mine.yaml"
    path.write_text(f"quantization:\n  {text}\n")
    with pytest.raises(RecipeError, match=rf"^recipe 'mine'[:,] quantization\.?.*{match}"):
        load_recipe(path)


@pytest.mark.parametrize(("text", "match"), CONTRADICTIONS)
def test_recipes_of_earlier_files_are_read_whatever_they_contradict_but_not_carried_out(text, match):
    content = {"name": "mine", "quantization": yaml.safe_load(text.replace("\n  ", "\n"))}
    recipe = Recipe.from_dict(content)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    with pytest.raises(RecipeError, match=rf"^recipe 'mine': quantization.*{match}"):
        compress(micro_policy(), recipe, OBSERVATIONS)


def test_other_keys_may_stand_beside_row_bits(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "extends: qvla_w3a8\nquantization: {weight_bits: 4, overrides: {down_proj: {activation_bits: 16}}, "
        "row_bits: {widths: [0, 2, 4], zero_share: 0.1}}\n"
    )
    assert load_recipe(path).quantization.bits("down_proj") == (4, 16)


@pytest.mark.parametrize(
    ("rows", "least"),
    [
        (RowBits(0.3, widths=(0, 2), zero_share=0.9), r"0\.327 is the least, as at most 83\.7% of the weights"),
        (
            RowBits(1.942, widths=(0, 2), zero_share=0.03, ties="linear"),
            r"1\.946 is the least, as at most 2\.7% of the weights",
        ),
        (
            RowBits(0.3, widths=(0, 2), zero_share=0.9, by_parameters=False),
            r"0\.381 is the least, as at most 81\.0% of the rows",
        ),
    ],
)
def test_an_average_that_no_scores_can_meet_is_refused_before_any_work(rows, least, monkeypatch, tmp_path):
    monkeypatch.setattr("sqap_vla_ros.compression.compress.decoder_inputs", lambda *_: pytest.fail("work began"))
    recipe = Recipe("mine", quantization=QuantizationSpec(activation_bits=8, row_bits=rows))
    said = rf"^recipe 'mine': quantization\.row_bits: an average of .* bits cannot be met: {least}"
    with pytest.raises(RecipeError, match=said):
        compress(micro_policy(), recipe, OBSERVATIONS)
    with pytest.raises(RecipeError, match=said):
        compress_to_file(micro_policy(), recipe, OBSERVATIONS, tmp_path / "policy.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_average_that_scores_forbid_names_the_recipe(monkeypatch):
    monkeypatch.setattr("sqap_vla_ros.compression.sensitivity.plan.harmful_zeros", lambda bits, *_: {*bits})
    rows = RowBits(1.95, widths=(0, 2), zero_share=0.05, probes=1)
    recipe = Recipe("mine", quantization=QuantizationSpec(activation_bits=8, row_bits=rows))
    with pytest.raises(RecipeError, match=r"^recipe 'mine': quantization\.row_bits: .* 2\.000 is the least"):
        compress(micro_policy(), recipe, OBSERVATIONS)


def test_too_few_observations_are_named():
    with pytest.raises(
        RecipeError, match=r"'quick' looks at the action of at least 4 calibration observations, got 2; 24 to 48"
    ):
        compress(micro_policy(), QUICK, OBSERVATIONS[:2])
    with pytest.raises(RecipeError, match="needs calibration observations"):
        compress(micro_policy(), QUICK)


@pytest.mark.parametrize(("rows", "fitted"), [(None, 4), (ROWS, 2)])
def test_the_last_layer_is_rounded_on_the_cognition_token_alone(rows, fitted, monkeypatch):
    """Of recipes with `hessian: weighted`, uniform or by row; keys and values are computed for every token."""
    independent = []  # inputs that each second moment was made of

    def nearest(weight, bits, hessian=None, **_):
        strength = torch.linalg.eigvalsh(hessian.double())
        independent.append(int((strength > 1e-6 * strength.max()).sum()))
        return quantize_weight(weight, bits)

    def nearest_by_row(weight, bits, hessian=None, **_):
        nearest(weight, 4, hessian)
        return quantize_mixed(weight, bits, clip_search=False)

    monkeypatch.setattr("sqap_vla_ros.quantization.gptq.gptq", lambda w, h, bits, **_: nearest(w, bits, h))
    monkeypatch.setattr("sqap_vla_ros.compression.layers.quantize_mixed", nearest_by_row)
    spec = QuantizationSpec(activation_bits=8, rounding="gptq", hessian="weighted", row_bits=rows)
    compress(micro_policy(), Recipe("weighted", quantization=spec), OBSERVATIONS)
    *_, before, last = (dict(zip(COGACT.linears, independent[at : at + 7], strict=True)) for at in range(0, 42, 7))
    assert {name: count for name, count in last.items() if name not in EVERY_TOKEN} == {
        name: fitted for name in COGACT.linears if name not in EVERY_TOKEN
    }
    assert all(last[name] > 40 for name in EVERY_TOKEN)
    assert all(count > 40 for count in before.values())


def test_qvla_recipes_differ_in_what_they_say():
    four, joint = load_recipe("qvla_w4a8"), load_recipe("sqap_qvla")
    assert four.quantization == joint.quantization
    assert joint.pruning == load_recipe("sqap").pruning
    assert four.quantization.row_bits == RowBits(4.0)
    assert load_recipe("qvla_w2.5a8").quantization.row_bits == RowBits(2.5)
    assert Recipe.from_dict(joint.to_dict()) == joint
    assert {load_recipe(f"qvla_{name}").quantization.activation_bits for name in ("w4a16", "w8a16")} == {16}
