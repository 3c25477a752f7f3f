"""The work of one process in a study: it loads policies, runs episodes in lockstep, and reports what it did."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqap_vla_ros.contracts import UnfitObservation
from sqap_vla_ros.evaluation.closed_loop.study import DEVIATIONS, EPISODES, Assignment, Group, Method
from sqap_vla_ros.processes import raise_interruption
from sqap_vla_ros.serving.frames import RemoteError, is_remote
from sqap_vla_ros.simulation.vocabulary import TaskFamily

if TYPE_CHECKING:
    from sqap_vla_ros.contracts import Policy
    from sqap_vla_ros.evaluation.closed_loop.deviation import TaughtEpisode
    from sqap_vla_ros.simulation.environment import TabletopEnv

Message = tuple[str, str, Any]  # kind ("described", "problem", EPISODES or DEVIATIONS), name of the method, content


class EpisodeWorker:
    """Runs assignments one after the other; a policy stays loaded until another method's turn.

    reference: whose episodes teach where deviations are asked for.
    """

    def __init__(self, reference: Method) -> None:
        self.reference = reference
        self._envs: list[TabletopEnv] = []
        self._taught: dict[tuple[str, TaskFamily, int], TaughtEpisode] = {}
        self._loaded: tuple[Method, Policy, dict[str, Any]] | None = None

    def run(self, assignment: Assignment) -> Iterator[Message]:
        """Yield what is done as it is done; a method that cannot be run ends with a "problem"."""
        method = assignment.method
        try:
            if self._loaded is None or self._loaded[0] != method:
                self._loaded = None  # never two policies at a time
                self._loaded = (method, *load(method))
        except Exception as error:
            raise_interruption(error)
            about_the_choice = isinstance(error, OSError | ValueError)  # of checkpoint or recipe
            yield "problem", method.name, str(error) if about_the_choice else _described(error)
            return
        try:
            _, policy, description = self._loaded
            yield "described", method.name, description
            for group in assignment.groups:
                yield from self._run_group(policy, method, group)
        except Exception as error:  # one method that cannot be run must not end the others
            raise_interruption(error)
            yield "problem", method.name, _described(error)

    def close(self) -> None:
        """Give back the simulators."""
        for env in self._envs:
            env.close()
        self._envs.clear()

    def _run_group(self, policy: Policy, method: Method, group: Group) -> Iterator[Message]:
        from sqap_vla_ros.evaluation.closed_loop.deviation import deviation
        from sqap_vla_ros.evaluation.closed_loop.episodes import lockstep_width, run_episodes
        from sqap_vla_ros.simulation.environment import TabletopEnv

        while len(self._envs) < len(group.seeds):
            self._envs.append(TabletopEnv(shadows=False, antialiasing=False))
        if group.taught:
            lessons = [self._lesson(group.suite, group.family, seed) for seed in group.seeds]
            yield DEVIATIONS, method.name, [deviation(policy, lesson).to_dict() for lesson in lessons]
            return
        width = lockstep_width(policy, len(group.seeds))
        for start in range(0, len(group.seeds), width):
            seeds = group.seeds[start : start + width]
            done = run_episodes(policy, self._envs, group.suite, group.family, seeds, method.execution)
            yield EPISODES, method.name, [result.to_dict() for result in done]

    @cached_property
    def _teacher(self) -> Policy:
        return load(self.reference)[0]

    def _lesson(self, suite: str, family: TaskFamily, seed: int) -> TaughtEpisode:
        from sqap_vla_ros.evaluation.closed_loop.deviation import teach

        key = suite, family, seed
        if key not in self._taught:
            self._taught[key] = teach(self._teacher, self._envs[0], suite, family, seed)
        return self._taught[key]


def _described(error: Exception) -> str:
    """Return what went wrong: a sentence where a server or an observation is at fault, else with the trace."""
    if isinstance(error, RemoteError):
        return f"{error}; when the server answers again, the same command goes on from here"
    if isinstance(error, UnfitObservation):
        return str(error)
    return f"{error}\n{''.join(traceback.format_exception(error))}"


def load(method: Method) -> tuple[Policy, dict[str, Any]]:
    """Load the policy of a method on one thread; return it and a description, with the costs of `tables.COSTS`."""
    import torch

    from sqap_vla_ros.compression.bops import operation_shares
    from sqap_vla_ros.compression.load import applied_recipe
    from sqap_vla_ros.policies import load_policy
    from sqap_vla_ros.policy.config import COGACT_BASE
    from sqap_vla_ros.shipped import SHIPPED

    torch.set_num_threads(1)
    started = time.monotonic()
    policy: Any = load_policy(method.checkpoint, method.recipe)
    info = policy.info
    costs = dict(info.costs)
    if not is_remote(method.checkpoint):
        shares = operation_shares(applied_recipe(method.checkpoint, method.recipe, SHIPPED), COGACT_BASE)
        costs |= {f"bops_{name}_7b": share for name, share in shares.items()}
    return policy, {
        "parameters": info.parameters,
        "selector": info.selector,
        "load_s": round(time.monotonic() - started, 1),
        "costs": {name: round(value, 4) for name, value in costs.items()},
    }
