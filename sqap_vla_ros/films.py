"""MP4 films that appear whole or not at all."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from imageio_ffmpeg import write_frames  # type: ignore[import-untyped]
from numpy.typing import NDArray

from sqap_vla_ros.policy.checkpoints.writing import written_aside


@contextmanager
def mp4_writer(
    path: Path, rate_hz: float, quality: float = 5.0, *, between_key_frames: int | None = None
) -> Iterator[Callable[[NDArray[np.uint8]], None]]:
    """Provide a function that appends a picture [H, W, 3] (uint8 RGB, even sides) to a film.

    quality: 0 (smallest) to 10 (best). between_key_frames: None leaves it to the encoder.
    Raises WriteError where the film cannot be written whole.
    """
    spacing = [] if between_key_frames is None else ["-g", str(between_key_frames)]
    with written_aside(path) as partial:
        encoder: Any = None

        def append(picture: NDArray[np.uint8]) -> None:
            nonlocal encoder
            if encoder is None:
                height, width = picture.shape[:2]
                encoder = write_frames(
                    partial,
                    (width, height),
                    fps=rate_hz,
                    quality=quality,
                    macro_block_size=2,
                    ffmpeg_log_level="quiet",  # its words about a full disk would stand beside ours
                    output_params=[*spacing, "-f", "mp4"],
                )
                encoder.send(None)
            encoder.send(np.ascontiguousarray(picture))

        try:
            yield append
        except OSError as error:  # ffmpeg's whole command line follows the first line
            raise OSError(str(error).partition("\n")[0]) from error
        finally:
            if encoder is not None:
                encoder.close()
        if not _is_whole(partial):
            raise OSError("the film ends too early")


def _is_whole(path: Path) -> bool:
    """Return True if the boxes of an MP4 fill its file and its index is among them, which ffmpeg writes last."""
    size, at, kinds = path.stat().st_size, 0, set()
    with path.open("rb") as file:
        while at + 8 <= size:
            file.seek(at)
            length, kind = struct.unpack(">I4s", file.read(8))
            if length == 1:  # longer than 4 GiB
                (length,) = struct.unpack(">Q", file.read(8).ljust(8, b"\0"))
            if length < 8:
                return False
            kinds.add(kind)
            at += length
    return at == size and b"moov" in kinds
