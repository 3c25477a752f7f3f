"""Runs what is missing of a study, in local processes or over a Ray cluster. Only this process writes results.

They are written whole lines at a time, so that an interrupted run goes on with nothing lost and nothing doubled.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sqap_vla_ros.evaluation.closed_loop.choices import LOCKSTEP
from sqap_vla_ros.evaluation.closed_loop.cluster import ray_messages
from sqap_vla_ros.evaluation.closed_loop.episode_worker import EpisodeWorker, Message
from sqap_vla_ros.evaluation.closed_loop.study import (
    EPISODES,
    Assignment,
    ClosedLoopError,
    Method,
    Store,
    Unit,
    identity,
    remaining_work,
    served_info,
    split_among,
)
from sqap_vla_ros.processes import end_with_parent, spawning
from sqap_vla_ros.serving.frames import is_remote


def run_units(
    units: Sequence[Unit],
    out: Path,
    *,
    reference: Method,
    jobs: int = 1,
    lockstep: int = LOCKSTEP,
    show: bool = True,
    deadline_s: float | None = None,
    ray_address: str | None = None,
) -> dict[str, str]:
    """Run what is missing of `units` in `jobs` processes. Returns what went wrong, by method: empty when all is done.

    reference: whose episodes teach where deviations are asked for.
    ray_address: a Ray cluster instead of local processes, one of `ray_cluster.ADDRESSES`.
    deadline_s: stop after so many seconds; what is finished by then is stored.
    """
    alone = jobs == 1 and ray_address is None
    served = {unit.method.checkpoint for unit in units if is_remote(unit.method.checkpoint)}
    for address in () if alone else served:
        if served_info(address).stateful:
            raise ClosedLoopError(
                f"the policy of {address} remembers earlier images, and forgets them when another process has its "
                "turn: use --jobs 1, or a server for each"
            )
    store = Store(out)
    lock = store.lock()
    for unit in units:
        store.describe(unit.method.name, identity(unit.method))
    left = remaining_work(units, store, lockstep)
    todo = sum(len(group.seeds) for assignment in left for group in assignment.groups if not group.taught)
    stop_at = time.monotonic() + deadline_s if deadline_s is not None else None
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # inherited: threads that wait do not spin
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    problems: dict[str, str] = {}
    try:
        if not left:
            return {}
        if ray_address is None:
            work = _local_messages(split_among(left, jobs), reference, jobs, stop_at)
        else:
            work = ray_messages(left, reference, ray_address, stop_at)
        with (
            tqdm(total=todo, desc="episodes", unit="ep", disable=not show, smoothing=0.05) as bar,
            contextlib.closing(work) as messages,
        ):
            for kind, name, content in messages:
                if kind == "problem":
                    problems[name] = content
                elif kind == "described":
                    store.describe(name, content)
                else:
                    store.append(name, kind, content)
                    if kind == EPISODES:
                        bar.set_postfix_str(name)
                        bar.update(len(content))
    finally:
        os.close(lock)
    return problems


def _local_messages(
    assignments: Sequence[Assignment], reference: Method, jobs: int, stop_at: float | None
) -> Generator[Message]:
    """Yield what local processes report, until all have ended or time is up; however it ends, they end too."""
    context = spawning()
    tasks: Any = context.Queue()
    results: Any = context.Queue()
    workers = [
        context.Process(target=_work, args=(tasks, results, reference), daemon=True)
        for _ in range(min(jobs, len(assignments)))
    ]
    for assignment in assignments:
        tasks.put(assignment)
    for _ in workers:
        tasks.put(None)
    for worker in workers:
        worker.start()
    try:
        yield from _messages(workers, results, stop_at)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _messages(workers: Sequence[Any], results: Any, stop_at: float | None) -> Generator[Message]:
    """Yield what the workers report, until all have ended or time is up."""
    while stop_at is None or time.monotonic() < stop_at:
        try:
            yield results.get(timeout=0.5)
            continue
        except queue.Empty:
            pass
        if any(worker.is_alive() for worker in workers):
            continue
        while not results.empty():
            yield results.get()
        for worker in workers:
            if worker.exitcode:
                fewer = ", with fewer --jobs" if len(workers) > 1 else ""
                text = f"ended with exit code {worker.exitcode} (killed? out of memory?): run the same command again"
                yield "problem", f"process {worker.pid}", text + fewer
        return


def _work(tasks: Any, results: Any, reference: Method) -> None:
    """Work through assignments in a process of its own."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    with contextlib.closing(EpisodeWorker(reference)) as worker:
        while (assignment := tasks.get()) is not None:
            for message in worker.run(assignment):
                results.put(message)
