"""Backend triton's kernels as compiled for the GPU at hand, against their definitions on the CPU, to the last bit.

    python benchmarks/triton_exactness.py cuda
    TRITON_INTERPRET=1 python benchmarks/triton_exactness.py cpu     # fewer shapes, under Triton's interpreter

Ends with the first difference it finds.
"""

from __future__ import annotations

import sys

import torch


def integers_of(bits: torch.Tensor, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Draw integers on each row's grid, int8 [N, columns]; rows of 0 bits are 0, two bits are the odd -3 to 3."""
    weight = []
    for width in bits.tolist():
        draw = torch.randint(0, 2**width, (columns,), generator=generator)
        weight.append({0: 0 * draw, 2: 2 * draw - 3, 4: draw - 8, 8: draw - 128}[width])
    return torch.stack(weight).to(torch.int8)


@torch.inference_mode()
def check(device: str) -> None:
    """Compare every kernel at every tile. Raises AssertionError."""
    from sqap_vla_ros.quantization.backends.reference import ReferenceProduct
    from sqap_vla_ros.quantization.backends.triton import tiles
    from sqap_vla_ros.quantization.backends.triton.activations import quantize_tokens
    from sqap_vla_ros.quantization.backends.triton.mixed import MixedTritonProduct
    from sqap_vla_ros.quantization.backends.triton.product import TritonProduct
    from sqap_vla_ros.quantization.linear import ActivationQuantizer, QuantizedLinear, use_backend
    from sqap_vla_ros.quantization.packing import PackedWeight
    from sqap_vla_ros.quantization.quantizers import quantize_activation, quantize_weight
    from sqap_vla_ros.quantization.rotations import OrthogonalMix

    torch.manual_seed(0)
    gpu = device == "cuda"
    # Triton's interpreter cuts float32 to bfloat16 where a GPU rounds
    kinds = (torch.bfloat16, torch.float16, torch.float32) if gpu else (torch.float16, torch.float32)
    for rows, columns in [(1, 4096), (277, 4096), (175, 11008), (5, 43)] if gpu else [(1, 300), (5, 43)]:
        for kind in kinds:
            x = torch.randn(rows, columns)
            x[0, 0], x[-1, 1:] = 300.0, 0.0
            x = x.to(kind)
            for bits, clip in ((4, 0.9), (8, 1.0)):
                found = quantize_tokens(x.to(device), bits, clip, None)
                for one, other in zip(found, quantize_activation(x, bits, clip=clip), strict=True):
                    assert torch.equal(one.cpu(), other), ("quantize_tokens", rows, columns, kind, bits)
                values, scale = quantize_tokens(x.to(device), bits, clip, 1e-5)
                expected = quantize_activation(x, bits, clip=clip, rms_eps=1e-5)
                assert torch.equal(values.cpu(), expected[0])
                torch.testing.assert_close(scale.cpu(), expected[1])
    candidates = tiles.TILES
    for tile in candidates:
        tiles.TILES = (tile,)
        tiles._chosen.clear()
        for m, k, n in [(277, 4096, 256), (175, 11008, 96), (3, 43, 17)] if gpu else [(70, 130, 17)]:
            for width in (4, 8):
                top = 2 ** (width - 1) - 1
                weights = [torch.randint(-top, top + 1, (n, k)).to(torch.int8) for _ in range(2)]
                values, scale = torch.randint(-7, 8, (m, k)).to(torch.int8), torch.rand(n) / 100
                token_scale = torch.rand(m, 1).to(kinds[0])
                products = [TritonProduct(weight.to(device), scale.to(device)) for weight in weights]
                plain = [ReferenceProduct(weight, scale) for weight in weights]
                given = values.to(device), token_scale.to(device)
                case = (tile, m, k, n, width)
                assert torch.equal(products[0].accumulate(given[0]).cpu(), plain[0].accumulate(values)), case
                assert torch.equal(products[0](*given).cpu(), plain[0](values, token_scale)), case
                gate, up = (product.unscaled(values, token_scale.dtype).float() * token_scale for product in plain)
                expected = (torch.nn.functional.silu(gate) * up).to(kinds[0])
                torch.testing.assert_close(products[0].gated(products[1], *given).cpu(), expected)
            bits = torch.tensor([0, 2, 4, 8])[torch.randint(0, 4, (n,))]
            weight = integers_of(bits, k, torch.Generator().manual_seed(0))
            product = MixedTritonProduct(weight.to(device), scale.to(device), bits.to(device))
            assert torch.equal(product(*given).cpu(), ReferenceProduct(weight, scale)(values, token_scale)), case
    tiles.TILES = candidates
    tiles._chosen.clear()
    print("tiles equal the reference")
    if gpu:
        from sqap_vla_ros.compression.cuda_graphs import GraphedCall

        weight = PackedWeight.of(quantize_weight(torch.randn(512, 11008), 4))
        layer = QuantizedLinear(weight, ActivationQuantizer(4, clip=0.9, rotation=OrthogonalMix(11008))).to(device)
        assert use_backend(layer).name == "triton"
        assert layer.activation.token_quantizer is quantize_tokens
        x = torch.randn(1, 277, 11008, device=device).bfloat16()
        call = GraphedCall(lambda x: (layer(x),), (x,))
        for _ in range(2):
            x = torch.randn_like(x)
            assert torch.equal(call(x)[0], layer(x))
        print("captured, tiles:", tiles._chosen)


if __name__ == "__main__":
    check(sys.argv[1])
