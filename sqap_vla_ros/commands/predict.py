"""`sqap-vla predict`: one image and one instruction in, one action chunk out, without ROS."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from sqap_vla_ros.contracts import ActionChunk

_CHANNELS = ("dx_m", "dy_m", "dz_m", "droll_rad", "dpitch_rad", "dyaw_rad", "gripper")


def register(subparsers: Any) -> None:
    """Add the `predict` sub-command."""
    predict = subparsers.add_parser("predict", help="one image and one instruction in, one action chunk out")
    predict.add_argument("--checkpoint", default="micro", help="folder, .safetensors file, or 'micro' (default)")
    predict.add_argument("--recipe", default="fp32", help="compression recipe: a name or a YAML file (default: fp32)")
    predict.add_argument("--image", type=Path, required=True, help="any picture PIL can read")
    predict.add_argument("--instruction", required=True, help="what to do, in words")
    predict.add_argument("--seed", type=int, default=0, help="seed of the diffusion noise (default: 0)")
    predict.add_argument("--unnorm-key", help="dataset whose statistics un-normalise the actions")
    predict.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    place = predict.add_mutually_exclusive_group()
    place.add_argument("--gripper-pixel", type=float, nargs=2, metavar=("U", "V"), help="gripper in the image, pixels")
    place.add_argument(
        "--gripper-point",
        type=float,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="gripper in the camera's optical frame, metres; needs --camera-info",
    )
    predict.add_argument("--camera-info", type=Path, help="calibration as YAML or JSON: the fields of CameraInfo")
    predict.add_argument("--json", action="store_true", help="print the whole chunk as JSON instead of a table")
    predict.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints the chunk."""
    from PIL import Image

    from sqap_vla_ros.compression.load import load_policy
    from sqap_vla_ros.contracts import Observation
    from sqap_vla_ros.shipped import SHIPPED

    with Image.open(args.image) as picture:
        image = np.asarray(picture.convert("RGB"))
    pixel = _gripper_pixel(args, image)
    observation = Observation(image, stamp_ns=0, instruction=args.instruction, gripper_pixel=pixel)
    policy = load_policy(args.checkpoint, args.recipe, shipped=SHIPPED, device=args.device, unnorm_key=args.unnorm_key)
    chunk = policy.predict(observation, seed=args.seed)
    print(json.dumps(chunk_to_dict(chunk), indent=2) if args.json else chunk_table(chunk))


def chunk_to_dict(chunk: ActionChunk) -> dict[str, Any]:
    """Plain types for JSON; times in seconds after the image."""
    selection = chunk.selection
    return {
        "dt_s": chunk.dt_s,
        "seed": chunk.seed,
        "channels": list(_CHANNELS),
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
    """The chunk for people: one action a line."""
    lines = ["  t [s]  " + "  ".join(f"{name:>10}" for name in _CHANNELS)]
    for index, action in enumerate(chunk.deltas):
        cells = "  ".join(f"{value:+10.4f}" for value in action[:-1])
        lines.append(f"{(index + 1) * chunk.dt_s:7.2f}  {cells}  {action[-1]:>10.0f}")
    kept = "" if chunk.selection is None else f"{len(chunk.selection.indices)} tokens kept ({chunk.selection.method}); "
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in chunk.timings_ms.items())
    return "\n".join([*lines, f"{kept}milliseconds: {stages}"])


def _gripper_pixel(args: argparse.Namespace, image: np.ndarray) -> tuple[float, float] | None:
    if args.gripper_point is None:
        if args.camera_info is not None:
            raise ValueError("--camera-info projects --gripper-point X Y Z: give both")
        return None if args.gripper_pixel is None else (args.gripper_pixel[0], args.gripper_pixel[1])
    if args.camera_info is None:
        raise ValueError("--gripper-point is projected through --camera-info: give both")
    from sqap_vla_ros.robot.camera import CameraModel, project_tool

    info = read_camera_info(args.camera_info)
    if (info.width, info.height) != (image.shape[1], image.shape[0]):
        raise ValueError(
            f"{args.camera_info} is for {info.width} x {info.height} pixels, the image has "
            f"{image.shape[1]} x {image.shape[0]}"
        )
    tool = np.eye(4)
    tool[:3, 3] = args.gripper_point
    projection = project_tool(CameraModel.from_camera_info(info), np.eye(4), tool)
    if projection.pixel is None:
        print(f"note: no gripper in the image: {projection.reason}")
    return projection.pixel


def read_camera_info(path: Path) -> SimpleNamespace:
    """A calibration file with the attributes of sensor_msgs/CameraInfo.

    Takes what `ros2 topic echo --once` prints (k, d, r, p) and what camera_calibration writes (camera_matrix, ...).
    """
    import yaml

    try:
        # `ros2 topic echo` ends each message with a document mark
        raw = next(iter(yaml.safe_load_all(path.read_text())), None)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is neither YAML nor JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold the fields of a CameraInfo, got {type(raw).__name__}")
    names = {"width": "image_width", "height": "image_height", "distortion_model": "distortion_model"}
    names |= {"k": "camera_matrix", "d": "distortion_coefficients", "r": "rectification_matrix"}
    names |= {"p": "projection_matrix"}
    values: dict[str, Any] = {}
    for name, calibration_name in names.items():
        value = raw.get(name, raw.get(calibration_name))
        values[name] = value["data"] if isinstance(value, dict) else value
    if values["k"] is None or values["width"] is None or values["height"] is None:
        lacking = [name for name in ("width", "height", "k") if values[name] is None]
        raise ValueError(f"{path} lacks {', '.join(lacking)}: it is not a camera calibration")
    k = values["k"]
    defaults = {
        "distortion_model": "plumb_bob",
        "d": [],
        "r": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        "p": [*k[0:3], 0.0, *k[3:6], 0.0, *k[6:9], 0.0],
    }
    for name, default in defaults.items():
        values[name] = default if values[name] is None else values[name]
    region = {"x_offset": 0, "y_offset": 0, "width": 0, "height": 0, "do_rectify": False} | (raw.get("roi") or {})
    return SimpleNamespace(
        **values,
        binning_x=raw.get("binning_x", 0),
        binning_y=raw.get("binning_y", 0),
        roi=SimpleNamespace(**region),
    )
