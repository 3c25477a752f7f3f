import pytest
import torch
from torch import nn

from sqap_vla_ros.quantization.backends.cpu import library
from sqap_vla_ros.quantization.backends.cpu.product import VnniProduct
from sqap_vla_ros.quantization.backends.table import BACKENDS
from sqap_vla_ros.quantization.block_fusion import BlockParts, fuse_block
from sqap_vla_ros.quantization.linear import ActivationQuantizer, QuantizedLinear, use_backend
from sqap_vla_ros.quantization.packing import PackedWeight
from sqap_vla_ros.quantization.quantizers import quantize_weight

UNSUPPORTED = library.cpu_unsupported(VnniProduct.unit)
needs_tiles = pytest.mark.skipif(bool(UNSUPPORTED), reason=f"backend vnni: {UNSUPPORTED}")
WIDTH, INNER, HEADS = 72, 272, 4


def integer(inputs, outputs, shared, generator, bits=8):
    weight = PackedWeight.of(quantize_weight(torch.randn(outputs, inputs, generator=generator) * inputs**-0.5, bits))
    return QuantizedLinear(weight, shared, torch.randn(outputs, generator=generator).bfloat16() * 0.1)


class Block(nn.Module):
    """A pre-norm block of separate operations."""

    def __init__(self, *, together, scaled, gelu, affine=True, bits=8):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.norms = nn.ModuleList(
            nn.LayerNorm(WIDTH, eps=1e-6, elementwise_affine=affine, dtype=torch.bfloat16) for _ in range(2)
        )
        for weight in self.norms.parameters():
            weight.data = torch.randn(WIDTH, generator=generator).bfloat16()
        shared = ActivationQuantizer(8, consumers=1 if together else 3)
        widths = [3 * WIDTH] if together else [WIDTH] * 3
        self.inputs = nn.ModuleList(integer(WIDTH, width, shared, generator) for width in widths)
        self.out = integer(WIDTH, WIDTH, ActivationQuantizer(8), generator)
        self.inner = integer(WIDTH, INNER, ActivationQuantizer(8), generator, bits)
        self.outer = integer(INNER, WIDTH, ActivationQuantizer(8), generator)
        self.scales = tuple(torch.randn(WIDTH, generator=generator).bfloat16() for _ in range(2)) if scaled else None
        self.gelu = gelu

    @property
    def parts(self):
        return BlockParts(
            tuple(self.norms), tuple(self.inputs), self.out, self.inner, self.outer, HEADS, self.gelu, self.scales
        )

    def forward(self, x, attention_mask=None):
        first, second = self.scales or (1, 1)
        normed = self.norms[0](x)
        mixed = [linear(normed) for linear in self.inputs]
        if len(mixed) == 1:
            mixed = mixed[0].chunk(3, dim=-1)
        query, key, value = (each.unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in mixed)
        attended = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.out(attended) * first
        opened = nn.functional.gelu(self.inner(self.norms[1](x)), approximate=self.gelu)
        return x + self.outer(opened) * second


@needs_tiles
@torch.inference_mode()
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"together": False, "scaled": True, "gelu": "none"},
        {"together": False, "scaled": False, "gelu": "none", "bits": 4},
        {"together": True, "scaled": False, "gelu": "tanh", "affine": False},
    ],
    ids=["dino", "siglip", "head"],
)
def test_a_fused_block_differs_by_roundings_only(options, batch):
    block = Block(**options)
    use_backend(block, "vnni")
    x = torch.randn(batch, 37, WIDTH, generator=torch.Generator().manual_seed(2)).bfloat16()
    expected = block(x)
    assert fuse_block(block, block.parts)
    actual = block(x, attention_mask=None)
    assert actual.shape == expected.shape
    assert (actual.float() - expected.float()).norm() < 4e-3 * expected.float().norm()
    assert torch.equal(actual, block(x))
    if not options.get("affine", True):
        assert block(x.float()).dtype == torch.float32  # another dtype takes the block's own steps


@needs_tiles
@pytest.mark.parametrize("gelu", [None, "none", "tanh"])
def test_what_follows_a_product_is_computed_step_by_step(gelu):
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-127, 128, (33, 130), generator=generator).to(torch.int8)
    weight = torch.randint(-7, 8, (70, 130), generator=generator).to(torch.int8)
    product = VnniProduct(weight, torch.rand(70, generator=generator) * 0.01)
    scale = torch.rand(33, 1, generator=generator).bfloat16() * 0.1
    bias, factor = (torch.randn(70, generator=generator).bfloat16() for _ in range(2))
    residual = torch.randn(33, 70, generator=generator).bfloat16()
    expected = product(values, scale) + bias
    if gelu is not None:
        expected = nn.functional.gelu(expected.double(), approximate=gelu).bfloat16()
    found = product.finished(values, scale, bias=bias, gelu=gelu)
    torch.testing.assert_close(found, expected, rtol=0.008, atol=1e-6)
    if gelu is None:
        assert torch.equal(found, expected)
        whole = product.finished(values, scale, bias=bias, factor=factor, residual=residual)
        assert torch.equal(whole, residual + expected * factor)
        assert torch.equal(product.finished(values, scale, residual=residual), product(values, scale) + residual)
    with pytest.raises(ValueError, match="what follows a product is computed in bfloat16"):
        product.finished(values, scale.float(), bias=bias)


@needs_tiles
def test_blocks_that_cannot_be_fused_stay():
    block = Block(together=True, scaled=False, gelu="tanh")
    assert not fuse_block(block, block.parts)  # on the reference backend
    use_backend(block, "vnni")
    block.outer.activation.clip = 0.9
    block.out.activation.granularity = "tensor"
    assert not fuse_block(block, block.parts)
    block.out.activation.granularity = "token"
    assert fuse_block(block, block.parts)
    plain = Block(together=True, scaled=False, gelu="tanh")
    plain.inner = nn.Linear(WIDTH, INNER)
    assert not fuse_block(plain, plain.parts)
    assert {"vnni", "amx"} < {backend.name for backend in BACKENDS}
