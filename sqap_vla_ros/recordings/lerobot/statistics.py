"""Statistics of features, as LeRobot's training normalises with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def of_numbers(values: NDArray[Any]) -> dict[str, list[Any]]:
    """Return min, max, mean, std, count and quantiles over the first axis of [n] or [n, D]; one number a dimension."""
    table = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    found = {"min": table.min(axis=0), "max": table.max(axis=0), "mean": table.mean(axis=0), "std": table.std(axis=0)}
    found |= {name: np.quantile(table, share, axis=0) for name, share in _QUANTILES.items()}
    return {name: value.tolist() for name, value in found.items()} | {"count": [len(table)]}


def histogram(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return [3, 256]: how often each value occurs in each channel of [H, W, 3]."""
    return np.stack([np.bincount(image[..., channel].ravel(), minlength=256) for channel in range(3)])


def of_pictures(histograms: Sequence[NDArray[np.int64]]) -> dict[str, list[Any]]:
    """Return the same as `of_numbers` for pictures, 0 (black) to 1, each [3][1][1]; count is of pictures."""
    counts = np.sum(histograms, axis=0)  # [3, 256]
    levels = np.arange(256) / 255.0
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ levels
    occurring = [levels[row > 0] for row in counts]
    found = {
        "min": [float(row[0]) for row in occurring],
        "max": [float(row[-1]) for row in occurring],
        "mean": mean.tolist(),
        "std": np.sqrt(np.maximum(share @ levels**2 - mean**2, 0.0)).tolist(),
    }
    below = np.cumsum(share, axis=1)
    for name, quantile in _QUANTILES.items():
        found[name] = [float(levels[np.searchsorted(row, quantile - 1e-12)]) for row in below]
    return {name: [[[value]] for value in values] for name, values in found.items()} | {"count": [len(histograms)]}
