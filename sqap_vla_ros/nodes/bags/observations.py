"""The observations a policy would have had on a recording, by the live node's pairing, transforms and projection.

What the bag lacks is replaced where that can be done honestly and reported where it cannot: without `/tf` a pose topic
or joint states with a URDF give the tool's pose; without camera_info the gripper has no pixel, so no ring; without any
pose the observation has none, and what needs it is not measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sensor_msgs.msg import CameraInfo

from sqap_vla_ros.contracts import NS_PER_S, Observation, unreadable
from sqap_vla_ros.control.camera.image_gate import ImageGate, ImageGateConfig
from sqap_vla_ros.nodes.bags.bag import Bag, BagMessage
from sqap_vla_ros.nodes.bags.pairing import MAX_WAITING, NO_CAMERA_INFO, ImagePairing, Pair
from sqap_vla_ros.nodes.bags.spec import ReplaySpec
from sqap_vla_ros.nodes.bags.store import BagError
from sqap_vla_ros.nodes.images import compressed_to_rgb, to_rgb
from sqap_vla_ros.nodes.messages import pose_from_message, time_ns, transform_message
from sqap_vla_ros.nodes.policy.observer import Frame, ObservationProblem, Observer, TransformMissing
from sqap_vla_ros.nodes.tf.api import Buffer
from sqap_vla_ros.recordings.frames import ReplayCounters, ReplayFrame, nothing_observed
from sqap_vla_ros.robot.kinematics import ArmKinematics

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
INFO_TYPES = ("sensor_msgs/msg/CameraInfo",)
TF_TYPES = ("tf2_msgs/msg/TFMessage", "tf/msg/tfMessage")
POSE_TYPES = ("geometry_msgs/msg/PoseStamped",)
JOINT_TYPES = ("sensor_msgs/msg/JointState",)
TEXT_TYPES = ("std_msgs/msg/String",)


@dataclass(frozen=True)
class _Arrival:
    """The circumstances of an image: its index, when it was recorded, the instruction then."""

    index: int
    recorded_ns: int
    instruction: str

    def age_s(self, stamp_ns: int) -> float:
        return (self.recorded_ns - stamp_ns) / NS_PER_S


class BagObservations:
    """The frames of a bag, to be iterated over once and in order; memory does not grow with its length.

    Raises BagError when made, where topics are missing or ambiguous, with what there is to choose from.
    """

    def __init__(self, bag: Bag, spec: ReplaySpec) -> None:
        self.bag, self.spec = bag, spec
        self.counters = ReplayCounters()
        image = bag.choose(spec.image_topic, IMAGE_TYPES, "the image", "--image-topic")
        if image is None:
            there = list(map(str, bag.topics.values()))
            if bag.foreign:
                kinds = ", ".join(sorted(set(bag.foreign.values())))
                there.append(f"{len(bag.foreign)} topics that are no ROS messages but {kinds}")
            listing = "".join(f"\n  {line}" for line in there) if len(there) > 1 else " ".join(["", *there])
            said = f"{bag.path} has no topic of type {' or '.join(IMAGE_TYPES)}; it has"
            raise BagError(f"{said}{':' if len(there) > 1 else ''}{listing or ' no topic at all'}")
        self.image = image
        self.camera_info = None if spec.camera_info is not None else self._camera_info_topic()
        self._calibrated = self.camera_info is not None or spec.camera_info is not None
        self.tf_topics = [topic.name for topic in bag.of_type(*TF_TYPES)]
        self.pose = self.joints = self.instructions = None
        if spec.pose_topic or not (self.tf_topics or spec.urdf):
            self.pose = bag.choose(spec.pose_topic, POSE_TYPES, "the tool's pose", "--pose-topic")
        elif spec.urdf:
            self.joints = bag.choose(spec.joint_topic, JOINT_TYPES, "joint states", "--joint-topic")
            if self.joints is None:
                raise BagError(f"{bag.path} has no topic of type {JOINT_TYPES[0]}, which --urdf needs: leave it out")
        if spec.instruction_topic or not (spec.instruction or spec.segments):
            # Strings are used for much (robot_description, ...): one that is called as the node's topic is meant.
            named = [t.name for t in bag.of_type(*TEXT_TYPES) if t.name.rpartition("/")[2] == "instruction"]
            asked = spec.instruction_topic or (named[0] if len(named) == 1 else None)
            option = "--instruction-topic (or give --instruction)"
            self.instructions = bag.choose(asked, TEXT_TYPES, "the instruction", option)
        if self.instructions is None and not (spec.instruction or spec.segments):
            raise BagError(f"{bag.path} has no instruction topic: give --instruction or --segments")
        self._arm = ArmKinematics.from_urdf(spec.urdf, spec.base_frame, spec.tool_frame) if self.joints else None
        self._posed = bool(self.tf_topics or self.pose or self.joints or spec.static_transforms)
        self._convert = compressed_to_rgb if image.type.endswith("CompressedImage") else to_rgb
        self._buffer = Buffer()
        for parent, child, pose in spec.static_transforms:
            self._buffer.set_transform_static(transform_message(pose, 0, parent, child), "given")
        self._gate = ImageGate(ImageGateConfig())
        self._observer = Observer(
            self._buffer,
            self._gate,
            self._convert,
            base_frame=spec.base_frame,
            tool_frame=spec.tool_frame,
            rectified=spec.rectified,
            topics=(image.name, self.camera_info.name if self.camera_info else "camera_info"),
        )
        self._observer.needs_projection = self._calibrated
        self._parents: dict[str, str] = {}  # frame -> the one above it
        self._camera_frame = ""
        self._begin()

    @property
    def path(self) -> Path:
        return self.bag.path

    @property
    def files(self) -> list[Path]:
        return [self.path]

    @property
    def total(self) -> int:
        return self.image.count

    @property
    def strided(self) -> int:
        return len(range(0, self.total, self.spec.stride))

    @property
    def identity(self) -> list[object]:
        topics = sorted((topic.name, topic.type, topic.count) for topic in self.bag.topics.values())
        return [str(self.path.resolve()), self.bag.start_ns, self.bag.duration_s, topics]

    @property
    def sources(self) -> dict[str, str]:
        """The origin of each input, for the report."""
        pose = "none in the bag"
        if self.tf_topics or self.spec.static_transforms:
            pose = f"TF ({self.spec.base_frame} <- {self.spec.tool_frame})"
        if self.pose:
            pose = str(self.pose)
        elif self.joints:
            pose = f"{self.joints} through the URDF"
        given = "given per segment" if self.spec.segments else "given"
        return {
            "image": str(self.image),
            "camera_info": self._camera_info_source(),
            "tool pose": pose,
            "instruction": str(self.instructions) if self.instructions else given,
        }

    def check(self) -> None:
        """Messages are checked one by one as they are read: each that is unusable is a frame with its problem."""

    def __iter__(self) -> Iterator[ReplayFrame]:
        topics = {self.image.name, *self.tf_topics}
        topics |= {topic.name for topic in (self.camera_info, self.pose, self.joints, self.instructions) if topic}
        self._spoken = self.spec.instruction
        for recorded in self.bag.messages(topics):
            message, now_ns = recorded.message, recorded.time_ns
            if self._goes_back(recorded):
                yield from self._ready(None)
                self.counters.restarts += 1
                self._begin()
            if recorded.topic == self.image.name:
                self._add_image(message, now_ns)
            elif self.camera_info and recorded.topic == self.camera_info.name:
                self._pairing.add_info(message)
            elif self.instructions and recorded.topic == self.instructions.name:
                self._spoken = message.data.strip()
            else:
                self._add_pose(recorded.topic, message)
            yield from self._ready(now_ns)
        yield from self._ready(None)

    # -- reading ----------------------------------------------------------------------------------------------------

    def _camera_info_topic(self) -> Any:
        """Return the camera_info asked for, else the one beside the image, else the only one, else None."""
        asked = self.spec.camera_info_topic
        if asked is None:
            namespace = self.image.name.removesuffix("/compressed").rpartition("/")[0]
            beside = f"{namespace}/camera_info"
            asked = beside if beside in self.bag.topics else None
        return self.bag.choose(asked, INFO_TYPES, "camera_info", "--camera-info-topic")

    def _camera_info_source(self) -> str:
        if self.spec.camera_info is not None:
            return "given, the same for every image"
        if self.camera_info is None:
            return "none: no gripper pixel, no ring"
        nearest_s = self.spec.camera_info_nearest_s
        return f"{self.camera_info}" + (f", the nearest within {nearest_s:g} s" if nearest_s else "")

    def _begin(self) -> None:
        """Forget everything that is tied to the time of what was read before. Static transforms stay."""
        self._buffer.clear()
        self._gate.reset()
        fixed = self.spec.camera_info if self._calibrated else CameraInfo()
        self._pairing: ImagePairing[_Arrival] = ImagePairing(nearest_s=self.spec.camera_info_nearest_s, fixed=fixed)
        self._newest: dict[str, int] = {}  # newest stamp of the images and of every moving frame
        self._followed = ""  # instruction of the observation before; empty at the start of an episode

    def _goes_back(self, recorded: BagMessage) -> bool:
        """Return whether the stamps of a stream in use jump back: the recording, or what was recorded, began anew."""
        if recorded.topic in self.tf_topics:
            static = recorded.topic.endswith("tf_static")
            stamps = {t.child_frame_id: time_ns(t.header.stamp) for t in recorded.message.transforms if not static}
            self._parents.update({t.child_frame_id: t.header.frame_id for t in recorded.message.transforms})
        elif recorded.topic in {topic.name for topic in (self.image, self.pose, self.joints) if topic}:
            stamps = {recorded.topic: time_ns(recorded.message.header.stamp)}
        else:
            return False
        used = {recorded.topic} | self._frames_in_use()
        back = any(self._newest.get(name, stamps[name]) - stamps[name] > NS_PER_S for name in used & stamps.keys())
        self._newest.update(stamps)
        return back

    def _frames_in_use(self) -> set[str]:
        """Return the frames that place the tool and the camera: base, tool, camera, and all above them."""
        used: set[str] = set()
        for frame in (self.spec.base_frame, self.spec.tool_frame, self._camera_frame):
            while frame and frame not in used:
                used.add(frame)
                frame = self._parents.get(frame, "")
        return used

    def _add_image(self, message: Any, recorded_ns: int) -> None:
        index = self.counters.images
        self.counters.images += 1
        self._camera_frame = message.header.frame_id
        if index % self.spec.stride:
            return
        self.counters.used += 1
        self._pairing.add_image(_Arrival(index, recorded_ns, self._instruction(recorded_ns)), message)

    def _add_pose(self, topic: str, message: Any) -> None:
        if topic in self.tf_topics:
            store = self._buffer.set_transform_static if topic.endswith("tf_static") else self._buffer.set_transform
            for transform in message.transforms:
                store(transform, topic)
            return
        stamp_ns = time_ns(message.header.stamp)
        if self._arm is not None:
            pose = self._arm.forward(self._arm.configuration(list(message.name), list(message.position)))
        else:
            pose = pose_from_message(message.pose)
        self._buffer.set_transform(transform_message(pose, stamp_ns, self.spec.base_frame, self.spec.tool_frame), topic)

    def _instruction(self, now_ns: int) -> str:
        if self.instructions is None and self.spec.segments:
            elapsed_s = (now_ns - self.bag.start_ns) / NS_PER_S
            return next((text for start, text in reversed(self.spec.segments) if start <= elapsed_s), "")
        return self._spoken

    # -- observing --------------------------------------------------------------------------------------------------

    def _ready(self, now_ns: int | None) -> Iterator[ReplayFrame]:
        """Yield frames that can be observed or given up, once the recording is read up to now_ns (None: its end)."""
        if now_ns is None:
            self._pairing.finish()
        waiting = self._pairing.ready
        while waiting:
            pair = waiting[0]
            waited_s = np.inf if now_ns is None else (now_ns - pair.arrival.recorded_ns) / NS_PER_S
            try:
                observed = self._observe(pair)
            except TransformMissing as error:
                if waited_s <= self.spec.tf_timeout_s and len(waiting) <= MAX_WAITING:
                    return
                observed = self._failed(pair, str(error), "transform missing")
            except (ObservationProblem, ValueError) as error:
                observed = self._failed(pair, str(error), "unusable input")
            waiting.popleft()
            self.counters.paired += self._calibrated and not pair.problem
            if observed.observation is not None:
                self.counters.observed += 1
                self._followed = observed.observation.instruction
            self.counters.stale += observed.age_s > self.spec.max_age_s
            yield observed

    def _observe(self, pair: Pair[_Arrival]) -> ReplayFrame:
        if pair.problem and (self._posed or pair.kind != NO_CAMERA_INFO):  # without a pose nothing is projected
            return self._failed(pair, pair.problem, pair.kind)
        arrival, frame = pair.arrival, Frame(pair.image, pair.camera_info, pair.stamp_ns, 0.0)
        if not arrival.instruction:
            return self._failed(pair, "no instruction at this time of the bag", "no instruction")
        if problem := unreadable(arrival.instruction):
            return self._failed(pair, problem, "no instruction")
        new_episode = arrival.instruction != self._followed
        age_s = arrival.age_s(frame.stamp_ns)
        if not self._posed:
            observation = Observation(self._convert(frame.image), frame.stamp_ns, arrival.instruction)
            note = "the bag has no transforms: the gripper cannot be projected"
            return ReplayFrame(arrival.index, frame.stamp_ns, age_s, observation, note=note, new_episode=new_episode)
        view = self._observer.observe(frame, arrival.instruction, frame.stamp_ns)
        note = view.tool.reason if self._calibrated else "the bag has no camera_info: the gripper cannot be projected"
        return ReplayFrame(
            arrival.index,
            frame.stamp_ns,
            age_s,
            view.observation,
            note=note,
            camera=view.camera,
            optical_from_base=view.optical_from_base,
            new_episode=new_episode,
        )

    def _failed(self, pair: Pair[_Arrival], problem: str, kind: str) -> ReplayFrame:
        self.counters.count_problem(kind, problem)
        return ReplayFrame(pair.arrival.index, pair.stamp_ns, pair.arrival.age_s(pair.stamp_ns), None, problem)


def sample_observations(path: Path, wanted: int, spec: ReplaySpec) -> list[Observation]:
    """Return up to `wanted` observations spread over a recording that is read as `spec` says, its stride aside.

    Raises BagError where it has none, with the commonest reason.
    """
    with Bag(path) as bag:
        total = BagObservations(bag, spec).total
        frames = BagObservations(bag, replace(spec, stride=max(1, total // wanted)))
        found = [frame.observation for frame in frames if frame.observation is not None]
        if not found:
            counted = frames.counters
            said = nothing_observed(counted.used, counted.problems, counted.reasons)
            raise BagError(f"{path} gave no observation to calibrate on: {said}")
    if len(found) <= wanted:
        return found
    return [found[round(place)] for place in np.linspace(0, len(found) - 1, wanted)]
