"""Recordings as streams of real ROS messages: rosbag2 (MCAP and SQLite, split or compressed) and ROS 1 bags alike.

Reading is `rosbags`' (pure Python), so every bag opens on every machine. What comes out are the classes the live node
gets from DDS, so one code path serves both.
"""

from __future__ import annotations

import array
import importlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.rosbag1 import ReaderError as Ros1Error
from rosbags.rosbag2 import ReaderError as Ros2Error
from rosbags.typesys import Stores, get_typestore

from sqap_vla_ros.contracts import NS_PER_S

_ROS2_NAMES = {"tf/msg/tfMessage": "tf2_msgs/msg/TFMessage"}
# RuntimeError: rclpy raises it for bytes that are not of the type they are recorded as.
_UNREADABLE = (AnyReaderError, Ros1Error, Ros2Error, OSError, AssertionError, KeyError, ValueError, RuntimeError)


class BagError(ValueError):
    """A recording that cannot be read or does not hold what is needed: says what, and what helps."""


@dataclass(frozen=True)
class TopicSummary:
    """One recorded topic. rate_hz: messages over the bag's length; 0 when it has none."""

    name: str
    type: str
    count: int
    rate_hz: float

    def __str__(self) -> str:
        return f"{self.name} [{self.type}] {self.count} messages, {self.rate_hz:.1f} Hz"


@dataclass(frozen=True)
class BagMessage:
    """One recorded message. time_ns: when it was recorded. message: an instance of the ROS message class."""

    topic: str
    time_ns: int
    message: Any


class Bag:
    """An open recording; use it in a `with`.

    path: a rosbag2 folder, a file in one, or a ROS 1 `.bag`. Raises BagError.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = bag_path(path)
        try:
            self._reader = AnyReader([self.path], default_typestore=get_typestore(Stores.LATEST))
            self._reader.open()
        except _UNREADABLE as error:
            raise _unreadable(self.path, error) from error
        self._topics = self._summaries()

    def __enter__(self) -> Bag:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; safe to call twice."""
        if self._reader.stack is not None:
            self._reader.close()

    @property
    def topics(self) -> dict[str, TopicSummary]:
        """Recorded topics with at least one message, by name."""
        return self._topics

    @property
    def start_ns(self) -> int:
        return self._reader.start_time

    @property
    def duration_s(self) -> float:
        return max(0, self._reader.end_time - self._reader.start_time) / NS_PER_S

    def of_type(self, *types: str) -> list[TopicSummary]:
        """Return the topics of these types ("sensor_msgs/msg/Image"), most messages first."""
        found = [topic for topic in self._topics.values() if topic.type in types]
        return sorted(found, key=lambda topic: (-topic.count, topic.name))

    def choose(self, asked: str | None, types: Collection[str], what: str, option: str) -> TopicSummary | None:
        """Return the topic to use as `what`: the one asked for or the only one of these types; None if there is none.

        Raises BagError where the one asked for is missing or of another type, or where there are several.
        """
        candidates = self.of_type(*types)
        listing = "\n  ".join(map(str, candidates)) or "none"
        if asked:
            topic = self._topics.get(asked)
            if topic is None:
                raise BagError(f"{self.path} has no messages on {asked}; candidates for {what}:\n  {listing}")
            if topic.type not in types:
                raise BagError(
                    f"{asked} is a {topic.type}, {what} needs {' or '.join(types)}; candidates:\n  {listing}"
                )
            return topic
        if len(candidates) > 1:
            raise BagError(f"{self.path} has several topics for {what}: choose one with {option}\n  {listing}")
        return candidates[0] if candidates else None

    def messages(self, topics: Collection[str]) -> Iterator[BagMessage]:
        """Yield messages of these topics in recorded order, one at a time: memory does not grow with the bag.

        Raises BagError in the middle of a bag that is damaged there, after everything before it was given out.
        """
        connections = [connection for connection in self._reader.connections if connection.topic in topics]
        if not connections:
            return
        stream = self._reader.messages(connections)
        while True:
            try:
                connection, time_ns, raw = next(stream)
                message = self._message(raw, connection.msgtype)
            except StopIteration:
                return
            except _UNREADABLE as error:
                raise _unreadable(self.path, error) from error
            yield BagMessage(connection.topic, time_ns, message)

    def serialized(self, topics: Collection[str]) -> Iterator[tuple[str, int, bytes]]:
        """Yield (topic, recorded time, CDR bytes to publish as they are) in recorded order."""
        if self._reader.is2:
            connections = [connection for connection in self._reader.connections if connection.topic in topics]
            for connection, time_ns, raw in self._reader.messages(connections) if connections else ():
                yield connection.topic, time_ns, bytes(raw)
            return
        for recorded in self.messages(topics):
            yield recorded.topic, recorded.time_ns, serialize_message(recorded.message)

    def _message(self, raw: bytes, type_name: str) -> Any:
        target = message_class(type_name)
        if self._reader.is2:
            return deserialize_message(bytes(raw), target)
        return to_ros(self._reader.deserialize(raw, type_name), target)

    def _summaries(self) -> dict[str, TopicSummary]:
        seconds = self.duration_s if self._reader.message_count else 0.0
        summaries = {}
        for name, info in self._reader.topics.items():
            if info.msgcount:
                rate_hz = (info.msgcount - 1) / seconds if seconds > 0 else 0.0
                summaries[name] = TopicSummary(name, info.msgtype or "several types", info.msgcount, rate_hz)
        return summaries


