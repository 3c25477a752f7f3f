"""Scores of the vision towers' rows against forward passes."""

import pytest
import torch

from sqap_vla_ros.compression.recipe import QuantizationSpec, RowBits
from sqap_vla_ros.compression.sensitivity.allocation import VISION
from sqap_vla_ros.compression.sensitivity.scores import METRICS
from sqap_vla_ros.compression.sensitivity.towers import score_towers
from sqap_vla_ros.policy.decoder import VISUAL_START
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.quantization.mixed import quantize_mixed


def test_a_score_is_the_squared_change_along_the_cotangent():
    model = (policy := micro_policy()).model.requires_grad_(False)
    spec = QuantizationSpec(activation_bits=8, row_bits=RowBits(3.0, vision=4.0))
    size, generator = model.config.vision.image_size, torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, size, size), generator=generator, dtype=torch.uint8)
    before = model.projector(model.vision(image)[0])
    cotangent = torch.randn(1, before.shape[1] + 9, before.shape[2], generator=generator)
    hessians = {}
    found = score_towers(policy, spec, METRICS["epsilon"], ([image], [[cotangent]]), ([image], [[cotangent]]), hessians)
    assert hessians == {}  # rounding to nearest needs none
    assert len(found) == 36
    for path in (
        "vision.dino.encoder.layer.0.attention.k_proj",
        "vision.dino.encoder.layer.2.mlp.fc2",
        "vision.siglip.encoder.layers.0.mlp.fc1",
    ):
        linear = model.get_submodule(path)
        row = int(found[VISION, path][8].argmax())
        kept = linear.weight.data.clone()
        linear.weight.data[row] = quantize_mixed(kept[row : row + 1], torch.tensor([8]), clip_search=False).dequantize()
        moved = model.projector(model.vision(image)[0]) - before
        linear.weight.data.copy_(kept)
        upstream = cotangent[:, VISUAL_START : VISUAL_START + before.shape[1]]
        expected = float((upstream.double() * moved.double()).sum().square())
        assert float(found[VISION, path][8][row]) == pytest.approx(expected, rel=0.05), path
