"""The choice of the tile a Triton product works in, tried out once for every shape on the weights it is needed for.

The candidates are timed in the first call, which is one of a graph's warm-up calls; while a graph is being captured
nothing is timed, since that waits for the device. Choices are kept in the user's cache folder, in one file for each
kind of device, version of Triton and state of these kernels: delete it to have them timed again. No choice has been
measured on a GPU yet.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import statistics
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
from triton.runtime.errors import OutOfResources  # type: ignore[import-not-found,import-untyped,unused-ignore]

_LOG = logging.getLogger(__name__)
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
    bucket = -(-rows // ROWS_OF_A_BUCKET)
    key = (bucket, shape, device)
    if key not in _chosen:
        if device.type != "cuda" or len(TILES) == 1 or torch.cuda.is_current_stream_capturing():
            return TILES[0]
        file, name = kept_file(device), f"{bucket} {shape}"
        tile = kept(file).get(name)
        if tile is None:
            tile = min(TILES, key=lambda tile: milliseconds(lambda: launch(tile)))
            keep(file, name, tile)
        _LOG.info("product %s, up to %d rows: %s (%s)", shape, bucket * ROWS_OF_A_BUCKET, tile, file)
        _chosen[key] = tile
    return _chosen[key]


def kept_file(device: torch.device) -> Path:
    """Return where choices for this kind of device are kept."""
    kind = re.sub(r"\W+", "-", torch.cuda.get_device_name(device))
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    kernels = hashlib.sha256(sources).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sqap_vla_ros"
    return cache / "tiles" / f"{kind}_triton-{triton.__version__}_{kernels}.json"


def kept(file: Path) -> dict[str, Tile]:
    """Return the choices in a file by the name of the shape; what is damaged, or no candidate, counts as not there."""
    try:
        stored = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    candidates = {json.dumps(astuple(tile)): tile for tile in TILES}
    values = stored.items() if isinstance(stored, dict) else ()
    return {name: tile for name, value in values if (tile := candidates.get(json.dumps(value)))}


def keep(file: Path, name: str, tile: Tile) -> None:
    """Add a choice to a file, which is replaced as a whole; where it cannot be written, later processes time again."""
    choices = {key: astuple(value) for key, value in {**kept(file), name: tile}.items()}
    new = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps(choices, indent=1))
        new.replace(file)
    except OSError as error:
        _LOG.info("%s was not written: %s", file, error)
        with suppress(OSError):
            new.unlink()


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
