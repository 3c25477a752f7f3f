"""Measures of a replayed recipe: latency, tokens, distance of its actions from a reference and from the recording.

All of it is open loop: the recorded camera goes on whatever the policy would have done. An action error here is no task
success; it says what compression did to the actions on this robot's own images.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.evaluation.action_metrics import chunk_distance, rms_jerk
from sqap_vla_ros.evaluation.replay.run import FrameRecord, RecipeRun
from sqap_vla_ros.policy.actions import GRIPPER, OPEN_FROM
from sqap_vla_ros.robot.gripper.hysteresis import CLOSE_BELOW, OPEN_ABOVE
from sqap_vla_ros.robot.joining import SUBSTEPS, deciding_opening, joining_ns
from sqap_vla_ros.robot.trajectory import PoseTrajectory, anchor_chunk

PERCENTILES = (50, 95, 99)
_PAUSE_NS = 2 * NS_PER_S
_FAILURES = 5  # different texts that are reported


def summarise(run: RecipeRun, reference: RecipeRun, *, control_rate_hz: float) -> dict[str, Any]:
    """Return everything that is reported of one recipe, as plain numbers; None where there is nothing to measure.

    reference: the run its actions are compared with (the same run gives zeros). control_rate_hz: a prediction that
    takes longer than one period misses its deadline.
    """
    predicted = [record for record in run.records if record.deltas is not None]
    policy_ms = np.array([record.policy_ms for record in predicted])
    # Frames without an observation (no instruction read) are the bag's problem, counted in `inputs`, not the recipe's.
    failures = [record.problem for record in run.records if record.instruction and record.problem]
    return {
        "recipe": run.recipe,
        "frames": len(run.records),
        "predicted": len(predicted),
        "failed": len(failures),
        "failures": dict(Counter(failures).most_common(_FAILURES)),
        "latency_ms": latency(predicted),
        "deadline_misses": float(np.mean(policy_ms > 1e3 / control_rate_hz)) if len(policy_ms) else None,
        "peak_memory_mb": run.peak_memory_mb,
        "parameters": run.info.parameters,
        "costs": dict(run.info.costs),
        "kept": kept_tokens(predicted),
        "ring": ring_coverage(run.records),
        "action_difference": action_difference(run.records, reference.records),
        "recorded_motion": against_recording(run.records),
        "recorded_actions": against_actions(run.records),
        "seams": seams(run.records),
        "late_seams": late_seams(run.records),
        "jerk_m_s3": _quantiles(jerk(record) for record in predicted),
        "inputs": dict(run.counters),
    }


def latency(records: Sequence[FrameRecord]) -> dict[str, dict[str, float]]:
    """Return p50, p95, p99, max in milliseconds by stage; `total` is the whole prediction."""
    if not records:
        return {}
    stages = [stage for stage in records[0].timings_ms if stage != "total"]
    table = {stage: [record.timings_ms.get(stage, 0.0) for record in records] for stage in stages}
    table["total"] = [record.policy_ms for record in records]
    return {stage: {**_percentiles(values), "max": float(np.max(values))} for stage, values in table.items()}


def kept_tokens(records: Sequence[FrameRecord]) -> dict[str, float]:
    """Return the mean number of kept tokens by reason, and `total`."""
    with_tokens = [record.kept for record in records if record.selection is not None]
    if not with_tokens:
        return {}
    reasons = sorted({reason for kept in with_tokens for reason in kept})
    means = {reason: float(np.mean([kept.get(reason, 0) for kept in with_tokens])) for reason in reasons}
    return {**means, "total": float(np.mean([sum(kept.values()) for kept in with_tokens]))}


def ring_coverage(records: Sequence[FrameRecord]) -> dict[str, Any]:
    """Return the share of frames with the gripper in view, and a count by reason of the others (numbers stripped)."""
    observed = [record for record in records if record.instruction]
    why = Counter(record.note.split(":")[0] for record in observed if record.pixel is None)
    in_view = sum(record.pixel is not None for record in observed)
    return {"in_view": in_view / len(observed) if observed else None, "not_in_view": dict(why)}


def action_difference(records: Iterable[FrameRecord], reference: Iterable[FrameRecord]) -> dict[str, Any] | None:
    """Return how far the actions are from the reference's on the same frames; None where there is no common frame.

    translation_mm, rotation_deg: of single actions (mean, p95, max over frames and steps); end_translation_mm,
    end_rotation_deg: of whole chunks, all actions composed. gripper_disagreement: share of steps where one is open and
    the other closed. squared: mean of ||A' - A*||^2 over chunks of normalised actions (QVLA, Eq. 4). cumulative: sum
    over the frames of an episode of ||A' - A*|| (QVLA, Eq. 5), mean over episodes.
    """
    pairs = _paired(records, reference)
    if not pairs:
        return None
    ours, theirs = (np.stack([_deltas(pair[side]) for pair in pairs]) for side in (0, 1))  # [F, T, 7]
    opened = [side[..., GRIPPER] >= OPEN_FROM for side in (ours, theirs)]
    norms = frame_errors(pairs)
    episodes = np.split(norms, np.cumsum([len(episode) for episode in episodes_of([ours for ours, _ in pairs])])[:-1])
    end_mm, end_deg = np.array([_end_difference(*pair) for pair in pairs]).T
    return {
        "translation_mm": _quantiles((1e3 * np.linalg.norm(ours[..., :3] - theirs[..., :3], axis=-1)).ravel()),
        "rotation_deg": _quantiles(_rotation_deg(ours, theirs)),
        "end_translation_mm": _quantiles(end_mm),
        "end_rotation_deg": _quantiles(end_deg),
        "gripper_disagreement": float(np.mean(opened[0] != opened[1])),
        "squared": float(np.mean(norms**2)),
        "cumulative": float(np.mean([episode.sum() for episode in episodes])),
        "frames": len(pairs),
    }


def frame_errors(pairs: Sequence[tuple[FrameRecord, FrameRecord]]) -> NDArray[np.float64]:
    """Return ||A' - A*|| of each pair of normalised chunks (see `chunk_distance`)."""
    return np.array([chunk_distance(_normalized(a), _normalized(b)) for a, b in pairs])


