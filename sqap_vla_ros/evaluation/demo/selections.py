"""Token selections for the film: what the policy keeps of the images that the node predicted nothing from.

The node predicts once in about eight actions, because the policy needs that to get anywhere; the camera delivers many
images in that time. So that every picture of the film shows its own tokens and not those of an older image, the same
policy looks at the remaining images after the run. It commands nothing: the plans in the film are the node's. It sees
the images as they were recorded, as JPEG, so some tokens are others than the live image would have kept.
"""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from sqap_vla_ros.contracts import Observation, TokenSelection
from sqap_vla_ros.nodes.recorder.recording import RecordedImage, Recording

LONGEST_S = 60.0


def selections_of_all_images(
    recording: Recording, checkpoint: str, recipe: str, *, show: bool = True
) -> dict[int, TokenSelection]:
    """Return image stamp -> kept tokens for every image of the run.

    Only the node's own selections come back where predicting the other images would take longer than LONGEST_S by the
    latencies of the run, or where the policy keeps something between images.

    show: a progress bar.
    """
    known = {chunk.chunk.stamp_ns: chunk.selection for chunk in recording.chunks if chunk.selection is not None}
    missing = [image for image in recording.images if image.stamp_ns not in known]
    if not known or not missing or len(missing) * _prediction_s(recording) > LONGEST_S:
        return known
    from sqap_vla_ros.compression.files.kept import KeptPolicies, default_folder
    from sqap_vla_ros.compression.load import load_policy
    from sqap_vla_ros.shipped import SHIPPED

    seed = recording.chunks[0].chunk.seed  # of the diffusion noise, and of the weights of `micro`
    kept = KeptPolicies(default_folder())  # where the node's worker has put the same policy
    policy = load_policy(checkpoint, recipe, shipped=SHIPPED, seed=seed, kept=kept)
    if policy.info.stateful:
        return known
    for image in tqdm(missing, desc="tokens", unit="frame", disable=not show, leave=False):
        selection = policy.predict(_observation(recording, image), seed=seed).selection
        if selection is not None:
            known[image.stamp_ns] = selection
    return known


def _prediction_s(recording: Recording) -> float:
    """Return the median time of a prediction in the run, in seconds; infinity where it is not known."""
    totals_ms = recording.stages("total")
    totals_ms = totals_ms[np.isfinite(totals_ms)]
    return float(np.median(totals_ms)) / 1e3 if len(totals_ms) else float("inf")


def _observation(recording: Recording, image: RecordedImage) -> Observation:
    instruction = recording.episodes[int(recording.episode_of(image.stamp_ns))].instruction
    return Observation(image.rgb(), image.stamp_ns, instruction, image.tool.pixel)
