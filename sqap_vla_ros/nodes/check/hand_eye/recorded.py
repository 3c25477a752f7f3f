"""Sights from a recording, with the projections of policy_node."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqap_vla_ros.nodes.bags.bag import Bag
from sqap_vla_ros.nodes.bags.observations import BagObservations
from sqap_vla_ros.nodes.bags.spec import ReplaySpec
from sqap_vla_ros.nodes.check.hand_eye.mounts import add_mounts
from sqap_vla_ros.nodes.check.hand_eye.sights import Sight, Surveyor


def survey_bag(path: Path, values: Mapping[str, Any], topics: Mapping[str, str], surveyor: Surveyor) -> None:
    """Look at every image of a recording.

    topics: those of `image` and `camera_info` that were named; without one, the bag's only one of that type. Raises
    BagError.
    """
    spec = ReplaySpec(
        base_frame=values["base_frame"],
        tool_frame=values["tool_frame"],
        image_topic=topics.get("image"),
        camera_info_topic=topics.get("camera_info"),
        instruction="check",
        rectified=values["image_rectified"],
    )
    survey = surveyor.survey
    with Bag(path) as bag:
        frames = BagObservations(bag, spec)
        survey.where = f"{path}, {frames.image.name}"
        static = [name for name in frames.tf_topics if name.endswith("tf_static")]
        for recorded in bag.messages(static):
            add_mounts(survey.mounts, recorded.message)
        if frames.camera_info is not None:
            for recorded in bag.messages([frames.camera_info.name]):
                survey.optical_frame = str(recorded.message.header.frame_id).removeprefix("/")
                break
        for frame in frames:
            observation = frame.observation
            if observation is None:
                survey.refuse(frame.problem)
            elif observation.base_from_tool is None or frame.camera is None or frame.optical_from_base is None:
                survey.refuse(frame.note)
            else:
                surveyor.take(
                    Sight(
                        frame.stamp_ns,
                        observation.image,
                        frame.camera,
                        observation.base_from_tool,
                        frame.optical_from_base,
                    )
                )