def _end_difference(ours: FrameRecord, theirs: FrameRecord) -> tuple[float, float]:
    """Return millimetres and degrees between the ends of two chunks that start at the same pose."""
    a, b = (anchor_chunk(_deltas(record), np.eye(4), 0, record.dt_s).poses[-1] for record in (ours, theirs))
    angle = Rotation.from_matrix(a[:3, :3].T @ b[:3, :3]).magnitude()
    return 1e3 * float(np.linalg.norm(a[:3, 3] - b[:3, 3])), math.degrees(angle)


def against_recording(records: Sequence[FrameRecord]) -> dict[str, Any] | None:
    """Compare where the chunk would have put the tool with where it went; None where no poses were recorded.

    See `_against_path`.
    """
    return _against_path(records, lambda record: record.pose)


def against_actions(records: Sequence[FrameRecord]) -> dict[str, Any] | None:
    """Compare the chunk with the recorded actions, both composed; None where no actions were recorded.

    See `_against_path`. gripper_disagreement: share of actions where one opens and the other closes.
    """
    found = _against_path(records, lambda record: record.commanded)
    if found is None:
        return None
    disagreements: list[NDArray[np.bool_]] = []
    for episode in episodes_of(records):
        known = [record for record in episode if record.opening is not None]
        stamps_ns = np.array([record.stamp_ns for record in known])
        opened = np.array([record.opening for record in known]) >= OPEN_FROM
        for record in known:
            if record.deltas is None:
                continue
            # Action i is carried out from its predecessor's due time on, as the recorded one was from its image's.
            begins_ns = record.stamp_ns + np.arange(len(record.deltas)) * round(record.dt_s * NS_PER_S)
            inside = begins_ns <= stamps_ns[-1]
            then = np.searchsorted(stamps_ns, begins_ns[inside] + 1_000_000, side="right") - 1  # 1 ms: stamps round
            disagreements.append((record.deltas[inside, GRIPPER] >= OPEN_FROM) != opened[then])
    return {**found, "gripper_disagreement": float(np.concatenate(disagreements).mean()) if disagreements else None}


