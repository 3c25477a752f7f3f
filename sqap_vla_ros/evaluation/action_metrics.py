"""Numbers about actions and motion that the closed loop and the replay share."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def chunk_distance(ours: ArrayLike, reference: ArrayLike) -> float:
    """Return ||A' - A*|| of two normalised chunks [T, 7], both clipped to [-1, 1] as they are executed.

    QVLA averages its square (Eq. 4) and sums it over an episode (Eq. 5, Figure 3).
    """
    clipped = (np.clip(np.asarray(chunk, dtype=np.float64), -1.0, 1.0) for chunk in (ours, reference))
    return float(np.linalg.norm(next(clipped) - next(clipped)))


def rms_jerk(positions: NDArray[np.float64], dt_s: float) -> float | None:
    """Return the RMS jerk (m/s³) of positions [n, 3] (m) that are `dt_s` apart; None for fewer than four."""
    if len(positions) < 4:
        return None
    third = np.diff(positions, n=3, axis=0) / dt_s**3
    return float(np.sqrt(np.mean(np.sum(third**2, axis=1))))
