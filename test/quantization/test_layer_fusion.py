import copy

import pytest
import torch
from backend_cases import some_bits
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP

from sqap_vla_ros.quantization.layer_fusion import AppliedElsewhere, IntegerMlp, fuse_layer
from sqap_vla_ros.quantization.linear import ActivationQuantizer, QuantizedLinear
from sqap_vla_ros.quantization.mixed import MixedLinear, PackedMixedWeight, quantize_mixed
from sqap_vla_ros.quantization.packing import PackedWeight
from sqap_vla_ros.quantization.quantizers import quantize_activation, quantize_weight
from sqap_vla_ros.quantization.rotations import OrthogonalMix
from sqap_vla_ros.text_rows import text_rows

WIDTH, MLP_WIDTH, HEADS = 64, 96, 4


def decoder_layer(
    granularity: str = "token", text_bits: int | None = None, widths: tuple[int, ...] = ()
) -> LlamaDecoderLayer:
    """A Llama layer of integer linears, as recipes with folded norms make it; A8, where a flipped value is small.

    text_bits: given, visual tokens have A4.
    widths: given, rows take one of these, the same for gate and up.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        intermediate_size=MLP_WIDTH,
        attn_implementation="sdpa",
    )
    layer = LlamaDecoderLayer(config, 0)
    mix = {"o_proj": OrthogonalMix(HEADS, stride=WIDTH // HEADS), "down_proj": OrthogonalMix(MLP_WIDTH)}
    for owner, group in (
        (layer.self_attn, ("q_proj", "k_proj", "v_proj")),
        (layer.self_attn, ("o_proj",)),
        (layer.mlp, ("gate_proj", "up_proj")),
        (layer.mlp, ("down_proj",)),
    ):
        shared = ActivationQuantizer(
            8 if text_bits is None else 4,
            clip=0.9,
            granularity=granularity,
            rotation=mix.get(group[0]),
            consumers=len(group),
            text_bits=text_bits,
        )
        for name in group:
            weight = torch.randn(getattr(owner, name).weight.shape) * 0.2
            if widths:
                bits = some_bits(len(weight), widths, torch.Generator().manual_seed(1))
                linear = MixedLinear(PackedMixedWeight.of(quantize_mixed(weight, bits)), shared)
            else:
                linear = QuantizedLinear(PackedWeight.of(quantize_weight(weight, 4)), shared)
            setattr(owner, name, linear)
    return layer.bfloat16().requires_grad_(False)


def run(layer: LlamaDecoderLayer, hidden: torch.Tensor) -> torch.Tensor:
    angle = torch.outer(torch.arange(hidden.shape[1]).float(), torch.ones(WIDTH // HEADS) * 0.1)
    tables = angle.cos()[None].to(hidden), angle.sin()[None].to(hidden)
    return layer(hidden, position_embeddings=tables)


@pytest.mark.parametrize("widths", [(), (2, 4, 8), (0, 4, 16)], ids=str)
@pytest.mark.parametrize("tokens", [1, 5, 300])
def test_a_fused_layer_differs_by_roundings_only(tokens, widths):
    layer = decoder_layer(widths=widths)
    fused = copy.deepcopy(layer)
    fuse_layer(fused)
    assert isinstance(fused.input_layernorm, AppliedElsewhere)
    assert isinstance(fused.mlp, IntegerMlp)
    # the norms' factors differ token by token
    hidden = torch.randn(1, tokens, WIDTH) * torch.logspace(-2, 2, tokens)[:, None]
    hidden = hidden.bfloat16()
    expected, actual = run(layer, hidden).float(), run(fused, hidden).float()
    assert (actual - expected).norm() / (expected - hidden.float()).norm() < 0.05
    exact = decoder_layer(widths=widths).float()
    exact_out = run(exact, hidden.float())
    # as near to the same integer layer in float32 as the plain one is
    assert (actual - exact_out).norm() < 1.2 * (expected - exact_out).norm() + 1e-3 * exact_out.norm()


def test_a_fused_mlp_knows_which_rows_are_text():
    layer = decoder_layer(text_bits=8).float()
    fused = copy.deepcopy(layer)
    fuse_layer(fused)
    assert isinstance(fused.mlp, IntegerMlp)
    fused.mlp.gate_proj.activation.rms_eps = None  # the norm stays outside: the same integers enter both
    x = torch.randn(2, 20, WIDTH, generator=torch.Generator().manual_seed(3))
    with text_rows(6):
        expected, actual = layer.mlp(x), fused.mlp(x)
    assert (actual - expected).norm() < 0.02 * expected.norm()
    with text_rows(0):
        narrow = layer.mlp(x)
    torch.testing.assert_close(narrow[:, :-6], expected[:, :-6])
    assert (narrow - expected)[:, -6:].norm() > 0.05 * expected[:, -6:].norm()


def test_layers_that_cannot_be_fused_stay():
    layer = decoder_layer()
    layer.input_layernorm.weight[3] = 2.0
    fuse_layer(layer)
    assert not isinstance(layer.input_layernorm, AppliedElsewhere)  # its weight was not folded
    assert isinstance(layer.post_attention_layernorm, AppliedElsewhere)
    whole = decoder_layer("tensor")  # one scale for all tokens: rows' norms do not commute with it
    fuse_layer(whole)
    assert not isinstance(whole.input_layernorm, AppliedElsewhere)
    assert isinstance(whole.mlp, LlamaMLP)


def test_a_norm_inside_the_quantiser_is_the_norm_before_it():
    x = torch.randn(7, 48) * torch.logspace(-3, 3, 7)[:, None]
    values, scale = quantize_activation(x, 8, rms_eps=1e-5)
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
    torch.testing.assert_close(values * scale, normed, atol=0.02, rtol=0.02)
    assert torch.equal(values, quantize_activation(x, 8)[0])
    assert torch.isfinite(quantize_activation(torch.zeros(1, 8), 4, rms_eps=1e-5)[1]).all()
