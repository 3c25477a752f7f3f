"""`sqap-vla predict`: predict one action chunk from one image and one instruction, without ROS."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqap_vla_ros.commands.ignored import ignored, ignored_by_server, ignored_recipe, note
from sqap_vla_ros.commands.options import (
    UsageError,
    add_checkpoint,
    add_checkpoint_settings,
    add_command,
    add_device,
    add_gripper_pixel,
    add_picture,
    add_recipe,
    add_sampling,
    add_seed,
    add_threads,
    add_unnorm_key,
    checkpoint_settings,
    gripper_pixel,
    instruction,
    number,
    progress_bar,
    use_threads,
)
from sqap_vla_ros.commands.policy_checks import require_device, require_policy
from sqap_vla_ros.policy.costs import costs_in_words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sqap_vla_ros.contracts import ActionChunk, Observation, Policy

_CHANNELS = ("dx_m", "dy_m", "dz_m", "droll_rad", "dpitch_rad", "dyaw_rad", "gripper")


def channel_names(count: int) -> tuple[str, ...]:
    """Return what an action's channels are; of any other number than seven the meaning is not known."""
    return _CHANNELS if count == len(_CHANNELS) else tuple(f"a{index}" for index in range(count))


def register(subparsers: Any) -> None:
    """Add the `predict` sub-command."""
    parser = add_command(
        subparsers, "predict", run, summary="predict one action chunk from one image and one instruction"
    )
    add_checkpoint(parser, "micro")
    add_recipe(parser, "fp32")
    add_picture(parser)
    parser.add_argument("--instruction", type=instruction, required=True, help="what to do, in words")
    add_seed(parser, "seed of the diffusion noise")
    add_unnorm_key(parser)
    add_checkpoint_settings(parser)
    add_sampling(parser)
    add_device(parser)
    add_threads(parser)
    place = parser.add_mutually_exclusive_group()
    add_gripper_pixel(place)
    place.add_argument(
        "--gripper-point",
        type=number(-math.inf),
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="gripper in the camera's optical frame, metres; needs --camera-info",
    )
    parser.add_argument("--camera-info", type=Path, help="calibration as YAML or JSON: the fields of CameraInfo")
    parser.add_argument("--json", action="store_true", help="print the whole chunk as JSON instead of a table")


def run(args: argparse.Namespace) -> None:
    """Print the chunk."""
    import numpy as np

    from sqap_vla_ros.contracts import Observation
    from sqap_vla_ros.pictures import read_picture
    from sqap_vla_ros.processes import busy_share, busy_warning
    from sqap_vla_ros.serving.frames import is_remote
    from sqap_vla_ros.shipped import SHIPPED

    if (args.gripper_point is None) != (args.camera_info is None):
        raise UsageError("--gripper-point is projected through --camera-info: give both")
    settings = checkpoint_settings(args)
    require_policy(args.checkpoint, args.recipe, settings=settings)
    require_device(args.device, args.checkpoint)
    image = read_picture(args.image)
    observation = Observation(image, stamp_ns=0, instruction=args.instruction, gripper_pixel=_gripper(args, image))
    policy: Policy
    if is_remote(args.checkpoint):
        note(ignored_by_server(args))
        policy, chunk = _predict_remotely(args, observation)
    else:
        from sqap_vla_ros.compression.files.kept import KeptPolicies, default_folder
        from sqap_vla_ros.compression.load import load_policy

        use_threads(args.threads)
        busy = busy_warning(busy_share())
        with progress_bar() as progress:
            policy = load_policy(
                args.checkpoint,
                args.recipe,
                shipped=SHIPPED,
                device=args.device,
                settings=settings,
                kept=KeptPolicies(default_folder(), progress),
            )
        note(ignored_recipe(args, policy.info.recipe))
        chunk = policy.predict(observation, seed=args.seed)
        note([f"{busy}: the milliseconds are longer than on an idle machine"] if busy else [])
    note(_ignored_gripper(args, observation, chunk))
    if not np.isfinite(chunk.deltas).all():
        raise ValueError(f"{args.checkpoint} predicts actions that are not finite: weights or statistics are damaged")
    costs = policy.info.costs
    if args.json:
        print(json.dumps(chunk_to_dict(chunk) | {"costs": dict(costs)}, indent=2))
        return
    print(chunk_table(chunk))
    if costs:
        print("; ".join(f"{name} {words}" for name, words in costs_in_words(costs).items()))


