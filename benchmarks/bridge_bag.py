"""Makes a rosbag2 recording of the Bridge clips (25 clips of 10 steps at 5 Hz, 64 x 64 pixels) to replay.

    python benchmarks/bridge_bag.py bridge --data ../shared/data
    sqap-vla replay bridge --recipes fp32,sqap

The file is a TFRecord of tf.train.Example messages; the few wire types these use are read here, without TensorFlow.
The clips have a state (end effector's x, y, z, roll, pitch, yaw, gripper) and no camera calibration: the bag has
`/tool_pose`, `/joint_states` with the gripper's opening, `/instruction` and `/camera/image_raw/compressed`, no
camera_info and no TF. The images are the recorded JPEG bytes.
"""

from __future__ import annotations

import argparse
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from geometry_msgs.msg import PoseStamped
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import String

from sqap_vla_ros.nodes.bags.writer import BagWriter
from sqap_vla_ros.nodes.messages import header, pose_message
from sqap_vla_ros.robot.conventions import rotation_from_rpy

FILE = Path("octo/bridge_dataset-train.tfrecord-00000-of-00001")
STEP_NS = 200_000_000
PAUSE_NS = 5_000_000_000  # between clips: no chunk of one reaches into the next
START_NS = 1_600_000_000_000_000_000
_FRAMING = 16  # bytes around a record: length, CRC of the length; CRC of the data

Feature = list[bytes] | NDArray[np.float32] | NDArray[np.int64]


@dataclass(frozen=True)
class Clip:
    """images: [T] JPEG. states: [T, 7] x y z roll pitch yaw (metres, radians, base frame), gripper (1 open)."""

    instruction: str
    images: list[bytes]
    states: NDArray[np.float64]


def records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: 8 bytes of length, 4 of CRC, the data, 4 of CRC."""
    data = path.read_bytes()
    offset = 0
    while offset < len(data):
        (length,) = struct.unpack_from("<Q", data, offset)
        if offset + _FRAMING + length > len(data):
            raise ValueError(f"{path} ends within the record at byte {offset}: download it again")
        yield data[offset + 12 : offset + 12 + length]
        offset += _FRAMING + length


def fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(number, value) of the fields of a protobuf message: varints as int, everything else as bytes."""
    offset = 0
    while offset < len(message):
        key, offset = _varint(message, offset)
        kind = key & 7
        if kind == 0:
            value, offset = _varint(message, offset)
            yield key >> 3, value
            continue
        length = {1: 8, 5: 4}.get(kind)
        if length is None:
            if kind != 2:
                raise ValueError(f"unknown protobuf wire type {kind} at byte {offset}")
            length, offset = _varint(message, offset)
        yield key >> 3, message[offset : offset + length]
        offset += length


def features(example: bytes) -> dict[str, Feature]:
    """A tf.train.Example by feature name; lists of bytes, or arrays."""
    found: dict[str, Feature] = {}
    for _, group in fields(example):
        for _, entry in fields(_bytes(group)):
            parts = dict(fields(_bytes(entry)))
            for kind, values in fields(_bytes(parts[2])):
                found[_bytes(parts[1]).decode()] = _values(kind, _bytes(values))
    return found


def read_clips(path: Path) -> list[Clip]:
    """Every clip of the file."""
    clips = []
    for record in records(path):
        example = features(record)
        states = np.asarray(example["steps/observation/state"], dtype=np.float64).reshape(-1, 7)
        images = example["steps/observation/image_0"]
        instructions = example["steps/language_instruction"]
        assert isinstance(images, list)
        assert isinstance(instructions, list)
        clips.append(Clip(instructions[0].decode(), images, states))
    return clips


def write_bag(out: Path, clips: list[Clip]) -> None:
    """One clip after the other, a pause between; the instruction is said before each."""
    now_ns = START_NS
    with BagWriter(out, latched=("/instruction",)) as bag:
        for clip in clips:
            bag.write("/instruction", now_ns - 1, String(data=clip.instruction))
            for state, image in zip(clip.states, clip.images, strict=True):
                pose = np.eye(4)
                pose[:3, :3], pose[:3, 3] = rotation_from_rpy(state[3:6]), state[:3]
                stamped = PoseStamped(header=header(now_ns, "base_link"), pose=pose_message(pose))
                bag.write("/tool_pose", now_ns, stamped)
                gripper = JointState(header=header(now_ns, ""), name=["gripper"], position=[float(state[6])])
                bag.write("/joint_states", now_ns, gripper)
                coded = CompressedImage(header=header(now_ns, "camera"), format="rgb8; jpeg compressed bgr8")
                coded.data.frombytes(image)
                bag.write("/camera/image_raw/compressed", now_ns, coded)
                now_ns += STEP_NS
            now_ns += PAUSE_NS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the new bag")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SQAP_VLA_DATA", "../shared/data")))
    args = parser.parse_args()
    clips = read_clips(args.data / FILE)
    write_bag(args.out, clips)
    instructions = {clip.instruction for clip in clips}
    frames = sum(len(clip.images) for clip in clips)
    print(f"{args.out}: {len(clips)} clips, {frames} frames, {len(instructions)} instructions")


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, offset


def _bytes(value: bytes | int) -> bytes:
    assert isinstance(value, bytes)
    return value


def _values(kind: int, values: bytes) -> Feature:
    """BytesList (1), FloatList (2) or Int64List (3); the numbers are packed."""
    if kind == 1:
        return [_bytes(value) for _, value in fields(values)]
    packed = b"".join(_bytes(value) for _, value in fields(values))
    if kind == 2:
        return np.frombuffer(packed, dtype="<f4")
    numbers, offset = [], 0
    while offset < len(packed):
        number, offset = _varint(packed, offset)
        numbers.append(number)
    return np.array(numbers, dtype=np.int64)


if __name__ == "__main__":
    main()
