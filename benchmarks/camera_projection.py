"""Measure how well the camera model predicts real pixels from a real robot's poses.

Recording: 15 images of a 10x10 dot grid by a camera on an industrial arm's wrist, each with the wrist's pose
(ros-industrial/industrial_calibration, Apache-2.0). The camera is calibrated from the dots alone; where the camera sits
on the wrist and where the grid lies is fitted on some images; then the dots of the other images are predicted through
the chain of transforms, base -> wrist -> optical frame -> pixel, as policy_node predicts the gripper's.

Prints the calibration's residual and, for each image left out, the error of the prediction; writes them as JSON.
What remains in the prediction is the arm's: a degree of its pose is some 10 pixels.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from sqap_vla_ros.robot.camera import CameraModel
from sqap_vla_ros.robot.conventions import invert_pose, pose_matrix

ROWS, SPACING_M = 10, 0.0254
IMAGES = 15
GRID = np.array([[col * SPACING_M, row * SPACING_M, 0.0] for row in range(ROWS) for col in range(ROWS)])  # [100, 3]
Array = NDArray[np.float64]


def detect_grid(gray: NDArray[np.uint8]) -> Array:
    """The dots' centres [100, 2] in the order of `GRID`, the large dot first."""
    parameters = cv2.SimpleBlobDetector_Params()
    parameters.minArea, parameters.maxArea = 25.0, 5000.0
    parameters.filterByCircularity = parameters.filterByInertia = parameters.filterByConvexity = False
    parameters.minDistBetweenBlobs = 5.0
    detector = cv2.SimpleBlobDetector_create(parameters)
    flags = cv2.CALIB_CB_SYMMETRIC_GRID | cv2.CALIB_CB_CLUSTERING
    found, centres = cv2.findCirclesGrid(gray, (ROWS, ROWS), flags=flags, blobDetector=detector)
    if not found:
        raise ValueError("no 10x10 dot grid in the image")
    grid = centres.reshape(ROWS, ROWS, 2).astype(np.float64)
    blobs = detector.detect(gray)
    positions, sizes = np.array([blob.pt for blob in blobs]), np.array([blob.size for blob in blobs])
    # The detector's first corner is any of the four; turned until it is the large dot, without mirroring.
    turned = [np.rot90(grid, quarter) for quarter in range(4)]
    size_of_corner = [sizes[np.linalg.norm(positions - view[0, 0], axis=1).argmin()] for view in turned]
    return turned[int(np.argmax(size_of_corner))].reshape(-1, 2)


def load(folder: Path) -> tuple[list[Array], list[Array], tuple[int, int]]:
    """Dots [100, 2] and base_from_wrist [4, 4] of each image, and the images' (width, height)."""
    dots, poses, size = [], [], (0, 0)
    for index in range(IMAGES):
        gray = cv2.imread(str(folder / "images" / f"{index}.png"), cv2.IMREAD_GRAYSCALE)
        size = (gray.shape[1], gray.shape[0])
        dots.append(detect_grid(gray))
        pose = yaml.safe_load((folder / "poses" / f"{index}.yaml").read_text())
        poses.append(pose_matrix([pose[c] for c in "xyz"], [pose[c] for c in ("qx", "qy", "qz", "qw")]))
    return dots, poses, size


def calibrate(dots: list[Array], size: tuple[int, int]) -> tuple[float, CameraModel, list[Array]]:
    """Root mean square residual in pixels, the camera through a CameraInfo, and optical_from_grid for each image."""
    views = [view.astype(np.float32) for view in dots]
    rms, k, d, rotations, translations = cv2.calibrateCamera(
        [GRID.astype(np.float32)] * len(views), views, size, None, None
    )
    info = SimpleNamespace(
        width=size[0],
        height=size[1],
        distortion_model="plumb_bob",
        d=d.ravel()[:5],
        k=k.ravel(),
        r=np.eye(3).ravel(),
        p=np.hstack([k, np.zeros((3, 1))]).ravel(),
        binning_x=0,
        binning_y=0,
        roi=SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0),
    )
    extrinsics = [
        pose_matrix(t.ravel(), Rotation.from_rotvec(r.ravel()).as_quat())
        for r, t in zip(rotations, translations, strict=True)
    ]
    return float(rms), CameraModel.from_camera_info(info), extrinsics


