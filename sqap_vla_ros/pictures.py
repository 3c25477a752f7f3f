"""Pictures, as files and as bytes, as the policy takes images: upright RGB of eight bits."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros import jpeg
from sqap_vla_ros.contracts import MOST_PIXELS, PictureError, eight_bits, upright_rgb

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["PictureError", "decode_picture", "read_picture"]

_DRAWINGS = ("EPS", "WMF", "PDF")
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_ORIENTATION, _TIFF_KINDS = 256, 257, 274, 339  # tags
_SIGNED, _FLOATING = 2, 3  # kinds of samples
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


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Read a picture file as [H, W, 3] uint8 RGB. Raises PictureError, and FileNotFoundError where there is none.

    A rotation in its EXIF data is applied, so that the policy sees what a viewer shows. Sixteen bits are scaled to
    eight as the node scales them; floating point is taken as 0 (black) to 1 (white).
    """
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for
        raise PictureError(f"{path} is no file: save the picture as one")
    with path.open("rb") as file:
        return _read(file, str(path))


def decode_picture(data: bytes, name: str, *, quietly: bool = True) -> NDArray[np.uint8]:
    """Decode the contents of a picture file as `read_picture` does. name: of the picture, for the errors.

    quietly: Pillow's warnings are not printed. That holds for the whole process, so not in several threads at once.
    """
    file = io.BytesIO(data)
    return _read(file, name) if quietly else _decoded(file, name)


def _read(file: BinaryIO, name: str) -> NDArray[np.uint8]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of size and of EXIF data: both are judged here
        return _decoded(file, name)


def _decoded(file: BinaryIO, name: str) -> NDArray[np.uint8]:
    """Decode an open file: given a path, Pillow maps a turned TIFF into memory with its sides exchanged."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as picture:
            if picture.format in _DRAWINGS:
                raise PictureError(f"{name} is a drawing ({picture.format}) and no camera's picture: give a png or jpg")
            _require_size(name, *picture.size)
            _require_known_white(name, picture)
            image = upright_rgb(picture, name)
            is_jpeg = picture.format in ("JPEG", "MPO")
            as_stored = picture.mode in ("L", "RGB") and picture.getexif().get(_TIFF_ORIENTATION) not in _TURNS
        if is_jpeg and jpeg.is_cut(_contents(file), image if as_stored else None):
            raise PictureError(f"{name} is damaged: what the jpeg holds ends before the picture does")
        return image
    except UnidentifiedImageError as error:
        if (colours := _floating_colours(file, name)) is not None:
            return eight_bits(colours, 1.0, name)
        raise PictureError(f"{name} is not a picture: cannot identify image file") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name} is too large for a camera image: {error}") from error
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except MemoryError as error:
        raise PictureError(f"{name} asks for more memory than there is: is it damaged?") from error
    except (OSError, SyntaxError) as error:
        raise PictureError(f"{name} is damaged: {error}") from error


def _contents(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def _require_known_white(name: str, picture: Image.Image) -> None:
    """Raise PictureError for a TIFF with whole numbers that a camera does not write."""
    if picture.format != "TIFF":
        return
    kinds = set(picture.tag_v2.get(_TIFF_KINDS, ()))  # type: ignore[attr-defined]
    if picture.mode == "I" or _SIGNED in kinds:
        raise PictureError(
            f"{name} has whole numbers with a sign or of 32 bits, whose white is not known: save it with 8 or 16 bits"
        )


def _require_size(name: str, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise PictureError(f"{name} has {width}x{height} pixels, at most {MOST_PIXELS} are read")


def _floating_colours(file: BinaryIO, name: str) -> NDArray[np.float32] | None:
    """Return the RGB of a TIFF with floating-point colours, which Pillow does not know; None for another file."""
    import cv2
    from PIL import TiffImagePlugin

    try:
        file.seek(0)
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        start = tags.next or 0
        file.seek(start)
        tags.load(file)
        if set(tags.get(_TIFF_KINDS, ())) != {_FLOATING}:
            return None
        _require_size(name, int(tags[_TIFF_WIDTH]), int(tags[_TIFF_HEIGHT]))
        data = bytearray(_contents(file))
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
