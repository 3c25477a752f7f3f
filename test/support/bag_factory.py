"""Makes small recordings for tests: a camera that sees a tool move through its view."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import String
from tf2_msgs.msg import TFMessage

from sqap_vla_ros.nodes.bags.writer import BagWriter
from sqap_vla_ros.nodes.images import rgb_to_message
from sqap_vla_ros.nodes.messages import header, pose_message, time_message, transform_message

START_NS = 1_700_000_000_000_000_000
PERIOD_NS = 100_000_000
WIDTH, HEIGHT, FOCAL = 160, 120, 100.0
# The camera looks down from 1 m above the base, its x along the base's x.
BASE_FROM_OPTICAL = np.array([[1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, -1.0, 1.0], [0, 0, 0, 1.0]])


def tool_pose(seconds: float) -> np.ndarray:
    """base_from_tool: 2 cm/s along x, 20 cm above the base."""
    pose = np.eye(4)
    pose[:3, 3] = (0.02 * seconds, 0.05, 0.2)
    return pose


def tool_pixel(seconds: float) -> tuple[float, float]:
    """Where the tool is in the image, by the pinhole equation."""
    x, y, z = (np.linalg.inv(BASE_FROM_OPTICAL) @ tool_pose(seconds))[:3, 3]
    return (WIDTH - 1) / 2 + FOCAL * x / z, (HEIGHT - 1) / 2 + FOCAL * y / z


def camera_info(stamp_ns: int) -> CameraInfo:
    message = CameraInfo(header=header(stamp_ns, "camera"), width=WIDTH, height=HEIGHT, distortion_model="plumb_bob")
    message.k = [FOCAL, 0.0, (WIDTH - 1) / 2, 0.0, FOCAL, (HEIGHT - 1) / 2, 0.0, 0.0, 1.0]
    message.p = [FOCAL, 0.0, (WIDTH - 1) / 2, 0.0, 0.0, FOCAL, (HEIGHT - 1) / 2, 0.0, 0.0, 0.0, 1.0, 0.0]
    message.r = np.eye(3).ravel().tolist()
    return message


def image(stamp_ns: int, number: int) -> Image:
    rgb = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return rgb_to_message(rgb, stamp=time_message(stamp_ns), frame_id="camera")


def write_bag(
    path: Path,
    *,
    frames: int = 5,
    stamps_s: list[float] | None = None,
    tf: bool = True,
    tf_late_s: float = 0.0,
    info: bool = True,
    info_offset_ns: int = 0,
    pose_topic: bool = False,
    joints: dict[str, float] | None = None,
    instruction: str | None = "pick up the can",
    images: bool = True,
    more: Sequence[tuple[int, str, object]] = (),
) -> Path:
    """A rosbag2 folder of `frames` images at 10 Hz; the options leave things out, spoil or add them.

    stamps_s: seconds of each stamp after the start, instead of 10 Hz. tf_late_s: TF is recorded that much later.
    info_offset_ns: between the stamps of image and camera_info. more: times of recording, topics and messages.
    """
    seconds = stamps_s if stamps_s is not None else [0.1 * number for number in range(frames)]
    written: list[tuple[int, str, object]] = list(more)
    if tf:
        static = transform_message(BASE_FROM_OPTICAL, START_NS, "base_link", "camera")
        written.append((START_NS, "/tf_static", TFMessage(transforms=[static])))
    if instruction is not None:
        written.append((START_NS, "/instruction", String(data=instruction)))
    for number, second in enumerate(seconds):
        stamp_ns = START_NS + round(second * 1e9)
        recorded_ns = START_NS + number * PERIOD_NS
        if tf:
            for offset_ns in (-20_000_000, 20_000_000):
                pose = tool_pose(second + offset_ns * 1e-9)
                moving = transform_message(pose, stamp_ns + offset_ns, "base_link", "tool0")
                late_ns = recorded_ns + offset_ns + round(tf_late_s * 1e9)
                written.append((late_ns, "/tf", TFMessage(transforms=[moving])))
        if pose_topic:
            pose_stamped = PoseStamped(header=header(stamp_ns, "base_link"), pose=pose_message(tool_pose(second)))
            written.append((recorded_ns, "/tool_pose", pose_stamped))
        if joints:
            state = JointState(header=header(stamp_ns, ""), name=list(joints), position=list(joints.values()))
            written.append((recorded_ns, "/joint_states", state))
        if info:
            written.append((recorded_ns + 1, "/camera/camera_info", camera_info(stamp_ns + info_offset_ns)))
        if images:
            written.append((recorded_ns + 2_000_000, "/camera/image_raw", image(stamp_ns, number)))
    with BagWriter(path) as writer:
        for recorded_ns, topic, message in sorted(written, key=lambda entry: entry[0]):
            writer.write(topic, recorded_ns, message)
    return path
