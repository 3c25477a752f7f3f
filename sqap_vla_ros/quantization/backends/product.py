"""The integer matrix product every backend computes.

int8 activations [M, K] times int8 weights [N, K] are accumulated exactly in 32-bit integers, then scaled once per
output channel and once per token. Backends differ in speed and in how they keep the weights, never in the accumulators.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch

from sqap_vla_ros.quantization.backends.compiled import gated

ROWS_PER_CALL = 256  # oneDNN's int8 kernel takes twice the time from 257 rows on; two smaller calls do not
ROWS_OF_A_TILE = 16  # of an AMX register


class BackendError(RuntimeError):
    """This machine cannot run the backend that was asked for; the message says what can."""


class IntegerProduct(Protocol):
    """The prepared weights of one linear, ready to multiply.

    rows_per_call: more rows than these are better given in several calls, see `split_rows`.
    """

    rows_per_call: int

    def __call__(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Multiply int8 activations [M, K] with scales [M, 1]; return [M, N] in the scales' dtype.

        The accumulators are multiplied by the weight scale in float32, rounded to that dtype, and then multiplied by
        the activation scale.
        """

    def gated(self, up: IntegerProduct, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return silu(this product) * (the product with `up`), rounded once: [M, N]. Both are of one backend."""


def gated_apart(gate: IntegerProduct, up: IntegerProduct, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return `IntegerProduct.gated` from two whole products."""
    one = torch.ones_like(scale)
    return gated(gate(values, one), up(values, one), scale)


class SeparateProducts(ABC):
    """A base for backends that compute gate and up one after the other.

    The activation scale waits for the pass that joins them.
    """

    rows_per_call = ROWS_PER_CALL

    @abstractmethod
    def __call__(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """See `IntegerProduct`."""

    @abstractmethod
    def unscaled(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the product before the activation scale: [M, N]."""

    def gated(self, up: IntegerProduct, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """See `IntegerProduct.gated`."""
        if not isinstance(up, SeparateProducts):  # some of its rows are wide
            return gated_apart(self, up, values, scale)
        return gated(self.unscaled(values, scale.dtype), up.unscaled(values, scale.dtype), scale)


def rows_by_width(row_bits: torch.Tensor) -> dict[int, torch.Tensor]:
    """Return the places of the rows of 2, 4 and 8 bits, each width's in order; widths no row has are left out.

    row_bits: [N]. Rows of 0 and 16 bits have no integers and are in no group.
    """
    groups = {width: torch.nonzero(row_bits == width)[:, 0] for width in (2, 4, 8)}
    return {width: rows for width, rows in groups.items() if len(rows)} or {8: torch.empty(0, dtype=torch.int64)}


def split_rows(rows: int, rows_per_call: int = ROWS_PER_CALL) -> list[slice]:
    """Split rows into calls of about equal size, at most `rows_per_call` each.

    A small rest would cost nearly as much as a full call.
    """
    calls = max(1, -(-rows // rows_per_call))
    size = -(-rows // (calls * ROWS_OF_A_TILE)) * ROWS_OF_A_TILE
    return [slice(start, min(start + size, rows)) for start in range(0, max(rows, 1), size or 1)]
