"""The integer product of backend `triton` for rows of several widths, in one launch.

Rows are sorted by width and stay packed in it. A program takes a tile of rows that all have one width, so it branches
once and not in its loop, and writes its results to the columns the rows came from.
"""

from __future__ import annotations

import sys

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from sqap_vla_ros.quantization.backends.product import SeparateProducts, rows_by_width
from sqap_vla_ros.quantization.backends.triton.sums import pack_parts, tile_sum, uses_assembly
from sqap_vla_ros.quantization.backends.triton.tiles import TILES, Tile, tile_for

ALIGNMENT = 16  # bytes of a load
TILE_FIELDS = 4  # width, first row in the sorted order, rows, start of their weights in units of ALIGNMENT


@triton.jit(do_not_specialize=["rows"])  # one kernel for all row counts
def _mixed_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    x_scale_ptr,
    w_ptr,
    w_scale_ptr,
    column_ptr,
    tile_ptr,
    out_ptr,
    rows,
    outputs,
    INPUTS: tl.constexpr,
    FIELDS: tl.constexpr,
    ALIGNED: tl.constexpr,
    SCALED: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute a tile of x w^T with its scales, for rows of w that have one width."""
    tile = tile_ptr + tl.program_id(1) * FIELDS
    bits, first, count, start = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    # beyond the edge the first rows are read again; what they give is not stored
    m_read, n_read = m % rows, n % count
    kind = out_ptr.dtype.element_ty
    w = w_ptr + start.to(tl.int64) * ALIGNED
    result = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.int32)
    if bits == 2:
        result = tile_sum(x_ptr, w, m_read, n_read, INPUTS, 2, ASSEMBLY, BLOCK_M, BLOCK_N, BLOCK_K)
    elif bits == 4:
        result = tile_sum(x_ptr, w, m_read, n_read, INPUTS, 4, ASSEMBLY, BLOCK_M, BLOCK_N, BLOCK_K)
    else:
        result = tile_sum(x_ptr, w, m_read, n_read, INPUTS, 8, ASSEMBLY, BLOCK_M, BLOCK_N, BLOCK_K)
    if SCALED:
        w_scale = tl.load(w_scale_ptr + first + n_read)[:, None]
        x_scale = tl.load(x_scale_ptr + m_read)[None, :].to(tl.float32)
        # rounded between the two scales, as every backend does
        result = (result.to(tl.float32) * w_scale).to(kind).to(tl.float32) * x_scale
    column = tl.load(column_ptr + first + n_read)
    place = out_ptr + m.to(tl.int64)[:, None] * outputs + column[None, :]
    tl.store(place, tl.trans(result.to(kind)), mask=(m[:, None] < rows) & (n[None, :] < count))


class MixedTritonProduct(SeparateProducts):
    """Multiply rows of several widths on a GPU, packed in their widths.

    weight: int8 [N, K]. scale: [N]. row_bits: [N] width of each row.
    """

    rows_per_call = sys.maxsize

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, row_bits: torch.Tensor) -> None:
        self.outputs, self.inputs = weight.shape
        groups = rows_by_width(row_bits)
        order = torch.cat([*groups.values()])
        self.columns, self.scale = order.int(), scale.float()[order].contiguous()
        self.complete = len(order) == self.outputs
        packed = [(bits, pack_parts(weight[rows], bits)) for bits, rows in groups.items()]
        padded = [torch.nn.functional.pad(part.flatten(), (0, -part.numel() % ALIGNMENT)) for _, part in packed]
        self.weight = torch.cat(padded)
        # for every tile size there is, since nothing can be copied to the device while a graph is captured
        self.tiles = {size: self._tiles(packed, size).to(weight.device) for size in {tile.n for tile in TILES}}

    @staticmethod
    def _tiles(packed: list[tuple[int, torch.Tensor]], size: int) -> torch.Tensor:
        """Cut the groups into tiles of at most `size` rows whose weights start at a multiple of `ALIGNMENT` bytes."""
        tiles, first, group_start = [], 0, 0
        for bits, part in packed:
            rows, row_bytes = part.shape
            for row in range(0, rows, size):
                start = group_start + row * row_bytes
                assert start % ALIGNMENT == 0  # sizes are multiples of it
                tiles.append((bits, first + row, min(size, rows - row), start // ALIGNMENT))
            first += rows
            group_start += -(-part.numel() // ALIGNMENT) * ALIGNMENT
        return torch.tensor(tiles, dtype=torch.int32).view(-1, TILE_FIELDS)

    def _launch(self, values: torch.Tensor, scale: torch.Tensor, kind: torch.dtype, scaled: bool) -> torch.Tensor:
        rows, values, scale = values.shape[0], values.contiguous(), scale.contiguous()
        make = torch.empty if self.complete else torch.zeros
        out = make(rows, self.outputs, dtype=kind, device=values.device)
        if not rows or not len(self.columns):
            return out

        def launch(tile: Tile) -> None:
            tiles = self.tiles[tile.n]
            _mixed_kernel[(triton.cdiv(rows, tile.m), len(tiles))](
                values,
                scale,
                self.weight,
                self.scale,
                self.columns,
                tiles,
                out,
                rows,
                self.outputs,
                self.inputs,
                FIELDS=TILE_FIELDS,
                ALIGNED=ALIGNMENT,
                SCALED=scaled,
                ASSEMBLY=uses_assembly(_mixed_kernel),
                BLOCK_M=tile.m,
                BLOCK_N=tile.n,
                BLOCK_K=tile.k,
                num_warps=tile.warps,
                num_stages=tile.stages,
                enable_fp_fusion=False,
            )

        with torch.cuda.device_of(values):
            launch(tile_for(rows, ("mixed", self.outputs, self.weight.numel()), values.device, launch))
        return out

    def accumulate(self, values: torch.Tensor) -> torch.Tensor:
        """Return the exact int32 accumulators [M, N] of int8 activations [M, K]."""
        return self._launch(values, self.scale, torch.int32, False)

    def unscaled(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self(values, torch.ones(len(values), 1, dtype=dtype, device=values.device))

    def __call__(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self._launch(values, scale, scale.dtype, True)
