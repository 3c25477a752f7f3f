import pytest
import torch

from sqap_vla_ros.quantization.backends.cpu.attention import attention
from sqap_vla_ros.quantization.backends.cpu.library import kernels


def exact(query, key, value, heads, causal, bias):
    """The definition in float64, [B, S, H d]."""
    q, k, v = (each.double().unflatten(-1, (heads, -1)).transpose(1, 2) for each in (query, key, value))
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + bias[:, None, None, :].double()
    if causal:
        tokens = logits.shape[-1]
        logits = logits.masked_fill(~torch.ones(tokens, tokens, dtype=torch.bool).tril(), -torch.inf)
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("own_kernel", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("batch", "heads", "tokens", "size"), [(1, 3, 37, 72), (2, 2, 17, 64), (3, 1, 1, 2), (1, 2, 40, 130)]
)
def test_attention_is_its_definition(product, batch, heads, tokens, size, causal, with_bias, own_kernel, monkeypatch):
    library = kernels(product.unit)
    if own_kernel and not library.has_attention():
        pytest.skip("there is a kernel for AVX512-BF16 alone")
    if not own_kernel:
        monkeypatch.setattr(library, "has_attention", lambda: 0)
    generator = torch.Generator().manual_seed(tokens)
    together = torch.randn(batch, tokens, 3 * heads * size, generator=generator).bfloat16() * 2
    bias = torch.rand(batch, tokens, generator=generator) * 3 if with_bias else None
    for parts in (together.chunk(3, dim=-1), [each.contiguous() for each in together.chunk(3, dim=-1)]):
        found = attention(product.unit, *parts, heads, causal=causal, key_bias=bias)
        expected = exact(*parts, heads, causal, bias)
        assert found.shape == expected.shape
        assert (found.double() - expected).norm() < 5e-3 * expected.norm()


def test_rows_that_lie_otherwise_are_computed_all_the_same(product):
    query, value = (torch.randn(2, 5, 8).bfloat16() for _ in range(2))
    elsewhere = torch.randn(2, 9, 8).bfloat16()[:, 2:7]
    expected = attention(product.unit, query, elsewhere.contiguous(), value, 2)
    torch.testing.assert_close(attention(product.unit, query, elsewhere, value, 2), expected, atol=0.02, rtol=0.02)


def test_infinite_logits_show(product):
    query = torch.ones(1, 3, 4).bfloat16()
    key = torch.ones(1, 3, 4).bfloat16()
    key[0, 1] = torch.nan
    assert attention(product.unit, query, key, query, 1).isnan().all()
