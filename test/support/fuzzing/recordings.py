"""Recordings: damaged files, records of ROS 1 bags that lie, and whole bags of hostile messages."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzzing.mutation import LARGE, damaged, damaged_copy, fresh
from fuzzing.originals import originals
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.rosbag1 import Writer
from rosbags.typesys import Stores, get_typestore

from sqap_vla_ros.nodes.bags.bag import Bag
from sqap_vla_ros.nodes.bags.conversion import message_class
from sqap_vla_ros.nodes.bags.observations import BagObservations
from sqap_vla_ros.nodes.bags.spec import ReplaySpec
from sqap_vla_ros.nodes.bags.writer import BagWriter

_NUMBERS = (0.0, -0.0, -1.0, 1e-308, 1e9, 1e308, math.nan, math.inf, -math.inf)
_TEXTS = ("", "/", "//", "/base_link", "base_link", "tool0", "camera", "a" * 3000, "é中", "\x01", "16UC1", "mono8")


def fuzz_bag(folder: Path, seed: int) -> None:
    """Damage one file of a rosbag2 folder."""
    rng = Random(f"bag {seed}")
    copy = damaged_copy(rng, originals(folder / "good")[rng.choice(("mcap", "sqlite"))], folder / "bag")
    _observe(rng.choice((copy, *(p for p in copy.iterdir() if p.suffix in (".mcap", ".db3")))))


def fuzz_ros1(folder: Path, seed: int) -> None:
    """Change fields of a ROS 1 bag's records, lengths kept true or not, and bytes."""
    rng = Random(f"ros1 {seed}")
    data = _ros1_bag(folder / "ros1", rng.choice(("none", "none", "bz2", "lz4"))).read_bytes()
    path = fresh(folder / "ros1_damaged") / "x.bag"
    path.write_bytes(_lying(rng, data) if rng.random() < 0.7 else damaged(rng, data))
    _observe(path)


def fuzz_messages(folder: Path, seed: int) -> None:
    """Write a whole bag of messages whose values, order and bytes are hostile."""
    rng = Random(f"messages {seed}")
    path = fresh(folder / "messages") / "bag"
    with BagWriter(path) as writer:
        for topic, time_ns, message in _spoiled(rng, _messages(originals(folder / "good")["mcap"])):
            data = serialize_message(message)
            if rng.random() < 0.05:
                data = data[:4] + damaged(rng, data[4:])
            kind = type(message)
            writer.write_serialized(topic, f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}", time_ns, data)
    _observe(path)


def _observe(path: Path) -> None:
    with Bag(path) as bag:
        for number, _ in enumerate(BagObservations(bag, ReplaySpec(instruction="pick"))):
            if number > 4:
                break


@cache
def _messages(bag: Path) -> list[tuple[str, int, bytes, str]]:
    with Bag(bag) as opened:
        types = {topic.name: topic.type for topic in opened.topics.values()}
        return [(topic, time_ns, data, types[topic]) for topic, time_ns, data in opened.serialized(list(types))]


def _spoiled(rng: Random, recorded: list[tuple[str, int, bytes, str]]) -> Iterator[tuple[str, int, Any]]:
    """Yield messages with one to four fields changed, and some left out, doubled, or moved in time."""
    chosen = {rng.randrange(len(recorded)) for _ in range(rng.choice((1, 2, 4)))}
    for number, (topic, time_ns, data, kind) in enumerate(recorded):
        message = deserialize_message(data, message_class(kind))
        if number not in chosen:
            yield topic, time_ns, message
            continue
        how = rng.randrange(8)
        if how == 0:
            continue
        if how == 1:
            yield topic, time_ns, message
        if how == 2:
            time_ns = rng.choice((0, 1, time_ns - 10**10, time_ns + 10**10, 2**62))
        if how > 2:
            spoil(rng, message)
        yield topic, time_ns, message


def spoil(rng: Random, message: Any) -> None:
    """Give one field of a message, or of one inside it, a hostile value of its type."""
    name = rng.choice(sorted(message.get_fields_and_field_types()))
    value = getattr(message, name)
    if hasattr(value, "get_fields_and_field_types"):
        spoil(rng, value)
    elif isinstance(value, bool):
        setattr(message, name, not value)
    elif isinstance(value, int):
        largest = 2**31 - 1 if message.get_fields_and_field_types()[name] == "int32" else 2**32 - 1
        if message.get_fields_and_field_types()[name] in ("uint8", "octet", "int8"):
            largest = 127
        setattr(message, name, rng.choice((0, 1, value ^ 1, largest, largest - 1)) % (largest + 1))
    elif isinstance(value, float):
        setattr(message, name, rng.choice(_NUMBERS))
    elif isinstance(value, str):
        setattr(message, name, rng.choice(_TEXTS))
    elif isinstance(value, np.ndarray):
        value[rng.randrange(len(value))] = rng.choice(_NUMBERS)
    elif isinstance(value, list) and value:
        spoil(rng, rng.choice(value)) if hasattr(value[0], "get_fields_and_field_types") else value.pop()
    elif value:  # array.array
        del value[rng.randrange(len(value)) :]


