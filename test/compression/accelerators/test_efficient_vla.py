import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sqap_vla_ros.compression.accelerators.efficient_vla import (
    CachedDiffusionTransformer,
    EfficientVla,
    layer_importance,
    least_important,
)
from sqap_vla_ros.compression.accelerators.table import accelerate, make_accelerator
from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.pruning import make_selector


def observation(seed=0):
    picture = np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    return Observation(picture, 0, "pick up the red block")


def test_a_layer_that_does_nothing_is_the_first_to_go():
    policy = micro_policy(seed=0)
    idle = policy.model.decoder.layers[3]
    with torch.no_grad():
        idle.self_attn.o_proj.weight.zero_()
        idle.mlp.down_proj.weight.zero_()
    importance = layer_importance(policy, [observation(0), observation(1)])
    assert len(importance) == 6
    assert importance[3] == pytest.approx(0.0, abs=1e-6)
    assert least_important(importance, 1) == [3]
    before = policy.predict(observation(2))
    EfficientVla(remove=1, selector=None, head_interval=1).install(policy, [observation(0)])
    assert len(policy.model.decoder.layers) == 5
    np.testing.assert_allclose(policy.predict(observation(2)).deltas, before.deltas, atol=1e-6)


def test_importance_is_one_minus_the_cosine_of_input_and_output():
    policy = micro_policy(seed=0)
    seen = {}
    layers = policy.model.decoder.layers
    hooks = [
        layers[i].input_layernorm.register_forward_pre_hook(lambda _, a, i=i: seen.__setitem__(i, a[0])) for i in (2, 3)
    ]
    policy.predict(observation())
    for hook in hooks:
        hook.remove()
    expected = 1 - float(F.cosine_similarity(seen[2], seen[3], dim=-1).mean())
    assert layer_importance(policy, [observation()])[2] == pytest.approx(expected, abs=1e-6)


def test_head_cache_of_one_step_changes_nothing_and_of_five_computes_two_of_ten():
    policy = micro_policy(seed=0)
    before = policy.predict(observation()).normalized
    head = policy.model.action_head
    policy.model.action_head = CachedDiffusionTransformer(head, 1)
    np.testing.assert_allclose(policy.predict(observation()).normalized, before, atol=1e-6)
    calls = []
    hook = head.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    policy.model.action_head = CachedDiffusionTransformer(head, 5)
    cached = policy.predict(observation()).normalized
    again = policy.predict(observation()).normalized
    hook.remove()
    assert len(calls) == 2 * 2
    np.testing.assert_array_equal(cached, again)
    assert not np.allclose(cached, before)


def test_whole_method_behind_one_switch():
    method = make_accelerator("efficient_vla", remove=1, head_interval=5)
    policy = accelerate(micro_policy(seed=0), method, [observation(3), observation(4)])
    chunk = policy.predict(observation())
    assert len(policy.model.decoder.layers) == 5
    assert len(chunk.selection.indices) == 112
    assert policy.info.selector == "efficient_vla"
    assert np.isfinite(chunk.deltas).all()


def test_named_layers_need_no_calibration():
    policy = micro_policy(seed=0)
    kept = copy.copy(list(policy.model.decoder.layers))
    EfficientVla(removed_layers=[1, 4]).install(policy)
    assert list(policy.model.decoder.layers) == [kept[i] for i in (0, 2, 3, 5)]


def test_refusals_name_the_reason():
    with pytest.raises(ValueError, match="efficient_vla looks at calibration observations and got none"):
        accelerate(micro_policy(seed=0), EfficientVla())
    with pytest.raises(ValueError, match=r"layers \[7\].*with 6"):
        accelerate(micro_policy(seed=0), EfficientVla(removed_layers=[7]))
    with pytest.raises(ValueError, match="cannot be combined with the selector 'sqap'"):
        accelerate(micro_policy(seed=0, selector=make_selector("sqap")), EfficientVla(removed_layers=[1]))


def test_it_looks_at_observations_only_to_choose_layers():
    assert EfficientVla().needs_calibration
    assert not EfficientVla(removed_layers=[1]).needs_calibration
    assert not EfficientVla(remove=0).needs_calibration
