"""Everything a policy's answer must satisfy before anybody uses it, in one place.

`wire.py` has seen to types, sizes and integer ranges. What is left are the meanings: an answer that contradicts the
question (another stamp, another seed), the policy's own description (another horizon, another grid) or arithmetic (not
a number). Each function returns the sentence that says what is wrong, or None.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import ACTION_DIM, ActionChunk, PolicyInfo, Reason, TokenSelection, step_problem

LARGEST_DELTA = 100.0  # m, rad, gripper opening: no arm does so much in one step, and sums of it stay finite
LARGEST_NORMALIZED = 1e12


def info_problem(info: PolicyInfo) -> str | None:
    """Return what is wrong with a policy's description of itself, or None."""
    return step_problem("policy", info.dt_s)


def chunk_problem(chunk: ActionChunk, *, info: PolicyInfo, stamp_ns: int, seed: int) -> str | None:
    """Return what is wrong with the answer to an observation of stamp_ns under a seed, or None.

    info: of the policy that answered.
    """
    if chunk.stamp_ns != stamp_ns:
        return f"the chunk has the stamp {chunk.stamp_ns} ns, the image it was asked for has {stamp_ns} ns"
    if chunk.seed != seed:
        return f"the chunk was made with seed {chunk.seed}, it was asked for with {seed}"
    return content_problem(chunk, info.horizon, info.grid)


def content_problem(chunk: ActionChunk, horizon: int, grid: tuple[int, int]) -> str | None:
    """Return what is wrong with a chunk whatever it was asked for, or None. grid: of its token selection."""
    found = step_problem("chunk", chunk.dt_s)
    found = found or _array_problem("action", chunk.deltas, horizon, LARGEST_DELTA)
    found = found or _array_problem("normalized action", chunk.normalized, horizon, LARGEST_NORMALIZED)
    for stage, milliseconds in chunk.timings_ms.items():
        found = found or duration_problem(f"timings_ms[{stage!r}]", milliseconds)
    if found is None and chunk.selection is not None:
        found = _selection_problem(chunk.selection, grid)
    return found


def duration_problem(name: str, value: float) -> str | None:
    """Return what is wrong with a measured duration, or None."""
    return None if math.isfinite(value) and value >= 0.0 else f"{name} is {value}, expected a duration"


def _array_problem(name: str, rows: NDArray[np.float64], horizon: int, largest: float) -> str | None:
    if rows.shape != (horizon, ACTION_DIM):
        return f"the chunk's {name}s are {list(rows.shape)}, expected [{horizon}, {ACTION_DIM}]"
    if not np.isfinite(rows).all():
        step, component = np.argwhere(~np.isfinite(rows))[0]
        return f"{name} {step} of the chunk is not finite: component {component} is {rows[step, component]}"
    if (np.abs(rows) > largest).any():
        step, component = np.argwhere(np.abs(rows) > largest)[0]
        value = rows[step, component]
        return (
            f"{name} {step} of the chunk is absurd: component {component} is {value:g}, at most {largest:g} is allowed"
        )
    return None


def _selection_problem(selection: TokenSelection, grid: tuple[int, int]) -> str | None:
    if selection.grid != grid:
        return f"the token selection is of a grid {list(selection.grid)}, the policy's is {list(grid)}"
    rows, cols = grid
    indices, reasons = selection.indices, selection.reasons
    if len(indices) != len(reasons):
        return f"the token selection has {len(indices)} indices but {len(reasons)} reasons"
    if len(indices) and not (indices[0] >= 0 and indices[-1] < rows * cols and (indices[1:] > indices[:-1]).all()):
        return f"the token selection's indices must ascend from 0 to below {rows * cols}"
    if len(reasons) and reasons.max() > max(Reason):
        return f"the token selection has the reason {reasons.max()}, the largest is {max(Reason)}"
    if selection.gripper_patch is not None:
        row, col = selection.gripper_patch
        if row >= rows or col >= cols:
            return f"the gripper's patch {[row, col]} lies outside the grid {list(grid)}"
    return None
