"""One client's episode: chooses the next action from the chunks that were predicted."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import NS_PER_S, Observation
from sqap_vla_ros.robot.ensemble import AdaptiveEnsemble
from sqap_vla_ros.serving import defaults
from sqap_vla_ros.serving.events import Result
from sqap_vla_ros.serving.server.engine import Engine

# Name in --ensemble -> alignment of `AdaptiveEnsemble`.
ENSEMBLES: Mapping[str, Literal["time", "call"] | None] = {"none": None, "by_time": "time", "original": "call"}


@dataclass(frozen=True)
class ChunkUse:
    """Settings for clients that ask for one action at a time, not for whole chunks.

    horizon: actions executed of each chunk before the policy predicts again.
    ensemble: a name of `ENSEMBLES`; "original" averages actions of successive calls, so it needs horizon 1.
    seed: of the diffusion noise, the same for every prediction, as in the node.
    """

    horizon: int = defaults.HORIZON
    ensemble: str = defaults.ENSEMBLE
    seed: int = 0

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"the execution horizon must be at least 1 action, got {self.horizon}")
        if self.ensemble not in ENSEMBLES:
            raise ValueError(f"ensemble must be one of {', '.join(ENSEMBLES)}, got {self.ensemble!r}")
        if self.ensemble == "original" and self.horizon != 1:
            raise ValueError(f"the original ensemble needs an execution horizon of 1, got {self.horizon}")


class Episode:
    """The state between a client's observations. One a connection, begun anew at each episode."""

    def __init__(self, engine: Engine, use: ChunkUse) -> None:
        self._engine = engine
        self._use = use
        align = ENSEMBLES[use.ensemble]
        self._ensemble = None if align is None else AdaptiveEnsemble(align=align)
        self.begin()

    def begin(self) -> None:
        """Forget everything: the next observation is the first of an episode."""
        self._left: deque[NDArray[np.float64]] = deque()
        self._steps = 0
        self._instruction = ""
        self._reset = True
        if self._ensemble is not None:
            self._ensemble.reset()

    async def chunk(self, observation: Observation) -> Result:
        """Predict. Raises PredictionError."""
        result = await self._engine.predict(self, observation, seed=self._use.seed, reset=self._reset)
        self._reset = False
        return result

    async def action(self, observation: Observation) -> NDArray[np.float64]:
        """Return the deltas [7] of the next action: from the chunk at hand, or from a new one. Raises PredictionError.

        Another instruction begins another episode.
        """
        if observation.instruction != self._instruction:
            self.begin()
            self._instruction = observation.instruction
        if not self._left:
            chunk = (await self.chunk(observation)).chunk
            deltas = chunk.deltas
            if self._ensemble is not None:
                # Clients step the world themselves: its time is the number of their steps.
                deltas = self._ensemble.update(deltas, round(self._steps * chunk.dt_s * NS_PER_S), chunk.dt_s)
            self._left.extend(deltas[: self._use.horizon])
        self._steps += 1
        return self._left.popleft()
