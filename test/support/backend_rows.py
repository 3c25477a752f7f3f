"""The table of backends with rows of the tests' own."""

import dataclasses

import pytest

from sqap_vla_ros.quantization.backends import table
from sqap_vla_ros.quantization.backends.table import Backend


def allow_triton_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let backend `triton` run under Triton's interpreter, which computes on the CPU."""
    pytest.importorskip("triton", reason="backend triton: triton is not installed")

    def row(backend: Backend) -> Backend:
        return dataclasses.replace(backend, unsupported=lambda device: "") if backend.name == "triton" else backend

    monkeypatch.setattr(table, "BACKENDS", tuple(map(row, table.BACKENDS)))
