"""Picture files as the policy takes images: upright RGB of eight bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros import jpeg
from sqap_vla_ros.contracts import MOST_PIXELS

if TYPE_CHECKING:
    from PIL import Image


class PictureError(ValueError):
    """A file that is not a whole picture; the message names it and says what is wrong."""


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Read a picture file as [H, W, 3] uint8 RGB. Raises PictureError, and FileNotFoundError where there is none.

    A rotation in its EXIF data is applied, so that the policy sees what a viewer shows. Sixteen bits are scaled to
    eight as the node scales them; floating point is taken as 0 (black) to 1 (white).
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                size = f"{picture.width}x{picture.height}"
                raise PictureError(f"{path} has {size} pixels, at most {MOST_PIXELS} are read")
            if picture.format in ("JPEG", "MPO") and jpeg.is_cut(path.read_bytes()):
                raise PictureError(f"{path} is damaged: what the jpeg holds ends before the picture does")
            try:
                upright = ImageOps.exif_transpose(picture)
            except TypeError as error:  # a rotation that is no number
                raise PictureError(f"{path} has damaged EXIF data: {error}") from error
            return _eight_bits(path, upright)
    except UnidentifiedImageError as error:
        raise PictureError(f"{path} is not a picture: cannot identify image file") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path} is too large for a camera image: {error}") from error
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except MemoryError as error:
        raise PictureError(f"{path} asks for more memory than there is: is it damaged?") from error
    except (OSError, SyntaxError) as error:
        raise PictureError(f"{path} is damaged: {error}") from error


def _eight_bits(path: Path, picture: Image.Image) -> NDArray[np.uint8]:
    if picture.mode == "F" or picture.mode.startswith("I"):
        values = np.asarray(picture, dtype=np.float64)
        white = 1.0 if picture.mode == "F" else 65535.0
        if not np.isfinite(values).all() or values.min() < 0.0 or values.max() > white:
            raise PictureError(
                f"{path} has pixels from {values.min():g} to {values.max():g}, where 0 to {white:g} are expected"
            )
        grey = np.rint(255.0 / white * values).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.asarray(picture.convert("RGB"))
