"""Table rows and integer weights for the tests of the backends."""

import dataclasses

import pytest
import torch

from sqap_vla_ros.quantization.backends import table
from sqap_vla_ros.quantization.backends.table import Backend


def allow_triton_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let backend `triton` run under Triton's interpreter, which computes on the CPU."""
    pytest.importorskip("triton", reason="backend triton: triton is not installed")

    def row(backend: Backend) -> Backend:
        return dataclasses.replace(backend, unsupported=lambda device: "") if backend.name == "triton" else backend

    monkeypatch.setattr(table, "BACKENDS", tuple(map(row, table.BACKENDS)))


def some_bits(rows: int, widths: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Draw a width for each row."""
    return torch.tensor(widths)[torch.randint(0, len(widths), (rows,), generator=generator)]


def integers_of(bits: torch.Tensor, columns: int, generator: torch.Generator, extreme: bool = False) -> torch.Tensor:
    """Draw integers on each row's grid, int8 [N, columns]; `extreme` takes the lowest of each. 0 and 16 bits hold 0."""
    weight = []
    for width in bits.tolist():
        draw = torch.randint(0, 2 ** min(width, 8), (columns,), generator=generator) * (not extreme)
        rows = {0: 0 * draw, 2: 2 * draw - 3, 4: draw - 8, 8: draw - 128, 16: 0 * draw}
        weight.append(rows[width])
    return torch.stack(weight).to(torch.int8)
