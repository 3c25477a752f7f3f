"""The joints of a URDF, read as leniently as robot_state_publisher does.

robot_state_publisher and Pinocchio read URDFs with tinyxml2, which takes undeclared prefixes, `--` in a comment and
unknown entities; Python's XML parsers refuse them. So the few attributes that Pinocchio does not hand on are read here
from the tags themselves. Nothing is expanded: an entity that would grow without bound stays the text it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

_SKIPPED = (("<!--", "-->"), ("<![CDATA[", "]]>"), ("<?", "?>"))
_DOCTYPE = re.compile(r"<!DOCTYPE[^\[>]*(?:\[[^\]]*\]\s*)?>")
_TAG = re.compile(r"""<(/?)([A-Za-z_][\w.:-]*)((?:[^<>"']|"[^"]*"|'[^']*')*)>""")
_ATTRIBUTE = re.compile(r"""([A-Za-z_][\w.:-]*)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
# A joint that turns further than this was most likely described in degrees.
WIDEST_RAD = 8.0 * math.pi
# Beyond these a number is a slip or a placeholder, and what is computed from it loses its digits.
FARTHEST_M = 100.0
FASTEST = {"velocity": 1e4, "acceleration": 1e6}  # rad/s or m/s, and per second again
AXIS_LENGTHS = (1e-6, 1e6)  # URDF's parser divides by it, and by the square of what lies far outside
DEEPEST = 1000  # links on each other


@dataclass
class JointDescription:
    """One joint of a URDF. limit, soft, origin: attributes of <limit>, <safety_controller> and <origin>.

    mimics: the joint it follows. parent, child: links; axis: as it is written, "" where nothing is.
    """

    name: str
    kind: str
    limit: dict[str, str] = field(default_factory=dict)
    soft: dict[str, str] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    mimics: str | None = None
    parent: str = ""
    child: str = ""
    axis: str = ""

    def problem(self) -> str | None:
        """Return why this joint cannot be used, for whoever has to correct the URDF; None if it can."""
        if (misplaced := self.misplaced()) is not None:
            return misplaced
        if self.kind not in ("revolute", "prismatic", "continuous"):
            return None
        if self.axis and not AXIS_LENGTHS[0] <= math.hypot(*map(_number, self.axis.split())) <= AXIS_LENGTHS[1]:
            return f"joint {self.name!r}: its axis is {self.axis!r}, which is no direction"
        if self.kind != "continuous":
            if not self.limit:
                return f"joint {self.name!r} is {self.kind} and has no <limit>"
            lower, upper = (self.limit.get(end, "0") for end in ("lower", "upper"))
            for end, text in (("lower", lower), ("upper", upper)):
                if not math.isfinite(_number(text)):
                    return f"joint {self.name!r}: its {end} limit is {text!r}, not a finite number"
                if self.kind == "prismatic" and abs(float(text)) > FARTHEST_M:
                    return f"joint {self.name!r}: its {end} limit is {text} m, further than {FARTHEST_M:g} m"
            low, high = float(lower), float(upper)
            if low == high:
                return f"joint {self.name!r}: both limits are {low:g}, so that it cannot move: state its range"
            if low > high:
                return f"joint {self.name!r}: its lower limit {low:g} is above its upper limit {high:g}: swapped?"
            if self.kind == "revolute" and max(high - low, abs(low), abs(high)) > WIDEST_RAD:
                return (
                    f"joint {self.name!r}: its limits {low:g} to {high:g} are several turns apart or away: are they "
                    "degrees?"
                )
        for name in ("velocity", "acceleration"):
            stated = self.limit.get(name)
            if stated is None and (name == "acceleration" or self.kind == "continuous"):
                continue
            value = _number(stated or "")
            if not 0.0 < value < math.inf:
                return f"joint {self.name!r}: its {name} limit is {stated!r}, not a positive number"
            if value > FASTEST[name]:
                return f"joint {self.name!r}: its {name} limit is {stated}; no joint has more than {FASTEST[name]:g}"
        return None

    def misplaced(self) -> str | None:
        """Return why the place of this joint on its parent makes no sense, or None."""
        for name, unit, most in (("xyz", "m", FARTHEST_M), ("rpy", "rad", WIDEST_RAD)):
            text = self.origin.get(name, "")
            if not all(abs(_number(number)) <= most for number in text.split()):  # nor what is no number
                return f"joint {self.name!r}: its origin has {name} {text!r}, which is not within {most:.3g} {unit}"
        return None

    @property
    def acceleration(self) -> float:
        """Acceleration limit (rad/s^2 or m/s^2; an attribute since URDF 1.2); infinite where none is stated."""
        return _number(self.limit["acceleration"]) if "acceleration" in self.limit else math.inf

    @property
    def soft_limits(self) -> tuple[float, float]:
        """Lower and upper bound of <safety_controller>, where both are stated and leave room; infinite otherwise."""
        low, high = (_number(self.soft.get(f"soft_{end}_limit", "")) for end in ("lower", "upper"))
        return (low, high) if low < high else (-math.inf, math.inf)


def read_joints(urdf_xml: str) -> dict[str, JointDescription]:
    """Return the joints of a URDF by name; of two of one name the first. Never raises; reads up to what is no tag."""
    joints: dict[str, JointDescription] = {}
    current: JointDescription | None = None
    open_tags: list[str] = []
    for closing, name, rest in _tags(urdf_xml):
        if closing:
            if open_tags and open_tags[-1] == name:
                open_tags.pop()
            if len(open_tags) < 2:
                current = None
            continue
        empty = rest.endswith("/")
        if len(open_tags) == 1 and name == "joint":
            attributes = _attributes(rest)
            current = JointDescription(attributes.get("name", ""), attributes.get("type", ""))
            joints.setdefault(current.name, current)
        elif current is not None and len(open_tags) == 2:
            if name == "limit":
                current.limit = _attributes(rest)
            elif name == "safety_controller":
                current.soft = _attributes(rest)
            elif name == "mimic":
                current.mimics = _attributes(rest).get("joint", "")
            elif name == "origin":
                current.origin = _attributes(rest)
            elif name == "axis":
                current.axis = _attributes(rest).get("xyz", "")
            elif name == "parent":
                current.parent = _attributes(rest).get("link", "")
            elif name == "child":
                current.child = _attributes(rest).get("link", "")
        if not empty:
            open_tags.append(name)
        elif len(open_tags) < 2:
            current = None
    return joints


def joints_to(link: str, joints: Iterable[JointDescription]) -> list[JointDescription]:
    """Return the joints between the root of the tree and a link, from the link on; fixed ones too."""
    above = {joint.child: joint for joint in joints}
    found = []
    while (joint := above.pop(link, None)) is not None:  # each once: a tree that bites its tail ends too
        found.append(joint)
        link = joint.parent
    return found


def too_deep(joints: Iterable[JointDescription]) -> bool:
    """Return whether more than DEEPEST links hang on each other: URDF's parser would exhaust the stack, and crash."""
    children: dict[str, list[str]] = {}
    for joint in joints:
        children.setdefault(joint.parent, []).append(joint.child)
    level = list(children.keys() - {child for links in children.values() for child in links})
    for _ in range(DEEPEST):
        level = [child for parent in level for child in children.pop(parent, [])]
    return bool(level)


def _tags(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield ("/" or "", name, attributes) of each tag, in one pass, up to what is neither tag nor comment."""
    start = text.find("<")
    while start >= 0:
        skipped = next((marks for marks in _SKIPPED if text.startswith(marks[0], start)), None)
        if skipped is not None:
            end = text.find(skipped[1], start + len(skipped[0]))
            if end < 0:
                return
            end += len(skipped[1])
        elif (match := (_DOCTYPE if text.startswith("<!", start) else _TAG).match(text, start)) is not None:
            if match.re is _TAG:
                yield match[1], match[2], match[3]
            end = match.end()
        else:
            return
        start = text.find("<", end)


def _attributes(text: str) -> dict[str, str]:
    return {name: double or single for name, double, single in _ATTRIBUTE.findall(text)}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
