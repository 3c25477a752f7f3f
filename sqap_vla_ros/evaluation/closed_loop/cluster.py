"""A study over a Ray cluster: a task is one group of episodes, which is redone where its worker is lost."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from sqap_vla_ros.evaluation.closed_loop.episode_worker import EpisodeWorker, Message
from sqap_vla_ros.evaluation.closed_loop.study import Assignment, Method
from sqap_vla_ros.evaluation.ray_cluster import ray_cluster

_TRIES = 3
# Of a Ray process, which runs one task after the other.
_worker: EpisodeWorker | None = None
_problems: dict[Method, Message] = {}


def ray_messages(
    assignments: Sequence[Assignment], reference: Method, address: str, stop_at: float | None
) -> Generator[Message]:
    """Yield what the cluster's workers report, group by group, until all is done or time is up.

    address: one of `ray_cluster.ADDRESSES`. Checkpoints and recipes that are files must lie on a disk that all share.
    Raises ValueError where Ray is missing.
    """
    with ray_cluster(address) as ray:
        task = ray.remote(max_retries=_TRIES - 1)(run_group)
        teacher = _anywhere(reference)
        pending = {
            task.remote(Assignment(_anywhere(assignment.method), (group,)), teacher): assignment.method.name
            for assignment in assignments
            for group in assignment.groups
        }
        while pending and (stop_at is None or time.monotonic() < stop_at):
            done, _ = ray.wait(list(pending), num_returns=1, timeout=0.5)
            for reply in done:
                name = pending.pop(reply)
                try:
                    yield from ray.get(reply)
                except ray.exceptions.RayError as error:
                    yield "problem", name, f"its worker was lost {_TRIES} times: {error}"


def run_group(assignment: Assignment, reference: Method) -> list[Message]:
    """Run an assignment in a Ray process, which keeps policy and simulators for the next.

    A method that could not be run is not tried again: each group would wait anew for a server that is gone.
    """
    global _worker
    if assignment.method in _problems:
        return [_problems[assignment.method]]
    if _worker is None or _worker.reference != reference:
        _worker = EpisodeWorker(reference)
    messages = list(_worker.run(assignment))
    if messages and messages[-1][0] == "problem":  # it ends with one
        _problems[assignment.method] = messages[-1]
    return messages


def _anywhere(method: Method) -> Method:
    """Return the method with the absolute paths of its files."""
    return dataclasses.replace(
        method, checkpoint=_absolute_if_file(method.checkpoint), recipe=_absolute_if_file(method.recipe)
    )


def _absolute_if_file(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name
