"""Normalised actions to metres, radians and a gripper opening, and back, with the statistics of the training data.

Actions of seven channels are those of `contracts.ActionChunk`. Of any other number the meaning is not known: they are
scaled, and no channel is a gripper.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sqap_vla_ros.contracts import ACTION_DIM, step_problem

GRIPPER = 6
OPEN_FROM = 0.5  # openings from here on count as open

# Seconds between the actions of each dataset the published checkpoints were evaluated on (5 Hz and 3 Hz control).
CONTROL_PERIOD_S = {"bridge_orig": 0.2, "fractal20220817_data": 1.0 / 3.0}
# Channels, what they are, their unit, the most that one action can mean, and the unit that is taken for it.
_PLAUSIBLE = (
    (slice(0, 3), "a translation", "metres", 1.0, "millimetres"),
    (slice(3, GRIPPER), "a rotation", "radians", 2.0 * np.pi, "degrees"),
)
_BOUNDS, _RANGE = ("q01", "q99"), ("min", "max")


@dataclass(frozen=True)
class ActionStatistics:
    """The 1st and 99th percentile of each action channel; `mask` says which channels are scaled (not the gripper).

    q01, q99: [C] float64, metres and radians where C is 7; mask: [C] bool; dt_s: seconds between actions.
    """

    q01: NDArray[np.float64]
    q99: NDArray[np.float64]
    mask: NDArray[np.bool_]
    dt_s: float

    def __post_init__(self) -> None:
        shapes = {name: getattr(self, name).shape for name in ("q01", "q99", "mask")}
        usual = Counter(shapes.values()).most_common(1)[0][0]
        for name, shape in shapes.items():
            if shape != usual or len(shape) != 1 or not shape[0]:
                wanted = f"{usual[0]} values" if len(usual) == 1 and usual[0] else "one value for each channel"
                given = str(shape[0]) if len(shape) == 1 else f"an array of shape {shape}" if shape else "a number"
                raise ValueError(f"action statistics: {name} must have {wanted}, got {given}")
        if not (np.isfinite(self.q01).all() and np.isfinite(self.q99).all()):
            raise ValueError(f"action statistics must be finite, got q01={self.q01.tolist()}, q99={self.q99.tolist()}")
        if (self.q99 < self.q01)[self.mask].any():
            raise ValueError(f"action statistics: q99 is below q01: q01={self.q01.tolist()}, q99={self.q99.tolist()}")
        if problem := step_problem("dataset", self.dt_s):
            raise ValueError(problem)

    @classmethod
    def from_dataset(cls, key: str, entry: Mapping[str, Any], dt_s: float | None = None) -> ActionStatistics:
        """Read one dataset of `dataset_statistics.json`: `{"action": {"q01": [7], "q99": [7], "mask": [7], …}}`.

        Without percentiles, the smallest and largest values (`min`, `max`) bound the channels. Of seven channels the
        gripper is never scaled, whatever the mask says (`statistics_notes` tells why).

        dt_s: the control period; None looks it up for the published datasets.
        Raises ValueError where numbers are missing or the period is not known.
        """
        try:
            action = entry["action"]
            names = _BOUNDS if any(name in action for name in _BOUNDS) else _RANGE
            q01, q99 = (_numbers(action[name]) for name in names)
            given = action.get("mask", [True] * q01.size)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"dataset statistics of {key!r} lack action q01/q99 (or min/max) of {ACTION_DIM} numbers"
            ) from error
        mask = _mask(key, given)
        if mask.shape == (ACTION_DIM,):
            mask[GRIPPER] = False
        stated = entry.get("dt_s")
        if dt_s is None and stated is not None and _number(stated) is None:
            raise ValueError(f"dataset statistics of {key!r}: dt_s must be seconds between actions, got {stated!r:.80}")
        period = _number(dt_s) or _number(stated) or CONTROL_PERIOD_S.get(key)
        if period is None:
            raise ValueError(
                f"the control period of dataset {key!r} is not known: pass dt_s (--dt), or write a number of seconds "
                f'as "dt_s" beside its "action" in dataset_statistics.json'
            )
        return cls(q01, q99, mask, float(period))

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as one dataset of `dataset_statistics.json`."""
        action = {"q01": self.q01.tolist(), "q99": self.q99.tolist(), "mask": self.mask.tolist()}
        return {"action": action, "dt_s": self.dt_s}

    def unnormalize(self, normalized: ArrayLike) -> NDArray[np.float64]:
        """Map […, C] in [-1, 1] to physical actions: clip, gripper to 0 or 1, then (a + 1) / 2 * (q99 - q01) + q01.

        Not-a-number stays not-a-number in every channel: a safety check must see it, never a made-up gripper.
        """
        clipped = np.clip(np.asarray(normalized, dtype=np.float64), -1.0, 1.0)
        if self.mask.size == ACTION_DIM:
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


