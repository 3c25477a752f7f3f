"""A synthetic camera that looks down at a tool, with a tag on it: what it sees, and what TF says of it."""

from dataclasses import replace

import cv2
import numpy as np
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo
from tf2_msgs.msg import TFMessage

from sqap_vla_ros.nodes.bags.writer import BagWriter
from sqap_vla_ros.nodes.images import rgb_to_message
from sqap_vla_ros.nodes.messages import header, time_message, transform_message
from sqap_vla_ros.robot.camera import CameraModel
from sqap_vla_ros.robot.conventions import invert_pose
from sqap_vla_ros.robot.hand_eye.pairs import ToolPairs

START_NS = 1_700_000_000_000_000_000
STEP_NS = 2_000_000_000  # between two places of the tool: the arm stands still there
WIDTH, HEIGHT, FOCAL = 320, 240, 300.0
TAG, TAG_M = ("apriltag_36h11", 7), 0.08
BASE_FROM_OPTICAL = np.array([[1.0, 0, 0, 0.4], [0, -1.0, 0, 0], [0, 0, -1.0, 1.0], [0, 0, 0, 1.0]])
ERROR = ((0.03, -0.02, 0.04), (0.03, 0.02, -0.04))  # rotation vector, metres


def motion(rotvec=(0.0, 0.0, 0.0), metres=(0.0, 0.0, 0.0)):
    """A pose [4, 4]."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.from_rotvec(rotvec).as_matrix(), metres
    return pose


def camera_info(stamp_ns=0, **fields):
    message = CameraInfo(header=header(stamp_ns, "camera_optical"), width=WIDTH, height=HEIGHT)
    message.distortion_model = "plumb_bob"
    message.d = [0.05, -0.1, 0.001, 0.0005, 0.0]
    message.k = [FOCAL, 0.0, (WIDTH - 1) / 2, 0.0, FOCAL, (HEIGHT - 1) / 2, 0.0, 0.0, 1.0]
    message.p = [FOCAL, 0.0, (WIDTH - 1) / 2, 0.0, 0.0, FOCAL, (HEIGHT - 1) / 2, 0.0, 0.0, 0.0, 1.0, 0.0]
    for name, value in fields.items():
        setattr(message, name, value)
    return message


CAMERA = CameraModel.from_camera_info(camera_info())


def tool_poses(count=20, seed=0, turn_rad=0.3):
    """base_from_tool [N, 4, 4] all over the camera's view, turned at random."""
    rng = np.random.default_rng(seed)
    return np.stack(
        [motion(rng.normal(0.0, turn_rad, 3), rng.uniform([0.2, -0.2, 0.05], [0.6, 0.2, 0.35])) for _ in range(count)]
    )


def pixels(poses, error=None, point=(0.0, 0.0, 0.0)):
    """Pixels [N, 2] of a point in the tool's frame. error: true_from_tf of the optical frame."""
    points = poses[:, :3, :3] @ np.array(point) + poses[:, :3, 3]
    optical_from_base = (np.eye(4) if error is None else error) @ invert_pose(BASE_FROM_OPTICAL)
    return CAMERA.project(points @ optical_from_base[:3, :3].T + optical_from_base[:3, 3]).pixels


def pairs(poses=None, *, noise_px=0.5, seed=1, camera=CAMERA, **world):
    """The pairs of a world that is as `world` says (see `pixels`), with TF that knows nothing of it."""
    poses = tool_poses() if poses is None else poses
    count = len(poses)
    seen = pixels(poses, **world) + np.random.default_rng(seed).normal(0.0, noise_px, (count, 2))
    optical = np.repeat(invert_pose(BASE_FROM_OPTICAL)[None], count, axis=0)
    stamps = START_NS + STEP_NS * np.arange(count, dtype=np.int64)
    return ToolPairs(camera, stamps, poses, optical, seen, np.zeros(3))


def seen_as(of, change):
    """The same pairs with their seen pixels changed."""
    return replace(of, seen=change(of.seen))


def picture(base_from_tool, error=None, *, tag=True):
    """The image [H, W, 3]: a tag that lies flat in the tool's xy plane, its middle at the tool's origin."""
    background = np.linspace(60, 120, WIDTH, dtype=np.float32)[None].repeat(HEIGHT, 0)
    image = background + np.random.default_rng(0).normal(0, 4, background.shape)
    if tag:
        dictionary = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, f"DICT_{TAG[0].upper()}"))
        side, edge = 160, 16
        texture = np.full((side + 2 * edge,) * 2, 255, np.uint8)
        texture[edge:-edge, edge:-edge] = cv2.aruco.generateImageMarker(dictionary, TAG[1], side)
        half = 0.5 * TAG_M * (1 + 2 * edge / side)
        flat = [[-half, half, 0], [half, half, 0], [half, -half, 0], [-half, -half, 0]]
        corners = np.concatenate([pixels(base_from_tool[None], error, point) for point in flat])
        size = len(texture) - 0.5
        source = np.array([[-0.5, -0.5], [size, -0.5], [size, size], [-0.5, size]])
        to_image = cv2.getPerspectiveTransform(source.astype(np.float32), corners.astype(np.float32))
        kwargs = {"flags": cv2.INTER_AREA, "borderMode": cv2.BORDER_CONSTANT}
        warped = cv2.warpPerspective(texture.astype(np.float32), to_image, (WIDTH, HEIGHT), **kwargs)
        mask = cv2.warpPerspective(np.ones_like(texture, np.float32), to_image, (WIDTH, HEIGHT), **kwargs)
        image = image * (1 - mask) + warped * mask
    return np.clip(image, 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)


def write_bag(
    path, poses=None, error=None, *, tf=None, flip=None, tag=True, frames=("base_link", "tool0"), mount=None, **info
):
    """A recording with an image at each place of the tool. flip: of the images, as cv2.flip. info: camera_info fields.

    TF is base_link -> camera_link -> camera_optical, and `frames` for the tool, whose poses are `tf` where it is given.
    mount: the frame that the camera is on, and [4, 4] mount_from_optical, in place of base_link.
    """
    parent, mount_from_optical = ("base_link", BASE_FROM_OPTICAL) if mount is None else mount
    poses = tool_poses() if poses is None else poses
    link_from_optical = motion((0.0, 0.3, 0.0), (0.01, 0.02, 0.0))
    mount_from_link = mount_from_optical @ invert_pose(link_from_optical)
    static = [
        transform_message(mount_from_link, START_NS, parent, "camera_link"),
        transform_message(link_from_optical, START_NS, "camera_link", "camera_optical"),
    ]
    written: list[tuple[int, str, object]] = [(START_NS - 1, "/tf_static", TFMessage(transforms=static))]
    for number, pose in enumerate(poses):
        stamp_ns = START_NS + number * STEP_NS
        for offset_ns in (-20_000_000, 20_000_000):
            moving = transform_message(pose if tf is None else tf[number], stamp_ns + offset_ns, *frames)
            written.append((stamp_ns + offset_ns, "/tf", TFMessage(transforms=[moving])))
        image = picture(pose, error, tag=tag)
        if flip is not None:
            image = np.ascontiguousarray(cv2.flip(image, flip))
        written.append((stamp_ns + 1_000_000, "/camera/camera_info", camera_info(stamp_ns, **info)))
        message = rgb_to_message(image, stamp=time_message(stamp_ns), frame_id="camera_optical")
        written.append((stamp_ns + 2_000_000, "/camera/image_raw", message))
    with BagWriter(path) as writer:
        for recorded_ns, topic, message in sorted(written, key=lambda entry: entry[0]):
            writer.write(topic, recorded_ns, message)
    return path
