"""Picture files as the policy takes images: upright RGB of eight bits."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros import jpeg
from sqap_vla_ros.contracts import MOST_PIXELS

if TYPE_CHECKING:
    from PIL import Image

_DRAWINGS = ("EPS", "WMF", "PDF")
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_ORIENTATION, _TIFF_KINDS = 256, 257, 274, 339  # tags
_FLOATING = 3  # a kind of sample
# EXIF orientation -> how the picture becomes upright
_TURNS: Mapping[int, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    2: lambda picture: picture[:, ::-1],
    3: lambda picture: picture[::-1, ::-1],
    4: lambda picture: picture[::-1],
    5: lambda picture: picture.swapaxes(0, 1),
    6: lambda picture: np.rot90(picture, -1),
    7: lambda picture: picture[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


class PictureError(ValueError):
    """A file that is not a whole picture; the message names it and says what is wrong."""


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Read a picture file as [H, W, 3] uint8 RGB. Raises PictureError, and FileNotFoundError where there is none.

    A rotation in its EXIF data is applied, so that the policy sees what a viewer shows. Sixteen bits are scaled to
    eight as the node scales them; floating point is taken as 0 (black) to 1 (white).
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for
        raise PictureError(f"{path} is no file: save the picture as one")
    try:
        with Image.open(path) as picture:
            if picture.format in _DRAWINGS:
                raise PictureError(f"{path} is a drawing ({picture.format}) and no camera's picture: give a png or jpg")
            _require_size(path, *picture.size)
            if picture.format in ("JPEG", "MPO") and jpeg.is_cut(path.read_bytes()):
                raise PictureError(f"{path} is damaged: what the jpeg holds ends before the picture does")
            if picture.format == "TIFF" and picture.mode == "I":
                raise PictureError(f"{path} has whole numbers of 32 bits, whose white is not known: save it with 16")
            try:
                upright = ImageOps.exif_transpose(picture)
            except TypeError as error:  # a rotation that is no number
                raise PictureError(f"{path} has damaged EXIF data: {error}") from error
            return _eight_bits(path, upright)
    except UnidentifiedImageError as error:
        if (colours := _floating_colours(path)) is not None:
            return _scaled(path, colours, 1.0)
        raise PictureError(f"{path} is not a picture: cannot identify image file") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path} is too large for a camera image: {error}") from error
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except MemoryError as error:
        raise PictureError(f"{path} asks for more memory than there is: is it damaged?") from error
    except (OSError, SyntaxError) as error:
        raise PictureError(f"{path} is damaged: {error}") from error


def _require_size(path: Path, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise PictureError(f"{path} has {width}x{height} pixels, at most {MOST_PIXELS} are read")


def _eight_bits(path: Path, picture: Image.Image) -> NDArray[np.uint8]:
    if picture.mode == "F" or picture.mode.startswith("I"):
        values = np.asarray(picture, dtype=np.float64)
        return _scaled(path, np.repeat(values[..., None], 3, axis=2), 1.0 if picture.mode == "F" else 65535.0)
    return np.asarray(picture.convert("RGB"))


def _scaled(path: Path, values: NDArray[Any], white: float) -> NDArray[np.uint8]:
    """Return values from 0 to `white` as 0 to 255. Raises PictureError for values outside."""
    if not np.isfinite(values).all():
        raise PictureError(f"{path} has pixels that are not finite numbers")
    if values.min() < 0.0 or values.max() > white:
        raise PictureError(
            f"{path} has pixels from {values.min():g} to {values.max():g}, where 0 to {white:g} are expected"
        )
    return np.rint(255.0 / white * values).astype(np.uint8)


def _floating_colours(path: Path) -> NDArray[np.float32] | None:
    """Return the RGB of a TIFF with floating-point colours, which Pillow does not know; None for another file."""
    import cv2
    from PIL import TiffImagePlugin

    try:
        with path.open("rb") as file:
            tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            start = tags.next or 0
            file.seek(start)
            tags.load(file)
        if set(tags.get(_TIFF_KINDS, ())) != {_FLOATING}:
            return None
        _require_size(path, int(tags[_TIFF_WIDTH]), int(tags[_TIFF_HEIGHT]))
        data = bytearray(path.read_bytes())
        orientation = int(tags.get(_TIFF_ORIENTATION, 1))
        _forget_orientation(data, start, "<" if tags.prefix == b"II" else ">")  # OpenCV turns some and fails at others
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, SyntaxError, KeyError, TypeError, ValueError, struct.error, cv2.error):
        return None
    if decoded is None or decoded.ndim != 3 or decoded.shape[2] != 3:
        return None
    return _TURNS.get(orientation, np.asarray)(cv2.cvtColor(decoded.astype(np.float32), cv2.COLOR_BGR2RGB))


def _forget_orientation(data: bytearray, start: int, order: str) -> None:
    """Call the picture upright in the directory of a TIFF that begins at `start`. order: of bytes, "<" or ">"."""
    (entries,) = struct.unpack_from(f"{order}H", data, start)
    for entry in range(start + 2, start + 2 + 12 * entries, 12):
        if struct.unpack_from(f"{order}H", data, entry) == (_TIFF_ORIENTATION,):
            struct.pack_into(f"{order}HIH", data, entry + 2, 3, 1, 1)
