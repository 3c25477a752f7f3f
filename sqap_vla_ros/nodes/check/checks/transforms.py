"""Checks of TF: the tool and the camera in the base, and who says so."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sqap_vla_ros.control.arm.tool_monitor import ToolMonitor, ToolMonitorConfig
from sqap_vla_ros.nodes.check.finding import Finding, fail, ok, skipped, warning
from sqap_vla_ros.nodes.check.snapshot import Snapshot
from sqap_vla_ros.nodes.check.transform_watch import StaticClaim
from sqap_vla_ros.nodes.policy.inputs import TF_AGE_S
from sqap_vla_ros.nodes.policy.observer import ObservationProblem
from sqap_vla_ros.robot.conventions import pose_distance

AGREE_M, AGREE_RAD = 0.001, 0.002  # of two publishers of one static transform: rounding in launch files


def check_transforms(snapshot: Snapshot) -> Iterator[Finding]:
    """Look up the tool and the camera, judge the tool's pose as the node does, and compare static transforms."""
    if snapshot.timeless:
        yield skipped("there is no /clock to judge stamps by")
    else:
        yield _tool(snapshot)
        yield _camera(snapshot)
    yield from _rotations(snapshot)
    yield from _rivals(snapshot)


def _tool(snapshot: Snapshot) -> Finding:
    base, tool = snapshot.values["base_frame"], snapshot.values["tool_frame"]
    try:
        snapshot.observer.measured_tool()
    except ObservationProblem as error:
        return fail(str(error), f"start robot_state_publisher, and correct base_frame:={base} or tool_frame:={tool}")
    monitor = ToolMonitor(ToolMonitorConfig(max_age_s=TF_AGE_S + snapshot.values["tf_timeout_s"]))
    jumps = None
    for sample, now_ns in snapshot.tools:
        monitor.update(sample)
        jumps = jumps or monitor.problem(now_ns)
    if (problem := jumps or monitor.problem(snapshot.now_ns)) is not None:
        return fail(problem, "look at the publishers of /tf and at their clocks (ros2 topic info -v /tf)")
    return ok(f"{base} to {tool} is known and fresh")


def _camera(snapshot: Snapshot) -> Finding:
    """Look up the tool and the camera at the image's stamp."""
    base, tool = snapshot.values["base_frame"], snapshot.values["tool_frame"]
    if (frame := snapshot.frame) is None:
        return skipped("camera: there is no image with camera_info")
    try:
        if snapshot.tools:
            snapshot.observer.transform(base, tool, frame.stamp_ns)
    except ObservationProblem as error:
        return fail(
            str(error),
            f"have {base} to {tool} on /tf published more often and sooner, with the clock of the images' stamps "
            "(ros2 topic hz /tf), or lengthen tf_timeout_s",
        )
    try:
        if frame.frame_id:
            snapshot.observer.transform(frame.frame_id, base, frame.stamp_ns)
    except ObservationProblem as error:
        return fail(
            str(error),
            f"publish {base} to {frame.frame_id} on /tf_static (hand-eye calibration); that of a camera on the arm has "
            "to be on /tf as early as the tool's",
        )
    return ok(f"{base} to {frame.frame_id or 'an image without frame_id'} is known at the image's stamp")


def _between(snapshot: Snapshot) -> set[str]:
    """Return the frames that decide where tool and camera are."""
    ends = [snapshot.values["base_frame"], snapshot.values["tool_frame"]]
    if snapshot.frame is not None and snapshot.frame.frame_id:
        ends.append(snapshot.frame.frame_id)
    return snapshot.frames.between(*ends)


def _rotations(snapshot: Snapshot) -> Iterator[Finding]:
    """Name quaternions that are no rotations: tf2 drops such a transform, or normalises it to something else."""
    decisive = _between(snapshot)
    for frame, norm in snapshot.frames.norms.items():
        yield (fail if frame in decisive else warning)(
            f"the transform of {frame} in {snapshot.frames.parents[frame]} has a quaternion of norm {norm:.3g}",
            "its publisher must normalise it (x, y, z, w of norm 1): tf2 ignores it",
        )


def _rivals(snapshot: Snapshot) -> Iterator[Finding]:
    """Name static frames of which two publishers say different things: the last one heard wins, at random."""
    decisive = _between(snapshot)
    for frame, claims in snapshot.frames.statics.items():
        first = claims[0]
        for other in claims[1:]:
            if (apart := _apart(first, other)) is not None:
                yield (fail if frame in decisive else warning)(
                    f"{first.publisher} and {other.publisher} say different things of {frame}: {apart}",
                    "end one of the two publishers on /tf_static: whichever is heard last counts",
                )
                break


def _apart(one: StaticClaim, other: StaticClaim) -> str | None:
    """Return how two claims differ, or None."""
    if one.parent != other.parent:
        return f"it is in {one.parent}, and in {other.parent}"
    away_m, away_rad = pose_distance(one.parent_from_frame, other.parent_from_frame)
    if away_m <= AGREE_M and away_rad <= AGREE_RAD:
        return None
    return f"{1e3 * away_m:.0f} mm and {np.degrees(away_rad):.1f} degrees apart in {one.parent}"
