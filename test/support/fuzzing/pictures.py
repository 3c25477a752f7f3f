"""Pictures: damaged files, and whole ones whose headers lie."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzzing.mutation import LARGE, REFUSALS, damaged_copy, fresh
from fuzzing.originals import originals
from PIL import Image as Picture
from sensor_msgs.msg import CompressedImage, Image

from sqap_vla_ros.nodes.images import SUPPORTED_ENCODINGS, compressed_to_rgb, to_rgb
from sqap_vla_ros.pictures import read_picture

_FORMATS = ("jpeg", "png", "bgr8; jpeg compressed bgr8", "16UC1; compressedDepth png", "", "rgb8; png compressed")
_SIZES = (0, 1, 2, 15, 16, 17, 255, 256, 8191, 8192, 13000, 2**15, 2**16 - 1)


def fuzz_image(folder: Path, seed: int) -> None:
    """Damage a picture's bytes and read it as a file and as both kinds of messages."""
    rng = Random(f"image {seed}")
    good = originals(folder / "good")
    name = rng.choice(sorted(name for name in good if name.startswith(("picture.", "deep.", "float."))))
    copy = damaged_copy(rng, good[name], folder / "image")
    data = copy.read_bytes()
    height, width = rng.choice((0, 1, 12, 2**31)), rng.choice((0, 3, 16, 2**31))
    encoding = rng.choice((*SUPPORTED_ENCODINGS, "", "8UC3", "16UC1", "32FC1", "x"))
    step = rng.choice((0, 1, 48, 96, 2**31))
    message = Image(height=height, width=width, encoding=encoding, step=step, data=data[: rng.choice((0, 576, 10**6))])
    _try_all(
        lambda: read_picture(copy),
        lambda: to_rgb(message),
        lambda: compressed_to_rgb(CompressedImage(format=rng.choice(_FORMATS), data=data)),
    )


def fuzz_headers(folder: Path, seed: int) -> None:
    """Give a picture another size, depth, kind or rotation in its header, with true checksums and lengths."""
    rng = Random(f"headers {seed}")
    kind = rng.choice(tuple(_LIARS))
    pixels = np.random.default_rng(seed % 7).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    data = _LIARS[kind](rng, pixels)
    path = fresh(folder / "headers") / f"x.{kind}"
    path.write_bytes(data)
    _try_all(
        lambda: read_picture(path),
        lambda: compressed_to_rgb(CompressedImage(format=rng.choice(_FORMATS), data=data)),
    )


def _try_all(*calls: Callable[[], Any]) -> None:
    """Make every call. Raises the last refusal, so that it counts; what is no refusal goes through at once."""
    refusal = None
    for call in calls:
        try:
            call()
        except REFUSALS as error:
            refusal = error
    if refusal is not None:
        raise refusal