def bag_path(path: str | Path) -> Path:
    """Return the folder or file that `rosbags` opens. Raises BagError with what is missing and what repairs it."""
    given = Path(path).expanduser()
    if not given.exists():
        raise BagError(f"bag {given} does not exist: give a rosbag2 folder or a ROS 1 .bag file")
    if given.is_file() and given.suffix in (".mcap", ".db3"):
        given = given.parent
    if given.is_file() and given.suffix != ".bag":
        raise BagError(
            f"{given} is not a bag: give a rosbag2 folder, a file in one (.mcap, .db3), or a ROS 1 .bag file"
        )
    if given.is_dir() and not (given / "metadata.yaml").exists():
        stores = [*given.glob("*.mcap"), *given.glob("*.db3")]
        if not stores:
            raise BagError(f"{given} holds neither metadata.yaml nor .mcap or .db3 files: it is no rosbag2 bag")
        raise BagError(
            f"{given} has no metadata.yaml: the recording did not end properly. `ros2 bag reindex {given}` writes it "
            "(after `mcap recover` where an .mcap file is cut off)"
        )
    return given


@cache
def message_class(type_name: str) -> Any:
    """Return the Python class of "package/msg/Name". Raises BagError where the package is not installed."""
    package, _, name = _ROS2_NAMES.get(type_name, type_name).rpartition("/")
    try:
        return getattr(importlib.import_module(package.replace("/", ".")), name)
    except (ImportError, AttributeError) as error:
        raise BagError(
            f"message type {type_name} is not installed: install or source the package {package.split('/')[0]}"
        ) from error


def to_ros(source: Any, target: Any) -> Any:
    """Convert a `rosbags` message to the ROS message class `target`, field by field.

    ROS 1 names differ in case (CameraInfo's K, D) and its headers have a sequence number that ROS 2 dropped.
    """
    message = target()
    for name, kind in target.get_fields_and_field_types().items():
        value = getattr(source, name) if hasattr(source, name) else getattr(source, name.upper(), None)
        if value is None:
            raise BagError(f"{target.__name__} in the bag has no field {name!r}: another version of the message")
        current = getattr(message, name)
        if isinstance(current, array.array):
            filled = array.array(current.typecode)
            filled.frombytes(np.ascontiguousarray(value, dtype=current.typecode).tobytes())
            setattr(message, name, filled)
        elif isinstance(current, np.ndarray):
            setattr(message, name, np.asarray(value, dtype=current.dtype))
        elif hasattr(current, "get_fields_and_field_types"):
            setattr(message, name, to_ros(value, type(current)))
        elif isinstance(current, list):
            element = kind.split("[")[0].removeprefix("sequence<").split(",")[0].removesuffix(">")
            nested = "/" in element
            package, _, short = element.partition("/")
            items = [to_ros(item, message_class(f"{package}/msg/{short}")) for item in value] if nested else list(value)
            setattr(message, name, items)
        else:
            setattr(message, name, type(current)(value))
    return message


def _unreadable(path: Path, error: BaseException) -> BagError:
    if isinstance(error, BagError):
        return error
    repair = (
        "`rosbag reindex`" if path.suffix == ".bag" else "`ros2 bag reindex` (and `mcap recover` for a cut-off .mcap)"
    )
    return BagError(
        f"{path} cannot be read: {error or type(error).__name__}. If the recording was cut off, try {repair}"
    )
