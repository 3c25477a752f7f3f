"""The run as a film: the camera image with the kept tokens, the gripper's patch and the chunk drawn into it."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes.recorder.recording import RecordedChunk, RecordedImage, Recording
from sqap_vla_ros.policy.preprocessing import ImageTransform
from sqap_vla_ros.pruning.overlay import draw_overlay

PREVIEW_WIDTH, PREVIEW_SECONDS = 400, 12.0


def frame_picture(recording: Recording, image: RecordedImage) -> NDArray[np.uint8]:
    """[H, W, 3] uint8: the image with the newest chunk that was made from it or from an earlier one."""
    rgb = image.rgb()
    stamps = [chunk.chunk.stamp_ns for chunk in recording.chunks]
    index = bisect.bisect_right(stamps, image.stamp_ns) - 1
    episode = recording.episodes[int(recording.episode_of(image.stamp_ns))]
    if index < 0 or (chosen := recording.chunks[index]).selection is None:
        return rgb
    if chosen.chunk.stamp_ns < episode.start_ns:
        return rgb
    selection = chosen.selection
    assert selection is not None
    caption = f"{episode.instruction}   t {(image.stamp_ns - episode.start_ns) / NS_PER_S:4.1f} s   "
    if episode.done_ns is not None and image.stamp_ns >= episode.done_ns:
        caption += f"done in {episode.done_s:.1f} s"
    else:
        caption += f"image to chunk {chosen.age_s * 1e3:.0f} ms"
    return draw_overlay(
        rgb,
        selection,
        ImageTransform(recording.model.get("image_size", 224)),
        gripper_pixel=image.tool.pixel,
        path_pixels=_path_pixels(recording, chosen, image),
        caption=caption,
    )


def write_video(recording: Recording, path: Path, *, show: bool = True) -> None:
    """MP4 at the camera's own rate, and beside it a small animated WebP for web pages. show: a progress bar."""
    rate_hz = _rate_hz(recording)
    previews: list[Image.Image] = []
    writer: Any  # of the ffmpeg plugin, which imageio's own type does not describe
    every = max(1, round(rate_hz / 8))
    with imageio.get_writer(path, fps=rate_hz, macro_block_size=2, quality=8) as writer:
        for index, picture in enumerate(_pictures(recording, show)):
            height, width = (size - size % 2 for size in picture.shape[:2])  # H.264 takes even sizes only
            writer.append_data(picture[:height, :width])
            if index % every == 0 and len(previews) < PREVIEW_SECONDS * rate_hz / every:
                size = (PREVIEW_WIDTH, round(PREVIEW_WIDTH * height / width))
                previews.append(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
    duration_ms = round(1e3 * every / rate_hz)
    previews[0].save(
        path.with_suffix(".webp"), save_all=True, append_images=previews[1:], duration=duration_ms, loop=0, quality=60
    )


def _pictures(recording: Recording, show: bool) -> Iterator[NDArray[np.uint8]]:
    for image in tqdm(recording.images, desc="video", unit="frame", disable=not show, leave=False):
        yield frame_picture(recording, image)


def _path_pixels(recording: Recording, chosen: RecordedChunk, image: RecordedImage) -> NDArray[np.float64] | None:
    """[T, 2] of the tool now and of what is still to come of the chunk."""
    remaining = chosen.trajectory.after(image.stamp_ns)
    if recording.camera is None or image.optical_from_base is None or remaining is None:
        return None
    points = np.concatenate([remaining.anchor[None, :3, 3], remaining.poses[:, :3, 3]])
    rotation, translation = image.optical_from_base[:3, :3], image.optical_from_base[:3, 3]
    return recording.camera.project(points @ rotation.T + translation).pixels


def _rate_hz(recording: Recording) -> float:
    """Images per second on average within the episodes: the film lasts as long as they do."""
    stamps_ns = np.array([image.stamp_ns for image in recording.images], dtype=np.int64)
    intervals_ns = np.diff(stamps_ns)[np.diff(recording.episode_of(stamps_ns)) == 0]
    return float(np.clip(NS_PER_S / intervals_ns.mean(), 1.0, 60.0)) if len(intervals_ns) else 10.0
