"""Many bags: one after the other, over local processes, or over a Ray cluster, always with the same results.

A bag is the unit of work. Every frame is on disk as soon as it is predicted, so a bag whose process or machine was lost
is taken up where it stopped; with several machines, `out` must be a folder all of them see.
"""

from __future__ import annotations

import dataclasses
import json
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from sqap_vla_ros.compression.files.kind import is_compressed
from sqap_vla_ros.compression.recipe import load_recipe
from sqap_vla_ros.evaluation.ray_cluster import ray_cluster
from sqap_vla_ros.evaluation.replay.identity import policy_files
from sqap_vla_ros.evaluation.replay.metrics import summarise
from sqap_vla_ros.evaluation.replay.run import (
    RUN,
    RecipeRun,
    ReplayError,
    ServerLost,
    replay_recipe,
    require_same_policy,
)
from sqap_vla_ros.evaluation.replay.tables import write_frames_csv
from sqap_vla_ros.policy.checkpoints.writing import described
from sqap_vla_ros.processes import raise_interruption, worker_pool
from sqap_vla_ros.recordings.frames import nothing_observed
from sqap_vla_ros.serving.frames import is_remote
from sqap_vla_ros.serving.worker import WorkerConfig
from sqap_vla_ros.shipped import SHIPPED

if TYPE_CHECKING:
    from sqap_vla_ros.evaluation.replay.sources import RecordingSpec

_TRIES = 3  # a bag whose process died is tried so often


@dataclass(frozen=True)
class ReplayJob:
    """The replay of one bag through several recipes.

    recipes: the first one is the reference. worker: what to load; its recipe is replaced by each of `recipes`.
    out: folder of this bag's results.
    """

    bag: Path
    spec: RecordingSpec
    recipes: tuple[str, ...]
    worker: WorkerConfig
    out: Path
    control_rate_hz: float = 5.0
    worst: int = 4
    video: bool = True

    def __post_init__(self) -> None:
        if not self.recipes or len(set(self.recipes)) != len(self.recipes):
            raise ValueError(f"recipes must be some names, each once, got {self.recipes}")
        if not self.control_rate_hz > 0:
            raise ValueError(f"control_rate_hz must be positive, got {self.control_rate_hz}")


@dataclass(frozen=True)
class JobResult:
    """The result of a job. summaries: as in report.json, empty when `error` says why the bag could not be replayed.

    trace: the traceback of that error, for those who ask for it. halts: the error is that of all other jobs too.
    """

    job: ReplayJob
    summaries: list[dict[str, Any]]
    error: str = ""
    trace: str = ""
    halts: bool = False


def make_jobs(
    bags: Sequence[Path],
    out: Path,
    specs: Sequence[RecordingSpec],
    recipes: Sequence[str],
    worker: WorkerConfig,
    *,
    control_rate_hz: float,
    video: bool = True,
) -> list[ReplayJob]:
    """Return one job a recording, read as its specification says.

    Several recordings get a folder each under `out`, named after them.

    Raises ValueError for a recipe that cannot be read, before any work, for bags or recipes of the same name, and for
    results within a recording.
    """
    for name in () if is_remote(worker.checkpoint) else recipes:
        load_recipe(name)
    called = [recipe_folder(name) for name in recipes]
    if twice := sorted({name for name in called if called.count(name) > 1}):
        raise ValueError(f"--recipes: several are called {', '.join(twice)}: name each once, and rename a file")
    names = [bag.expanduser().resolve().stem for bag in bags]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"several bags are called {', '.join(twice)}: rename them or replay them into different --out")
    for bag in bags:
        if bag.expanduser().resolve() in (out.expanduser().resolve(), *out.expanduser().resolve().parents):
            raise ValueError(f"--out {out} lies in the recording {bag}: name another folder for the results")
    folders = [out] if len(names) == 1 else [out / name for name in names]
    return [
        ReplayJob(bag, spec, tuple(recipes), worker, folder, control_rate_hz, video=video)
        for bag, spec, folder in zip(bags, specs, folders, strict=True)
    ]


