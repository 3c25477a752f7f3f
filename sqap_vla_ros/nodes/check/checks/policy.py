"""Checks of the policy: does it load, and is it fast enough?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sqap_vla_ros.nodes.check.finding import Finding, fail, ok, skipped, warning
from sqap_vla_ros.nodes.check.snapshot import Snapshot
from sqap_vla_ros.serving.frames import is_remote


def check_worker(snapshot: Snapshot) -> Iterator[Finding]:
    """Report what the worker loaded."""
    trial = snapshot.trial
    if trial is None:
        yield skipped("not asked for")
    elif trial.failure is not None or trial.info is None:
        yield fail(f"the policy does not work: {trial.failure}", _remedy(snapshot.values["checkpoint"]))
    else:
        info = trial.info
        yield ok(
            f"{info.checkpoint}, recipe {info.recipe}, {info.parameters / 1e6:.1f} M parameters, unnorm_key "
            f"{info.unnorm_key or 'none'}, on {snapshot.values['device']}, loaded in {trial.loaded_s:.0f} s"
        )


def _remedy(checkpoint: str) -> str:
    if is_remote(checkpoint):
        return "start `sqap-vla serve` there, correct the address, or let it load its policy first (--wait)"
    return "correct checkpoint, recipe, device, unnorm_key or tokenizer"


def check_latency(snapshot: Snapshot) -> Iterator[Finding]:
    """Compare the dry predictions with the time that a chunk lasts.

    A chunk moves the arm until its end or `max_open_loop_s` after its image, whichever is first. One that comes later
    is useless. The next one is begun when this one came, so that the arm pauses unless two predictions fit in.
    """
    trial = snapshot.trial
    if trial is None or trial.info is None or not trial.latencies_s:
        yield skipped("nothing was predicted")
        return
    p50_s, p95_s = np.percentile(trial.latencies_s, (50, 95))
    lasts_s = min(trial.info.horizon * trial.info.dt_s, snapshot.values["max_open_loop_s"])
    arrivals = snapshot.arrivals.get(snapshot.topics["image"], ())
    age_s = max(0.0, float(np.median([arrival.age_s for arrival in arrivals]))) if arrivals else 0.0
    text = (
        f"{len(trial.latencies_s)} predictions: p50 {1e3 * p50_s:.0f} ms, p95 {1e3 * p95_s:.0f} ms; a chunk lasts "
        f"{lasts_s:.2f} s from its image, which is {1e3 * age_s:.0f} ms old when it comes"
    )
    remedy = "use a smaller recipe, a faster device or more threads"
    if p95_s >= snapshot.values["prediction_timeout_s"]:
        yield fail(f"{text}; prediction_timeout_s is {snapshot.values['prediction_timeout_s']:g}", remedy)
    elif age_s + p95_s >= lasts_s:
        yield fail(f"{text}: it is over before it comes", remedy)
    elif age_s + 2.0 * p95_s >= lasts_s:
        yield warning(f"{text}: the arm pauses between chunks", remedy)
    else:
        yield ok(text)
