"""Checks of what comes: rates, QoS and the safety stop."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sqap_vla_ros.nodes.check.finding import Finding, fail, ok, warning
from sqap_vla_ros.nodes.check.snapshot import Arrival, Snapshot
from sqap_vla_ros.nodes.policy.publishers import node_name, unheard

CAMERA = ("image", "camera_info")
# Hz of joint_states. A tool at 0.25 m/s is 25 mm further on at the next of 10 Hz, more than the lead of a first motion:
# a blocked arm would be noticed too late.
SLOW_HZ, SLOWEST_HZ = 18.0, 9.0  # those that are meant to be 20 and 10
WANTED_HZ = 20.0
PAIRED, PAIRED_LEAST = 0.9, 0.5  # share of the images that have a camera_info of their stamp
ON_THEIR_WAY = 2  # newest images whose camera_info may still come
IRREGULAR = 3.0  # times the median period that a gap may last before it is worth a word


def check_rates(snapshot: Snapshot) -> Iterator[Finding]:
    """Count what comes, and look for gaps and for stamps that repeat or go back."""
    if snapshot.busy:
        yield warning(
            f"this computer is busy: {snapshot.free:.0%} of its processors' time was free, the check was paused for "
            f"up to {1e3 * snapshot.paused_s:.0f} ms",
            "end what else runs: the node would be paused, too, and what comes unevenly here may be sent evenly",
        )
    for name in CAMERA:
        topic = snapshot.topics[name]
        arrivals = snapshot.arrivals.get(topic, ())
        yield _rate(snapshot, name, topic, arrivals, snapshot.values["image_timeout_s"])
    topic = snapshot.topics["joint_states"]
    for text, arrivals in _joint_streams(snapshot, topic):
        yield _rate(snapshot, "joint_states", text, arrivals, snapshot.values["joint_states_timeout_s"])
        yield from _slow(text, arrivals)
    yield from _unpaired(snapshot)


def _slow(text: str, arrivals: tuple[Arrival, ...]) -> Iterator[Finding]:
    """Judge the rate of joint states."""
    if len(arrivals) < 2:
        return
    rate_hz = 1.0 / max(float(np.median(np.diff([arrival.at_s for arrival in arrivals]))), 1e-9)
    if rate_hz < SLOW_HZ:
        yield (fail if rate_hz < SLOWEST_HZ else warning)(
            f"{text} at {rate_hz:.0f} Hz: too slow to see whether the arm follows",
            f"have the driver publish with {WANTED_HZ:g} Hz at least (update rate of joint_state_broadcaster)",
        )


def _unpaired(snapshot: Snapshot) -> Iterator[Finding]:
    """Count images without camera_info, which the node cannot use."""
    images, infos = (snapshot.arrivals.get(snapshot.topics[name], ()) for name in CAMERA)
    if not infos or len(images) <= ON_THEIR_WAY:
        return
    stamps = {info.stamp_ns for info in infos}
    judged = [image for image in images[:-ON_THEIR_WAY] if image.stamp_ns >= infos[0].stamp_ns]
    share = sum(image.stamp_ns in stamps for image in judged) / max(len(judged), 1)
    if 0.0 < share < PAIRED:  # where none has one, camera_info says so
        yield (fail if share < PAIRED_LEAST else warning)(
            f"{share:.0%} of the images have a camera_info with their stamp; the others are of no use",
            f"have {snapshot.topics['camera_info']} published with every image, and throttle neither alone",
        )


def _joint_streams(snapshot: Snapshot, topic: str) -> list[tuple[str, tuple[Arrival, ...]]]:
    """Return the messages of each joint of the arm, joints that come together counted once.

    Arm and gripper may have publishers of their own, with the same stamps.
    """
    pairs = snapshot.arm_joint_states
    arm = () if isinstance(snapshot.arm, str) else snapshot.arm.joint_names
    seen = list(dict.fromkeys(name for message, _ in pairs for name in message.name))
    names = [name for name in seen if name in arm] or seen
    together: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        together.setdefault(tuple(i for i, (message, _) in enumerate(pairs) if name in message.name), []).append(name)
    if len(together) <= 1:
        return [(topic, tuple(arrival for _, arrival in pairs))]
    return [
        (f"{topic} ({', '.join(joints)})", tuple(pairs[index][1] for index in indices))
        for indices, joints in together.items()
    ]


def _rate(snapshot: Snapshot, name: str, text: str, arrivals: tuple[Arrival, ...], longest_s: float) -> Finding:
    """Judge one stream. text: its topic, and what of it."""
    if len(arrivals) < 2:
        return _silent(snapshot, name, text, len(arrivals))
    gaps_s = np.diff([arrival.at_s for arrival in arrivals])
    steps_ns = np.diff([arrival.stamp_ns for arrival in arrivals])
    text = f"{text}: {1.0 / max(float(gaps_s.mean()), 1e-9):.1f} Hz, longest gap {1e3 * gaps_s.max():.0f} ms"
    if gaps_s.max() > longest_s:
        return fail(f"{text}; {longest_s:g} s are allowed", "look at the driver's load and at the network")
    if (steps_ns <= 0).mean() > 0.2:
        return fail(
            f"{text}; {(steps_ns <= 0).mean():.0%} of its stamps repeat or go back",
            "one driver alone may publish here, and must stamp each measurement once",
        )
    if gaps_s.max() > max(IRREGULAR * float(np.median(gaps_s)), 0.1):
        if snapshot.busy:
            return ok(f"{text}, uneven, on a busy computer")
        return warning(f"{text}, uneven", "look at the driver's load and at the network")
    return ok(text)


def _silent(snapshot: Snapshot, name: str, text: str, count: int) -> Finding:
    topic = snapshot.topics[name]
    text = f"{text}: {count or 'no'} message{'' if count == 1 else 's'} within {snapshot.listened_s:.0f} s"
    listener = next(listener for listener in snapshot.listeners if listener.topic == topic)
    if snapshot.publishers.get(topic):
        remedy = "it has a publisher: see qos; large images need config/fastdds_shm.xml on both sides"
    else:
        others = sorted(other for other, kinds in snapshot.kinds.items() if listener.kind in kinds and other != topic)
        there = f"topics of its type: {', '.join(others)}" if others else "there is no topic of its type"
        remedy = f"nobody publishes it: start the driver, or give its name as {name}:=…; {there}"
    return fail(text, remedy)


def check_qos(snapshot: Snapshot) -> Iterator[Finding]:
    """Compare every publisher's type and QoS with our subscriptions."""
    count = 0
    for listener in snapshot.listeners:
        for publisher in snapshot.publishers.get(listener.topic, ()):
            count += 1
            if (problem := unheard(publisher, listener)) is not None:
                yield fail(problem, "change the publisher's QoS or type, or the parameter that is named")
        if listener.topic in (snapshot.topics[name] for name in CAMERA):
            names = sorted(map(node_name, snapshot.publishers.get(listener.topic, ())))
            if len(names) > 1:
                yield warning(f"{listener.topic} has {len(names)} publishers: {', '.join(names)}", "end all but one")
    if count == 0:
        yield fail("nothing that the node listens to has a publisher", "start the drivers, in this ROS_DOMAIN_ID")
    else:
        yield ok(f"{count} publishers looked at")


def check_safety_stop(snapshot: Snapshot) -> Iterator[Finding]:
    """Report a stop that is set."""
    if snapshot.safety_stop is not None:
        yield fail(snapshot.safety_stop, "release the stop; its publisher must then send false")
    else:
        yield ok("not set")
