"""Reads robot descriptions in a thread of its own, and of large ones only what the arm consists of.

The parser of URDFs holds Python's global lock, so that a description of a whole factory would stop every thread for
seconds, the watchdog's included. Of a large one only the links between root, base and tool are given to it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from xml.etree import ElementTree

from sqap_vla_ros.robot.arm.inverse import InverseConfig
from sqap_vla_ros.robot.kinematics import ArmKinematics, KinematicsError

MAX_CHARS = 20_000_000
MANY_JOINTS = 500  # read in some hundredths of a second


class DescriptionReader:
    """Turns URDF text into kinematics, one after the other, the newest text only.

    `submit` and `take` are called from one thread; `notify` from the reader's, whenever `take` has something new.
    """

    def __init__(
        self, base_frame: str, tool_frame: str, notify: Callable[[], None], config: InverseConfig | None = None
    ) -> None:
        self._frames = (base_frame, tool_frame)
        self._config = config
        self._notify = notify
        self._lock = threading.Lock()
        self._submitted = ""  # the newest text, whatever became of it
        self._waiting: str | None = None
        self._reading = False
        self._outcome: ArmKinematics | str | None = None

    def submit(self, urdf: str) -> bool:
        """Read this text aside. Return False for the text that was submitted last: it is not read again."""
        with self._lock:
            if urdf == self._submitted:
                return False
            self._submitted = self._waiting = urdf
            if self._reading:
                return True
            self._reading = True
        threading.Thread(target=self._read, name="robot_description_reader", daemon=True).start()
        return True

    def take(self) -> ArmKinematics | str | None:
        """Return the kinematics of the newest text, or why it cannot be used; None when nothing new was read."""
        with self._lock:
            outcome, self._outcome = self._outcome, None
            return outcome

    def _read(self) -> None:
        while True:
            with self._lock:
                urdf, self._waiting = self._waiting, None
                if urdf is None:
                    self._reading = False
                    return
            outcome = read_description(urdf, *self._frames, self._config)
            with self._lock:
                if self._waiting is None:
                    self._outcome = outcome
            self._notify()


def read_description(
    urdf: str, base_frame: str, tool_frame: str, config: InverseConfig | None = None
) -> ArmKinematics | str:
    """Return the arm between two frames of a URDF, or why the text cannot be used; never raises."""
    if len(urdf) > MAX_CHARS:
        return f"the text has {len(urdf)} characters, the limit is {MAX_CHARS}"
    try:
        if urdf.count("<joint") > MANY_JOINTS:
            urdf = arm_only(urdf, (base_frame, tool_frame))
        return ArmKinematics.from_urdf(urdf, base_frame, tool_frame, config)
    except ElementTree.ParseError as error:
        return f"more than {MANY_JOINTS} joints, and no XML to take the arm's from: {error}"
    except KinematicsError as error:
        return str(error)
    except Exception as error:  # parsers of foreign text: whatever they raise, the text is what is wrong
        return f"it cannot be read: {type(error).__name__}: {error}"


def arm_only(urdf: str, frames: Iterable[str]) -> str:
    """Return the URDF with nothing but the links from its root to these frames, and the joints between them.

    Raises ElementTree.ParseError for text that is no XML.
    """
    robot = ElementTree.fromstring(urdf)
    above: dict[str, ElementTree.Element] = {}  # child link -> the joint above it
    for joint in robot.iterfind("joint"):
        if (child := joint.find("child")) is not None:
            above[child.get("link", "")] = joint
    links: set[str] = set()
    joints: list[ElementTree.Element] = []
    for name in frames:
        while name not in links:
            links.add(name)
            held_by = above.get(name)
            parent = None if held_by is None else held_by.find("parent")
            if held_by is None or parent is None:
                break
            joints.append(held_by)
            name = parent.get("link", "")
    arm = ElementTree.Element("robot", robot.attrib)
    arm.extend([*(link for link in robot.iterfind("link") if link.get("name") in links), *joints])
    return ElementTree.tostring(arm, encoding="unicode")


def joint_limits(urdf: str, name: str) -> tuple[float, float] | None:
    """Return a joint's lower and upper limit (m or rad); None where the URDF has no such joint, or no usable limits."""
    try:
        robot = ElementTree.fromstring(urdf)
        limits = [joint.find("limit") for joint in robot.iterfind("joint") if joint.get("name") == name]
        if not limits or limits[0] is None:
            return None
        low, high = float(limits[0].get("lower", "0")), float(limits[0].get("upper", "0"))
    except (ElementTree.ParseError, ValueError):
        return None
    return (low, high) if -math.inf < low < high < math.inf else None
