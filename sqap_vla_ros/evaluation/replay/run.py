"""The replay of a recording through a policy, frame by frame and without timing, one recipe after the other.

Each recipe runs in the live node's own worker process, so that what is measured (memory, latency) and what is predicted
are the live node's. Every frame is written as soon as it is predicted: an interrupted replay goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sqap_vla_ros.contracts import ActionChunk, PolicyInfo, Reason, TokenSelection
from sqap_vla_ros.evaluation.replay.identity import FileState, policy_files, replay_identity
from sqap_vla_ros.evaluation.replay.sources import open_recording
from sqap_vla_ros.field_types import field_problem
from sqap_vla_ros.policy.checkpoints.writing import write_text
from sqap_vla_ros.processes import busy_share
from sqap_vla_ros.recordings.frames import ReplayCounters, ReplayFrame
from sqap_vla_ros.serving.defaults import REACH_TIMEOUT_S
from sqap_vla_ros.serving.events import Event, LoadFailed, Lost, PredictFailed, Ready, Result, Unanswered
from sqap_vla_ros.serving.frames import is_remote
from sqap_vla_ros.serving.validation import content_problem
from sqap_vla_ros.serving.worker import PolicyWorker, WorkerConfig

if TYPE_CHECKING:
    from sqap_vla_ros.evaluation.replay.sources import RecordingSpec

FRAMES, RUN = "frames.jsonl", "run.json"
# of a file that holds other JSON than was written, or none
_DAMAGE = (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError)
_ARRAYS = ("pose", "commanded", "deltas", "normalized")
_COUNTED = ("images", "used", "observed", "stale", "restarts", "problems", "without_camera_info")


class ReplayError(ValueError):
    """A replay that cannot go on; the message says what to change."""


class ServerLost(ReplayError):
    """The policy's server does not answer: no other recording can be replayed either."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; start the server again where it is gone: the same command goes on from here")


@dataclass(frozen=True)
class FrameRecord:
    """The answer of one recipe to one frame of the recording; one line of `frames.jsonl`.

    deltas, normalized: [T, 7], None where there was no observation or the prediction failed (`problem` says why).
    pose: [4, 4] base_from_tool, None where there is none. kept: tokens by reason. policy_ms: the whole prediction.
    The rest is as in `ReplayFrame`, `ActionChunk` and `TokenSelection`.
    """

    index: int
    stamp_ns: int
    age_s: float
    new_episode: bool
    problem: str
    note: str
    instruction: str = ""
    pixel: tuple[float, float] | None = None
    pose: NDArray[np.float64] | None = None
    deltas: NDArray[np.float64] | None = None
    normalized: NDArray[np.float64] | None = None
    dt_s: float = 0.0
    policy_ms: float = 0.0
    timings_ms: dict[str, float] = dataclasses.field(default_factory=dict)
    selection: TokenSelection | None = None
    commanded: NDArray[np.float64] | None = None
    opening: float | None = None

    @property
    def kept(self) -> dict[str, int]:
        """Kept tokens by reason, in words."""
        if self.selection is None:
            return {}
        counts = Counter(self.selection.reasons.tolist())
        return {Reason(value).name.lower(): count for value, count in sorted(counts.items())}

    def to_json(self) -> str:
        values: dict[str, Any] = {name: value for name, value in vars(self).items() if value is not None}
        for name, digits in (("pose", 7), ("commanded", 7), ("deltas", 7), ("normalized", 6)):
            if name in values:
                values[name] = np.round(values[name], digits).tolist()
        if self.selection is not None:
            selection = self.selection
            values["selection"] = {
                **vars(selection),
                "indices": selection.indices.tolist(),
                "reasons": selection.reasons.tolist(),
            }
        return json.dumps(values)

    @classmethod
    def from_json(cls, line: str) -> FrameRecord:
        """Read what `to_json` wrote. Raises one of `_DAMAGE` for anything else."""
        values = json.loads(line)
        # Texts repeat in every line: one copy of each, or they would be most of a long replay's memory.
        for name in ("instruction", "note", "problem"):
            values[name] = sys.intern(values.get(name, ""))
        values["timings_ms"] = {sys.intern(stage): ms for stage, ms in values["timings_ms"].items()}
        if problem := field_problem(cls, {k: v for k, v in values.items() if k not in (*_ARRAYS, "selection")}):
            raise ValueError(problem)
        for name in _ARRAYS:
            if name in values:
                values[name] = np.asarray(values[name], dtype=np.float64)
        if "pixel" in values:
            u, v = values["pixel"]
            values["pixel"] = u, v
        if "selection" in values:
            selection = values["selection"]
            patch = selection["gripper_patch"]
            values["selection"] = TokenSelection(
                np.asarray(selection["indices"], np.int32),
                np.asarray(selection["reasons"], np.uint8),
                tuple(selection["grid"]),
                selection["method"],
                selection["prune_layer"],
                None if patch is None else tuple(patch),
            )
        record = cls(**values)
        if problem := _record_problem(record):
            raise ValueError(problem)
        return record


