"""The film of a run: every camera image with its kept tokens, the gripper's patch and the commanded way of the tool."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from sqap_vla_ros.contracts import NS_PER_S, TokenSelection
from sqap_vla_ros.films import mp4_writer
from sqap_vla_ros.nodes.recorder.recording import RecordedChunk, RecordedImage, Recording
from sqap_vla_ros.policy.checkpoints.writing import written_aside
from sqap_vla_ros.policy.preprocessing import ImageTransform
from sqap_vla_ros.pruning.overlay import draw_overlay

PREVIEW_WIDTH, PREVIEW_SECONDS, PREVIEW_RATE_HZ = 400, 12.0, 8.0
FADE_S, FAINTEST = 1.0, 0.2  # an old selection loses most of its opacity in this time, and never all of it
PATH_STEP_NS = 100_000_000


@dataclass(frozen=True)
class Film:
    """Pictures of a recording.

    selections: image stamp -> tokens that the policy keeps of that image, for images that the node predicted nothing
        from (`selections.py` makes them). An image without one shows the newest older selection, faded by its age.
    """

    recording: Recording
    selections: Mapping[int, TokenSelection] = field(default_factory=dict)

    def picture(self, image: RecordedImage) -> NDArray[np.uint8]:
        """Return the image with its tokens, and with where the tool is commanded to go; [H, W, 3] uint8 RGB."""
        recording = self.recording
        newest = self._newest_chunk(image)
        own = self.selections.get(image.stamp_ns)
        selection, age_s = (own, 0.0) if own is not None else (None, 0.0)
        if selection is None and newest is not None:
            selection, age_s = newest.selection, (image.stamp_ns - newest.chunk.stamp_ns) / NS_PER_S
        if selection is None:
            return image.rgb()
        return draw_overlay(
            image.rgb(),
            selection,
            ImageTransform(recording.model.get("image_size", 224), recording.model.get("crop", "none")),
            gripper_pixel=image.tool.pixel,
            path_pixels=_path_pixels(recording, image),
            caption=self._caption(image, newest, age_s),
            opacity=max(FAINTEST, 1.0 - age_s / FADE_S),
        )

    def write(self, path: Path, *, show: bool = True) -> None:
        """Write an MP4 at the camera's own rate, and beside it a small animated WebP for web pages.

        show: a progress bar. Raises WriteError where one of them cannot be written whole.
        """
        rate_hz = _rate_hz(self.recording)
        previews: list[Image.Image] = []
        every = max(1, round(rate_hz / PREVIEW_RATE_HZ))
        with mp4_writer(path, rate_hz, quality=8) as append:
            for index, picture in enumerate(self._pictures(show)):
                height, width = (size - size % 2 for size in picture.shape[:2])  # H.264 takes even sizes only
                append(picture[:height, :width])
                if index % every == 0 and len(previews) < PREVIEW_SECONDS * rate_hz / every:
                    size = (PREVIEW_WIDTH, round(PREVIEW_WIDTH * height / width))
                    previews.append(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
        duration_ms = round(1e3 * every / rate_hz)
        with written_aside(path.with_suffix(".webp")) as partial:
            previews[0].save(
                partial,
                format="webp",
                save_all=True,
                append_images=previews[1:],
                duration=duration_ms,
                loop=0,
                quality=50,
                method=5,
            )

    def _pictures(self, show: bool) -> Iterator[NDArray[np.uint8]]:
        for image in tqdm(self.recording.images, desc="film", unit="frame", disable=not show, leave=False):
            yield self.picture(image)

    def _newest_chunk(self, image: RecordedImage) -> RecordedChunk | None:
        """Return the newest chunk of the image's episode that was made from this image or from one before it."""
        chunks, episodes = self.recording.chunks, self.recording.episodes
        index = bisect.bisect_right([chunk.chunk.stamp_ns for chunk in chunks], image.stamp_ns) - 1
        number = int(self.recording.episode_of(image.stamp_ns))
        # The first image that is predicted from can be a little older than the answer to ~/enable.
        before_ns = episodes[number - 1].end_ns if number else -1
        return chunks[index] if index >= 0 and chunks[index].chunk.stamp_ns > before_ns else None

    def _caption(self, image: RecordedImage, newest: RecordedChunk | None, age_s: float) -> str:
        episode = self.recording.episodes[int(self.recording.episode_of(image.stamp_ns))]
        parts = [episode.instruction, f"t {max(0.0, (image.stamp_ns - episode.start_ns) / NS_PER_S):4.1f} s"]
        if episode.done_ns is not None and image.stamp_ns >= episode.done_ns:
            parts.append(f"done in {episode.done_s:.1f} s")
        elif newest is not None:
            parts.append(f"plan {(image.stamp_ns - newest.chunk.stamp_ns) / NS_PER_S:.1f} s old")
        if age_s > 0.0:
            parts.append(f"tokens {age_s:.1f} s old")
        return "   ".join(parts)


def _path_pixels(recording: Recording, image: RecordedImage) -> NDArray[np.float64] | None:
    """Project the tool and what is still to come of its command into the image: [T, 2] pixels; None without either."""
    command = recording.command_at(image.stamp_ns)
    if recording.camera is None or image.optical_from_base is None or image.tool.pixel is None or command is None:
        return None
    times_ns = np.arange(image.stamp_ns, int(command.times_ns[-1]), PATH_STEP_NS)
    if command.tool_positions is None or len(times_ns) == 0:
        return None
    drawn_s, command_s = ((times - image.stamp_ns) / NS_PER_S for times in (times_ns, command.times_ns))
    points = np.stack([np.interp(drawn_s, command_s, column) for column in command.tool_positions.T], axis=1)
    rotation, translation = image.optical_from_base[:3, :3], image.optical_from_base[:3, 3]
    commanded = recording.camera.project(points @ rotation.T + translation).pixels
    return np.concatenate([np.array([image.tool.pixel]), commanded])


def _rate_hz(recording: Recording) -> float:
    """Return the mean image rate within the episodes, so that the film lasts as long as they do."""
    stamps_ns = np.array([image.stamp_ns for image in recording.images], dtype=np.int64)
    intervals_ns = np.diff(stamps_ns)[np.diff(recording.episode_of(stamps_ns)) == 0]
    return float(np.clip(NS_PER_S / intervals_ns.mean(), 1.0, 60.0)) if len(intervals_ns) else 10.0
