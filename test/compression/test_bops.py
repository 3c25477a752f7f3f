"""Operation counts against PyTorch's own counter on a running model, and against the published figures."""

import dataclasses
import json

import numpy as np
import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sqap_vla_ros.cli import main
from sqap_vla_ros.compression.bops import (
    Definition,
    KnownWidths,
    Workload,
    bops,
    macs,
    only_a_bound,
    relative_bops,
    workload_of,
)
from sqap_vla_ros.compression.recipe import QuantizationSpec, RowBits, list_recipes, load_recipe
from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.policy.config import COGACT_BASE, MICRO
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.pruning import make_selector

W4A4 = QuantizationSpec(weight_bits=4, activation_bits=4)


@pytest.mark.parametrize("selector", [None, "uniform_grid", "random_drop"])
def test_counts_equal_what_pytorch_counts_while_predicting(selector):
    chosen = None if selector is None else make_selector(selector)
    policy = micro_policy(seed=0, selector=chosen)
    instruction = "pick up the red block"
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    # the fused CPU kernel is unknown to the counter; the plain one is matrix products, which it counts
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        policy.predict(Observation(image, 0, instruction))
    text = len(policy.tokenize(instruction))
    expected = macs(Workload(MICRO, text_tokens=text, selector=chosen, as_published=False))
    assert counter.get_total_flops() == 2 * sum(expected.values())


def test_official_geometry_by_module():
    """GMACs of the published Base model at 276 tokens."""
    counts = macs(Workload(COGACT_BASE, text_tokens=20))
    linears = sum(v for k, v in counts.items() if k.startswith("decoder.") and k != "decoder.attention")
    giga = {
        "dino": counts["vision.dino"] / 1e9,
        "siglip": counts["vision.siglip"] / 1e9,
        "projector": counts["projector"] / 1e9,
        "linears": linears / 1e9,
        "attention": counts["decoder.attention"] / 1e9,
        "head": counts["action_head"] / 1e9,
        "total": sum(counts.values()) / 1e9,
    }
    published = {
        "dino": 82.3,
        "siglip": 109.5,
        "projector": 18.3,
        "linears": 1787.4,
        "attention": 20.0,
        "head": 29.1,
        "total": 2046.5,
    }
    assert giga == pytest.approx(published, abs=0.1)


@pytest.mark.parametrize(
    ("selector", "quantization", "percent"),
    [
        (make_selector("sqap"), W4A4, 26.3),
        (make_selector("fastv", prune_layer=3), None, 42.0),
        (make_selector("random_drop"), None, 58.2),
        (None, None, 100.0),
    ],
)
def test_papers_definition_reproduces_the_table(selector, quantization, percent):
    share = 100 * relative_bops(Workload(COGACT_BASE, selector=selector), quantization)
    assert share == pytest.approx(percent, abs=0.06)


def test_bit_product_counts_a_sixteenth_for_w4a4_linears_and_leaves_attention():
    work = Workload(COGACT_BASE)
    full, reduced = macs(work), bops(work, W4A4, Definition.BIT_PRODUCT)
    assert reduced["decoder.q_proj"] == full["decoder.q_proj"] / 16
    assert reduced["decoder.attention"] == full["decoder.attention"]
    assert reduced["projector"] == full["projector"]


def test_wider_text_costs_its_share_of_the_rows():
    work, wide = Workload(COGACT_BASE), dataclasses.replace(W4A4, text_activation_bits=8)
    narrow, wider = bops(work, W4A4), bops(work, wide)
    # 20 of 277 rows count a half instead of a quarter
    assert wider["decoder.q_proj"] / narrow["decoder.q_proj"] == pytest.approx(1 + 20 / 277)
    assert wider["decoder.attention"] / narrow["decoder.attention"] == pytest.approx(1 + 20 / 277)
    product = bops(work, wide, Definition.BIT_PRODUCT)
    assert product["decoder.down_proj"] * 16 == pytest.approx(macs(work)["decoder.down_proj"] * (1 + 20 / 277))
    alone = Workload(COGACT_BASE, as_published=False)  # the last layer computes the cognition token only
    assert bops(alone, wide)["decoder.q_proj"] == pytest.approx(4096**2 * (31 * (257 / 4 + 20 / 2) + 1 / 2))


def test_weight_only_saves_nothing_by_the_papers_definition():
    weight_only = QuantizationSpec(weight_bits=4, activation_bits=16)
    assert relative_bops(Workload(COGACT_BASE), weight_only) == 1.0
    assert relative_bops(Workload(COGACT_BASE), weight_only, Definition.BIT_PRODUCT) < 0.4


