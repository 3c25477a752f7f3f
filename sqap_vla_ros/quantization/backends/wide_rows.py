"""An integer product with some 16-bit output channels, which are multiplied in floating point."""

from __future__ import annotations

import torch

from sqap_vla_ros.quantization.backends.product import IntegerProduct, gated_apart


class WideRowsProduct:
    """Wrap a backend's product and overwrite its output channels `rows` with those of bfloat16 weights.

    product: of all N channels. wide: [W, K] bfloat16. rows: [W] their places among the N.
    """

    def __init__(self, product: IntegerProduct, wide: torch.Tensor, rows: torch.Tensor) -> None:
        self.product, self.wide, self.rows = product, wide, rows
        self.rows_per_call = product.rows_per_call

    def __call__(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """See `IntegerProduct`."""
        result = self.product(values, scale)
        kind = scale.dtype  # holds every int8 value
        result[:, self.rows] = torch.nn.functional.linear(values.to(kind), self.wide.to(kind)) * scale
        return result

    def gated(self, up: IntegerProduct, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """See `IntegerProduct.gated`."""
        return gated_apart(self, up, values, scale)
