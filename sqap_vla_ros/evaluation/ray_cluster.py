"""A connection to a Ray cluster, whose end has the same exit status as that of any other command."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from sqap_vla_ros.processes import Terminated, signals_raise

_MISSING = "--ray needs Ray: pip install '.[cluster]' in the checkout of sqap-vla-ros"


def require_ray() -> None:
    """Raise ValueError where Ray is missing; does not import it, which takes seconds."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError(_MISSING)


@contextlib.contextmanager
def ray_cluster(address: str) -> Iterator[Any]:
    """Connect to a cluster, or start a local one, and provide the module `ray` until the block is left.

    address: "auto", "local" or host:port. Workers get this process's import paths, and paths that do not depend on the
    working directory. Raises ValueError where Ray is missing, and `Terminated` on SIGTERM and SIGHUP, also while Ray
    starts.
    """
    try:
        import ray  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ValueError(_MISSING) from error
    variables = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY") if name in os.environ}
    variables["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    received: list[int] = []
    try:
        with signals_raise(received):
            ray.init(address=address, runtime_env={"env_vars": variables}, log_to_driver=False, include_dashboard=False)
            with signals_raise(received):  # `ray.init` has put other handlers of SIGTERM in place of the command's
                yield ray
    except SystemExit as error:  # Ray's own where its handler of SIGTERM ran, or one in place of `Terminated`
        raise Terminated(received[-1] if received else signal.SIGTERM) from error
    finally:
        ray.shutdown()