def _record_problem(record: FrameRecord) -> str | None:
    """Return what no prediction can have written, or None."""
    if not (record.index >= 0 and abs(record.stamp_ns) < 2**63):
        return f"frame {record.index} with the stamp {record.stamp_ns} ns"
    for pose in (record.pose, record.commanded):
        if pose is not None and not (pose.shape == (4, 4) and np.isfinite(pose).all()):
            return f"a pose of shape {pose.shape}, or not finite"
    if record.deltas is None or record.normalized is None:
        return None if record.deltas is record.normalized else "half a chunk"
    selection = record.selection
    chunk = ActionChunk(record.stamp_ns, record.deltas, record.dt_s, record.normalized, selection, record.timings_ms)
    return content_problem(chunk, len(record.deltas), (0, 0) if selection is None else selection.grid)


@dataclass(frozen=True)
class RecipeRun:
    """One recipe's pass over the recording.

    peak_memory_mb: resident, of the worker process; None where a server has the policy.
    counters: of the images, and `machine_busy`, the share of processor time that others used when it began.
    """

    recipe: str
    info: PolicyInfo
    records: list[FrameRecord]
    peak_memory_mb: float | None
    counters: dict[str, Any]


def replay_recipe(
    path: Path, spec: RecordingSpec, worker: WorkerConfig, folder: Path, *, show: bool = True
) -> RecipeRun:
    """Predict every observation of the recording; continues what `folder` already holds of the very same replay.

    Raises BagError or DatasetError, ReplayError (policy does not load, worker lost, the folder is another replay's),
    and ServerLost.
    """
    with open_recording(path, spec) as source:
        folder.mkdir(parents=True, exist_ok=True)
        loaded_from = policy_files(worker)
        identity = replay_identity(source, spec, worker, loaded_from)
        done, complete = _resume(folder, identity)
        if complete:
            whole = load_run(folder, worker.recipe)
            done = whole.records
            if len(_judged(done)) == len(done):
                return whole
            del whole
        source.check()
        busy = busy_share()
        policy = _Policy(worker)
        try:
            require_same_policy(worker, loaded_from)
            records = _keep(_judged(done), policy.info)
            info = json.loads(json.dumps(dataclasses.asdict(policy.info)))
            if records and is_remote(worker.checkpoint) and _read_summary(folder / RUN)["info"] not in (None, info):
                raise ReplayError(
                    f"{worker.checkpoint} serves another policy than the one that {folder} was begun with: serve that "
                    "one again, or choose another --out"
                )
            write_text(folder / RUN, json.dumps({"identity": identity, "complete": False, "info": info}))
            kept = folder / f"{FRAMES}.kept"  # renamed when whole: an interruption now loses nothing either
            with kept.open("w") as file:
                file.writelines(record.to_json() + "\n" for record in records)
            kept.replace(folder / FRAMES)
            finished = {record.index for record in records}
            del done, records
            with (folder / FRAMES).open("a") as file:
                bar = tqdm(source, desc=f"{worker.recipe:>16}", total=source.strided, unit="frame", disable=not show)
                for frame in bar:
                    if frame.index in finished:
                        continue
                    file.write(policy.predict(frame).to_json() + "\n")
                    file.flush()
            peak_mb = policy.peak_memory_mb()
        finally:
            policy.close()
        counters = {**vars(source.counters), "without_camera_info": source.counters.without_camera_info}
        counters["machine_busy"] = round(busy, 2)
        summary = {
            "identity": identity,
            "info": dataclasses.asdict(policy.info),
            "peak_memory_mb": peak_mb,
            "counters": counters,
            "sources": source.sources,
            "complete": True,
        }
        write_text(folder / RUN, json.dumps(summary, indent=1))
    return load_run(folder, worker.recipe)  # what is on disk, not what it was rounded from


