"""Checks of TF: the tool and the camera in the base, and who says so."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from sqap_vla_ros.control.arm.tool_monitor import ToolMonitor, ToolMonitorConfig, ToolSample
from sqap_vla_ros.nodes.check.finding import Finding, fail, ok, skipped, warning
from sqap_vla_ros.nodes.check.snapshot import Snapshot
from sqap_vla_ros.nodes.check.transform_watch import KEPT, StaticClaim
from sqap_vla_ros.nodes.policy.inputs import TF_AGE_S
from sqap_vla_ros.nodes.policy.observer import ObservationProblem
from sqap_vla_ros.robot.conventions import pose_distance

AGREE_M, AGREE_RAD = 0.001, 0.002  # of two publishers of one static transform: rounding in launch files


def check_transforms(snapshot: Snapshot) -> Iterator[Finding]:
    """Look up the tool and the camera, judge the tool's pose as the node does, and compare static transforms."""
    if snapshot.timeless:
        yield skipped("there is no /clock to judge stamps by")
    elif _between(snapshot) & set(snapshot.frames.infinite):
        yield skipped("tool and camera: a transform on the way is not finite")
    else:
        yield _tool(snapshot)
        yield from _leaps(snapshot)
        yield _camera(snapshot)
    yield from _not_finite(snapshot)
    yield from _rotations(snapshot)
    yield from _rivals(snapshot)
    yield from _homes(snapshot)
    yield from _doubles(snapshot)


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


def _leaps(snapshot: Snapshot) -> Iterator[Finding]:
    """Name poses of the tool that no arm can have had beside the ones before; every stamp on /tf is looked at."""
    base, tool = snapshot.values["base_frame"], snapshot.values["tool_frame"]
    moving = snapshot.frames.between(base, tool) & set(snapshot.frames.stamps)
    stamps_ns = sorted({stamp_ns for frame in moving for stamp_ns in snapshot.frames.stamps[frame]})[-KEPT:]
    monitor = ToolMonitor(ToolMonitorConfig())
    count, farthest_m, farthest_rad = 0, 0.0, 0.0
    for stamp_ns in stamps_ns:
        with contextlib.suppress(ObservationProblem):
            pose = snapshot.observer.transform(base, tool, stamp_ns)
            if not monitor.update(ToolSample(pose, stamp_ns)) and monitor.newest is not None:
                away_m, away_rad = pose_distance(monitor.newest.pose, pose)
                count, farthest_m, farthest_rad = count + 1, max(farthest_m, away_m), max(farthest_rad, away_rad)
    if count:
        yield (fail if count > 1 else warning)(
            f"in {count} of {len(stamps_ns)} transforms the tool leaps, by up to {1e3 * farthest_m:.0f} mm and "
            f"{farthest_rad:.2f} rad: faster than it can move",
            "look for a second publisher of these frames (ros2 topic info -v /tf), or a joint that is read wrongly",
        )


def _not_finite(snapshot: Snapshot) -> Iterator[Finding]:
    """Name transforms with numbers that are not finite, which tf2 drops."""
    for decides, names in _by_weight(snapshot, snapshot.frames.infinite):
        first = names[0]
        others = (
            f", and so {'is that' if len(names) == 2 else 'are those'} of {', '.join(names[1:])}" if names[1:] else ""
        )
        yield (fail if decides else warning)(
            f"the transform of {first} in {snapshot.frames.parents[first]} is not finite: "
            f"{snapshot.frames.infinite[first]}{others}",
            "its publisher computes with NaN or infinity, and tf2 drops it: look at joint_states and the calibration "
            "that it is made from",
        )


def _rotations(snapshot: Snapshot) -> Iterator[Finding]:
    """Name quaternions that are no rotations: tf2 drops such a transform, or normalises it to something else."""
    norms, parents = snapshot.frames.norms, snapshot.frames.parents
    for decides, names in _by_weight(snapshot, norms):
        each = ", ".join(f"{frame} in {parents[frame]} has a quaternion of norm {norms[frame]:.3g}" for frame in names)
        yield (fail if decides else warning)(
            f"the transform of {each}",
            "its publisher must normalise it (x, y, z, w of norm 1): tf2 ignores it",
        )


def _by_weight(snapshot: Snapshot, frames: Iterable[str]) -> Iterator[tuple[bool, list[str]]]:
    """Yield the frames that decide where tool and camera are, with True, then the others; no empty list."""
    decisive = _between(snapshot)
    for decides in (True, False):
        if names := [frame for frame in frames if (frame in decisive) == decides]:
            yield decides, names


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


def _homes(snapshot: Snapshot) -> Iterator[Finding]:
    """Name frames with several parents, and frames that one publisher says to be static and another to move."""
    decisive = _between(snapshot)
    for frame, origins in snapshot.frames.origins.items():
        if len({(origin.parent, origin.static) for origin in origins}) > 1:
            said = ", and ".join(
                f"in {origin.parent} by {origin.publisher} ({'static' if origin.static else 'moving'})"
                for origin in origins
            )
            yield (fail if frame in decisive else warning)(
                f"{frame} is {said}: its place changes with whoever was heard last",
                "a frame has one parent, on /tf or on /tf_static: end the publisher that is wrong",
            )


def _doubles(snapshot: Snapshot) -> Iterator[Finding]:
    """Name moving frames with several publishers, all that the same ones send together; their poses may agree."""
    decisive, shared = _between(snapshot), defaultdict(list)
    for frame, origins in snapshot.frames.origins.items():
        publishers = tuple(origin.publisher for origin in origins if not origin.static)
        if len(publishers) > 1 and len({origin.parent for origin in origins}) == 1 and frame in decisive:
            shared[publishers].append(frame)
    for publishers, frames in shared.items():
        yield warning(
            f"{' and '.join(publishers)} both send the transform of {', '.join(frames)}",
            "end one of them: where they differ, the node takes the arm to leap, and stops",
        )


def _apart(one: StaticClaim, other: StaticClaim) -> str | None:
    """Return how two claims of a place in one parent differ, or None."""
    if one.parent != other.parent:
        return None
    away_m, away_rad = pose_distance(one.parent_from_frame, other.parent_from_frame)
    if away_m <= AGREE_M and away_rad <= AGREE_RAD:
        return None
    return f"{1e3 * away_m:.0f} mm and {np.degrees(away_rad):.1f} degrees apart in {one.parent}"