def _against_path(
    records: Sequence[FrameRecord], pose_of: Callable[[FrameRecord], NDArray[np.float64] | None]
) -> dict[str, Any] | None:
    """Compare chunks that start at each frame's pose with the path of these poses; None for fewer than two of them.

    by_step_mm, by_step_deg: [T] means over frames, for every action whose due time lies within the recorded episode.
    still_mm: the same for a policy that never moves, the yardstick a useful policy has to beat. first_mm, mean_mm,
    still_mean_mm: after the first action, and over all of them.
    """
    errors_mm: list[NDArray[np.float64]] = []
    errors_deg: list[NDArray[np.float64]] = []
    still_mm: list[NDArray[np.float64]] = []
    for episode in episodes_of(records):
        posed = [(record, pose) for record in episode if (pose := pose_of(record)) is not None]
        if len(posed) < 2:
            continue
        recorded = _recorded_path(posed)
        for record, pose in posed:
            if record.deltas is None:
                continue
            planned = anchor_chunk(record.deltas, pose, record.stamp_ns, record.dt_s)
            inside = planned.times_ns <= recorded.times_ns[-1]
            truth, _ = recorded.sample_many(planned.times_ns[inside])
            mm, deg, still = (np.full(len(planned), np.nan) for _ in range(3))
            mm[inside] = 1e3 * np.linalg.norm(planned.poses[inside, :3, 3] - truth[:, :3, 3], axis=1)
            still[inside] = 1e3 * np.linalg.norm(pose[:3, 3] - truth[:, :3, 3], axis=1)
            relative = np.swapaxes(planned.poses[inside, :3, :3], 1, 2) @ truth[:, :3, :3]
            if inside.any():
                deg[inside] = np.degrees(Rotation.from_matrix(relative).magnitude())
            errors_mm.append(mm)
            errors_deg.append(deg)
            still_mm.append(still)
    if not errors_mm or np.isnan(errors_mm).all():
        return None
    return {
        "by_step_mm": _column_means(errors_mm),
        "by_step_deg": _column_means(errors_deg),
        "still_mm": _column_means(still_mm),
        "first_mm": _column_means(errors_mm)[0],
        "mean_mm": float(np.nanmean(errors_mm)),
        "still_mean_mm": float(np.nanmean(still_mm)),
        "frames": len(errors_mm),
    }


def seams(records: Sequence[FrameRecord]) -> dict[str, Any] | None:
    """Return the unblended jump where one chunk replaces the one before: mm and degrees between the two plans.

    Both are read at the first time the newer one has an action for. None without poses or with a single chunk.
    """
    jumps_mm, jumps_deg = [], []
    for before, after, _ in _replacements(records):
        due_ns = int(after.times_ns[0])
        if due_ns > before.end_ns:
            continue
        old, _ = before.sample(due_ns)
        jumps_mm.append(1e3 * float(np.linalg.norm(old[:3, 3] - after.poses[0, :3, 3])))
        turn = Rotation.from_matrix(old[:3, :3].T @ after.poses[0, :3, :3]).magnitude()
        jumps_deg.append(math.degrees(turn))
    if not jumps_mm:
        return None
    return {"translation_mm": _quantiles(jumps_mm), "rotation_deg": _quantiles(jumps_deg), "seams": len(jumps_mm)}


def late_seams(records: Sequence[FrameRecord]) -> dict[str, Any] | None:
    """Return the same jump in mm when the newer chunk takes over as late as it was computed, by how it is entered.

    clock, path: see `robot.joining` and the parameter chunk_join. None as for `seams`.
    The gripper is decided as policy_node does by default, over all plans of an episode.
    """
    jumps_mm: dict[str, list[float]] = {"clock": [], "path": []}
    undecided = (CLOSE_BELOW, OPEN_ABOVE)
    followed: PoseTrajectory | None = None  # the plan that took over last, at `since_ns`, with a gripper told `gripper`
    since_ns, gripper = 0, sum(undecided) / 2
    for before, after, late_ns in _replacements(records):
        if before is not followed:  # the first of an episode
            since_ns, gripper = before.anchor_ns, sum(undecided) / 2
        start_ns = after.stamp_ns + late_ns
        executed = [rest] if (rest := before.after(since_ns)) is not None else []
        gripper_at_image = deciding_opening(executed, after.stamp_ns, gripper, undecided)
        gripper = deciding_opening(executed, start_ns, gripper, undecided)
        followed, since_ns = after, start_ns
        if start_ns > min(before.end_ns, after.end_ns):
            continue
        told, _ = before.sample(start_ns)
        entry_ns = joining_ns(
            after,
            told,
            executed_ns=late_ns,
            gripper_at_image=gripper_at_image,
            gripper_told=gripper,
            undecided=undecided,
            substeps=SUBSTEPS,
        )
        for join, at_ns in (("clock", start_ns), ("path", entry_ns)):
            entered_at, _ = after.sample(at_ns)
            jumps_mm[join].append(1e3 * float(np.linalg.norm(told[:3, 3] - entered_at[:3, 3])))
    return {join: _quantiles(values) for join, values in jumps_mm.items()} if jumps_mm["clock"] else None


