"""Recordings as streams of real ROS messages: rosbag2 (MCAP and SQLite, split or compressed) and ROS 1 bags alike.

Reading is `rosbags`' (pure Python), so every bag opens on every machine. What comes out are the classes the live node
gets from DDS, so one code path serves both. Only the topics that are asked for are decoded.
"""

from __future__ import annotations

import contextlib
import heapq
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rclpy.serialization import deserialize_message, serialize_message
from rosbags.interfaces import Connection
from rosbags.rosbag1 import Reader as Ros1Reader

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes.bags.conversion import Ros1Decoder, message_class, type_name
from sqap_vla_ros.nodes.bags.store import BagError, bag_path, open_readers, unreadable

_INSTANT_S = 1e-3  # a recording that is shorter has no rates


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

    path: a rosbag2 folder, a file in one or by itself, or a ROS 1 `.bag`. foreign: topics that are not serialised as
    ROS does it, with the name of the format; they are not read. Raises BagError.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = bag_path(path)
        self._readers = open_readers(self.path)
        self._is_open = True
        self._decoder = Ros1Decoder() if isinstance(self._readers[0], Ros1Reader) else None
        recorded = [(reader, connection) for reader in self._readers for connection in reader.connections]
        self._connections = [(reader, connection) for reader, connection in recorded if _format(connection) == "cdr"]
        self.foreign = {str(found.topic): _format(found) for _, found in recorded if _format(found) != "cdr"}
        try:
            self._require_sound()
        except BagError:
            self.close()
            raise
        self._topics = self._summaries()

    def _require_sound(self) -> None:
        """Raise BagError where the index gives a topic or a time that is none: readers do not look at its values."""
        times = [time for reader in self._readers for time in (reader.start_time, reader.end_time)]
        wrong = next((time for time in times if not isinstance(time, int)), None)
        for _, connection in self._connections:
            if not (isinstance(connection.topic, str) and isinstance(connection.msgtype, str)):
                wrong = f"a topic {connection.topic!r} of type {connection.msgtype!r}"
            elif not isinstance(connection.msgcount, int):
                wrong = f"{connection.msgcount!r} messages on {connection.topic}"
        if wrong is not None:
            raise BagError(
                f"{self.path} has a damaged index, which says {str(wrong)[:80]}: make it anew with "
                f"`ros2 bag reindex {self.path}`"
            )

    def __enter__(self) -> Bag:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; safe to call twice."""
        if self._is_open:
            self._is_open = False
            for reader in self._readers:
                with contextlib.suppress(AttributeError, TypeError):  # of an index whose values are no paths
                    reader.close()

    @property
    def topics(self) -> dict[str, TopicSummary]:
        """Recorded topics with at least one message, by name."""
        return self._topics

    @property
    def start_ns(self) -> int:
        return min(reader.start_time for reader in self._readers)

    @property
    def duration_s(self) -> float:
        return max(0, max(reader.end_time for reader in self._readers) - self.start_ns) / NS_PER_S

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
        for connection, time_ns, raw in self._raw(topics):
            try:
                message = self._message(raw, connection)
            except Exception as error:  # bytes that are not of the type they are recorded as raise anything
                raise unreadable(self.path, error) from error
            yield BagMessage(connection.topic, time_ns, message)

    def serialized(self, topics: Collection[str]) -> Iterator[tuple[str, int, bytes]]:
        """Yield (topic, recorded time, CDR bytes to publish as they are) in recorded order."""
        if self._decoder is None:
            for connection, time_ns, raw in self._raw(topics):
                yield connection.topic, time_ns, bytes(raw)
            return
        for recorded in self.messages(topics):
            yield recorded.topic, recorded.time_ns, serialize_message(recorded.message)

    def _raw(self, topics: Collection[str]) -> Iterator[tuple[Connection, int, bytes]]:
        """Yield (connection, recorded time, bytes) of these topics, in the type that their summary names."""

        def is_wanted(connection: Connection) -> bool:
            summary = self._topics.get(connection.topic) if connection.topic in topics else None
            return summary is not None and type_name(connection.msgtype) == summary.type

        wanted: dict[int, list[Connection]] = {}
        for reader, connection in self._connections:
            if is_wanted(connection):
                wanted.setdefault(id(reader), []).append(connection)
        streams = [reader.messages(wanted[id(reader)]) for reader in self._readers if id(reader) in wanted]
        merged = heapq.merge(*streams, key=lambda entry: entry[1])
        while True:
            try:
                entry = next(merged)
            except StopIteration:
                return
            except Exception as error:
                raise unreadable(self.path, error) from error
            if is_wanted(entry[0]):  # readers know connections by numbers, which two of a damaged bag may share
                yield entry

    def _message(self, raw: bytes, connection: Connection) -> Any:
        if self._decoder is not None:
            return self._decoder.decode(connection, raw)
        return deserialize_message(bytes(raw), message_class(connection.msgtype))

    def _summaries(self) -> dict[str, TopicSummary]:
        counts: dict[str, Counter[str]] = {}
        for _, connection in self._connections:
            if connection.msgcount:
                counts.setdefault(connection.topic, Counter())[type_name(connection.msgtype)] += connection.msgcount
        seconds = self.duration_s if counts else 0.0
        summaries = {}
        for name, by_type in sorted(counts.items()):
            kind, count = by_type.most_common(1)[0]
            summaries[name] = TopicSummary(name, kind, count, (count - 1) / seconds if seconds > _INSTANT_S else 0.0)
        return summaries


def _format(connection: Connection) -> str:
    """Return how messages are serialised: "cdr" as ROS does it; rosbag2 and MCAP allow others."""
    return str(getattr(connection.ext, "serialization_format", "cdr"))
