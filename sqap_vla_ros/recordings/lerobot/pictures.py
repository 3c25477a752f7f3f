"""Pictures of an episode: frames of a film, or encoded pictures in the table."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe, read_frames  # type: ignore[import-untyped]
from numpy.typing import NDArray

from sqap_vla_ros.contracts import MOST_PIXELS
from sqap_vla_ros.pictures import PictureError, decode_picture
from sqap_vla_ros.recordings.lerobot.layout import (
    DatasetError,
    Episode,
    Feature,
    damaged_table,
    require_file,
    require_parquet,
)

_LONGEST_SKIP = 64  # frames that are decoded and dropped rather than sought anew
_TOLERANCE = 0.25  # of the time between two rows, that a film's frame may be beside its row
_BATCH = 16  # rows with pictures in memory at a time


def pictures(
    episode: Episode, feature: Feature, wanted: Sequence[int], times_s: Sequence[float], fps: float
) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames `wanted` (ascending, counted within the episode) as [H, W, 3] uint8 RGB. Raises DatasetError.

    times_s: theirs, from the beginning of the episode. fps: of the dataset; a film may have others.
    """
    if feature.dtype == "image":
        yield from _from_table(episode, feature.key, wanted)
        return
    film, start_s = episode.films[feature.key]
    require_file(film)
    shown_s = _frame_times_s(film, film.stat().st_mtime_ns)
    for run in _runs(_places(film, shown_s, start_s + np.asarray(times_s), _TOLERANCE / fps)):
        yield from _from_film(film, shown_s, run)


def _places(film: Path, shown_s: NDArray[np.float64], times_s: NDArray[np.float64], within_s: float) -> list[int]:
    """Return the numbers of a film's frames that are shown at some times. Raises DatasetError where there is none."""
    places = np.searchsorted((shown_s[1:] + shown_s[:-1]) / 2, times_s)  # of the nearest
    if np.any(far := np.abs(shown_s[places] - times_s) > within_s):
        raise DatasetError(
            f"{film} has no frame at {times_s[np.argmax(far)]:g} s, where the table has a row; it shows "
            f"{len(shown_s)} frames from {shown_s[0]:g} to {shown_s[-1]:g} s: it is another film, or cut off"
        )
    return [int(place) for place in places]


@lru_cache(8)
def _frame_times_s(film: Path, changed_ns: int) -> NDArray[np.float64]:
    """Return the times at which a film's frames are shown, ascending; nothing is decoded. Raises DatasetError.

    changed_ns: when the file was changed, so that another file is read anew.
    """
    list_packets = ["-map", "0:v:0", "-c", "copy", "-f", "framecrc", "-"]
    command = [get_ffmpeg_exe(), "-v", "quiet", "-copyts", "-i", f"file:{film}", *list_packets]
    shown = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stdout
    unit = re.search(r"^#tb 0: (\d+)/(\d+)$", shown, re.MULTILINE)
    stamps = sorted(int(stamp) for stamp in re.findall(r"^0, +-?\d+, +(-?\d+),", shown, re.MULTILINE))
    if unit is None or not stamps:
        raise DatasetError(f"{film} cannot be decoded: it is cut off or no film: copy it again")
    return np.array(stamps) * (int(unit[1]) / int(unit[2]))


def _runs(wanted: Sequence[int]) -> Iterator[Sequence[int]]:
    """Split frames where so many lie between two of them that seeking is quicker than decoding."""
    begin = 0
    for position in range(1, len(wanted) + 1):
        if position == len(wanted) or wanted[position] - wanted[position - 1] > _LONGEST_SKIP:
            yield wanted[begin:position]
            begin = position


def _from_film(film: Path, shown_s: NDArray[np.float64], wanted: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """Yield frames of a film by their numbers, ascending. shown_s: when each of the film's is shown."""
    # Without -xerror, ffmpeg makes up what it cannot decode, and says nothing.
    sought = ["-xerror"]
    if wanted[0] > 0:  # between two frames, so that rounding of time stamps drops none and takes none twice
        sought += ["-seek_timestamp", "1", "-ss", f"{shown_s[wanted[0] - 1 : wanted[0] + 1].mean():.6f}"]
    passed_on = ["-fps_mode", "passthrough"]  # every frame once, whatever its stamp
    left = list(wanted)
    try:
        with closing(read_frames(film, input_params=sought, output_params=passed_on)) as frames:
            width, height = next(frames)["size"]
            if width * height > MOST_PIXELS:
                raise DatasetError(f"{film} has frames of {width}x{height}, at most {MOST_PIXELS} pixels are read")
            for number, frame in enumerate(frames, wanted[0]):
                if number == left[0]:
                    left.pop(0)
                    yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)
                if not left:
                    return
    except (OSError, RuntimeError, KeyError, StopIteration) as error:
        raise DatasetError(f"{film} cannot be decoded: it is cut off or no film: copy it again") from error
    raise DatasetError(f"{film} is damaged at frame {left[0]} of it, or ends there: copy it again")


def _from_table(episode: Episode, key: str, wanted: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """Read the rows of an episode in batches: a table with pictures may be larger than the memory."""
    parquet = require_parquet()
    import pyarrow as pa

    left = {episode.first + number for number in wanted}
    try:
        with parquet.ParquetFile(episode.data) as table:
            for batch in table.iter_batches(_BATCH, row_groups=_groups(table, episode), columns=[key, "index"]):
                for index, cell in zip(batch["index"].to_pylist(), batch[key], strict=True):
                    if index in left:
                        left.remove(index)
                        yield _decoded(cell.as_py(), episode, index)
                if not left:
                    return
    except (pa.ArrowException, OSError) as error:
        raise damaged_table(episode.data, error) from error
    raise DatasetError(f"{episode.data} lacks frame {min(left)} of episode {episode.index}")


def _groups(table: object, episode: Episode) -> list[int]:
    """Return the row groups that may hold rows of an episode, by the statistics of `index`."""
    metadata = table.metadata  # type: ignore[attr-defined]
    found = []
    for group in range(metadata.num_row_groups):
        columns = (metadata.row_group(group).column(i) for i in range(metadata.num_columns))
        known = next((c.statistics for c in columns if c.path_in_schema == "index"), None)
        past = episode.first + episode.length
        if known is None or not known.has_min_max or (known.min < past and known.max >= episode.first):
            found.append(group)
    return found


def _decoded(cell: object, episode: Episode, index: int) -> NDArray[np.uint8]:
    data = cell.get("bytes") if isinstance(cell, dict) else None
    if not data:
        raise DatasetError(f"{episode.data} holds no picture at frame {index}: embed the images in the table")
    try:
        return decode_picture(data, f"{episode.data}, frame {index}: the picture")
    except PictureError as error:
        raise DatasetError(str(error)) from error
