"""Geometry: round trips and refusals."""

import dataclasses
import json

import pytest

from sqap_vla_ros.policy.config import (
    COGACT_BASE,
    COGACT_LARGE,
    COGACT_SMALL,
    MICRO,
    ActionHeadConfig,
    DecoderConfig,
    DiffusionConfig,
    PolicyConfig,
    TowerConfig,
    VisionConfig,
    named_config,
)


@pytest.mark.parametrize("config", [MICRO, COGACT_SMALL, COGACT_BASE, COGACT_LARGE], ids=lambda config: config.name)
def test_json_round_trip(config):
    assert PolicyConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert named_config(config.name) is config


def test_published_grid():
    assert COGACT_BASE.vision.grid == (16, 16)
    assert COGACT_BASE.vision.width == 2176


def test_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match="'huge': choose one of micro, tabletop, libero_object, cogact-small"):
        named_config("huge")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TowerConfig(64, 1, 4, 256), "depth must be at least 2 .* got 1"),
        (lambda: TowerConfig(66, 4, 4, 256), "width must be a multiple of heads, got 66 and 4"),
        (lambda: TowerConfig(64, 4, 4, 256, registers=-1), "registers must lie between 0 and .* got -1"),
        (lambda: DiffusionConfig(guidance=10**40), "guidance is too large, got 1000"),
        (lambda: VisionConfig(MICRO.vision.dino, MICRO.vision.siglip, image_size=225), "multiple of patch_size"),
        (lambda: DecoderConfig(12, 2, 4, 32, 50), "even head size, got 12 / 4"),
        (lambda: ActionHeadConfig(96, 0, 4), "depth must be positive, got 0"),
        (lambda: MICRO.replace(decoder=dataclasses.replace(MICRO.decoder, vocabulary=4)), "go up to 4 .* only 4 ids"),
        (lambda: MICRO.replace(decoder=dataclasses.replace(MICRO.decoder, max_positions=100)), "leave no room"),
        (lambda: PolicyConfig.from_dict({"name": "x"}), "lacks 'vision'"),
        (lambda: PolicyConfig.from_dict({**MICRO.to_dict(), "colour": 1}), "unknown .colour.; known: .*decoder"),
        (lambda: PolicyConfig.from_dict({**MICRO.to_dict(), "vision": [1]}), r"vision must be a mapping, got \[1\]"),
        (lambda: PolicyConfig.from_dict({**MICRO.to_dict(), "decoder": {}}), "DecoderConfig: lacks "),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
