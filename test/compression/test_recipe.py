import dataclasses
import hashlib
import json

import pytest

from sqap_vla_ros.compression.recipe import (
    AcceleratorSpec,
    PruningSpec,
    QuantizationSpec,
    Recipe,
    RecipeError,
    list_recipes,
    load_recipe,
)


def test_every_shipped_recipe_is_valid_described_and_round_trips():
    names = list_recipes()
    assert {"fp32", "bf16", "sqap", "sqap_paper", "w4a4", "w8a8_smoothquant", "w4a16_awq", "rtn_w4a4"} <= set(names)
    for name in names:
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description
        assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize("suffix", ["", "_text8"])
def test_sqap_is_w4a4_plus_pruning(suffix):
    sqap, w4a4 = load_recipe(f"sqap{suffix}"), load_recipe(f"w4a4{suffix}")
    assert sqap.quantization == w4a4.quantization
    assert sqap.pruning is not None
    assert sqap.pruning.parameters["ratio"] == 0.4
    assert sqap.pruning == load_recipe("sqap").pruning == load_recipe("sqap_pruning").pruning
    assert sqap.digest != w4a4.digest


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(RecipeError, match=r"no recipe named 'sqapp'; there are: .*sqap"):
        load_recipe("sqapp")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("quantization: {weight_bits: 5}", r"weight_bits must be one of 2, 3, 4, 8, got 5"),
        ("quantization: {wieght_bits: 4}", r"unknown 'wieght_bits'; known: .*weight_bits"),
        ("quantization: {weight_group: 128}", "cannot leave an integer product"),
        ("quantization: {rotation: hadamard, equalization: smoothquant}", "choose one"),
        ("quantization: {activation_clip: 0.0}", "activation_clip must be within"),
        ("quantization: {overrides: {lm_head: {weight_bits: 8}}}", "got 'lm_head'"),
        ("quantization: {overrides: {down_proj: {bits: 8}}}", "unknown bits"),
        ("quantization: {text_activation_bits: 6}", "text_activation_bits must be one of 4, 8, got 6"),
        ("quantization: {activation_bits: 16, text_activation_bits: 8}", "activation_bits is 16"),
        ("quantization: 4", "must be a mapping, got 4"),
        ("pruning: {ratio: 0.4}", "unknown 'ratio'"),
        ("pruning: {}", "pruning: lacks 'selector'"),
        ("dtype: fp16", "dtype must be one of float32, bfloat16, got 'fp16'"),
        ("[1]", "must hold a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path, text, match):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=match):
        load_recipe(path)


def test_missing_file_and_overrides(tmp_path):
    with pytest.raises(RecipeError, match=r"mine\.yaml does not exist"):
        load_recipe(tmp_path / "mine.yaml")
    spec = QuantizationSpec(overrides={"down_proj": {"weight_bits": 8, "activation_bits": 8}})
    assert spec.bits("down_proj") == (8, 8)
    assert spec.bits("q_proj") == (4, 4)


def test_what_looks_at_data_is_known():
    assert load_recipe("w4a4").quantization.needs_calibration
    assert not load_recipe("w4a4_rotated").quantization.needs_calibration


def test_a_digest_says_what_is_done_and_no_more():
    recipe = load_recipe("w4a4")
    assert dataclasses.replace(recipe, name="other", description="words").digest == recipe.digest
    assert recipe.quantization is not None
    wide = dataclasses.replace(recipe.quantization, text_activation_bits=8)
    assert dataclasses.replace(recipe, quantization=wide).digest == load_recipe("w4a4_text8").digest != recipe.digest
    # files and results from before there was this field name the same recipe
    content = {k: v for k, v in recipe.to_dict().items() if k not in ("name", "description")}
    assert "text_activation_bits" not in content["quantization"]
    assert recipe.digest == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_a_recipe_says_only_what_it_adds_to_its_parent(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: w4a4\nquantization: {overrides: {down_proj: {weight_bits: 8, activation_bits: 8}}}\n")
    mine = load_recipe(path)
    assert (mine.name, mine.description) == ("mine", "")
    assert mine.digest == load_recipe("w4a4_down8").digest


def test_sections_replace_the_parents_and_null_takes_them_away(tmp_path):
    write(
        tmp_path,
        wider="extends: w4a4_down8\nquantization: {overrides: {down_proj: {weight_bits: 4}, o_proj: {weight_bits: 8}}}",
        half="extends: sqap\npruning: {selector: sqap, parameters: {ratio: 0.5}}",
        plain="extends: sqap\nquantization: null",
        merged="extends: sqap\npruning: null\naccelerator: {name: tome}",
        child="extends: ./half.yaml\nhead_dtype: float32",
    )
    overrides = load_recipe(tmp_path / "wider.yaml").quantization.overrides
    assert overrides == {"down_proj": {"weight_bits": 4, "activation_bits": 8}, "o_proj": {"weight_bits": 8}}
    assert load_recipe(tmp_path / "half.yaml").pruning == PruningSpec("sqap", {"ratio": 0.5})  # metric is not inherited
    assert load_recipe(tmp_path / "plain.yaml").quantization is None
    assert load_recipe(tmp_path / "merged.yaml").accelerator == AcceleratorSpec("tome")
    child = load_recipe(tmp_path / "child.yaml")
    assert (child.pruning, child.head_dtype) == (load_recipe(tmp_path / "half.yaml").pruning, "float32")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("one", r"recipe 'one' extends itself: one -> two -> one"),
        ("itself", r"recipe 'itself' extends itself: itself -> itself"),
        ("orphan", r"recipe 'orphan' extends 'w4a5': no recipe named 'w4a5'; there are: .*w4a4"),
        ("lost", r"recipe 'lost' extends '\./gone\.yaml': recipe file .*gone\.yaml does not exist"),
        ("many", r"recipe 'many': extends must be the name or the file of a recipe, got \['w4a4'\]"),
        ("both", r"recipe 'both': accelerator 'tome' brings its own choice of tokens.* selector 'sqap'"),
    ],
)
def test_wrong_parents_are_one_clear_error(tmp_path, name, match):
    write(
        tmp_path,
        one="extends: ./two.yaml",
        two="extends: ./one.yaml",
        itself="extends: itself.yaml",
        orphan="extends: w4a5",
        lost="extends: ./gone.yaml",
        many="extends: [w4a4]",
        both="extends: sqap\naccelerator: {name: tome}",
    )
    with pytest.raises(RecipeError, match=match):
        load_recipe(tmp_path / f"{name}.yaml")


@pytest.mark.parametrize(("wide", "narrow"), [("w4a8", "w4a4"), ("sqap_w4a8", "sqap")])
def test_eight_bit_activations_are_all_that_w4a8_adds(wide, narrow):
    recipe = load_recipe(narrow)
    spec = dataclasses.replace(recipe.quantization, activation_bits=8)
    assert dataclasses.replace(recipe, quantization=spec).digest == load_recipe(wide).digest


def test_a_recipe_without_a_description_is_its_name_in_words():
    assert Recipe("mine").in_words == "mine"
    assert Recipe("mine", "Does nothing.").in_words == "mine: Does nothing."
