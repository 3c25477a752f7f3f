"""Normalised actions to metres, radians and a gripper opening, and back, with the statistics of the training data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sqap_vla_ros.contracts import ACTION_DIM

GRIPPER = 6
OPEN_FROM = 0.5  # openings from here on count as open

# Seconds between the actions of each dataset the published checkpoints were evaluated on (5 Hz and 3 Hz control).
CONTROL_PERIOD_S = {"bridge_orig": 0.2, "fractal20220817_data": 1.0 / 3.0}


@dataclass(frozen=True)
class ActionStatistics:
    """The 1st and 99th percentile of each action channel; `mask` says which channels are scaled (not the gripper).

    q01, q99: [7] float64 in metres and radians; mask: [7] bool; dt_s: seconds between actions.
    """

    q01: NDArray[np.float64]
    q99: NDArray[np.float64]
    mask: NDArray[np.bool_]
    dt_s: float

    def __post_init__(self) -> None:
        for name in ("q01", "q99", "mask"):
            if getattr(self, name).shape != (ACTION_DIM,):
                raise ValueError(f"action statistics: {name} must have {ACTION_DIM} values, got {getattr(self, name)}")
        if not (np.isfinite(self.q01).all() and np.isfinite(self.q99).all()):
            raise ValueError(f"action statistics must be finite, got q01={self.q01}, q99={self.q99}")
        if (self.q99 < self.q01)[self.mask].any():
            raise ValueError(f"action statistics: q99 is below q01: q01={self.q01}, q99={self.q99}")
        if not self.dt_s > 0:
            raise ValueError(f"action statistics: dt_s must be positive, got {self.dt_s}")

    @classmethod
    def from_dataset(cls, key: str, entry: Mapping[str, Any], dt_s: float | None = None) -> ActionStatistics:
        """Read one dataset of `dataset_statistics.json`: `{"action": {"q01": [7], "q99": [7], "mask": [7], …}}`.

        dt_s: the control period; None looks it up for the published datasets.
        Raises ValueError where numbers are missing or the period is not known.
        """
        try:
            action = entry["action"]
            q01, q99 = (np.asarray(action[name], dtype=np.float64) for name in ("q01", "q99"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"dataset statistics of {key!r} lack action q01/q99 of {ACTION_DIM} numbers") from error
        mask = np.asarray(action.get("mask", [True] * ACTION_DIM), dtype=bool)
        period = dt_s or entry.get("dt_s") or CONTROL_PERIOD_S.get(key)
        if period is None:
            raise ValueError(
                f"the control period of dataset {key!r} is not known: pass dt_s, or write a number of seconds as "
                f'"dt_s" beside its "action" in dataset_statistics.json'
            )
        return cls(q01, q99, mask, float(period))

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as one dataset of `dataset_statistics.json`."""
        action = {"q01": self.q01.tolist(), "q99": self.q99.tolist(), "mask": self.mask.tolist()}
        return {"action": action, "dt_s": self.dt_s}

    def unnormalize(self, normalized: ArrayLike) -> NDArray[np.float64]:
        """Map […, 7] in [-1, 1] to physical actions: clip, gripper to 0 or 1, then (a + 1) / 2 * (q99 - q01) + q01.

        Not-a-number stays not-a-number in every channel: a safety check must see it, never a made-up gripper.
        """
        clipped = np.clip(np.asarray(normalized, dtype=np.float64), -1.0, 1.0)
        gripper = clipped[..., GRIPPER]
        clipped[..., GRIPPER] = np.where(np.isnan(gripper), np.nan, gripper >= OPEN_FROM)
        scaled = 0.5 * (clipped + 1.0) * (self.q99 - self.q01) + self.q01
        return np.where(self.mask, scaled, clipped)

    def normalize(self, actions: ArrayLike) -> NDArray[np.float64]:
        """Map physical actions […, 7] to [-1, 1], for training; channels without spread become 0."""
        values = np.asarray(actions, dtype=np.float64)
        spread = self.q99 - self.q01
        scaled = np.divide(2.0 * (values - self.q01), spread, out=np.ones_like(values), where=spread > 0) - 1.0
        return np.clip(np.where(self.mask, scaled, values), -1.0, 1.0)
