"""Map the camera image, and pixels in it, to the model's image. NumPy and PIL only.

Pixel coordinates name pixel centres, as OpenCV's do: the top-left pixel is (0, 0) and an image W wide covers
-0.5 <= u < W - 0.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import CROPS, PolicyInfo

Box = tuple[int, int, int, int]  # left, top, right, bottom; pixels, right and bottom excluded

# Side of the published deployment script's crop: 90 % of the area, as in its random-crop augmentation.
_DEPLOYMENT_AREA = 0.9


@dataclass(frozen=True)
class ImageTransform:
    """The policy's preprocessing: crop and resize to [size, size, 3] uint8 RGB.

    crop: "none" squashes the whole image (bicubic, aspect ratio not kept), as CogACT was evaluated.
        "deployment" follows the published deployment script: the central square, Lanczos to `size`, then the central
        90 % of its area, Lanczos back to `size`. Only for checkpoints that were fine-tuned with random crops.
    """

    size: int = 224
    crop: str = "none"

    def __post_init__(self) -> None:
        if self.size <= 0:
            raise ValueError(f"ImageTransform.size must be positive, got {self.size}")
        if self.crop not in CROPS:
            raise ValueError(f"ImageTransform.crop must be 'none' or 'deployment', got {self.crop!r}")

    @classmethod
    def of(cls, info: PolicyInfo) -> ImageTransform:
        """Return the preprocessing of the policy that `info` describes."""
        return cls(info.image_size, info.crop)

    def _stages(self, width: int, height: int) -> list[tuple[Box, str]]:
        """Return each stage's box, in pixels of the stage before, and the filter that resizes it to `size`."""
        if self.crop == "none":
            return [((0, 0, width, height), "BICUBIC")]
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        inner = int(self.size * math.sqrt(_DEPLOYMENT_AREA))
        margin = int((self.size - inner) * 0.5)
        return [
            ((left, top, left + side, top + side), "LANCZOS"),
            ((margin, margin, margin + inner, margin + inner), "LANCZOS"),
        ]

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Crop and resize [H, W, 3] uint8 RGB of any size to [size, size, 3] uint8."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(f"image must be [H, W, 3] uint8 RGB, got shape {image.shape} of {image.dtype}")
        if self.crop == "none" and image.shape[:2] == (self.size, self.size):
            return image
        from PIL import Image

        picture = Image.fromarray(np.ascontiguousarray(image))
        for box, method in self._stages(*picture.size):
            picture = picture.crop(box).resize((self.size, self.size), Image.Resampling[method])
        return np.asarray(picture)

    def map_pixel(self, pixel: tuple[float, float], width: int, height: int) -> tuple[float, float] | None:
        """Map pixel (u, v) of a `width` x `height` camera image to the model image; None where it is cut off."""
        u, v = pixel
        for (left, top, right, bottom), _ in self._stages(width, height):
            u = (u + 0.5 - left) * self.size / (right - left) - 0.5
            v = (v + 0.5 - top) * self.size / (bottom - top) - 0.5
            if not (-0.5 <= u < self.size - 0.5 and -0.5 <= v < self.size - 0.5):
                return None
        return u, v

    def unmap_pixel(self, pixel: tuple[float, float], width: int, height: int) -> tuple[float, float]:
        """Map a pixel of the model image to the camera image; the inverse of `map_pixel`."""
        u, v = pixel
        for (left, top, right, bottom), _ in reversed(self._stages(width, height)):
            u = (u + 0.5) * (right - left) / self.size + left - 0.5
            v = (v + 0.5) * (bottom - top) / self.size + top - 0.5
        return u, v


def patch_of(pixel: tuple[float, float], size: int, grid: tuple[int, int]) -> tuple[int, int] | None:
    """Return the (row, col) patch that holds a model pixel (SQAP-VLA, Eq. 3); None outside the image or if not finite.

    size: side of the model image in pixels; grid: (rows, cols) of patches that tile it.
    """
    u, v = pixel
    if not (math.isfinite(u) and math.isfinite(v)):
        return None
    row, col = math.floor((v + 0.5) * grid[0] / size), math.floor((u + 0.5) * grid[1] / size)
    return (row, col) if 0 <= row < grid[0] and 0 <= col < grid[1] else None