def recipe_folder(recipe: str) -> str:
    """Return the name of a recipe's folder in a replay: the recipe's, or that of its file."""
    return Path(recipe).stem if recipe.endswith((".yaml", ".yml")) else recipe


def run_job(job: ReplayJob, *, show: bool = True) -> JobResult:
    """Replay one bag and write its report. Raises BagError, DatasetError, ReplayError or ServerLost."""
    from sqap_vla_ros.evaluation.replay.report import write_report  # plotting takes a second to import

    runs: list[RecipeRun] = []
    loaded_from = policy_files(job.worker)
    for recipe in job.recipes:
        worker = dataclasses.replace(job.worker, recipe=recipe)
        require_same_policy(worker, loaded_from)  # recipes are compared, not policies
        runs.append(replay_recipe(job.bag, job.spec, worker, job.out / recipe_folder(recipe), show=show))
        if not any(record.instruction for record in runs[0].records):
            write_frames_csv(job.out / "frames.csv", runs)
            counted = runs[0].counters
            said = nothing_observed(counted["used"], counted["problems"], counted.get("reasons", {}))
            raise ReplayError(f"{said}; every image has a line in {job.out / 'frames.csv'}")
        if all(record.deltas is None for record in runs[-1].records):
            write_frames_csv(job.out / "frames.csv", runs)
            problem, count = Counter(one.problem for one in runs[-1].records if one.instruction).most_common(1)[0]
            raise ReplayError(f"recipe {recipe}: none of its images gave a prediction ({count} of them: {problem})")
    summaries = [
        summarise(run, runs[0], control_rate_hz=job.control_rate_hz)
        | {"compression": compression_of(dataclasses.replace(job.worker, recipe=run.recipe))}
        for run in runs
    ]
    sources = json.loads((job.out / recipe_folder(job.recipes[0]) / RUN).read_text())["sources"]
    write_report(
        job.out,
        job.bag,
        job.spec,
        runs,
        summaries,
        sources,
        control_rate_hz=job.control_rate_hz,
        worst=job.worst,
        video=job.video,
        show=show,
    )
    return JobResult(job, summaries)


def compression_of(worker: WorkerConfig) -> dict[str, str]:
    """Return in words what was done to the policy ("description") and what it was calibrated on ("calibration")."""
    if worker.factory:
        return {"description": f"made by {worker.factory}", "calibration": "unknown"}
    if is_remote(worker.checkpoint):
        return {"description": f"served as {worker.recipe} by {worker.checkpoint}", "calibration": "unknown"}
    recipe = load_recipe(worker.recipe)
    calibration = "nothing, it needs none"
    path = Path(worker.checkpoint).expanduser()
    if worker.checkpoint not in SHIPPED and path.is_file() and is_compressed(path):
        from sqap_vla_ros.compression.files.storage import CompressedFile  # imports torch

        header = CompressedFile(path).header
        calibration = str(header.calibration.get("source", "unknown"))
        description = "; ".join(filter(None, (f"file compressed as {header.recipe.name}", recipe.description)))
        return {"description": description, "calibration": calibration}
    if recipe.quantization is not None and recipe.quantization.needs_calibration:
        known = SHIPPED.get(worker.checkpoint)
        calibration = "scenes of its own geometry" if known is None else f"{known.calibration_count} {known.scenes}"
    return {"description": recipe.description, "calibration": calibration}


def run_jobs(jobs: Sequence[ReplayJob], *, processes: int = 1, ray_address: str | None = None) -> list[JobResult]:
    """Replay every bag, in the order of `jobs`; a bag that cannot be replayed does not stop the others.

    Where the policy's server is lost, no other bag is begun.

    processes: local processes. ray_address: a Ray cluster instead, one of `ray_cluster.ADDRESSES`.
    """
    if ray_address is not None:
        return _over_ray(jobs, ray_address)
    if processes == 1 or len(jobs) == 1:
        tried: list[JobResult] = []
        for job in jobs:
            halted = tried[-1] if tried and tried[-1].halts else None
            tried.append(dataclasses.replace(halted, job=job) if halted else _attempt(job, show=True))
        return tried
    return _over_processes(jobs, processes)


