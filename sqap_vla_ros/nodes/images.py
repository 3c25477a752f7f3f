"""Conversions between image messages and RGB arrays.

Every encoding of `sensor_msgs/Image` that colour and grey cameras publish, and the formats of image_transport's
`compressed` plugin. `cv_bridge` does the colour conversion where it is installed and works; it does not with numpy 2 or
OpenCV 5, so the converter here stands on its own. Whoever converts, the message is checked first: a truncated or
mislabelled image raises `ImageError` and reaches no policy.
"""

from __future__ import annotations

import array
import io
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from sensor_msgs.msg import CompressedImage, Image

from sqap_vla_ros import jpeg
from sqap_vla_ros.contracts import MOST_PIXELS


class ImageError(ValueError):
    """An image message that cannot be converted: says what is wrong with it and what would be right."""


@dataclass(frozen=True)
class _Encoding:
    """The memory layout of an encoding and the OpenCV code that makes it RGB (None: it is RGB).

    subsampled: half as many rows of colours follow the rows of brightness. in_bridge: every cv_bridge converts it.
    """

    dtype: str
    channels: int
    to_rgb: int | None
    subsampled: bool = False
    in_bridge: bool = True


_PNG = b"\x89PNG\r\n\x1a\n"
_FRAME_HEADERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a JPEG that give its size

# OpenCV names a Bayer pattern by its second row, ROS by its first: bayer_rggb is OpenCV's BG.
_ENCODINGS: dict[str, _Encoding] = {
    **{
        f"{name}{bits}": _Encoding(dtype, channels, code)
        for bits, dtype in ((8, "u1"), (16, "u2"))
        for name, channels, code in (
            ("rgb", 3, None),
            ("bgr", 3, cv2.COLOR_BGR2RGB),
            ("rgba", 4, cv2.COLOR_RGBA2RGB),
            ("bgra", 4, cv2.COLOR_BGRA2RGB),
            ("mono", 1, cv2.COLOR_GRAY2RGB),
            ("bayer_rggb", 1, cv2.COLOR_BayerBG2RGB),
            ("bayer_bggr", 1, cv2.COLOR_BayerRG2RGB),
            ("bayer_gbrg", 1, cv2.COLOR_BayerGR2RGB),
            ("bayer_grbg", 1, cv2.COLOR_BayerGB2RGB),
        )
    },
    **{
        name: _Encoding("u1", channels, code, subsampled, in_bridge=False)
        for name, channels, code, subsampled in (
            ("yuv422", 2, cv2.COLOR_YUV2RGB_UYVY, False),
            ("uyvy", 2, cv2.COLOR_YUV2RGB_UYVY, False),
            ("yuv422_yuy2", 2, cv2.COLOR_YUV2RGB_YUY2, False),
            ("yuyv", 2, cv2.COLOR_YUV2RGB_YUY2, False),
            ("nv12", 1, cv2.COLOR_YUV2RGB_NV12, True),
            ("nv21", 1, cv2.COLOR_YUV2RGB_NV21, True),
            # without a name for their channels: OpenCV's order, as RViz shows them
            ("8UC1", 1, cv2.COLOR_GRAY2RGB, False),
            ("8UC3", 3, cv2.COLOR_BGR2RGB, False),
            ("8UC4", 4, cv2.COLOR_BGRA2RGB, False),
        )
    },
}
_BY_NAME = {name.lower(): encoding for name, encoding in _ENCODINGS.items()}
_NOT_COLOUR = re.compile(r"(16|32|64)[usf]c\d")  # OpenCV's types: depth in millimetres or metres, or anything else
SUPPORTED_ENCODINGS = tuple(sorted(_ENCODINGS))


def _working_cv_bridge() -> Any:
    """Return a CvBridge where it is installed and can be trusted, else None."""
    if int(np.__version__.split(".")[0]) >= 2 or int(cv2.__version__.split(".")[0]) >= 5:
        return None  # its binary modules are built for numpy 1 and for OpenCV 4's type codes
    try:
        from cv_bridge import CvBridge
    except (ImportError, AttributeError):  # AttributeError: a binary module of another numpy
        return None
    return CvBridge()


_CV_BRIDGE = _working_cv_bridge()