def _ignored_gripper(args: argparse.Namespace, observation: Observation, chunk: ActionChunk) -> list[str]:
    """Return what is said about a gripper in view around which no tokens are kept."""
    from sqap_vla_ros.contracts import Reason

    kept = [] if chunk.selection is None else chunk.selection.reasons.tolist()
    useless = observation.gripper_pixel is not None and Reason.RING not in kept
    options = ("--gripper-pixel", "--gripper-point", "--camera-info")
    return ignored(args, (options, useless, "no tokens are kept for being near the gripper"))


def _predict_remotely(args: argparse.Namespace, observation: Observation) -> tuple[Policy, ActionChunk]:
    from sqap_vla_ros.serving.remote import RemoteError, RemotePolicy

    try:
        policy = RemotePolicy(args.checkpoint)
        note(ignored_recipe(args, policy.info.recipe))
        return policy, policy.predict(observation, seed=args.seed)
    except RemoteError as error:
        raise UsageError(f"--checkpoint {args.checkpoint}: {error}") from error


def chunk_to_dict(chunk: ActionChunk) -> dict[str, Any]:
    """Return the chunk as plain types for JSON."""
    selection = chunk.selection
    return {
        "dt_s": chunk.dt_s,
        "seed": chunk.seed,
        "channels": list(channel_names(chunk.deltas.shape[1])),
        "actions": chunk.deltas.tolist(),
        "normalized": chunk.normalized.tolist(),
        "timings_ms": dict(chunk.timings_ms),
        "selection": None
        if selection is None
        else {
            "method": selection.method,
            "prune_layer": selection.prune_layer,
            "grid": list(selection.grid),
            "gripper_patch": selection.gripper_patch,
            "indices": selection.indices.tolist(),
            "reasons": selection.reasons.tolist(),
        },
    }


def chunk_table(chunk: ActionChunk) -> str:
    """Return the chunk as a table, one action a line; times are seconds after the image."""
    names = channel_names(chunk.deltas.shape[1])
    lines = ["  t [s]  " + "  ".join(f"{name:>10}" for name in names)]
    for index, action in enumerate(chunk.deltas):
        values = zip(names, action, strict=True)
        cells = (f"{value:>10.0f}" if name == "gripper" else f"{value:+10.4f}" for name, value in values)
        lines.append(f"{(index + 1) * chunk.dt_s:7.2f}  {'  '.join(cells)}")
    kept = "" if chunk.selection is None else f"{len(chunk.selection.indices)} tokens kept ({chunk.selection.method}); "
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in chunk.timings_ms.items())
    return "\n".join([*lines, f"{kept}milliseconds: {stages}"])


def _gripper(args: argparse.Namespace, image: NDArray[np.uint8]) -> tuple[float, float] | None:
    """Return the gripper's pixel from --gripper-pixel, or from --gripper-point through --camera-info."""
    height, width = image.shape[:2]
    if args.gripper_point is None:
        return gripper_pixel(args.gripper_pixel, width, height)
    import numpy as np

    from sqap_vla_ros.robot.calibration_file import read_camera_info
    from sqap_vla_ros.robot.camera import CameraModel, project_tool

    camera = CameraModel.from_camera_info(read_camera_info(args.camera_info))
    camera.require_size(width, height)
    tool = np.eye(4)
    tool[:3, 3] = args.gripper_point
    projection = project_tool(camera, np.eye(4), tool)
    if projection.pixel is None:
        print(f"note: no gripper in the image: {projection.reason}")
    return projection.pixel
