"""A tree of frames by time, without ROS: the core of the tf2 stand-in.

- A moving frame keeps `cache_ns` of stamped links; between two of them translation is interpolated linearly, rotation
  along the shortest arc; outside them a lookup raises `ExtrapolationException`, it never extrapolates.
- A static frame is valid at every time.
- Time zero means the newest time at which every link of the chain is known.
- A chain may be walked in both directions through the closest common ancestor.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass

from sqap_vla_ros.contracts import NS_PER_S

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]  # xyzw

# Bounds of what one child frame keeps: its publisher's stamps may stand still, or pour in.
MAX_AT_ONE_STAMP = 16
MAX_LINKS = 20_000  # 2 kHz for the cache time of 10 s

_IDENTITY: tuple[Vector, Quaternion] = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))


class TransformException(Exception):
    """A failed lookup."""


class LookupException(TransformException):
    """A frame that was never published, or a loop in the tree."""


class ConnectivityException(TransformException):
    """Two frames that are not in the same tree."""


class ExtrapolationException(TransformException):
    """A time before the oldest or after the newest transform in the buffer."""


class InvalidArgumentException(TransformException):
    """An empty frame id, or one that starts with '/'."""


@dataclass(frozen=True, slots=True)
class _Link:
    """Pose of a child frame in its parent."""

    parent: str
    translation: Vector
    rotation: Quaternion


class _StaticLink:
    """A link that is valid at every time."""

    __slots__ = ("link",)

    def __init__(self) -> None:
        self.link: _Link | None = None

    def insert(self, _stamp_ns: int, link: _Link) -> bool:
        self.link = link
        return True

    def at(self, _time_ns: int) -> _Link:
        assert self.link is not None
        return self.link

    def newest(self) -> tuple[int, str]:
        """Return (0, parent): no stamp limits a static link."""
        assert self.link is not None
        return 0, self.link.parent

    def clear(self) -> None:
        """Static links survive a clear, as in tf2: their publisher will not send them again."""


class _MovingLink:
    """The links of one child frame by time, oldest first."""

    __slots__ = ("cache_ns", "links", "stamps")

    def __init__(self, cache_ns: int) -> None:
        self.cache_ns = cache_ns
        self.stamps: list[int] = []
        self.links: list[_Link] = []

    def insert(self, stamp_ns: int, link: _Link) -> bool:
        """Store a link; False when it is older than the whole cache."""
        stamps = self.stamps
        if stamps:
            oldest_ns = stamps[-1] - self.cache_ns
            if stamps[0] < oldest_ns:
                expired = bisect.bisect_left(stamps, oldest_ns)
                del stamps[:expired], self.links[:expired]
            if stamp_ns < oldest_ns:
                return False
        after = bisect.bisect_right(stamps, stamp_ns)
        before = bisect.bisect_left(stamps, stamp_ns)
        if link in self.links[before:after]:  # publishers repeat themselves
            return True
        if after - before >= MAX_AT_ONE_STAMP:
            self.links[after - 1] = link
            return True
        stamps.insert(after, stamp_ns)
        self.links.insert(after, link)
        if len(stamps) > MAX_LINKS:
            del stamps[0], self.links[0]
        return True

    def at(self, time_ns: int) -> _Link:
        stamps = self.stamps
        if not stamps:
            raise ExtrapolationException(f"at time {_seconds(time_ns)} nothing is in the buffer")
        if time_ns == 0:
            return self.links[-1]
        if time_ns > stamps[-1] or time_ns < stamps[0]:
            if len(stamps) == 1:
                side = "at"
                known = f"only time {_seconds(stamps[0])} is in the buffer"
            elif time_ns > stamps[-1]:
                side = "into the future: requested"
                known = f"the latest data is at time {_seconds(stamps[-1])}"
            else:
                side = "into the past: requested"
                known = f"the earliest data is at time {_seconds(stamps[0])}"
            raise ExtrapolationException(
                f"lookup would require extrapolation {side} time {_seconds(time_ns)}, but {known}"
            )
        if time_ns == stamps[0] != stamps[-1]:
            return self.links[0]  # of several at the oldest stamp tf2 takes the first, elsewhere the last
        index = bisect.bisect_right(stamps, time_ns) - 1
        older = self.links[index]
        if stamps[index] == time_ns:
            return older
        newer = self.links[index + 1]
        if older.parent != newer.parent:  # moved to another parent: there is nothing to interpolate
            return older
        ratio = (time_ns - stamps[index]) / (stamps[index + 1] - stamps[index])
        translation = tuple(a + ratio * (b - a) for a, b in zip(older.translation, newer.translation, strict=True))
        return _Link(older.parent, translation, _slerp(older.rotation, newer.rotation, ratio))  # type: ignore[arg-type]

    def newest(self) -> tuple[int, str]:
        """Return the newest stamp and the parent at that time; parent "" while nothing is stored."""
        return (self.stamps[-1], self.links[-1].parent) if self.stamps else (0, "")

    def clear(self) -> None:
        self.stamps.clear()
        self.links.clear()


class TransformTree:
    """Frames and the links between them. Not thread-safe. cache_ns: how much of the past a moving frame keeps."""

    def __init__(self, cache_ns: int = 10 * NS_PER_S) -> None:
        self.cache_ns = cache_ns
        self._frames: dict[str, _StaticLink | _MovingLink] = {}
        self._known: set[str] = set()

    def insert(
        self, parent: str, child: str, stamp_ns: int, translation: Vector, rotation: Quaternion, *, static: bool
    ) -> None:
        """Store the pose of `child` in `parent`. Raises ValueError when it is invalid or older than the whole cache."""
        parent, child = parent.removeprefix("/"), child.removeprefix("/")
        norm = math.hypot(*rotation)  # does not overflow
        norm = norm if norm > 1e-6 else math.nan  # a null quaternion is no rotation
        x, y, z, w = (c / norm for c in rotation)
        link = _Link(parent, translation, (x, y, z, w))
        if fault := _fault(child, link):
            raise ValueError(fault)
        frame = self._frames.get(child)
        if frame is None or isinstance(frame, _StaticLink) != static:
            frame = self._frames[child] = _StaticLink() if static else _MovingLink(self.cache_ns)
        self._known.update((child, parent))
        if not frame.insert(stamp_ns, link):
            raise ValueError(
                f"its time {_seconds(stamp_ns)} is more than {self.cache_ns / NS_PER_S:g} s older than the newest"
            )

    def clear(self) -> None:
        """Forget the moving links."""
        for frame in self._frames.values():
            frame.clear()

    def lookup(self, target: str, source: str, time_ns: int) -> tuple[int, Vector, Quaternion]:
        """Return (time, translation, rotation xyzw) that map coordinates in `source` to coordinates in `target`.

        time_ns: 0 asks for the newest time that the links have in common.

        Raises LookupException, ConnectivityException, ExtrapolationException or InvalidArgumentException.
        """
        if target == source:
            newest_ns = self._frames[target].newest()[0] if target in self._frames and time_ns == 0 else time_ns
            return newest_ns, *_IDENTITY
        for name in (target, source):
            self._require(name)
        if time_ns == 0:
            time_ns = self.latest_common_ns(target, source)

        # Upwards from the source, remembering the pose of the source in each ancestor.
        source_in: dict[str, tuple[Vector, Quaternion]] = {}
        source_fault: ExtrapolationException | None = None
        frame, pose = source, _IDENTITY
        while True:
            if frame in source_in:
                raise LookupException(f"the tf tree is invalid: it has a loop through '{frame}'")
            source_in[frame] = pose
            if frame == target or frame not in self._frames:
                break
            try:
                link = self._frames[frame].at(time_ns)
            except ExtrapolationException as error:
                source_fault = error  # the target may still be related to what was reached
                break
            pose = _compose((link.translation, link.rotation), pose)
            frame = link.parent

        # Upwards from the target until the two meet.
        visited: set[str] = set()
        frame, pose = target, _IDENTITY
        while frame not in source_in:
            if frame in visited:
                raise LookupException(f"the tf tree is invalid: it has a loop through '{frame}'")
            visited.add(frame)
            if frame not in self._frames:
                if source_fault is not None:
                    raise _with_frames(source_fault, target, source)
                raise _unconnected(target, source)
            try:
                link = self._frames[frame].at(time_ns)
            except ExtrapolationException as error:
                raise _with_frames(error, target, source) from None
            pose = _compose((link.translation, link.rotation), pose)
            frame = link.parent
        return time_ns, *_compose(_inverse(pose), source_in[frame])

    def latest_common_ns(self, target: str, source: str) -> int:
        """Return the newest time that every link between the frames covers, 0 when all are static."""
        for name in (target, source):
            self._require(name)
        if target == source:
            return self._frames[source].newest()[0] if source in self._frames else 0
        limits = {source: math.inf}  # frame reached from the source -> newest time that reaches it
        for child, parent, limit in self._newest_links(source):
            limits[parent] = min(limits[child], limit)
            if parent == target:
                break
        meeting, limit_to_meeting = target, math.inf
        for _, parent, limit in self._newest_links(target):
            if meeting in limits:
                break
            meeting, limit_to_meeting = parent, min(limit_to_meeting, limit)
        if meeting not in limits:
            raise _unconnected(target, source)
        newest = min(limits[meeting], limit_to_meeting)
        return 0 if newest == math.inf else int(newest)

    def _newest_links(self, frame: str) -> Iterable[tuple[str, str, float]]:
        """Yield (frame, parent, newest stamp or inf for a static link), upwards from `frame`."""
        visited = {frame}
        while frame in self._frames:
            stamp_ns, parent = self._frames[frame].newest()
            if not parent:
                return
            yield frame, parent, stamp_ns or math.inf
            if parent in visited:
                raise LookupException(f"the tf tree is invalid: it has a loop through '{parent}'")
            visited.add(parent)
            frame = parent

    def _require(self, frame: str) -> None:
        if not frame or frame.startswith("/"):
            raise InvalidArgumentException(f"frame id '{frame}' must not be empty nor start with '/'")
        if frame not in self._known:
            known = ", ".join(sorted(self._known)) or "none"
            raise LookupException(f"frame '{frame}' does not exist; known frames: {known}")


def _seconds(time_ns: int) -> str:
    return f"{time_ns // NS_PER_S}.{time_ns % NS_PER_S // 1000:06d}"


def _fault(child: str, link: _Link) -> str:
    """Return why a transform is refused, "" when it is accepted."""
    if not child or not link.parent:
        return "frame_id and child_frame_id must be set"
    if child == link.parent:
        return "frame_id and child_frame_id are the same"
    if not all(map(math.isfinite, (*link.translation, *link.rotation))):
        return f"it is not finite: translation {link.translation}, rotation {link.rotation} (normalised)"
    return ""


def _with_frames(error: ExtrapolationException, target: str, source: str) -> ExtrapolationException:
    return ExtrapolationException(f"{error}, when looking up transform from frame [{source}] to frame [{target}]")


def _unconnected(target: str, source: str) -> ConnectivityException:
    return ConnectivityException(f"frames '{target}' and '{source}' are not part of the same tree")


def _multiply(a: Quaternion, b: Quaternion) -> Quaternion:
    ax, ay, az, aw = a
    bx, by, bz, bw = b
    return (
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    )


def _rotate(q: Quaternion, v: Vector) -> Vector:
    x, y, z, _ = _multiply(_multiply(q, (*v, 0.0)), (-q[0], -q[1], -q[2], q[3]))
    return x, y, z


def _compose(a: tuple[Vector, Quaternion], b: tuple[Vector, Quaternion]) -> tuple[Vector, Quaternion]:
    """Return a * b, both (translation, rotation)."""
    x, y, z = _rotate(a[1], b[0])
    return (x + a[0][0], y + a[0][1], z + a[0][2]), _multiply(a[1], b[1])


def _inverse(pose: tuple[Vector, Quaternion]) -> tuple[Vector, Quaternion]:
    (x, y, z), q = pose
    conjugate = (-q[0], -q[1], -q[2], q[3])
    return _rotate(conjugate, (-x, -y, -z)), conjugate


def _slerp(a: Quaternion, b: Quaternion, ratio: float) -> Quaternion:
    """Interpolate along the shorter arc; the result is normalised."""
    dot = sum(p * q for p, q in zip(a, b, strict=True))
    norm = math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))
    sign = 1.0 if dot >= 0.0 else -1.0
    angle = math.acos(min(1.0, abs(dot) / norm))
    if angle < 1e-6:  # sin(angle) would divide by almost nothing; the chord is the arc to within 1e-12
        weight_a, weight_b = 1.0 - ratio, ratio
    else:
        weight_a = math.sin((1.0 - ratio) * angle) / math.sin(angle)
        weight_b = math.sin(ratio * angle) / math.sin(angle)
    mixed = [weight_a * p + sign * weight_b * q for p, q in zip(a, b, strict=True)]
    length = math.sqrt(sum(c * c for c in mixed))
    return mixed[0] / length, mixed[1] / length, mixed[2] / length, mixed[3] / length
