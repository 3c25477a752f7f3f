import os

import pytest
import torch

from sqap_vla_ros.quantization.backends import ReferenceProduct

os.environ.setdefault("TRITON_INTERPRET", "1")  # before the kernel is defined
pytest.importorskip("triton", reason="backend triton: triton is not installed")
from sqap_vla_ros.quantization.triton_product import TritonProduct


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (3, 65, 70), (70, 130, 5), (64, 128, 64), (2, 43, 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interpreted_kernel_equals_the_reference_to_the_last_bit(bits, m, k, n, dtype):
    top = 2 ** (bits - 1) - 1
    generator = torch.Generator().manual_seed(m + k + n)
    values = torch.randint(-top, top + 1, (m, k), generator=generator).to(torch.int8)
    weight = torch.randint(-top, top + 1, (n, k), generator=generator).to(torch.int8)
    weight[0, 0] = -top
    scale = torch.rand(n, generator=generator) + 0.5
    token_scale = (torch.rand(m, 1, generator=generator) + 0.5).to(dtype)
    reference, kernel = ReferenceProduct(weight, scale), TritonProduct(weight, scale)
    assert torch.equal(kernel.accumulate(values), reference.accumulate(values))
    # Triton's interpreter cuts float32 to bfloat16 where a GPU rounds
    tolerance = 0.0 if dtype == torch.float32 else 2**-6
    torch.testing.assert_close(kernel(values, token_scale), reference(values, token_scale), rtol=tolerance, atol=0)
    assert kernel.weight.numel() == (n * -(-k // 2) if bits == 4 else n * k)
