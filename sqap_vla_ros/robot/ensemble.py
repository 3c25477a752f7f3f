"""CogACT's adaptive action ensemble, aligned by time."""

from __future__ import annotations

from collections import deque
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from sqap_vla_ros.robot.trajectory import PoseTrajectory, anchor_chunk

ALPHA = 0.1  # CogACT's own


class AdaptiveEnsemble:
    """Averages what the last chunks say about the same moment (CogACT, arXiv 2411.19650, Eq. 5).

    Candidates agree with the newest chunk to a different degree: candidate k has weight exp(alpha * cos_k), cos_k its
    cosine similarity with the newest chunk's action, normalised to 1. The weights are made for steps, each by itself.

    align="time": asynchronous execution makes chunks start at any time, so an older chunk's candidate for a step is
    the motion it prescribes between the moments that step begins and ends; only chunks that cover the whole step
    take part. A chunk that the arm follows later than its stamp says must be `moved` by that: otherwise its candidates
    are of what comes after the step. The cosine is of the six motion dimensions, rotations are averaged on SO(3), the
    gripper is the newest chunk's: an average of open and closed is neither.

    align="call": as in CogACT's public evaluation: the chunk made j calls ago is read j steps further on whatever the
    clock says, the cosine and the plain average take all seven dimensions.
    """

    def __init__(self, horizon: int = 7, alpha: float = ALPHA, align: Literal["time", "call"] = "time") -> None:
        """horizon: how many chunks take part, the newest included (CogACT: 7 for WidowX, 2 for the Google robot)."""
        if horizon < 1 or not 0.0 <= alpha < np.inf:
            raise ValueError(f"horizon must be at least 1 and alpha >= 0 and finite, got {horizon} and {alpha}")
        if align not in ("time", "call"):
            raise ValueError(f"align must be 'time' or 'call', got {align!r}")
        self._alpha = alpha
        self._align = align
        self._chunks: deque[tuple[NDArray[np.float64], PoseTrajectory]] = deque(maxlen=horizon)  # oldest first

    def __len__(self) -> int:
        return len(self._chunks)

    def reset(self) -> None:
        """Forget all chunks: a new instruction, episode or a jump in time."""
        self._chunks.clear()

    def moved(self, later_ns: int) -> None:
        """Note that the newest chunk is executed by so many nanoseconds later than its stamp says.

        It was entered late, at an action other than the one whose time had come, or stood still.
        """
        if self._chunks:
            actions, motion = self._chunks[-1]
            self._chunks[-1] = actions, motion.moved_by(later_ns)

    def update(self, deltas: ArrayLike, stamp_ns: int, dt_s: float) -> NDArray[np.float64]:
        """Take in the newest chunk [T, 7] and return the averaged one [T, 7], of the same stamp and dt.

        Raises ValueError for a misshapen or non-finite chunk, and for a stamp that is not after the last one's.
        """
        actions = np.array(deltas, dtype=np.float64)
        motion = anchor_chunk(actions, np.eye(4), stamp_ns, dt_s)
        if self._chunks and stamp_ns <= self._chunks[-1][1].stamp_ns:
            raise ValueError(
                f"chunk of stamp {stamp_ns} ns is not after the last one's {self._chunks[-1][1].stamp_ns} ns: "
                "reset() the ensemble when time jumps back"
            )
        self._chunks.append((actions, motion))
        return self._by_time(actions, motion) if self._align == "time" else self._by_call(actions)

    def _by_time(self, actions: NDArray[np.float64], motion: PoseTrajectory) -> NDArray[np.float64]:
        ends_ns = motion.times_ns
        begins_ns = np.concatenate([np.array([motion.stamp_ns], dtype=np.int64), ends_ns[:-1]])
        candidates, present = [], []
        for _, other in self._chunks:
            if other is motion:
                candidates.append(actions[:, :6])
                present.append(np.ones(len(actions), dtype=bool))
                continue
            begin, _ = other.sample_many(begins_ns)
            end, _ = other.sample_many(ends_ns)
            turned = Rotation.from_matrix(end[:, :3, :3] @ begin[:, :3, :3].transpose(0, 2, 1))
            candidates.append(np.concatenate([end[:, :3, 3] - begin[:, :3, 3], turned.as_euler("xyz")], axis=1))
            present.append((begins_ns >= other.anchor_ns) & (ends_ns <= other.end_ns))
        stacked = np.stack(candidates)  # [H, T, 6]
        weights = self._weights(stacked, actions[:, :6], np.stack(present))  # [H, T]
        averaged = actions.copy()
        averaged[:, :3] = np.einsum("ht,htc->tc", weights, stacked[..., :3])
        averaged[:, 3:6] = _mean_rotation(stacked[..., 3:], weights)
        return averaged

    def _by_call(self, actions: NDArray[np.float64]) -> NDArray[np.float64]:
        stacked = np.zeros((len(self._chunks), *actions.shape))  # [H, T, 7]
        present = np.zeros(stacked.shape[:2], dtype=bool)
        for age, (other, _) in enumerate(reversed(self._chunks)):
            usable = min(max(len(other) - age, 0), len(actions))
            stacked[age, :usable] = other[age : age + usable]
            present[age, :usable] = True
        weights = self._weights(stacked, actions, present)
        return np.einsum("ht,htc->tc", weights, stacked)

    def _weights(
        self, candidates: NDArray[np.float64], reference: NDArray[np.float64], present: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Return [H, T] exp(alpha * cosine), zero where absent, summing to one over H; the cosine with rest is zero."""
        dots = np.einsum("htc,tc->ht", candidates, reference)
        norms = np.linalg.norm(candidates, axis=2) * np.linalg.norm(reference, axis=1)
        cosine = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 1e-12)
        weights = np.exp(self._alpha * cosine) * present
        return weights / weights.sum(axis=0)


def _mean_rotation(rpy: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weighted mean over the first axis of roll-pitch-yaw [H, T, 3], as roll-pitch-yaw [T, 3].

    The rotation closest in the sum of weighted squared chordal distances: the dominant eigenvector of the weighted
    sum of q q^T (Markley et al. 2007, "Averaging Quaternions", Eq. 12-13), for all T at once.
    """
    quats = Rotation.from_euler("xyz", rpy.reshape(-1, 3)).as_quat().reshape(*rpy.shape[:2], 4)
    scatter = np.einsum("ht,hti,htj->tij", weights, quats, quats)
    _, vectors = np.linalg.eigh(scatter)
    return Rotation.from_quat(vectors[:, :, -1]).as_euler("xyz")
