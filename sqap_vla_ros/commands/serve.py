"""`sqap-vla serve`: the policy over a websocket, for the clients of vla-eval and openpi and for `RemotePolicy`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqap_vla_ros.commands.ignored import ignored, ignored_by_server, ignored_recipe, note
from sqap_vla_ros.commands.options import (
    STATE_HELP,
    UsageError,
    add_checkpoint,
    add_checkpoint_settings,
    add_command,
    add_device,
    add_recipe,
    add_sampling,
    add_seed,
    add_threads,
    add_unnorm_key,
    checkpoint_settings,
    integer,
    number,
    worker_settings,
)
from sqap_vla_ros.commands.policy_checks import require_device, require_policy
from sqap_vla_ros.commands.recordings.cameras import add_fixed_camera, fixed_camera, mirrored_without_camera
from sqap_vla_ros.contracts import STEP_S, TRAINED_POLICY
from sqap_vla_ros.serving import defaults

if TYPE_CHECKING:
    from sqap_vla_ros.serving.server.protocols import Service
    from sqap_vla_ros.serving.server.server import ServerConfig
    from sqap_vla_ros.serving.worker import WorkerConfig

_log = logging.getLogger(__name__)
_DESCRIPTION = """\
Serve a policy on one port: websockets for vla-eval (ws://host:port/vla-eval), openpi (/openpi), both (/), and this
package's own RemotePolicy (/native), and over HTTP GET /health, /healthz, /config and CogACT's POST /act. Listens on
this computer only, unless a token is in the environment variable SQAP_VLA_TOKEN."""


def register(subparsers: Any) -> None:
    """Add the `serve` sub-command."""
    parser = add_command(
        subparsers,
        "serve",
        run,
        summary="serve a policy to vla-eval's, openpi's and this package's clients",
        description=_DESCRIPTION,
    )
    policy = parser.add_argument_group("policy")
    add_checkpoint(policy, TRAINED_POLICY)
    add_recipe(policy, "fp32")
    add_unnorm_key(policy)
    add_checkpoint_settings(policy)
    add_sampling(policy)
    add_device(policy)
    policy.add_argument(
        "--dtype", default="", choices=("float32", "bfloat16", "float16"), help="overrides the recipe's dtype"
    )
    add_threads(policy)
    add_seed(policy, "seed of the diffusion noise, the same for every prediction")
    actions = parser.add_argument_group("actions")
    actions.add_argument(
        "--action-space", default="metric", help="what actions mean: metric, simpler, libero or libero_displacement"
    )
    actions.add_argument(
        "--control-hz",
        type=number(1.0 / STEP_S[1], 1.0 / STEP_S[0]),
        metavar="HZ",
        help="rate at which the client acts, if not the policy's: chunks are resampled to it",
    )
    actions.add_argument(
        "--execution-horizon",
        type=integer(1),
        default=defaults.HORIZON,
        help="actions used of each chunk by clients that take one at a time",
    )
    actions.add_argument(
        "--ensemble",
        default=defaults.ENSEMBLE,
        help="for clients that take one at a time: none, by_time, or original (needs a horizon of 1)",
    )
    actions.add_argument(
        "--ensemble-chunks",
        type=integer(1, defaults.MOST_ENSEMBLE_CHUNKS),
        default=defaults.ENSEMBLE_CHUNKS,
        metavar="N",
        help="chunks that the ensemble averages, the newest included (CogACT: 7 for WidowX, 2 for the Google robot)",
    )
    actions.add_argument(
        "--post-actions",
        type=integer(1),
        metavar="N",
        help="answer each POST with the first N actions, as a list of lists, in place of one flat action",
    )
    images = parser.add_argument_group("images, and the ring of the token selection")
    images.add_argument("--image-key", default="", help="which picture the policy sees, where several are sent")
    images.add_argument("--camera-info", type=Path, help="calibration as YAML or JSON: projects the tool of the state")
    add_fixed_camera(images)
    images.add_argument("--state", default="axis_angle", help=STATE_HELP)
    network = parser.add_argument_group("network")
    network.add_argument("--host", default=defaults.HOST, help="address to listen on")
    network.add_argument(
        "--port", type=integer(0, 65_535), default=defaults.PORT, help="port to listen on; 0 takes a free one"
    )
    network.add_argument("--clients", type=integer(1), default=defaults.MOST_CLIENTS, help="clients at a time")
    network.add_argument(
        "--max-batch",
        type=integer(1, defaults.MOST_BATCH),
        default=defaults.MAX_BATCH,
        metavar="N",
        help="waiting requests predicted together, as far as their chunks stay the same; 1 predicts each alone",
    )
    network.add_argument(
        "--batch-tolerance",
        type=number(0.0),
        default=defaults.BATCH_TOLERANCE,
        metavar="UNITS",
        help="normalised units by which predicting together may change a chunk; 0 allows no bit",
    )
    network.add_argument("--patience", type=number(0.0, above=True), default=25.0, help="seconds a request may wait")
    network.add_argument(
        "--prediction-timeout",
        type=number(0.0, above=True),
        default=defaults.PREDICTION_TIMEOUT_S,
        help="seconds until a prediction has hung",
    )
    network.add_argument(
        "--load-timeout",
        type=number(0.0, above=True),
        default=defaults.LOAD_TIMEOUT_S,
        help="seconds until loading has hung",
    )


def run(args: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM, either of which is a good end."""
    try:
        require_policy(args.checkpoint, args.recipe, settings=checkpoint_settings(args))
    except (OSError, ValueError) as error:
        raise UsageError(f"the policy cannot be loaded: {error}") from error
    require_device(args.device, args.checkpoint)
    _require_host(args.host)
    note(ignored_options(args))
    try:
        import msgpack  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        raise UsageError(f"serving needs {error.name}: {defaults.INSTALL}") from error
    from sqap_vla_ros.serving.frames import token_of
    from sqap_vla_ros.serving.server.server import ServerConfig
    from sqap_vla_ros.serving.worker import WorkerConfig

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # what clients do wrong is told to them
    warnings.filterwarnings("ignore", module="PIL")  # and so is what is wrong with their pictures
    names = ("checkpoint", "recipe", "device", "dtype", "unnorm_key", "seed", "threads")
    settings = {name: getattr(args, name) for name in names} | worker_settings(args)
    worker = WorkerConfig(**settings, batch_tolerance=args.batch_tolerance)
    config = ServerConfig(args.host, args.port, token_of(os.environ), most_clients=args.clients)
    asyncio.run(_serve(args, worker, config))


def _require_host(host: str) -> None:
    """Raise UsageError for a --host that is no address and no known name; a token would not help it."""
    try:
        if not host:
            raise OSError(errno.EINVAL, "is empty")
        socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # no host has such a name
        raise UsageError(_host_problem(error, host)) from error


def _listening_problem(error: OSError, host: str, port: int) -> str:
    """Return why nobody can be served at a host and port, and what to do."""
    another = "choose another --port, or 0 for a free one"
    if error.errno == errno.EADDRINUSE:
        return f"--port {port}: another program listens on it at {host}: {another}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"--port {port}: this user may not listen on it (below 1024 it takes special rights): {another}"
    return _host_problem(error, host)


def _host_problem(error: Exception, host: str) -> str:
    known = {errno.EADDRNOTAVAIL: "is no address of this computer"}
    number = getattr(error, "errno", None)
    why = known.get(number or 0) or getattr(error, "strerror", None) or str(error)
    return f"--host {host}: {why}: give 127.0.0.1, another address of this computer, or 0.0.0.0 for all of them"


async def _serve(args: argparse.Namespace, worker: WorkerConfig, config: ServerConfig) -> None:
    from sqap_vla_ros.serving.server.engine import EngineError
    from sqap_vla_ros.serving.server.server import listening

    service = make_service(args, worker)
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    ends = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as it is under nohup
        ends.append(signal.SIGHUP)
    for signal_number in ends:
        loop.add_signal_handler(signal_number, stopped.set)
    engine, stopping = loop.create_task(service.engine.run()), loop.create_task(stopped.wait())
    notes = loop.create_task(_log_notes(args, service))
    try:
        async with contextlib.AsyncExitStack() as stack:
            try:
                port = await stack.enter_async_context(listening(service, config))
            except OSError as error:
                raise UsageError(_listening_problem(error, config.host, config.port)) from error
            print(f"listening on ws://{config.host}:{port}", flush=True)
            await asyncio.wait((engine, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        notes.cancel()
        engine.cancel()
        try:
            await engine
        except asyncio.CancelledError:
            pass
        except EngineError as error:
            raise UsageError(f"the policy cannot be loaded: {error}") from error


def ignored_options(args: argparse.Namespace) -> list[str]:
    """Return a sentence for each option that was typed and has no effect; `_log_notes` tells of those of the policy."""
    averaged = (("--ensemble-chunks",), args.ensemble == "none", "without --ensemble nothing is averaged")
    return ignored(args, mirrored_without_camera(args), averaged) + ignored_by_server(args)


async def _log_notes(args: argparse.Namespace, service: Service) -> None:
    """Tell what the options make of the policy, once it is loaded."""
    info = await service.engine.loaded()
    for sentence in (*ignored_recipe(args, info.recipe), *service.chunk_use.notes(info)):
        _log.info(sentence)


def make_service(args: argparse.Namespace, worker: WorkerConfig) -> Service:
    """Return the service that the options describe. Raises ValueError for options that do not fit."""
    from sqap_vla_ros.robot.interchange.action_space import ACTION_SPACES
    from sqap_vla_ros.serving.server.engine import Engine
    from sqap_vla_ros.serving.server.episode import ChunkUse
    from sqap_vla_ros.serving.server.observations import ObservationReader
    from sqap_vla_ros.serving.server.protocols import Service
    from sqap_vla_ros.serving.worker import PolicyWorker

    if args.action_space not in ACTION_SPACES:
        raise UsageError(f"--action-space must be one of {', '.join(ACTION_SPACES)}, got {args.action_space!r}")
    engine = Engine(
        lambda notify: PolicyWorker(worker, notify),
        prediction_timeout_s=args.prediction_timeout,
        load_timeout_s=args.load_timeout,
        patience_s=args.patience,
        max_batch=args.max_batch,
    )
    return Service(
        engine,
        ObservationReader(args.image_key, fixed_camera(args, args.camera_info), args.state),
        ACTION_SPACES[args.action_space],
        ChunkUse(
            args.execution_horizon,
            args.ensemble,
            args.seed,
            args.control_hz,
            args.post_actions,
            ensemble_chunks=args.ensemble_chunks,
        ),
    )