def to_rgb(message: Image) -> NDArray[np.uint8]:
    """Return an Image as RGB, [H, W, 3] uint8. Raises ImageError.

    An rgb8 image without padding is not copied: the array shares the memory of the message.
    """
    encoding = _BY_NAME.get(message.encoding.lower())
    if encoding is None:
        raise ImageError(
            f"image encoding {message.encoding[:40]!r} is not supported; "
            f"supported are: {', '.join(SUPPORTED_ENCODINGS)}"
        )
    pixels = _pixels(message, encoding)
    # The rest goes to the own converter: releases of cv_bridge differ in the names of YUV and fail on swapped bytes and
    # on a last row without its padding.
    whole = len(message.data) >= message.step * message.height
    suits_bridge = encoding.to_rgb is not None and encoding.in_bridge and pixels.dtype.isnative and whole
    if _CV_BRIDGE is not None and suits_bridge:
        return np.asarray(_CV_BRIDGE.imgmsg_to_cv2(message, "rgb8"))
    return _convert(pixels, encoding.to_rgb)


def compressed_to_rgb(message: CompressedImage) -> NDArray[np.uint8]:
    """Return a CompressedImage as RGB, [H, W, 3] uint8. Raises ImageError.

    Its format is 'jpeg', 'png' or image_transport's '<encoding>; <codec> compressed <stored encoding>'.
    """
    original, _, codec = message.format.lower().rpartition(";")
    original = original.strip()
    if "compresseddepth" in codec.replace(" ", "") or _NOT_COLOUR.match(original):
        raise ImageError(f"compressed image format '{message.format}' is a depth image: a colour image is needed")
    what = f"compressed image of format '{message.format}'"
    data = np.frombuffer(message.data, np.uint8)
    raw = data.tobytes()
    check = next((check for magic, check in _CODECS.items() if raw.startswith(magic)), None)
    damage = None if check is None else check(raw)
    if damage is not None:
        raise ImageError(f"{what}: {damage}")
    try:
        # UNCHANGED keeps mosaics and 16 bits, and ignores an EXIF rotation, which camera_info does not know of.
        decoded = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if check is not None else None
    except cv2.error:  # a header that claims an absurd size
        decoded = None
    if decoded is None:
        raise ImageError(f"{what}: {data.size} bytes that are no whole jpeg, png, webp or tiff")
    if decoded.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"{what}: its pixels are {decoded.dtype}, where 8 or 16 bits are needed")
    if check is _jpeg_damage and jpeg.is_cut(raw, decoded):
        raise ImageError(f"{what}: the jpeg lost data: what it holds ends before the picture does")
    if decoded.ndim == 2 or decoded.shape[2] == 1:
        mosaic = original.startswith("bayer_") and original in _ENCODINGS
        code = _ENCODINGS[original].to_rgb if mosaic else cv2.COLOR_GRAY2RGB
    elif decoded.shape[2] == 4:
        code = cv2.COLOR_BGRA2RGB
    elif "compressed rgb" in codec:  # the publisher did not swap to the order of the codec: this is RGB already
        code = None
    else:
        code = cv2.COLOR_BGR2RGB
    return _convert(decoded, code)


def rgb_to_message(rgb: NDArray[np.uint8], *, stamp: Any, frame_id: str) -> Image:
    """Return the rgb8 Image of an array [H, W, 3] uint8. `stamp` is a builtin_interfaces/Time."""
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ImageError(f"expected an [H, W, 3] uint8 array, got shape {rgb.shape} of {rgb.dtype}")
    message = Image()
    message.header.stamp = stamp
    message.header.frame_id = frame_id
    message.height, message.width = int(rgb.shape[0]), int(rgb.shape[1])
    message.encoding = "rgb8"
    message.is_bigendian = 0
    message.step = 3 * message.width
    # An array.array is stored as it is; rclpy walks through anything else byte by byte (0.1 ms against 60 ms at VGA).
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(rgb).data)
    message.data = data
    return message


def _pixels(message: Image, encoding: _Encoding) -> NDArray[Any]:
    """Return a view [H, W] or [H, W, C] of a message's data without padding, in native or swapped byte order.

    Where the colours are subsampled, H is half as much again.
    """
    height, width, step = message.height, message.width, message.step
    dtype = np.dtype(encoding.dtype).newbyteorder(">" if message.is_bigendian else "<")
    row_bytes = width * encoding.channels * dtype.itemsize
    what = f"{width}x{height} {message.encoding} image"
    if height == 0 or width == 0:
        raise ImageError(f"{what}: it is empty")
    if step < row_bytes:
        raise ImageError(f"{what}: step {step} is less than the {row_bytes} bytes of a row")
    if encoding.subsampled and (height % 2 or width % 2):
        raise ImageError(f"{what}: four pixels share their colour, so width and height must be even")
    rows_stored = height * 3 // 2 if encoding.subsampled else height
    needed = step * (rows_stored - 1) + row_bytes
    data = np.frombuffer(message.data, np.uint8)
    if data.size < needed:
        raise ImageError(f"{what}: {data.size} bytes of data where {needed} are needed (step {step}): it is truncated")
    if encoding.dtype == "u2" and step % 2:
        raise ImageError(f"{what}: step {step} is odd, but a pixel takes two bytes a channel")
    rows = np.lib.stride_tricks.as_strided(data, (rows_stored, row_bytes), (step, 1))
    pixels = rows.view(dtype)
    if encoding.channels == 1:
        return pixels
    if encoding.channels == 2 and width % 2:
        raise ImageError(f"{what}: two pixels share their colour, so the width must be even")
    return pixels.reshape(height, width, encoding.channels)