def _replacements(records: Sequence[FrameRecord]) -> Iterator[tuple[PoseTrajectory, PoseTrajectory, int]]:
    """Yield each plan with the one that replaces it in its episode, and the time (ns) that this one took to compute."""
    for episode in episodes_of(records):
        plans = (  # one at a time: an episode may be half an hour
            (anchor_chunk(record.deltas, record.pose, record.stamp_ns, record.dt_s), round(record.policy_ms * 1e6))
            for record in episode
            if record.deltas is not None and record.pose is not None
        )
        for (before, _), (after, late_ns) in itertools.pairwise(plans):
            yield before, after, late_ns


def jerk(record: FrameRecord) -> float:
    """Return the RMS jerk (m/s³) of the planned positions within one chunk."""
    return rms_jerk(np.cumsum(_deltas(record)[:, :3], axis=0), record.dt_s) or 0.0


def episodes_of(records: Sequence[FrameRecord]) -> list[list[FrameRecord]]:
    """Split records where the instruction changed, time began anew, or the camera paused.

    A pause is longer than two seconds and than five usual gaps: bags of many clips may repeat an instruction.
    """
    gaps_ns = np.diff([record.stamp_ns for record in records]) if len(records) > 1 else np.zeros(0)
    pause_ns = max(_PAUSE_NS, 5 * float(np.median(gaps_ns))) if gaps_ns.size else 0.0
    episodes: list[list[FrameRecord]] = []
    for position, record in enumerate(records):
        if not episodes or record.new_episode or gaps_ns[position - 1] > pause_ns:
            episodes.append([])
        episodes[-1].append(record)
    return episodes


def worst_frames(run: RecipeRun, reference: RecipeRun, count: int) -> list[tuple[int, float]]:
    """Return (index, ||A' - A*||) of the frames farthest from the reference, worst first."""
    pairs = _paired(run.records, reference.records)
    errors = frame_errors(pairs)
    order = np.argsort(-errors, kind="stable")[:count]
    return [(pairs[position][0].index, float(errors[position])) for position in order]


def _paired(records: Iterable[FrameRecord], reference: Iterable[FrameRecord]) -> list[tuple[FrameRecord, FrameRecord]]:
    """Return the frames that both predicted."""
    by_index = {record.index: record for record in reference if record.deltas is not None}
    return [(ours, by_index[ours.index]) for ours in records if ours.deltas is not None and ours.index in by_index]


def _recorded_path(posed: Sequence[tuple[FrameRecord, NDArray[np.float64]]]) -> PoseTrajectory:
    poses = np.stack([pose for _, pose in posed])
    times_ns = np.array([record.stamp_ns for record, _ in posed], dtype=np.int64)
    zero = np.zeros(len(posed) - 1)
    return PoseTrajectory(times_ns[1:], poses[1:], zero, poses[0], int(times_ns[0]), int(times_ns[0]))


def _rotation_deg(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
    a, b = (Rotation.from_euler("xyz", values[..., 3:6].reshape(-1, 3)) for values in (ours, theirs))
    return np.degrees((a.inv() * b).magnitude())


def _deltas(record: FrameRecord) -> NDArray[np.float64]:
    assert record.deltas is not None
    return record.deltas


def _normalized(record: FrameRecord) -> NDArray[np.float64]:
    assert record.normalized is not None
    return record.normalized


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES}


def _quantiles(values: Iterable[float]) -> dict[str, float] | None:
    array = np.fromiter(values, dtype=np.float64)
    if not array.size:
        return None
    return {"mean": float(array.mean()), "p95": float(np.percentile(array, 95)), "max": float(array.max())}


def _column_means(rows: Sequence[NDArray[np.float64]]) -> list[float | None]:
    table = np.stack(rows)
    known = ~np.isnan(table)
    sums, counts = np.where(known, table, 0.0).sum(axis=0), known.sum(axis=0)
    return [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]
