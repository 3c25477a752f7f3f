"""A folder of pictures to click in, with what TF and camera_info said about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sqap_vla_ros.field_types import field_problem
from sqap_vla_ros.nodes.check.hand_eye.clicks import stamp_text
from sqap_vla_ros.nodes.check.hand_eye.sights import Array, Sight, Survey
from sqap_vla_ros.nodes.check.picture import save
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.camera import COEFFICIENTS, CameraModel

_DISTORTIONS = {(0,), *((count,) for counts in COEFFICIENTS.values() for count in counts)}
SIGHTS, CLICKS, PAGE = "sights.json", "clicks.csv", "clicks.html"


def write_folder(folder: Path, survey: Survey) -> None:
    """Write the sights of a survey: their pictures, and a page to click in them that saves a table of clicks.

    Pictures of an earlier survey in the folder are replaced, so that a table with clicks must not be there. Raises
    OSError and ValueError.
    """
    table = folder / CLICKS
    if table.exists() and any(line.strip().rstrip(",").count(",") for line in table.read_text().splitlines()[1:]):
        raise ValueError(f"{table} has clicks in it: name another folder with --pictures, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / SIGHTS).exists():
        for before in read_folder(folder).sights:
            (folder / f"{stamp_text(before.stamp_ns)}.png").unlink(missing_ok=True)
    for sight in survey.sights:
        save(sight.image, folder / f"{stamp_text(sight.stamp_ns)}.png")
    stamps = [stamp_text(sight.stamp_ns) for sight in survey.sights]
    (folder / SIGHTS).write_text(json.dumps(_to_json(survey), indent=1))
    table.unlink(missing_ok=True)  # a browser would save the new one as "clicks (1).csv"
    page = share_path("config/views/clicks.html").read_text("utf-8")
    (folder / PAGE).write_text(page.replace("/*STAMPS*/", json.dumps(stamps)), "utf-8")


def read_folder(folder: Path) -> Survey:
    """Read what `write_folder` wrote. Raises ValueError and OSError."""
    path = folder / SIGHTS
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist: --clicks needs --bag, or must lie in a folder that --pictures wrote before"
        )
    try:
        content = json.loads(path.read_text())
        camera = _camera(content["camera"])
        where, base, tool, optical = (
            str(content[name]) for name in ("where", "base_frame", "tool_frame", "optical_frame")
        )
        survey = Survey(where, base, tool, optical)
        survey.mounts = {child: (str(parent), _pose(pose)) for child, (parent, pose) in content["mounts"].items()}
        for entry in content["sights"]:
            picture = folder / f"{stamp_text(entry['stamp_ns'])}.png"
            image = cv2.imread(str(picture), cv2.IMREAD_COLOR)
            if image is None:
                survey.refuse(f"{picture} is missing or no picture")
                continue
            if image.shape[:2] != (camera.height, camera.width):
                survey.refuse(f"{picture} was resized: it must be {camera.width}x{camera.height}")
                continue
            poses = (_pose(entry[name]) for name in ("base_from_tool", "optical_from_base"))
            image = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
            survey.sights.append(Sight(int(entry["stamp_ns"]), image, camera, *poses))
            survey.images += 1
        return survey
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): collect the pictures again") from error


def _to_json(survey: Survey) -> dict[str, Any]:
    return {
        "where": survey.where,
        "base_frame": survey.base_frame,
        "tool_frame": survey.tool_frame,
        "optical_frame": survey.optical_frame,
        "mounts": {child: [parent, pose.tolist()] for child, (parent, pose) in survey.mounts.items()},
        "camera": _camera_to_json(survey.sights[0].camera),
        "sights": [
            {
                "stamp_ns": sight.stamp_ns,
                "base_from_tool": sight.base_from_tool.tolist(),
                "optical_from_base": sight.optical_from_base.tolist(),
            }
            for sight in survey.sights
        ],
    }


_ARRAYS = {"matrix": (3, 3), "distortion": None, "rotation": (3, 3), "translation": (3,)}  # None: see COEFFICIENTS


def _pose(rows: Any) -> Array:
    """Return a pose [4, 4]. Raises ValueError for anything else."""
    return _numbers(rows, (4, 4))


def _numbers(values: Any, shape: tuple[int, ...] | None) -> Array:
    array = np.array(values, dtype=np.float64)
    fits = array.shape in _DISTORTIONS if shape is None else array.shape == shape
    if not fits or not np.isfinite(array).all():
        wanted = "coefficients of a lens" if shape is None else f"{'x'.join(map(str, shape))} finite numbers"
        raise ValueError(f"{wanted} are needed, got {str(values)[:40]}")
    return array


def _camera_to_json(camera: CameraModel) -> dict[str, Any]:
    arrays = {name: getattr(camera, name).tolist() for name in _ARRAYS}
    radius = camera.max_radius if np.isfinite(camera.max_radius) else None
    return arrays | {
        "width": camera.width,
        "height": camera.height,
        "fisheye": camera.fisheye,
        "max_radius": radius,
    }


def _camera(content: dict[str, Any]) -> CameraModel:
    fields: dict[str, Any] = {name: value for name, value in content.items() if name not in _ARRAYS}
    if fields["max_radius"] is None:
        del fields["max_radius"]
    if problem := field_problem(CameraModel, fields):
        raise ValueError(problem)
    arrays: dict[str, Any] = {name: _numbers(content[name], shape) for name, shape in _ARRAYS.items()}
    return CameraModel(**{"max_radius": np.inf, **fields, **arrays})