def fit_hand_eye(
    camera: CameraModel, dots: list[Array], poses: list[Array], extrinsics: list[Array]
) -> tuple[Array, Array]:
    """wrist_from_optical and base_from_grid [4, 4] with the least reprojection error.

    Starts from the closed form for A X = X B: rotation vectors of the motions aligned, then linear in translation.
    """
    wrist_motion, camera_motion = [], []
    for k in range(len(poses) - 1):
        wrist_motion.append(invert_pose(poses[k + 1]) @ poses[k])
        camera_motion.append(extrinsics[k + 1] @ invert_pose(extrinsics[k]))
    vectors_a = Rotation.from_matrix([a[:3, :3] for a in wrist_motion]).as_rotvec()
    vectors_b = Rotation.from_matrix([b[:3, :3] for b in camera_motion]).as_rotvec()
    rotation, _ = Rotation.align_vectors(vectors_a, vectors_b)
    left = np.concatenate([a[:3, :3] - np.eye(3) for a in wrist_motion])
    right = np.concatenate(
        [rotation.as_matrix() @ b[:3, 3] - a[:3, 3] for a, b in zip(wrist_motion, camera_motion, strict=True)]
    )
    start = pose_matrix(np.linalg.lstsq(left, right, rcond=None)[0], rotation.as_quat())

    def unpack(x: Array) -> tuple[Array, Array]:
        halves = (pose_matrix(h[:3], Rotation.from_rotvec(h[3:]).as_quat()) for h in (x[:6], x[6:]))
        return next(halves), next(halves)

    def residuals(x: Array) -> Array:
        wrist_from_optical, base_from_grid = unpack(x)
        errors = [
            predict(camera, pose, wrist_from_optical, base_from_grid) - view
            for pose, view in zip(poses, dots, strict=True)
        ]
        return np.nan_to_num(np.concatenate(errors).ravel(), nan=1e3)

    parameters = []
    for pose in (start, poses[0] @ start @ extrinsics[0]):
        parameters += [*pose[:3, 3], *Rotation.from_matrix(pose[:3, :3]).as_rotvec()]
    return unpack(least_squares(residuals, parameters, loss="soft_l1", f_scale=3.0).x)


def predict(camera: CameraModel, base_from_wrist: Array, wrist_from_optical: Array, base_from_grid: Array) -> Array:
    """Return the pixels [100, 2] at which the dots must be in the image taken at `base_from_wrist`."""
    optical_from_grid = invert_pose(base_from_wrist @ wrist_from_optical) @ base_from_grid
    return camera.project(GRID @ optical_from_grid[:3, :3].T + optical_from_grid[:3, 3]).pixels


def evaluate(folder: Path) -> dict[str, object]:
    """Everything this script prints."""
    dots, poses, size = load(folder)
    rms, camera, extrinsics = calibrate(dots, size)
    own = [
        camera.project(GRID @ e[:3, :3].T + e[:3, 3]).pixels - view for e, view in zip(extrinsics, dots, strict=True)
    ]
    errors_px: dict[str, float] = {}
    for left_out in range(3):  # each image is predicted by a fit that has not seen it
        fitted = [k for k in range(IMAGES) if k % 3 != left_out]
        hand_eye, grid = fit_hand_eye(camera, *([values[k] for k in fitted] for values in (dots, poses, extrinsics)))
        for k in range(left_out, IMAGES, 3):
            error = np.linalg.norm(predict(camera, poses[k], hand_eye, grid) - dots[k], axis=1)
            errors_px[str(k)] = round(float(error.mean()), 2)
    return {
        "calibration_rms_px": round(rms, 3),
        "calibration_rms_through_camera_model_px": round(float(np.sqrt(np.mean(np.sum(np.square(own), axis=2)))), 3),
        "predicted_error_px": dict(sorted(errors_px.items(), key=lambda item: int(item[0]))),
        "predicted_error_median_px": round(float(np.median(list(errors_px.values()))), 2),
        "predicted_error_max_px": max(errors_px.values()),
    }


def main() -> None:
    """Print and store the result."""
    root = Path(__file__).resolve().parent
    recorded = Path(os.environ.get("SQAP_VLA_DATA", root.parent.parent / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=recorded / "industrial_calibration")
    folder = parser.parse_args().folder
    if not (folder / "images").is_dir():
        raise SystemExit(f"{folder} holds no recording: SQAP_VLA_DATA names the folder of recorded data")
    result = evaluate(folder)
    print(json.dumps(result, indent=2))
    (root / "results").mkdir(exist_ok=True)
    (root / "results" / "camera_projection.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
