"""Small constant tensors, made once for each device: a forward pass then copies nothing from the host.

That keeps it capturable as a CUDA graph after one warm-up call.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.lru_cache(maxsize=64)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return the values as a tensor, int64 or fp32. It is shared: never write to it."""
    with torch.inference_mode(False):  # also usable in training, wherever it was first asked for
        return torch.tensor(values, device=device)