@cache
def _ros1_bag(folder: Path, compression: str) -> Path:
    """Write two images with their calibration and transforms as ROS 1 does, /tf by two types."""
    from rosbags.typesys import get_types_from_msg

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{compression}.bag"
    path.unlink(missing_ok=True)
    store = get_typestore(Stores.ROS1_NOETIC)
    kinds = {name: f"{name[0]}/msg/{name[1]}" for name in (("tf", "tfMessage"), ("tf2_msgs", "TFMessage"))}
    for kind in kinds.values():
        store.register(get_types_from_msg("geometry_msgs/TransformStamped[] transforms\n", kind))
    types = store.types

    def header(time_ns: int, frame: str) -> Any:
        stamp = types["builtin_interfaces/msg/Time"](time_ns // 10**9, time_ns % 10**9)
        return types["std_msgs/msg/Header"](0, stamp, frame)

    def transform(kind: str, time_ns: int, parent: str, child: str) -> Any:
        moved = types["geometry_msgs/msg/Vector3"](0.1, 0.05, 1.0)
        turned = types["geometry_msgs/msg/Quaternion"](0.0, 0.0, 0.0, 1.0)
        pose = types["geometry_msgs/msg/Transform"](moved, turned)
        return types[kind]([types["geometry_msgs/msg/TransformStamped"](header(time_ns, parent), child, pose)])

    writer = Writer(path)
    if compression != "none":
        writer.set_compression(Writer.CompressionFormat[compression.upper()])
    camera, image = "sensor_msgs/msg/CameraInfo", "sensor_msgs/msg/Image"
    with writer:
        to = {
            kind: writer.add_connection(topic, kind, typestore=store)
            for topic, kind in (("/c/image", image), ("/c/camera_info", camera), *(("/tf", k) for k in kinds.values()))
        }
        for number in range(2):
            now = 1_700_000_000 * 10**9 + number * 10**8
            lens = np.array([30.0, 0, 16, 0, 30, 12, 0, 0, 1]), np.eye(3).ravel(), np.eye(3, 4).ravel()
            region = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
            pixels = np.random.default_rng(number).integers(0, 256, 24 * 32 * 3, dtype=np.uint8)
            for kind, message in (
                (kinds["tf", "tfMessage"], transform(kinds["tf", "tfMessage"], now, "base_link", "cam")),
                (kinds["tf2_msgs", "TFMessage"], transform(kinds["tf2_msgs", "TFMessage"], now, "base_link", "tool0")),
                (camera, types[camera](header(now, "cam"), 24, 32, "plumb_bob", np.zeros(5), *lens, 0, 0, region)),
                (image, types[image](header(now, "cam"), 24, 32, "rgb8", 0, 96, pixels)),
            ):
                writer.write(to[kind], now, store.serialize_ros1(message, kind))
    return path


def _lying(rng: Random, data: bytes) -> bytes:
    """Return a ROS 1 bag in which one to three fields of record headers, or lengths, have other values."""
    mutable = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = [at for key in _FIELDS if (at := _find(rng, mutable, key)) is not None]
        if not places:
            break
        at = rng.choice(places)
        size = struct.unpack("<I", mutable[at - 4 : at])[0]  # of the whole field, its name included
        value = mutable.index(b"=", at) + 1
        width = max(0, min(at + size - value, 16))
        if rng.random() < 0.2:
            mutable[at - 4 : at] = struct.pack("<I", rng.choice((0, 1, (size + 1) % 2**32, 2**16, *LARGE[:2])))
        elif width:
            number = rng.choice((0, 1, 2, 255, 2**16, 2**31, *LARGE)) % (1 << (8 * width))
            mutable[value : value + width] = number.to_bytes(width, "little")
    return bytes(mutable)


_FIELDS = tuple(
    name + b"="
    for name in (
        *(b"op", b"conn", b"topic", b"time", b"size", b"count", b"chunk_pos", b"index_pos", b"conn_count"),
        *(
            b"chunk_count",
            b"start_time",
            b"end_time",
            b"compression",
            b"ver",
            b"type",
            b"md5sum",
            b"message_definition",
        ),
    )
)


def _find(rng: Random, data: bytearray, key: bytes) -> int | None:
    """Return where one of the fields of this name begins, None where there is none."""
    found, at = [], data.find(key, 4)
    while at >= 0 and len(found) < 50:
        found.append(at)
        at = data.find(key, at + 1)
    return rng.choice(found) if found else None
