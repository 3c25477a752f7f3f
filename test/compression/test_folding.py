import pytest
import torch

from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.compress import decoder_inputs
from sqap_vla_ros.compression.folding import online_rotation, rotate_layer, rotate_stream_ends
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.pruning import make_selector


def perturb_norms(policy) -> None:
    """Norm weights away from one, as in a trained model, so that folding them matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        decoder = policy.model.decoder
        norms = [n for layer in decoder.layers for n in (layer.input_layernorm, layer.post_attention_layernorm)]
        for norm in [*norms, decoder.norm]:
            norm.weight.mul_(torch.rand(norm.weight.shape, generator=generator) + 0.5)


@pytest.mark.parametrize("selector", [None, "sqap"])
def test_rotated_policy_equals_the_original(selector):
    policies = [micro_policy(selector=make_selector(selector) if selector else None) for _ in range(2)]
    for policy in policies:
        perturb_norms(policy)
    original, rotated = policies
    with torch.no_grad():
        rotate_stream_ends(rotated.model.decoder, rotated.model.projector)
        for layer in rotated.model.decoder.layers:
            rotate_layer(layer, 32)
    for observation in synthetic_observations(3):
        expected, actual = (p.predict(observation) for p in (original, rotated))
        torch.testing.assert_close(
            torch.from_numpy(actual.normalized), torch.from_numpy(expected.normalized), atol=1e-4, rtol=1e-4
        )
        assert (actual.selection.indices == expected.selection.indices).all()


def test_the_stream_is_really_turned():
    original, rotated = micro_policy(), micro_policy()
    with torch.no_grad():
        rotate_stream_ends(rotated.model.decoder, rotated.model.projector)
    (before,), (after,) = (decoder_inputs(p, synthetic_observations(1)) for p in (original, rotated))
    assert (before - after).norm() > 0.5 * before.norm()
    torch.testing.assert_close(before.norm(dim=-1), after.norm(dim=-1))


def test_rotation_flattens_an_outlier_channel():
    policy = micro_policy()
    with torch.no_grad():
        policy.model.decoder.embed_tokens.weight[:, 7] *= 50
        spiky = policy.model.decoder.embed_tokens.weight[10:20].clone()
        rotate_stream_ends(policy.model.decoder, policy.model.projector)
        flat = policy.model.decoder.embed_tokens.weight[10:20].clone()

    def peak(x: torch.Tensor) -> float:
        return float((x.abs().amax(-1) / x.square().mean(-1).sqrt()).mean())

    assert peak(spiky) > 3 * peak(flat)


def test_online_rotations_are_only_where_nothing_can_be_folded():
    assert online_rotation("q_proj", 4, 32, 352) is None
    across_heads, mlp = online_rotation("o_proj", 4, 32, 352), online_rotation("down_proj", 4, 32, 352)
    assert (across_heads.size, across_heads.stride) == (4, 32)
    assert (mlp.size, mlp.stride) == (352, 1)


def test_a_rotated_layer_alone_changes_its_weights_but_not_its_shapes():
    layer = micro_policy().model.decoder.layers[0]
    shapes = {name: p.shape for name, p in layer.named_parameters()}
    before = layer.self_attn.v_proj.weight.clone()
    with torch.no_grad():
        rotate_layer(layer, 32)
    assert {name: p.shape for name, p in layer.named_parameters()} == shapes
    assert not torch.allclose(before, layer.self_attn.v_proj.weight)