def test_layers_left_out_and_cached_head_steps_cost_nothing():
    full, fewer = macs(Workload(COGACT_BASE)), macs(Workload(COGACT_BASE, layers=range(28), head_interval=5))
    assert fewer["decoder.q_proj"] * 32 == full["decoder.q_proj"] * 28
    assert fewer["action_head"] < 0.22 * full["action_head"]


def test_reused_tokens_are_seen_but_not_computed():
    full, reused = macs(Workload(COGACT_BASE)), macs(Workload(COGACT_BASE, reused={16: 100}))
    assert reused["decoder.q_proj"] * 277 * 2 == full["decoder.q_proj"] * (277 + 177)
    assert reused["decoder.attention"] * 277 * 2 == full["decoder.attention"] * (277 + 177)


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_can_be_counted(name):
    recipe = load_recipe(name)
    share = relative_bops(workload_of(recipe, COGACT_BASE), recipe.quantization)
    saves = recipe.quantization is not None and recipe.quantization.activation_bits < 16
    # what VLA-Cache saves depends on the scene
    accelerates = recipe.accelerator is not None and recipe.accelerator.name != "vla_cache"
    assert 0.1 < share < 1.0 if saves or accelerates or recipe.pruning is not None else share == 1.0


def test_bad_workload_is_named():
    with pytest.raises(ValueError, match=r"layer 32.*0 to 31"):
        Workload(COGACT_BASE, layers=[32])
    with pytest.raises(ValueError, match="text_tokens"):
        Workload(COGACT_BASE, text_tokens=0)


def test_mixed_rows_count_each_at_its_own_width():
    """max(w, a) of the mean is less than the mean of max(w, a), where rows are wider than the activations."""
    spec = QuantizationSpec(activation_bits=4, row_bits=RowBits(4.0))
    config = MICRO.replace(decoder=dataclasses.replace(MICRO.decoder, depth=2))
    work = Workload(config)
    rows = {2: 30, 4: 50, 8: 20}
    known = KnownWidths({(layer, "q_proj"): rows for layer in range(2)})
    full, least, counted = macs(work)["decoder.q_proj"], bops(work, spec), bops(work, spec, known=known)
    assert least["decoder.q_proj"] == full * 4 / 16
    assert counted["decoder.q_proj"] == pytest.approx(full * (0.8 * 4 + 0.2 * 8) / 16)
    assert counted["decoder.k_proj"] == least["decoder.k_proj"]  # nothing is known of it
    product = bops(work, spec, Definition.BIT_PRODUCT, known)
    assert product["decoder.q_proj"] == pytest.approx(full * (0.3 * 2 + 0.5 * 4 + 0.2 * 8) * 4 / 256)
    assert counted["decoder.attention"] == least["decoder.attention"]


def test_rows_count_in_the_layer_they_are_in():
    """Wide rows before the layer that tokens are dropped at cost more than behind it."""
    spec = QuantizationSpec(activation_bits=4, row_bits=RowBits(4.0))
    work = Workload(MICRO, selector=make_selector("sqap"))
    shares = [relative_bops(work, spec, known=KnownWidths({(at, "q_proj"): {8: 1}})) for at in (0, 5)]
    assert shares[0] > shares[1] > relative_bops(work, spec)


def test_mixed_rows_of_the_towers_count_likewise():
    spec = QuantizationSpec(activation_bits=8, row_bits=RowBits(8.0, widths=(4, 8, 16), vision=8.0))
    work = Workload(MICRO)
    known = KnownWidths(parts={"vision.dino": {4: 500, 8: 250, 16: 250}})
    least, counted = bops(work, spec), bops(work, spec, known=known)
    linears = (macs(work)["vision.dino"] - least["vision.dino"]) / (1 - 8 / 16)
    assert counted["vision.dino"] - least["vision.dino"] == pytest.approx(linears * 0.25 * (16 - 8) / 16)
    assert counted["vision.siglip"] == least["vision.siglip"]


@pytest.mark.parametrize(
    ("recipe", "bound"),
    [("qvla_w4a4", True), ("qvla_w8a8", True), ("qvla_w4a8", False), ("qvla_w8a16", False), ("w4a4", False)],
)
def test_an_average_alone_bounds_the_papers_count_where_rows_may_exceed_the_activations(recipe, bound, capsys):
    assert only_a_bound(load_recipe(recipe).quantization) == bound
    assert main(["bops", "--recipe", recipe, "--model", "micro"]) == 0
    assert ("the paper's count is the least that the rows' average allows" in capsys.readouterr().out) == bound
    assert main(["bops", "--recipe", recipe, "--model", "micro", "--json"]) == 0
    assert ("note" in json.loads(capsys.readouterr().out)) == bound
