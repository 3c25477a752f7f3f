"""Geometry of the patch grid: cells, distances, the centre, a uniform order. NumPy only."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Grid = tuple[int, int]
Patch = tuple[int, int]


@lru_cache(maxsize=32)
def cells(grid: Grid) -> NDArray[np.int32]:
    """Return (row, col) of every token. [N, 2], row-major"""
    rows, cols = grid
    table = np.stack(np.divmod(np.arange(rows * cols, dtype=np.int32), np.int32(cols)), axis=1)
    table.setflags(write=False)
    return table


@lru_cache(maxsize=32)
def squared_distances(grid: Grid) -> NDArray[np.int32]:
    """Return the squared Euclidean distance between every two cells, in cells. [N, N], exact, so ties are real ties"""
    difference = cells(grid)[:, None, :] - cells(grid)[None, :, :]
    table = np.square(difference).sum(axis=2, dtype=np.int32)
    table.setflags(write=False)
    return table


@lru_cache(maxsize=32)
def distance_to_centre(grid: Grid) -> NDArray[np.int32]:
    """Return the squared distance of every cell to the centre of the image, in half cells (exact integers). [N]"""
    centre = np.asarray([grid[0] - 1, grid[1] - 1], dtype=np.int32)
    table = np.square(2 * cells(grid) - centre).sum(axis=1, dtype=np.int32)
    table.setflags(write=False)
    return table


@lru_cache(maxsize=32)
def uniform_order(grid: Grid) -> NDArray[np.int32]:
    """Return the tokens in an order whose every prefix covers the grid evenly. [N]

    The order of ordered dithering (Bayer's matrix): the first quarter is the grid of stride 2, the first half a
    checkerboard, so that any budget has a uniform grid and not only the squares of a stride.
    """
    matrix = np.zeros((1, 1), dtype=np.int64)
    while matrix.shape[0] < max(grid):
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    order = np.argsort(matrix[: grid[0], : grid[1]].reshape(-1), kind="stable").astype(np.int32)
    order.setflags(write=False)
    return order


@lru_cache(maxsize=32)
def squared_distances_in_uniform_order(grid: Grid) -> NDArray[np.int32]:
    """Return `squared_distances` with its rows and columns in `uniform_order`. [N, N]"""
    order = uniform_order(grid)
    table = squared_distances(grid)[order][:, order].copy()
    table.setflags(write=False)
    return table


def check_patch(patch: Patch, grid: Grid) -> None:
    """Raise ValueError where `patch` is not a cell of `grid`."""
    if not (0 <= patch[0] < grid[0] and 0 <= patch[1] < grid[1]):
        raise ValueError(
            f"gripper patch (row, col) = {tuple(patch)} is outside the grid of {grid[0]} x {grid[1]} patches: "
            "pass None where the gripper is not in view"
        )
