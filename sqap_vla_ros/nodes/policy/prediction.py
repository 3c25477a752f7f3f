"""Predictions: the one that the worker computes, and one that is done."""

from __future__ import annotations

from dataclasses import dataclass

from sqap_vla_ros.contracts import ActionChunk
from sqap_vla_ros.control.mission import Mission
from sqap_vla_ros.nodes.policy.observer import View
from sqap_vla_ros.robot.trajectory import PoseTrajectory


@dataclass(frozen=True)
class InFlight:
    """The prediction that the worker computes.

    request: its number, found again in the result. usable_s: since when both the image and the free policy were there
    (steady clock).
    """

    request: int
    view: View
    mission: Mission
    usable_s: float


@dataclass(frozen=True)
class Prediction:
    """One prediction that was published.

    trajectory: the whole chunk anchored at its image. overhead_s: from the usable image to the published chunk, less
    the policy's own time. queued_s: time that the image waited for the policy to finish the one before. age_s: of the
    image, by ROS time, when the chunk was published.
    """

    chunk: ActionChunk
    view: View
    trajectory: PoseTrajectory
    overhead_s: float
    queued_s: float
    age_s: float
