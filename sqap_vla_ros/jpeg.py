"""Tell a JPEG that is not whole: decoders fill what is missing with grey, and a policy would act on it."""

from __future__ import annotations

import io
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MARKER = re.compile(rb"\xff[^\x00\xff]")  # in the data of a scan, where FF 00 stands for the byte FF
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of segments that give the picture's size
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_SOS, _DRI = 0xDA, 0xDD
_EOI = b"\xff\xd9"
_RESTARTS = range(0xD0, 0xD8)
_GREY = 128  # every channel of what the decoder fills in
_STRIP = 256  # rows compared at once
_BITS = bytes((37 * n + 11) % 251 for n in range(240))  # decoded where a scan lacks data, passed over where it does not


@dataclass(frozen=True)
class JpegHeader:
    """The geometry of a JPEG's data.

    width, height: pixels. block: width and height (pixels) of the blocks that the data come in, row by row. interval:
    blocks between two restart markers, 0 without any. one_scan: all channels of all blocks come in one pass.
    """

    width: int
    height: int
    block: tuple[int, int]
    interval: int
    one_scan: bool

    def ends(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return columns and rows of the last block before each restart, and of the picture's last one."""
        columns = math.ceil(self.width / self.block[0])
        blocks = columns * math.ceil(self.height / self.block[1])
        every = self.interval or blocks
        last = np.append(np.arange(every, blocks, every), blocks) - 1
        return last % columns, last // columns


def read_header(data: bytes) -> JpegHeader | None:
    """Return the geometry, None where the segments before the first scan do not give it."""
    size: tuple[int, int, int, list[int]] | None = None
    interval = 0
    for marker, body in _segments(data, 2):
        if marker in _SIZES and len(body) >= 6 and len(body) >= 6 + 3 * body[5]:
            height, width = struct.unpack(">HH", body[1:5])
            size = marker, width, height, list(body[7 : 7 + 3 * body[5] : 3])
        elif marker == _DRI and len(body) >= 2:
            (interval,) = struct.unpack(">H", body[:2])
        elif marker == _SOS and size is not None and body:
            kind, width, height, sampling = size
            side = (max(f >> 4 for f in sampling), max(f & 15 for f in sampling)) if len(sampling) > 1 else (1, 1)
            if 0 in (width, height, *side):
                return None
            one_scan = kind not in _PROGRESSIVE and body[0] == len(sampling)
            return JpegHeader(width, height, (8 * side[0], 8 * side[1]), interval, one_scan)
    return None


def is_cut(data: bytes, decoded: NDArray[np.uint8] | None = None) -> bool:
    """Return True if the data end before the picture does, in its midst or at its end.

    decoded: [H, W] or [H, W, C], what a decoder made of them. With it, a picture in which no grey is where data would
    be missing is cleared at once; otherwise it is decoded again with more data, which changes nothing in a whole one.
    """
    header = read_header(data)
    if header is None:
        return False
    if header.one_scan:
        if header.interval and _restarts(data) != [n % 8 for n in range(len(header.ends()[0]) - 1)]:
            return True
        if decoded is not None and not _is_filled(decoded, header):
            return False
    longer = _with_more_data(data)
    return longer is None or not _same_picture(data, longer)


def _restarts(data: bytes) -> list[int]:
    """Return the numbers of the restart markers in the first scan."""
    scan = data.find(b"\xff\xda")
    return [number[0] - _RESTARTS.start for number in _RESTART.findall(data, scan, data.find(_EOI, scan))]


def _is_filled(decoded: NDArray[np.uint8], header: JpegHeader) -> bool:
    """Return True if a block that data may be missing from is grey all over."""
    width, height = header.block
    columns, rows = header.ends()
    # The colours of a block's border are mixed with those of its neighbours.
    sampled = decoded[
        np.minimum(rows * height + 3, header.height - 1), np.minimum(columns * width + 3, header.width - 1)
    ]
    for end in np.flatnonzero((sampled.reshape(len(rows), -1) == _GREY).all(axis=1)):
        y, x = rows[end] * height, columns[end] * width
        if (decoded[y + 2 : y + height - 2, x + 2 : x + width - 2] == _GREY).all():
            return True
    return False


def _segments(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of the segments from `at` up to the next scan, whose own segment is the last."""
    while at + 4 <= len(data) and data[at] == 0xFF:
        (length,) = struct.unpack(">H", data[at + 2 : at + 4])
        yield data[at + 1], data[at + 4 : at + 2 + length]
        if data[at + 1] == _SOS:
            return
        at += 2 + length


def _with_more_data(data: bytes) -> bytes | None:
    """Return the file with more data before each marker in its scans, None where it does not come to its end."""
    longer = bytearray(data[:2])
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        end = at + 2 + (0 if marker in _RESTARTS else struct.unpack(">H", data[at + 2 : at + 4])[0])
        longer += data[at:end]
        at = end
        if marker in _RESTARTS or marker == _SOS:
            following = _MARKER.search(data, at)
            if following is None:
                break
            longer += data[at : following.start()].rstrip(b"\xff") + _BITS
            at = following.start()
        if data[at : at + 2] == _EOI:
            return bytes(longer + _EOI)
    return None


def _same_picture(one: bytes, other: bytes) -> bool:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(one)) as first, Image.open(io.BytesIO(other)) as second:
            for top in range(0, first.height, _STRIP):  # a copy of the whole picture would take its memory once more
                strip = (0, top, first.width, min(top + _STRIP, first.height))
                if not np.array_equal(np.asarray(first.crop(strip)), np.asarray(second.crop(strip))):
                    return False
    except (OSError, SyntaxError, ValueError):
        pass  # not for Pillow: nothing more is known of it
    return True