def statistics_notes(key: str, entry: Mapping[str, Any]) -> list[str]:
    """Return what is assumed of a dataset's statistics because they do not say it, one sentence each."""
    action = entry.get("action") if isinstance(entry, Mapping) else None
    if not isinstance(action, Mapping):
        return []
    notes = []
    if not any(name in action for name in _BOUNDS) and all(name in action for name in _RANGE):
        notes.append(f"statistics of {key!r} have no q01/q99: actions are scaled to min/max, as trained with bounds")
    bounds = action.get("q01", action.get("min"))
    mask = action.get("mask")
    scaled = mask is None or (isinstance(mask, list) and len(mask) == ACTION_DIM and bool(mask[GRIPPER]))
    if isinstance(bounds, list) and len(bounds) == ACTION_DIM and scaled:
        said = "have no mask" if mask is None else "have a mask that is true for the gripper"
        notes.append(
            f"statistics of {key!r} {said}: scaled, a gripper that closes would never read as closed, so the gripper "
            "is taken as it is, 0 closed and 1 open, as the published mask says"
        )
    return notes + _implausible_bounds(key, action)


def _implausible_bounds(key: str, action: Mapping[str, Any]) -> list[str]:
    """Return a sentence for steps too long for metres, for steps too wide for radians, and for no motion at all."""
    try:
        ends = np.stack(
            [np.asarray(action[name], dtype=np.float64) for name in (_BOUNDS if "q99" in action else _RANGE)]
        )
    except (KeyError, TypeError, ValueError):
        return []  # refused where they are used
    if ends.shape != (2, ACTION_DIM):
        return []
    if (ends[0] == ends[1])[:GRIPPER].all():
        return [
            f"statistics of {key!r} have the same q01 and q99 (or min and max) everywhere: every action is the same"
        ]
    largest = np.abs(ends).max(axis=0)
    return [
        f"statistics of {key!r} reach {largest[channels].max():g} in {what} of one action, where {unit} are expected "
        f"and {most:g} is beyond any arm: are they {mistaken}? Convert q01 and q99 (or min and max) in "
        "dataset_statistics.json, or the arm is commanded far too large motions"
        for channels, what, unit, most, mistaken in _PLAUSIBLE
        if largest[channels].max() > most
    ]


def _mask(key: str, values: Any) -> NDArray[np.bool_]:
    """Return true and false, or 1 and 0, as booleans. Raises ValueError for anything else, "false" too."""
    if not isinstance(values, list) or not all(isinstance(value, (bool, int)) and value in (0, 1) for value in values):
        raise ValueError(
            f"dataset statistics of {key!r}: mask must be a list of true and false, got {str(values)[:80]}"
        )
    return np.asarray(values, dtype=bool)


def _numbers(values: object) -> NDArray[np.float64]:
    """Return the numbers of a JSON value. Raises TypeError and ValueError for texts, truth values and ragged lists."""
    found = np.asarray(values)
    if not (np.issubdtype(found.dtype, np.number) or found.size == 0):
        raise TypeError(f"no numbers: {found.dtype}")
    return found.astype(np.float64)


def _number(value: object) -> float | None:
    """Return a number as it is, None for zero and anything else."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value else None


def choose_dataset(statistics: Collection[str], key: str | None) -> str:
    """Return the dataset whose statistics un-normalise. Raises ValueError with the choices where `key` is no choice."""
    if not statistics:
        raise ValueError("the checkpoint has no dataset statistics: actions cannot be un-normalised")
    if key is None and len(statistics) == 1:
        return next(iter(statistics))
    if key is None or key not in statistics:
        asked = "no unnorm_key was given" if key is None else f"unnorm_key {key!r} is not among them"
        names = ", ".join(sorted(statistics))
        raise ValueError(f"the checkpoint has statistics for {names}; {asked}: choose one of them (--unnorm-key)")
    return key


def require_channels(key: str, statistics: ActionStatistics, channels: int) -> None:
    """Raise ValueError where a dataset's statistics are not those of an action head of so many channels."""
    given = statistics.mask.size
    if given != channels:
        raise ValueError(
            f"the action statistics of {key!r} have {given} values, the action head has {channels} channels: these are "
            "another robot's statistics"
        )


def require_arm_actions(checkpoint: str, channels: int) -> None:
    """Raise ValueError for a policy whose actions are not those of an arm with a gripper."""
    if channels != ACTION_DIM:
        raise ValueError(
            f"{checkpoint} predicts actions of {channels} channels; an arm is moved by {ACTION_DIM} (position, "
            "rotation, gripper): `sqap-vla predict` shows what it says, another program must execute it"
        )