def _attempt(job: ReplayJob, *, show: bool = False) -> JobResult:
    try:
        return run_job(job, show=show)
    except ServerLost as error:
        return JobResult(job, [], str(error), traceback.format_exc(), halts=True)
    except Exception as error:  # also what a library raises, or a lack of memory: the other bags are replayed
        raise_interruption(error)
        text = described(error, resumes=True)
        if not isinstance(error, (ValueError, OSError)):
            text = f"{type(error).__name__}: {text}".rstrip(": ")
        return JobResult(job, [], text if str(job.bag) in text else f"{job.bag}: {text}", traceback.format_exc())


def _over_processes(jobs: Sequence[ReplayJob], processes: int) -> list[JobResult]:
    """Replay in local processes. A killed process breaks the whole pool; unfinished bags then go into a new one."""
    results: dict[int, JobResult] = {}
    with tqdm(total=len(jobs), desc="bags", unit="bag") as bar:
        for _ in range(_TRIES):
            left = [number for number in range(len(jobs)) if number not in results]
            if not left or any(result.halts for result in results.values()):
                break
            with worker_pool(processes) as pool:
                for number, result in _finished(pool, jobs, left, processes):
                    results[number] = result
                    bar.update()
    lost = "its process was lost three times (out of memory? use fewer --jobs)"
    return _complete(jobs, results, lost)


def _finished(
    pool: ProcessPoolExecutor, jobs: Sequence[ReplayJob], left: list[int], processes: int
) -> Iterator[tuple[int, JobResult]]:
    """Yield the numbers and results of jobs as they end, until the pool breaks or one halts those not yet begun."""
    running: dict[Future[JobResult], int] = {}
    while left or running:
        try:
            while left and len(running) < processes:  # a pool would begin others ahead of time
                running[pool.submit(_attempt, jobs[left[0]])] = left[0]
                del left[0]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number = running.pop(future)
                result = future.result()
                yield number, result
                if result.halts:  # those that are under way lose the server by themselves
                    left.clear()
        except BrokenProcessPool:
            left.clear()


def _over_ray(jobs: Sequence[ReplayJob], address: str) -> list[JobResult]:
    """Replay on a Ray cluster. A bag whose worker died goes on from the last frame on disk, on another worker."""
    with ray_cluster(address) as ray:
        task = ray.remote(max_retries=_TRIES - 1)(_attempt)
        pending = {task.remote(_absolute(job)): number for number, job in enumerate(jobs)}
        results: dict[int, JobResult] = {}
        with tqdm(total=len(jobs), desc="bags", unit="bag") as bar:
            while pending:
                (done,), _ = ray.wait(list(pending), num_returns=1)
                number = pending.pop(done)
                try:
                    results[number] = dataclasses.replace(ray.get(done), job=jobs[number])
                except ray.exceptions.RayError as error:
                    results[number] = JobResult(jobs[number], [], f"{jobs[number].bag}: {error}")
                bar.update()
                if results[number].halts:
                    break
    return _complete(jobs, results, "its task was lost")


def _complete(jobs: Sequence[ReplayJob], results: Mapping[int, JobResult], lost: str) -> list[JobResult]:
    """Return a result a job, in order. lost: why there is none, unless one of the others halted it."""
    halted = next((result for result in results.values() if result.halts), None)

    def absent(job: ReplayJob) -> JobResult:
        return dataclasses.replace(halted, job=job) if halted else JobResult(job, [], f"{job.bag}: {lost}")

    return [results.get(number) or absent(job) for number, job in enumerate(jobs)]


def _absolute(job: ReplayJob) -> ReplayJob:
    return dataclasses.replace(job, bag=job.bag.expanduser().resolve(), out=job.out.expanduser().resolve())
