"""Widths of a compressed decoder: averages, operations, sizes and the picture, from the rows of a report."""

import dataclasses

import pytest

from sqap_vla_ros.compression.bits import (
    LinearWidths,
    draw_widths,
    linear_widths,
    part_widths,
    sensitivity_in_words,
    weights_by_module,
    width_summary,
)
from sqap_vla_ros.compression.recipe import load_recipe
from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.policy.config import MICRO

WIDTH, MLP, DEPTH = MICRO.decoder.width, MICRO.decoder.mlp_width, MICRO.decoder.depth
CONFIG = dataclasses.replace(MICRO, decoder=dataclasses.replace(MICRO.decoder, depth=2))


def report(**more):
    """Two layers whose down_proj has eight bits, everything else four."""
    return [
        {"name": f"decoder.layers.{layer}.{name}", "weight_bits": 8 if name == "down_proj" else 4, "stored_bytes": 10}
        | {key: value(layer, name) for key, value in more.items()}
        for layer in range(2)
        for name in COGACT.linears
    ]


def test_averages_by_weight_and_by_row_and_sizes_by_module():
    linears = linear_widths(report(), CONFIG)
    summary = width_summary(linears, load_recipe("sqap"), CONFIG)
    rows = {"eight": WIDTH, "four": 4 * WIDTH + 2 * MLP}
    assert summary["rows"] == {"4": 2 * rows["four"], "8": 2 * rows["eight"]}
    assert summary["average_bits_per_channel"] == pytest.approx(4 + 4 * rows["eight"] / sum(rows.values()))
    weights = {"eight": WIDTH * MLP, "four": 4 * WIDTH**2 + 2 * WIDTH * MLP}
    assert summary["average_bits_per_parameter"] == pytest.approx(4 + 4 * weights["eight"] / sum(weights.values()))
    assert summary["bytes_by_module"]["down_proj"] == {"at_16_bits": 4 * WIDTH * MLP, "stored": 20}
    assert {*summary["bops"]} == {"paper", "bit_product"}
    assert all(0 < share < 1 for share in summary["bops"].values())


TOWERS = [
    {"name": "vision.dino.blocks.0.mlp", "weight_bits": 3.0, "stored_bytes": 7, "shape": [4, 10]}
    | {"row_counts": {"2": 2, "4": 2}},
    {"name": "vision.siglip.blocks.0.mlp", "weight_bits": 8, "stored_bytes": 5, "shape": [4, 30]},
    {"name": "projector.fc1", "weight_bits": 8, "stored_bytes": 9, "shape": [6, 10]},
]


def test_averages_of_the_parts_beside_the_decoder():
    parts = part_widths(report() + TOWERS)
    assert list(parts) == ["vision", "projector"]
    vision = parts["vision"].to_dict()
    assert vision["rows"] == {"2": 2, "4": 2, "8": 4}
    assert vision["average_bits_per_channel"] == pytest.approx((2 * 2 + 2 * 4 + 4 * 8) / 8)
    assert vision["average_bits_per_parameter"] == pytest.approx((20 * 2 + 20 * 4 + 120 * 8) / 160)
    assert vision["bytes"] == {"at_16_bits": 320, "stored": 12}
    assert parts["projector"].to_dict()["average_bits_per_parameter"] == 8


def test_nothing_quantised_says_nothing():
    assert width_summary([], load_recipe("bf16"), CONFIG) == {}
    assert sensitivity_in_words([]) == {}
    assert sensitivity_in_words(linear_widths(report(), CONFIG)) == {}  # nothing was scored


def test_weights_of_the_towers_by_module_and_width():
    """Reports of earlier versions have no shapes, and nothing is known of their towers."""
    assert weights_by_module(report() + TOWERS) == {
        "vision.dino": {2: 20, 4: 20},
        "vision.siglip": {8: 120},
        "projector": {8: 60},
    }
    assert weights_by_module([{"name": "vision.dino.x", "weight_bits": 8, "stored_bytes": 1}]) == {}


def test_the_most_and_least_sensitive_linears_are_named():
    scores = {"down_proj": 0.5, "q_proj": 0.0012, "k_proj": 0.002}
    damage = {"damage": lambda layer, name: {"2": 9.0, "4": scores.get(name, 0.1) * (1 + layer), "16": 0.0}}
    words = sensitivity_in_words(linear_widths(report(**damage), CONFIG))
    assert words["most sensitive"].startswith("layer 1 down_proj 1, layer 0 down_proj 0.5, layer 1 v_proj 0.2 (")
    assert words["most sensitive"].endswith("with all rows at 4 bits)")
    assert words["least sensitive"] == "layer 0 q_proj 0.0012, layer 0 k_proj 0.002, layer 1 q_proj 0.0024"


@pytest.mark.parametrize("scored", [True, False])
def test_the_picture_has_sensitivities_where_they_are_known(scored, tmp_path, monkeypatch):
    drawn = []

    def savefig(figure, path, **_):
        path.touch()
        drawn.append(figure)

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)
    more = {"row_counts": lambda _, name: {"2": 100, "8": 28 if name != "gate_proj" else 252}}
    if scored:
        more["damage"] = lambda layer, _: {"2": 1.0, "4": 0.1 / (1 + layer), "8": 0.001}
    draw_widths(tmp_path / "bits.png", linear_widths(report(**more), CONFIG), "title", part_widths(TOWERS))
    titles = [axes.get_title() for axes in drawn[0].axes if axes.get_title()]
    assert titles[:3] == ["mean bits of the rows", "share of the rows by width", "size by module, MiB"]
    assert ("sensitivity: all rows of a linear at 4 bits" in titles) == scored


def test_a_picture_of_widths_whose_damage_is_none_is_drawn_all_the_same(tmp_path):
    """Weights that lie on a grid already lose nothing at its width."""
    linears = [LinearWidths(0, name, 8, {4: 8}, 40, {2: 0.5, 4: 0.0, 8: 0.0}) for name in COGACT.linears]
    draw_widths(tmp_path / "bits.png", linears, "mine", {})
    draw_widths(tmp_path / "none.png", [dataclasses.replace(each, damage={4: 0.0}) for each in linears], "mine", {})
    assert (tmp_path / "none.png").stat().st_size
