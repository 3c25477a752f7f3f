"""A policy server in a thread of the test's process."""

import asyncio
import contextlib
import threading
from typing import Any

from sqap_vla_ros.robot.interchange.action_space import ActionSpace
from sqap_vla_ros.serving.defaults import MAX_BATCH
from sqap_vla_ros.serving.server.engine import Engine, EngineError
from sqap_vla_ros.serving.server.episode import ChunkUse
from sqap_vla_ros.serving.server.observations import ObservationReader
from sqap_vla_ros.serving.server.protocols import Service
from sqap_vla_ros.serving.server.server import ServerConfig, listening
from sqap_vla_ros.serving.worker import PolicyWorker, WorkerConfig

TIMEOUT_S = 30.0


class Served:
    """Use as a context manager. `url` is the address; `error` what ended the engine, if anything did."""

    def __init__(
        self,
        factory: str = "workers.faults:faulty",
        *,
        reader: ObservationReader | None = None,
        actions: ActionSpace | None = None,
        chunk_use: ChunkUse | None = None,
        patience_s: float = TIMEOUT_S,
        prediction_timeout_s: float = TIMEOUT_S,
        max_batch: int = MAX_BATCH,
        **config: Any,
    ) -> None:
        worker = WorkerConfig("double", factory=factory, warmup=0)
        self._make = lambda notify: PolicyWorker(worker, notify)
        self._limits: Any = {
            "patience_s": patience_s,
            "prediction_timeout_s": prediction_timeout_s,
            "max_batch": max_batch,
        }
        self._parts = (reader or ObservationReader(), actions or ActionSpace(), chunk_use or ChunkUse())
        self._config = ServerConfig(**{"port": 0, **config})
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.error: EngineError | None = None

    def __enter__(self) -> "Served":
        self._thread.start()
        assert self._started.wait(TIMEOUT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server, as at a crash of its computer. Safe to call twice."""
        if not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def _run(self) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        self.engine = Engine(self._make, load_timeout_s=TIMEOUT_S, **self._limits)
        service = Service(self.engine, *self._parts)
        running = self._loop.create_task(self.engine.run())
        async with listening(service, self._config) as self.port:
            self._started.set()
            await self._stopped.wait()
        running.cancel()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await running
        except EngineError as error:
            self.error = error