def load_run(folder: Path, recipe: str) -> RecipeRun:
    """Read a finished pass from its folder. Raises ReplayError where it is not finished."""
    try:
        summary = json.loads((folder / RUN).read_text())
        if problem := _summary_problem(summary):
            raise ValueError(problem)
        info = PolicyInfo(**{**summary["info"], "grid": tuple(summary["info"]["grid"])})
        with (folder / FRAMES).open() as lines:
            records = [FrameRecord.from_json(line) for line in lines]
        if len(records) != summary["counters"]["used"]:
            raise ValueError(f"{len(records)} frames of {summary['counters']['used']}")
    except (OSError, *_DAMAGE) as error:
        raise ReplayError(
            f"{folder} holds no finished replay of {recipe}: delete it, and run the same command again"
        ) from error
    return RecipeRun(recipe, info, records, summary["peak_memory_mb"], summary["counters"])


@dataclass(frozen=True)
class _Measured:
    """The types of what a finished pass says of itself besides its policy and its counts of images."""

    peak_memory_mb: float | None
    sources: Mapping[str, str]
    machine_busy: float


def _summary_problem(summary: dict[str, Any]) -> str | None:
    counters = summary["counters"]
    if lacking := [name for name in _COUNTED if name not in counters]:
        return f"counters lack {lacking[0]}"
    measured = {**summary, "machine_busy": counters.get("machine_busy", 0.0)}
    if lacking := [each.name for each in dataclasses.fields(_Measured) if each.name not in measured]:
        return f"{lacking[0]} is missing"
    return (
        field_problem(PolicyInfo, summary["info"])
        or field_problem(ReplayCounters, counters)
        or field_problem(_Measured, measured)
    )


def frames_again(path: Path, spec: RecordingSpec, wanted: set[int]) -> Iterator[ReplayFrame]:
    """Yield the frames with these indices once more, for pictures."""
    if not wanted:
        return
    last = max(wanted)
    with open_recording(path, spec) as frames:
        for frame in frames:
            if frame.index in wanted:
                yield frame
            if frame.index >= last:
                return


def require_same_policy(worker: WorkerConfig, before: list[FileState]) -> None:
    """Raise ReplayError where the policy's files were replaced. before: see `policy_files`."""
    if policy_files(worker) != before:
        raise ReplayError(f"checkpoint {worker.checkpoint} was changed during the replay: choose another --out")


