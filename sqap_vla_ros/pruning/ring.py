"""The ring of protected tokens around the gripper (SQAP-VLA Eq. 4): every patch within a radius of the gripper's.

Tensor operations alone, so that the selection of one image on the CPU and a captured CUDA graph share one definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from sqap_vla_ros.pruning import grid as patch_grid

_NOT_IN_VIEW = (-1, -1)
_FAR = 1 << 30  # beyond any ring


def gripper_tensor(patches: Sequence[patch_grid.Patch | None], device: torch.device) -> Tensor:
    """Return the gripper's patch in each image as [B, 2] int32 (row, col), negative where it is not in view."""
    rows = [_NOT_IN_VIEW if patch is None else patch for patch in patches]
    return torch.tensor(rows, dtype=torch.int32).to(device, non_blocking=True)


def ring_distance(gripper: Tensor, grid: patch_grid.Grid) -> Tensor:
    """Return the Chebyshev distance, in patches, of every token to the gripper's patch. [B, N] int64

    gripper: [B, 2] as from `gripper_tensor`. Where it is not in view every token is beyond any ring.
    """
    away = (_cells_on(grid, gripper.device) - gripper[:, None, :]).abs().amax(dim=2)
    return torch.where(gripper[:, :1] >= 0, away, _FAR)


def in_ring(distance: Tensor, radius: int | None) -> Tensor:
    """Tell which tokens the ring protects, given their `ring_distance`. [B, N] bool

    radius: R_t in patches; the ring is clipped at the border of the grid, and None means no ring.
    """
    return distance <= (-1 if radius is None else radius)


@lru_cache(maxsize=16)
def _cells_on(grid: patch_grid.Grid, device: torch.device) -> Tensor:
    """Return (row, col) of every token. [N, 2] int64"""
    return torch.tensor(patch_grid.cells(grid), dtype=torch.int64, device=device)