def _convert(pixels: NDArray[Any], to_rgb: int | None) -> NDArray[np.uint8]:
    """Convert pixels of 8 or 16 bits to RGB, [H, W, 3] uint8."""
    if not pixels.dtype.isnative:
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    pixels = np.ascontiguousarray(pixels)  # OpenCV takes no rows with gaps; no copy where there are none
    try:
        rgb = pixels if to_rgb is None else cv2.cvtColor(pixels, to_rgb)
    except cv2.error as error:  # a mosaic of two pixels, for example
        raise ImageError(f"an image of {pixels.shape[1]}x{pixels.shape[0]} cannot be made RGB: {error.err}") from error
    if rgb.dtype == np.uint16:
        rgb = cv2.convertScaleAbs(rgb, alpha=255.0 / 65535.0)
    return np.asarray(rgb)


def _jpeg_damage(data: bytes) -> str | None:
    """Return what tells that a JPEG is not whole, None for a whole one.

    The decoder fills what is missing with grey and says nothing. Zeros after the end are padding of USB cameras.
    """
    if not data.rstrip(b"\x00").endswith(b"\xff\xd9"):
        return f"the jpeg is cut off after {len(data)} bytes"
    scan = data.find(b"\xff\xda")
    second = data.find(b"\xff\xd8\xff", scan) if scan >= 0 else -1
    if second >= 0 and data.find(b"\xff\xd9", scan, second) < 0:
        return "the jpeg breaks off where another one begins"
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:  # segments up to the first scan
        if data[at + 1] in _FRAME_HEADERS:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return _size_problem(width, height)
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    return None


def _png_damage(data: bytes) -> str | None:
    """Return what tells that a PNG is not whole, None for a whole one.

    The decoder reserves what a chunk says it holds, 4 GiB for a few wrong bytes, so this is checked before it.
    """
    at = len(_PNG)
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if length > len(data) - at - 12:
            break
        if kind == b"IHDR" and length >= 8:
            width, height = struct.unpack(">II", data[at + 8 : at + 16])
            if (problem := _size_problem(width, height)) is not None:
                return problem
        if kind == b"IEND":
            return None
        at += 12 + length
    return f"the png is cut off or damaged at byte {at} of {len(data)}"


def _size_problem(width: int, height: int) -> str | None:
    if width * height <= MOST_PIXELS:
        return None
    return f"its header says {width}x{height} pixels, at most {MOST_PIXELS} are decoded"


def _header_damage(data: bytes, kind: str) -> str | None:
    """Return what tells that a picture should not be decoded, None where Pillow finds its header sound."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PillowImage.DecompressionBombWarning)  # the size is judged here
            with PillowImage.open(io.BytesIO(data)) as header:
                return _size_problem(*header.size)
    except PillowImage.UnidentifiedImageError:
        return f"the {kind} is damaged"
    except (OSError, SyntaxError, ValueError, PillowImage.DecompressionBombError) as error:
        return f"the {kind} is damaged: {error}"


def _tiff_damage(data: bytes) -> str | None:
    return _header_damage(data, "tiff")


def _webp_damage(data: bytes) -> str | None:
    """Return what tells that a file of the RIFF kind is no whole WebP, None for a whole one."""
    if data[8:12] != b"WEBP":
        return "it is no picture: jpeg, png, webp and tiff are decoded"
    if len(data) < 8 + struct.unpack_from("<I", data, 4)[0]:
        return f"the webp is cut off after {len(data)} bytes"
    return _header_damage(data, "webp")


# How a file of each codec begins, and what is checked before it is decoded.
_CODECS: dict[bytes, Callable[[bytes], str | None]] = {
    b"\xff\xd8": _jpeg_damage,
    _PNG: _png_damage,
    b"II*\x00": _tiff_damage,
    b"MM\x00*": _tiff_damage,
    b"RIFF": _webp_damage,
}
