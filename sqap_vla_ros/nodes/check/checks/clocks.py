"""Checks of time: /clock and use_sim_time, and stamps against the time at which they come."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.arm.joint_monitor import FUTURE_S
from sqap_vla_ros.control.camera.image_gate import ImageGate
from sqap_vla_ros.control.clock_monitor import JUMP_S, STANDS_S
from sqap_vla_ros.nodes.check.checks.streams import CAMERA
from sqap_vla_ros.nodes.check.finding import Finding, fail, ok, skipped, warning
from sqap_vla_ros.nodes.check.snapshot import Arrival, Snapshot
from sqap_vla_ros.nodes.policy import configuration
from sqap_vla_ros.nodes.policy.sinks.joint import HEAD_NS

# Between synchronised clocks no stamp is ahead, and joint states need some milliseconds. A controller whose clock is
# ahead by more than HEAD_NS, by which a trajectory begins in the past, enters each chunk where it has left the one
# before already, and steps there. One whose clock is behind begins every stop so much later. Holds last for a second
# at rest, so that they are not refused within these.
AHEAD_S, BEHIND_S = 0.01, 0.05
FEW_SHARE, LATE_SHARE = 0.05, 0.2  # of the images that the tool's transform comes too late for


def check_clocks(snapshot: Snapshot) -> Iterator[Finding]:
    """Compare each stream's stamps with ROS time at their arrival, and those of TF with the images' as well."""
    if snapshot.timeless:
        yield fail("use_sim_time is set, but no /clock was received", "start the simulation, or use_sim_time:=false")
        return
    yield from _time(snapshot)
    gate = ImageGate(configuration.image_gate_config(snapshot.values))
    oldest = {"image": gate.config.max_age_s, "camera_info": gate.config.max_age_s}
    oldest["joint_states"] = snapshot.values["joint_states_timeout_s"]
    ahead = {"image": gate.config.max_future_s, "camera_info": gate.config.max_future_s, "joint_states": FUTURE_S}
    for name in (*CAMERA, "joint_states"):
        arrivals = snapshot.arrivals.get(snapshot.topics[name], ())
        if name == "joint_states":
            arrivals = tuple(arrival for _, arrival in snapshot.arm_joint_states)
        if not arrivals:
            yield skipped(f"{name}: nothing came")
            continue
        yield _clock(snapshot, name, arrivals, oldest[name], ahead[name])
    yield _tf_delay(snapshot)


def _time(snapshot: Snapshot) -> Iterator[Finding]:
    """Look whether ROS time is the one that is meant, whether it runs, and whether one alone says what it is."""
    names = ", ".join(snapshot.clock_publishers)
    publish = f"{names} publish{'' if len(snapshot.clock_publishers) > 1 else 'es'} /clock"
    if not snapshot.simulated_time:
        if names:
            yield warning(
                f"use_sim_time is false, but {publish}",
                "use_sim_time:=true for an arm in simulation; beside a real one end the simulation or the player of a "
                "bag, or give it a ROS_DOMAIN_ID of its own",
            )
        jumped_s = snapshot.passed_s - snapshot.listened_s
        if abs(jumped_s) > JUMP_S:
            yield warning(
                f"this computer's clock was set by {jumped_s:+.2f} s while it was listened to",
                "wait until it is synchronised (chronyc tracking), and check again: the node holds when that happens",
            )
        return
    if len(snapshot.clock_publishers) > 1:
        yield fail(f"{publish}: time leaps to and fro", "end all but one")
    if snapshot.listened_s >= STANDS_S and snapshot.passed_s == 0.0:
        yield fail("/clock stands still", "let the simulation run: it is paused")


def _clock(snapshot: Snapshot, name: str, arrivals: tuple[Arrival, ...], oldest_s: float, ahead_s: float) -> Finding:
    if any(arrival.stamp_ns == 0 for arrival in arrivals):
        return fail(f"{name} is stamped zero", "the driver must set header.stamp to the time of the measurement")
    ages_s = [arrival.age_s for arrival in arrivals]
    middle_s = float(np.median(ages_s))
    if min(ages_s) < -ahead_s:
        return fail(
            f"{name} is stamped {-min(ages_s):.2f} s in the future, {ahead_s:g} s are allowed",
            "synchronise the clocks of the driver's and this computer (chrony, PTP)",
        )
    if middle_s > oldest_s:
        return fail(
            f"{name} is {middle_s:.2f} s old when it comes, {oldest_s:g} s are allowed",
            "synchronise the clocks (chrony, PTP), shorten the driver's delay, or use_sim_time:=true in simulated time",
        )
    if not snapshot.simulated_time and middle_s < -AHEAD_S:
        steps = name == "joint_states" and snapshot.values["output_mode"] == "joint" and -middle_s > HEAD_NS / NS_PER_S
        return (fail if steps else warning)(
            f"{name} is stamped {-1e3 * middle_s:.0f} ms in the future: the clock of its driver's computer is ahead",
            "synchronise the clocks (chrony, PTP): a controller whose clock is ahead by more than "
            f"{HEAD_NS // 10**6} ms steps at each chunk",
        )
    if not snapshot.simulated_time and name == "joint_states" and middle_s > BEHIND_S and not snapshot.busy:
        return warning(
            f"{name} is {1e3 * middle_s:.0f} ms old when it comes",
            "synchronise the clocks (chrony, PTP), or shorten the driver's delay: where its clock is behind, a stop "
            "begins so much later, and a push is noticed so much later",
        )
    return ok(f"{name}: {1e3 * middle_s:.0f} ms old when it comes, at most {1e3 * max(ages_s):.0f} ms")


def _tf_delay(snapshot: Snapshot) -> Finding:
    """Compare how long images wait for the tool's transform at their stamps with how long the node lets them wait."""
    images, tools = snapshot.arrivals.get(snapshot.topics["image"], ()), snapshot.tools
    if not images or not tools:
        return skipped("tf: needs images and the tool's pose")
    if tools[-1][0].stamp_ns == 0:
        return ok("tf: the tool's transform is static")
    limit_s = snapshot.values["tf_timeout_s"]
    reached_ns = np.maximum.accumulate([sample.stamp_ns for sample, _ in tools])
    waits_s = []
    for image in images:
        first = int(np.searchsorted(reached_ns, image.stamp_ns))
        covered = first < len(tools)
        wait_s = ((tools[first][1] if covered else snapshot.now_ns) - image.now_ns) / NS_PER_S
        # Of an image that still waits nothing is known yet; of one before TF was first heard, nothing at all.
        if image.now_ns >= tools[0][1] and (covered or wait_s > limit_s):
            waits_s.append(max(0.0, wait_s))
    if not waits_s:
        return skipped("tf: no image came after the tool's first transform")
    middle_s, newest_ns = float(np.median(waits_s)), max(image.stamp_ns for image in images)
    text = f"tf: images wait {1e3 * middle_s:.0f} ms for the tool's transform at their stamps"
    share = float(np.mean(np.array(waits_s) > limit_s))
    if LATE_SHARE < share <= 0.5 or (FEW_SHARE < share <= 0.5 and not snapshot.busy):
        return (fail if share > LATE_SHARE else warning)(
            f"{text}, but {share:.0%} of them longer than tf_timeout_s = {limit_s:g} s, in vain",
            "have /tf published more often and sooner, or lengthen tf_timeout_s",
        )
    if middle_s > limit_s:
        behind_s = (newest_ns - int(reached_ns[-1])) / NS_PER_S
        return fail(
            f"{text}, which ends {1e3 * behind_s:.0f} ms before the newest image; tf_timeout_s is {limit_s:g} s: "
            "nothing would be predicted",
            "synchronise the clocks (chrony, PTP), have /tf published sooner and more often, or lengthen tf_timeout_s",
        )
    return ok(f"{text}, at most {1e3 * max(waits_s):.0f} ms of {1e3 * limit_s:.0f} ms")