def _encoded(pixels: np.ndarray, kind: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Picture.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def _png(rng: Random, pixels: np.ndarray) -> bytes:
    data = _encoded(pixels, "png", rng.choice(("RGB", "L", "P", "RGBA", "1")))
    chunks, at = [], 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        chunks.append((kind, data[at + 8 : at + 8 + length]))
        at += 12 + length
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
    for _ in range(rng.choice((1, 1, 2))):
        what = rng.randrange(6)
        if what == 0:
            width = rng.choice((*_SIZES, *LARGE[:2]))
        elif what == 1:
            height = rng.choice((*_SIZES, *LARGE[:2]))
        elif what == 2:
            rest[rng.randrange(5)] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
        elif what == 3:
            bomb = zlib.compress(bytes(rng.choice((0, 1000, 2**24))))
            chunks.insert(1, (rng.choice((b"zTXt", b"iCCP", b"iTXt")), b"x\0\0" + bomb))
        elif what == 4:
            chunks.insert(1, (b"eXIf", _exif(rng)))
        else:
            body = zlib.compress(bytes(rng.choice((0, 10, 2**20, 2**25))))
            chunks = [(kind, body if kind == b"IDAT" else content) for kind, content in chunks]
    chunks[0] = b"IHDR", struct.pack(">IIBBBBB", width, height, *rest)
    return data[:8] + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def _exif(rng: Random) -> bytes:
    """Return EXIF with an orientation that is none of the eight, of another type, or elsewhere."""
    kind, count = rng.choice((1, 2, 3, 4, 5, 7, 12, 99)), rng.choice((0, 1, 2, 2**16, LARGE[1]))
    value = rng.choice((0, 1, 3, 6, 8, 9, 2**16, LARGE[1]))
    entry = struct.pack("<HHII", rng.choice((0x112, 0x100, 0x8769)), kind, count, value)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", rng.choice((0, 1, 2, 500))) + entry + bytes(4)


def _jpeg(rng: Random, pixels: np.ndarray) -> bytes:
    mode = rng.choice(("RGB", "L", "CMYK"))
    data = bytearray(_encoded(pixels, "jpeg", mode, progressive=rng.random() < 0.3))
    frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    for _ in range(rng.choice((1, 1, 2))):
        what = rng.randrange(5)
        if what == 0:
            data[frame + 5 : frame + 9] = struct.pack(">HH", rng.choice(_SIZES), rng.choice(_SIZES))
        elif what == 1:
            data[frame + 4] = rng.choice((1, 8, 12, 16))
        elif what == 2:
            data[frame + 9] = rng.choice((0, 1, 2, 3, 4, 255))
        elif what == 3:
            data[frame + 11] = rng.choice((0, 0x11, 0x12, 0x41, 0xFF))
        else:
            exif = b"Exif\0\0" + _exif(rng)
            data[2:2] = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
            frame += len(exif) + 4
    return bytes(data)


def _bmp(rng: Random, pixels: np.ndarray) -> bytes:
    data = bytearray(_encoded(pixels, "bmp"))
    at, form = rng.choice(
        ((10, "<I"), (14, "<I"), (18, "<i"), (22, "<i"), (26, "<H"), (28, "<H"), (30, "<I"), (46, "<I"))
    )
    most = 2 ** (8 * struct.calcsize(form) - 1) - 1
    value = min(most, rng.choice((0, 1, 4, 8, 12, 16, 24, 32, 40, 108, 13000, most, most)))
    data[at : at + struct.calcsize(form)] = struct.pack(form, -value if form == "<i" and rng.random() < 0.3 else value)
    return bytes(data)


def _gif(rng: Random, pixels: np.ndarray) -> bytes:
    data = bytearray(_encoded(pixels, "gif"))
    at = data.find(b",", 10 + 3 * 2 ** ((data[10] & 7) + 1))  # the image's own descriptor
    place = rng.choice((6, 8, at + 1, at + 3, at + 5, at + 7))
    data[place : place + 2] = struct.pack("<H", rng.choice(_SIZES))
    return bytes(data)


def _webp(rng: Random, pixels: np.ndarray) -> bytes:
    data = bytearray(_encoded(pixels, "webp", lossless=rng.random() < 0.5))
    place = rng.choice((4, 16, 20, 23, 26, 28))
    data[place : place + 2] = struct.pack("<H", rng.choice(_SIZES))
    return bytes(data)


def _tiff(rng: Random, pixels: np.ndarray) -> bytes:
    compression = rng.choice((None, "tiff_lzw", "tiff_adobe_deflate", "jpeg"))
    mode = rng.choice(("RGB", "L", "F", "I", "1"))
    mode = "RGB" if compression == "jpeg" else mode
    data = bytearray(_encoded(pixels, "tiff", mode, compression=compression))
    table = struct.unpack("<I", data[4:8])[0]
    entries = struct.unpack("<H", data[table : table + 2])[0]
    for _ in range(rng.choice((1, 1, 2))):
        at = table + 2 + 12 * rng.randrange(entries)
        what = rng.randrange(4)
        if what == 0:
            data[at : at + 2] = struct.pack(
                "<H", rng.choice((256, 257, 258, 259, 262, 273, 277, 278, 279, 274, 322, 339))
            )
        elif what == 1:
            data[at + 2 : at + 4] = struct.pack("<H", rng.choice((0, 1, 2, 3, 4, 5, 12, 16, 99)))
        elif what == 2:
            data[at + 4 : at + 8] = struct.pack("<I", rng.choice((0, 1, 2, 2**16, *LARGE[:2])))
        else:
            data[at + 8 : at + 12] = struct.pack("<I", rng.choice((*_SIZES, *LARGE[:2])))
    return bytes(data)


_LIARS: dict[str, Callable[[Random, np.ndarray], bytes]] = {
    "png": _png,
    "jpg": _jpeg,
    "bmp": _bmp,
    "gif": _gif,
    "webp": _webp,
    "tiff": _tiff,
}
