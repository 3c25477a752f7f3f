"""The choice of the tile a Triton product works in, tried out once for every shape on the weights it is needed for.

The candidates are timed in the first call, which is one of a graph's warm-up calls; while a graph is being captured
nothing is timed, since that waits for the device. No choice has been measured on a GPU yet.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from triton.runtime.errors import OutOfResources  # type: ignore[import-not-found,import-untyped,unused-ignore]

ROWS_OF_A_BUCKET = 64  # row counts that need the same number of the smallest tiles share a choice
TIMINGS = 7
FLUSHED_BYTES = 1 << 26  # written before every timing: in a decoder the weights come from memory, not from the cache


@dataclass(frozen=True)
class Tile:
    """Settings of a kernel: rows and columns of its result, bytes of a weight's row taken at once, warps and stages."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


# Compiled for Hopper (sm_90), each fits the registers and the shared memory, also with two products (gate and up); the
# first is what is taken where nothing can be timed.
TILES = (
    Tile(64, 64, 128, 4, 4),
    Tile(64, 128, 128, 8, 3),
    Tile(64, 128, 64, 8, 4),
    Tile(64, 256, 64, 8, 3),
    Tile(128, 128, 64, 8, 3),
    Tile(128, 128, 128, 8, 3),
)
_chosen: dict[tuple[object, ...], Tile] = {}


def tile_for(rows: int, shape: tuple[object, ...], device: torch.device, launch: Callable[[Tile], None]) -> Tile:
    """Return the quickest of `TILES` for this many rows of a product.

    shape: whatever else the choice depends on. launch: runs the product; its results may be overwritten.
    """
    key = (-(-rows // ROWS_OF_A_BUCKET), shape, device)
    if key not in _chosen:
        if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return TILES[0]
        _chosen[key] = min(TILES, key=lambda tile: milliseconds(lambda: launch(tile)))
    return _chosen[key]


def milliseconds(work: Callable[[], None]) -> float:
    """Return the median time of `work` on the current CUDA stream from a cold cache; infinite where it does not fit."""
    try:
        work()  # compiles
    except OutOfResources:
        return math.inf
    scratch = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device="cuda")
    events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(TIMINGS)]
    for start, end in events:
        scratch.zero_()  # also keeps the device busy until the launch is queued
        start.record()
        work()
        end.record()
    torch.cuda.current_stream().synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events)
