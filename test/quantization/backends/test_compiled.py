import pytest
import torch
from torch import nn

from sqap_vla_ros.quantization.backends.compiled import compilation_unavailable, gated, quantize_tokens
from sqap_vla_ros.quantization.linear import ActivationQuantizer


@pytest.fixture(autouse=True)
def a_compiler():
    """Asked for when a test begins: the answer takes seconds, which collecting the tests need not wait for."""
    if reason := compilation_unavailable():
        pytest.skip(reason)


def test_compiled_quantiser_gives_the_same_integers():
    plain, fused = (ActivationQuantizer(4, clip=0.85) for _ in range(2))
    fused.token_quantizer = quantize_tokens
    generator = torch.Generator().manual_seed(0)
    for tokens, power in ((1, 0), (17, 3), (64, -5)):
        x = (torch.randn(tokens, 96, generator=generator) * 10.0**power).bfloat16()
        x[0] = 0
        for actual, expected in zip(fused(x), plain(x), strict=True):
            assert torch.equal(actual, expected)
    fused.clip = plain.clip = 0.7
    assert torch.equal(fused(x)[0], plain(x)[0])
    fused.rms_eps = plain.rms_eps = 1e-5
    (values, scale), (expected_values, expected_scale) = fused(x), plain(x)
    assert torch.equal(values, expected_values)
    torch.testing.assert_close(scale, expected_scale)  # the sum of squares may run in another order


def test_compiled_gate_is_the_formula():
    for tokens in (1, 5, 40):
        gate, up = (torch.randn(tokens, 48, generator=torch.Generator().manual_seed(i)).bfloat16() for i in (1, 2))
        scale = torch.randn(tokens, 1, generator=torch.Generator().manual_seed(3)).abs().bfloat16()
        expected = nn.functional.silu(gate.float() * scale) * (up.float() * scale)
        torch.testing.assert_close(gated(gate, up, scale), expected.bfloat16())