class _Policy:
    """The worker process, given one frame at a time."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        reached = dataclasses.replace(config, reach_timeout_s=REACH_TIMEOUT_S)  # somebody waits at a terminal
        self._worker = PolicyWorker(reached)
        self._worker.start()
        ready = self._wait_for(Ready)
        assert isinstance(ready, Ready)
        self.info = ready.info

    @property
    def _remote(self) -> bool:
        return not self._config.factory and is_remote(self._config.checkpoint)

    def predict(self, frame: ReplayFrame) -> FrameRecord:
        """Predict on a frame. Raises ReplayError when the process is lost, ServerLost when no policy judged it."""
        seen = FrameRecord(
            *(frame.index, frame.stamp_ns, frame.age_s, frame.new_episode, frame.problem, frame.note),
            commanded=frame.commanded,
            opening=frame.opening,
        )
        observation = frame.observation
        if observation is None:
            return seen
        if frame.new_episode:
            self._worker.reset()
        seen = dataclasses.replace(
            seen, instruction=observation.instruction, pixel=observation.gripper_pixel, pose=observation.base_from_tool
        )
        self._worker.submit(observation, seed=self._config.seed)
        event = self._wait_for(Result, PredictFailed)
        if isinstance(event, Unanswered):
            raise ServerLost(event.text)
        if isinstance(event, PredictFailed):
            return dataclasses.replace(seen, problem=f"the prediction failed: {event.text}")
        assert isinstance(event, Result)
        return _predicted(seen, event.chunk, event.policy_s)

    def peak_memory_mb(self) -> float | None:
        """Return the largest resident memory that the process ever had; None where the policy is a server's."""
        if self._remote:
            return None
        for line in Path(f"/proc/{self._worker.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        return 0.0

    def close(self) -> None:
        self._worker.close()

    def _wait_for(self, *kinds: type[Event]) -> Event:
        while True:
            for event in self._worker.wait():
                if isinstance(event, (LoadFailed, Lost)):
                    self._worker.close()
                    if self._remote and isinstance(event, LoadFailed):
                        raise ServerLost(event.text)
                    remedy = "; run it again to go on from here" if isinstance(event, Lost) else ""
                    raise ReplayError(f"recipe {self._config.recipe}: {event.text}{remedy}")
                if isinstance(event, kinds):
                    return event


def _predicted(seen: FrameRecord, chunk: ActionChunk, policy_s: float) -> FrameRecord:
    return dataclasses.replace(
        seen,
        deltas=chunk.deltas,
        normalized=chunk.normalized,
        dt_s=chunk.dt_s,
        policy_ms=policy_s * 1e3,
        timings_ms={stage: round(ms, 4) for stage, ms in chunk.timings_ms.items()},
        selection=chunk.selection,
    )


def _resume(folder: Path, identity: str) -> tuple[list[FrameRecord], bool]:
    """Return the frames that were predicted before, and whether that was all of them."""
    run, frames = folder / RUN, folder / FRAMES
    summary: dict[str, Any] = {"identity": "", "complete": False}
    if run.exists():
        summary = _read_summary(run)
    begun = summary["complete"] or (frames.exists() and frames.stat().st_size > 0)
    if begun and summary["identity"] is None:
        raise ReplayError(f"{run} is damaged: delete {folder}, and run the same command again")
    if not begun and summary["identity"] != identity:  # nothing is lost
        write_text(run, json.dumps({"identity": identity, "complete": False}))
        return [], False
    if summary["identity"] != identity:
        raise ReplayError(
            f"{folder} holds the replay of another recording, or with other options, or of a checkpoint, recipe or "
            "recording that was changed since: choose another --out, or delete it"
        )
    if summary["complete"] or not frames.exists():
        return [], summary["complete"]
    records = []
    with frames.open(errors="replace") as lines:
        for line in lines:
            try:
                records.append(FrameRecord.from_json(line))
            except _DAMAGE:
                break  # the line being written when it was interrupted; what follows is predicted again
    return records, False


def _read_summary(run: Path) -> dict[str, Any]:
    """Return what is said of a replay; its identity is None where the file is damaged, as a power cut leaves it.

    info: of the policy, None where it is not said.
    """
    try:
        summary = json.loads(run.read_text())
        identity, complete = str(summary["identity"]), bool(summary["complete"])
        return {"identity": identity, "complete": complete, "info": summary.get("info")}
    except _DAMAGE:
        return {"identity": None, "complete": False, "info": None}


# of a server that was lost, as it was stored before such a loss ended the replay
_UNJUDGED = re.compile(
    r"the prediction failed: RemoteError: \S+ (cannot be reached in time|gave no answer within|sent what is no message"
    r"|refuses|serves another policy)"
)


def _judged(done: list[FrameRecord]) -> list[FrameRecord]:
    """Return the frames before the first one that no policy judged: the file is in the order of the recording."""
    lost = (position for position, record in enumerate(done) if _UNJUDGED.match(record.problem))
    return done[: next(lost, len(done))]


def _keep(done: list[FrameRecord], info: PolicyInfo) -> list[FrameRecord]:
    """Return what need not be predicted again. A policy with a memory starts the broken-off episode over."""
    if not info.stateful or not done:
        return done
    starts = [position for position, record in enumerate(done) if record.new_episode]
    return done[: starts[-1]] if starts else []
