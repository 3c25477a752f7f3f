"""CogACT's adaptive action ensemble, by call count, as published: one action a call, for synchronous execution.

Source: Li et al., "CogACT" (2024), Eq. 5-6. For asynchronous execution see `robot/ensemble.py`, which aligns chunks by
time and leaves the gripper out.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import ArrayLike, NDArray

# chunks remembered in the published evaluations, by dataset
PUBLISHED_WINDOW = {"bridge_orig": 7, "fractal20220817_data": 2}


class AdaptiveEnsemble:
    """Blends what the last `window` chunks say about the present call.

    The chunk made j calls ago is read at index j; weights are proportional to exp(alpha * cosine with the newest), over
    all 7 channels, gripper included.
    """

    def __init__(self, window: int, alpha: float = 0.1) -> None:
        if window < 1:
            raise ValueError(f"the ensemble's window must be at least 1, got {window}")
        self.window = window
        self.alpha = alpha
        self._chunks: deque[NDArray[np.float64]] = deque(maxlen=window)

    def reset(self) -> None:
        """A new episode begins."""
        self._chunks.clear()

    def update(self, chunk: ArrayLike) -> NDArray[np.float64]:
        """The newest chunk [T, 7] of un-normalised actions in, the action [7] to execute now out."""
        newest = np.asarray(chunk, dtype=np.float64)
        if newest.ndim != 2 or len(newest) < self.window:
            raise ValueError(f"a chunk must be [T, 7] with T >= {self.window}, the window; got {newest.shape}")
        self._chunks.append(newest)
        candidates = np.stack([past[age] for age, past in enumerate(reversed(self._chunks))])  # newest first
        reference = candidates[0]
        norms = np.linalg.norm(candidates, axis=1) * np.linalg.norm(reference)
        weights = np.exp(self.alpha * (candidates @ reference) / (norms + 1e-7))
        return weights @ candidates / weights.sum()
