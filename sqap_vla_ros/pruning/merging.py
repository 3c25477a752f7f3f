"""Merging dropped tokens into kept ones, after Bolya et al., "Token merging: your ViT but faster" (ICLR 2023)."""

from __future__ import annotations

import torch
from torch import Tensor


def feature_distances(hidden: Tensor) -> Tensor:
    """Return the squared Euclidean distance between the features of every two tokens, [B, N, D] to [B, N, N] fp32."""
    wide = hidden.float()
    products = wide @ wide.transpose(1, 2)
    lengths = products.diagonal(dim1=1, dim2=2)
    return (lengths[:, :, None] + lengths[:, None, :] - 2.0 * products).clamp_min(0.0)


def merge_into_kept(hidden: Tensor, distances: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Give every dropped token to the nearest kept one; return the groups' mean features and sizes.

    hidden: [B, N, D]. distances: [B, N, N] between tokens. indices: [B, K] of the kept tokens.
    Returns [B, K, D] in hidden's dtype and [B, K] fp32, which sums to N. No host synchronisation.
    """
    batch, tokens, width = hidden.shape
    kept = indices.shape[1]
    group = distances.gather(2, indices[:, None, :].expand(-1, tokens, -1)).argmin(dim=2)  # [B, N]
    place = torch.arange(kept, device=hidden.device).expand(batch, -1)
    group = group.scatter(1, indices, place)  # a kept token stays itself, also beside its twin
    sizes = torch.zeros(batch, kept, device=hidden.device).scatter_add_(1, group, torch.ones_like(distances[:, 0]))
    total = torch.zeros(batch, kept, width, device=hidden.device)
    total.scatter_add_(1, group[:, :, None].expand(-1, -1, width), hidden.float())
    return (total / sizes[:, :, None]).to(hidden.dtype), sizes
