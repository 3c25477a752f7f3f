"""One client's episode: chooses the next action from the chunks that were predicted."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import NS_PER_S, ActionChunk, Observation, PolicyInfo
from sqap_vla_ros.robot.ensemble import AdaptiveEnsemble
from sqap_vla_ros.robot.interchange.action_rate import is_rate_of, resample_chunk, resampled_steps
from sqap_vla_ros.robot.interchange.action_space import ActionSpace
from sqap_vla_ros.serving import defaults
from sqap_vla_ros.serving.server.engine import Engine, PredictionError

# Name in --ensemble -> alignment of `AdaptiveEnsemble`.
ENSEMBLES: Mapping[str, Literal["time", "call"] | None] = {"none": None, "by_time": "time", "original": "call"}


_CLIPPED_FROM = 1.0 + 1e-6  # rounding is not worth a word
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChunkUse:
    """Settings for what a client gets of each chunk. Clients that take whole chunks have no horizon and no ensemble.

    horizon: actions executed of each chunk before the policy predicts again, counted in the client's steps.
    ensemble: a name of `ENSEMBLES`; "original" averages actions of successive calls, so it needs horizon 1.
    seed: of the diffusion noise, the same for every prediction, as in the node.
    control_hz: the client's rate, to which chunks are resampled; None gives it the policy's actions as they are.
    post_actions: actions of each chunk that a POST is answered with, as a list of lists; None is the first one, flat.
    ensemble_chunks: chunks that the ensemble averages, the newest included.
    """

    horizon: int = defaults.HORIZON
    ensemble: str = defaults.ENSEMBLE
    seed: int = 0
    control_hz: float | None = None
    post_actions: int | None = None
    ensemble_chunks: int = defaults.ENSEMBLE_CHUNKS

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"the execution horizon must be at least 1 action, got {self.horizon}")
        if self.ensemble not in ENSEMBLES:
            raise ValueError(f"ensemble must be one of {', '.join(ENSEMBLES)}, got {self.ensemble!r}")
        if self.post_actions is not None and self.post_actions < 1:
            raise ValueError(f"a POST must be answered with at least 1 action, got {self.post_actions}")
        if not 1 <= self.ensemble_chunks <= defaults.MOST_ENSEMBLE_CHUNKS:
            most = defaults.MOST_ENSEMBLE_CHUNKS
            raise ValueError(f"the ensemble must average 1 to {most} chunks, got {self.ensemble_chunks}")
        if self.ensemble == "original" and self.horizon != 1:
            raise ValueError(f"the original ensemble needs an execution horizon of 1, got {self.horizon}")

    def step_s(self, dt_s: float) -> float:
        """Return the seconds between a client's actions, for a policy whose own are `dt_s` apart."""
        return dt_s if self.control_hz is None or is_rate_of(self.control_hz, dt_s) else 1.0 / self.control_hz

    def length(self, info: PolicyInfo) -> int:
        """Return how many of the client's actions a chunk holds."""
        return resampled_steps(info.horizon, info.dt_s, 1.0 / self.step_s(info.dt_s))

    def notes(self, info: PolicyInfo) -> list[str]:
        """Return sentences on what these settings make of the policy's chunks; none where nothing is worth saying."""
        said = []
        length, step_s = self.length(info), self.step_s(info.dt_s)
        if step_s != info.dt_s:
            used = min(self.horizon, length)
            said.append(
                f"chunks of {info.horizon} actions at {1.0 / info.dt_s:g} Hz are resampled to {length} actions at "
                f"{self.control_hz:g} Hz; clients that take one at a time execute {used} of them, {used * step_s:.2g} s"
            )
        if self.horizon > length:
            said.append(
                f"the execution horizon of {self.horizon} is longer than a chunk: all its {length} actions are executed"
            )
        return said


class Episode:
    """The state between a client's observations. One a connection, begun anew at each episode."""

    def __init__(self, engine: Engine, use: ChunkUse, space: ActionSpace) -> None:
        self._engine = engine
        self._use = use
        self._space = space
        align = ENSEMBLES[use.ensemble]
        self._ensemble = None if align is None else AdaptiveEnsemble(use.ensemble_chunks, align=align)
        self._told_clipping = False
        self.begin()

    def begin(self) -> None:
        """Forget everything: the next observation is the first of an episode."""
        self._left: deque[NDArray[np.float64]] = deque()
        self._steps = 0
        self._instruction = ""
        self._reset = True
        if self._ensemble is not None:
            self._ensemble.reset()

    async def chunk(self, observation: Observation) -> tuple[NDArray[np.float64], float]:
        """Return a whole chunk as the client's actions [N, 7], and the policy's seconds. Raises PredictionError."""
        chunk, policy_s = await self._predict(observation)
        return self._clients(self._resampled(chunk)), policy_s

    async def action(self, observation: Observation) -> NDArray[np.float64]:
        """Return the client's next action [7]: from the chunk at hand, or from a new one. Raises PredictionError.

        Another instruction begins another episode.
        """
        if observation.instruction != self._instruction:
            self.begin()
            self._instruction = observation.instruction
        if not self._left:
            chunk, _ = await self._predict(observation)
            deltas = self._resampled(chunk)
            if self._ensemble is not None:
                # Clients step the world themselves: its time is the number of their steps.
                step_s = self._use.step_s(chunk.dt_s)
                deltas = self._ensemble.update(deltas, round(self._steps * step_s * NS_PER_S), step_s)
            self._left.extend(deltas[: self._use.horizon])
        self._steps += 1
        return self._clients(self._left.popleft()[None])[0]

    async def _predict(self, observation: Observation) -> tuple[ActionChunk, float]:
        result = await self._engine.predict(self, observation, seed=self._use.seed, reset=self._reset)
        self._reset = False
        return result.chunk, result.policy_s

    def _resampled(self, chunk: ActionChunk) -> NDArray[np.float64]:
        """Return the chunk's deltas at the client's rate."""
        if self._use.control_hz is None:
            return chunk.deltas
        try:
            return resample_chunk(chunk.deltas, chunk.dt_s, self._use.control_hz)
        except ValueError as error:
            raise PredictionError(f"the policy failed: {error}") from error

    def _clients(self, deltas: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return deltas [N, 7] in the client's units; tells once, in the log, where they have to be clipped."""
        if not self._told_clipping and (excess := self._space.excess(deltas)) > _CLIPPED_FROM:
            self._told_clipping = True
            rate = "" if self._use.control_hz is None else f" at {self._use.control_hz:g} Hz"
            _log.warning(
                "an action%s is %.2f times the most that the client takes and is clipped: the arm moves less than the "
                "policy says (told once a connection)",
                *(rate, excess),
            )
        return self._space.actions(deltas)
