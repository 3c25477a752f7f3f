"""The overlay: the camera image with the visual tokens that were kept, and why. Needs no torch."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sqap_vla_ros.contracts import Reason, TokenSelection
from sqap_vla_ros.policy.preprocessing import ImageTransform

# Okabe and Ito's palette, told apart under every common colour vision deficiency; patterns repeat the distinction.
COLOURS: dict[Reason, tuple[int, int, int]] = {
    Reason.ATTENTION: (213, 94, 0),
    Reason.RING: (86, 180, 233),
    Reason.SPATIAL: (240, 228, 66),
    Reason.RANDOM: (204, 121, 167),
    Reason.GRID: (0, 158, 115),
    Reason.DIVERSITY: (0, 114, 178),
    Reason.MERGED: (230, 159, 0),
    Reason.ALL: (255, 255, 255),
}
DROPPED = len(Reason)
UNSEEN = len(Reason) + 1  # cut off by the policy's crop

_FRAME, _THICK, _DOT = 1, 2, 4  # bits of the pattern within a patch
_PATTERN = {Reason.ATTENTION: _FRAME, Reason.RING: _FRAME | _THICK, Reason.ALL: 0}  # the others: _DOT
_TINT, _STRONG, _DIM = 0.28, 0.85, 0.30
_PATH = (255, 255, 255)


def draw_overlay(
    image: NDArray[np.uint8],
    selection: TokenSelection,
    transform: ImageTransform,
    *,
    gripper_pixel: tuple[float, float] | None = None,
    path_pixels: NDArray[np.floating] | None = None,
    caption: str = "",
    legend: bool = True,
    opacity: float = 1.0,
) -> NDArray[np.uint8]:
    """Draw the visual tokens on the image: kept ones tinted by reason, dropped ones darkened. [H, W, 3] uint8 RGB

    image: [H, W, 3] uint8 RGB as the camera delivered it; it is not changed.
    transform: the policy's preprocessing; the borders of the patches are mapped back through it.
    gripper_pixel: (u, v) of the tool in `image`; its patch, `selection.gripper_patch`, is outlined in white.
    path_pixels: [T, 2] the chunk projected into `image`, from now to later; non-finite points leave gaps.
    legend: a strip at the bottom with the reasons' colours and counts.
    opacity: of tokens and gripper patch, from 0 to 1; below 1 for a selection that was made from an older image.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be [H, W, 3] uint8 RGB, got shape {image.shape} of {image.dtype}")
    height, width = image.shape[:2]
    rows, cols = selection.grid
    if not ((selection.indices >= 0) & (selection.indices < rows * cols)).all():
        low, high = selection.indices.min(), selection.indices.max()
        raise ValueError(f"kept tokens {low}..{high} are outside the grid of {rows} x {cols} patches")
    edges_u, edges_v = patch_edges(transform, (rows, cols), width, height)
    classes = np.full(rows * cols, DROPPED, dtype=np.uint8)
    classes[selection.indices] = selection.reasons
    column, row, pattern = _patch_of_pixels(transform, (rows, cols), width, height)
    padded = np.full((rows + 1, cols + 1), UNSEEN * 8, dtype=np.uint8)
    padded[:rows, :cols] = classes.reshape(rows, cols) * 8
    codes = cv2.add(padded[row][:, column], pattern)
    weights, tints = _colour_tables()
    out = cv2.multiply(image, cv2.applyColorMap(codes, weights), scale=1 / 255)
    out = cv2.add(out, cv2.applyColorMap(codes, tints), dst=out)

    scale = max(1.0, min(width, height) / 240)
    if selection.gripper_patch is not None:
        r, c = selection.gripper_patch
        corners = (edges_u[c], edges_v[r]), (edges_u[c + 1] - 1, edges_v[r + 1] - 1)
        for colour, thickness in (((0, 0, 0), 1 + round(1.5 * scale)), ((255, 255, 255), max(1, round(0.8 * scale)))):
            cv2.rectangle(out, *corners, colour, thickness)
    if opacity < 1.0:
        out = cv2.addWeighted(out, opacity, image, 1.0 - opacity, 0.0)
    if path_pixels is not None:
        _draw_path(out, np.asarray(path_pixels, dtype=np.float64), scale)
    if gripper_pixel is not None and np.isfinite(gripper_pixel).all():
        centre = (round(gripper_pixel[0]), round(gripper_pixel[1]))
        for colour, thickness in (((0, 0, 0), 1 + round(1.2 * scale)), ((255, 255, 255), max(1, round(0.6 * scale)))):
            cv2.drawMarker(out, centre, colour, cv2.MARKER_CROSS, round(7 * scale), thickness)
    if legend:
        counts = np.bincount(selection.reasons, minlength=len(Reason))
        entries = tuple((Reason(i), int(n)) for i, n in enumerate(counts) if n)
        _paste(out, _legend(entries, len(selection.indices), rows * cols, width), bottom=True)
    if caption:
        _paste(out, _caption(caption, width), bottom=False)
    return out


@lru_cache(maxsize=16)
def patch_edges(
    transform: ImageTransform, grid: tuple[int, int], width: int, height: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the borders of the patches in a `width` x `height` camera image: first pixels, and one past."""
    left, top = transform.unmap_pixel((-0.5, -0.5), width, height)
    right, bottom = transform.unmap_pixel((transform.size - 0.5, transform.size - 0.5), width, height)
    edges_u = np.clip(np.rint(np.linspace(left + 0.5, right + 0.5, grid[1] + 1)), 0, width).astype(int)
    edges_v = np.clip(np.rint(np.linspace(top + 0.5, bottom + 0.5, grid[0] + 1)), 0, height).astype(int)
    return tuple(edges_u.tolist()), tuple(edges_v.tolist())


@lru_cache(maxsize=16)
def _patch_of_pixels(
    transform: ImageTransform, grid: tuple[int, int], width: int, height: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.uint8]]:
    """Return each pixel column's patch column, each pixel row's patch row (one past the grid: unseen), pattern bits."""
    edges_u, edges_v = (np.asarray(edges) for edges in patch_edges(transform, grid, width, height))
    places = []
    for edges, count, length in ((edges_u, grid[1], width), (edges_v, grid[0], height)):
        pixel = np.arange(length)
        place = np.searchsorted(edges, pixel, side="right") - 1
        seen = (place >= 0) & (place < count)
        place = np.where(seen, place, count)
        low = np.where(seen, pixel - edges[np.minimum(place, count - 1)], 0)
        high = np.where(seen, edges[np.minimum(place, count - 1) + 1] - 1 - pixel, 0)
        places.append((place, seen, np.minimum(low, high), np.abs(low - high)))
    (column, seen_u, margin_u, off_u), (row, seen_v, margin_v, off_v) = places
    margin = np.minimum(margin_u[None, :], margin_v[:, None])
    cell = min(width / grid[1], height / grid[0])
    dot = np.maximum(off_u[None, :], off_v[:, None]) <= max(1, round(cell * 0.16))
    thick = 2 if cell < 20 else 3
    pattern = np.where(margin == 0, _FRAME, 0) | np.where((margin > 0) & (margin < thick), _THICK, 0)
    pattern = pattern | np.where(dot, _DOT, 0)
    pattern[~(seen_v[:, None] & seen_u[None, :])] = 0
    return column, row, pattern.astype(np.uint8)


@lru_cache(maxsize=1)
def _colour_tables() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the weight of the image and the colour added to it, by code (class * 8 + pattern bits). [256, 1, 3]"""
    opacity = np.zeros((256, 1))
    tint = np.zeros((256, 3))
    weight = np.ones((256, 1))
    for reason, colour in COLOURS.items():
        active = _PATTERN.get(reason, _DOT)
        for bits in range(8):
            strength = _STRONG if bits & active else _TINT
            opacity[reason * 8 + bits] = 0.0 if reason is Reason.ALL else strength
            tint[reason * 8 + bits] = colour
    for dark in (DROPPED, UNSEEN):
        weight[dark * 8 : dark * 8 + 8] = _DIM if dark == DROPPED else _DIM / 2
    weights = np.broadcast_to(weight * (1 - opacity), (256, 3))
    return (
        np.rint(weights * 255).astype(np.uint8)[:, None, :].copy(),
        np.rint(tint * opacity).astype(np.uint8)[:, None, :].copy(),
    )


def _draw_path(out: NDArray[np.uint8], points: NDArray[np.float64], scale: float) -> None:
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"path_pixels must be [T, 2], got {points.shape}")
    limit = 4.0 * max(out.shape)  # far outside the image; OpenCV's fixed point overflows well beyond that
    valid = np.isfinite(points).all(axis=1) & (np.abs(np.nan_to_num(points, posinf=limit)) < limit).all(axis=1)
    runs = np.split(np.arange(len(points)), np.flatnonzero(~valid))
    subpixel = [np.rint(points[run[valid[run]]] * 16).astype(np.int32) for run in runs]
    for colour, thickness in (((0, 0, 0), 2 + round(1.5 * scale)), (_PATH, max(1, round(scale)))):
        for line in subpixel:
            cv2.polylines(out, [line], False, colour, thickness, cv2.LINE_AA, shift=4)
    for line in subpixel:
        for point in line[:-1]:
            cv2.circle(out, point.tolist(), round(16 * 1.2 * scale), _PATH, -1, cv2.LINE_AA, shift=4)
    ends = [line[-1] for line in subpixel if len(line)]
    if ends:
        cv2.circle(out, ends[-1].tolist(), round(16 * 3.2 * scale), (0, 0, 0), -1, cv2.LINE_AA, shift=4)
        cv2.circle(out, ends[-1].tolist(), round(16 * 2.2 * scale), _PATH, -1, cv2.LINE_AA, shift=4)


def _font_size(width: int) -> int:
    return max(9, round(width / 42))


@lru_cache(maxsize=64)
def _legend(entries: tuple[tuple[Reason, int], ...], kept: int, tokens: int, width: int) -> NDArray[np.uint8]:
    size = _font_size(width)
    font = ImageFont.load_default(size)
    strip = Image.new("RGB", (width, size + 6), (20, 20, 20))
    draw = ImageDraw.Draw(strip)
    x = size // 3
    for reason, count in entries:
        draw.rectangle((x, 4, x + size - 3, size + 1), fill=COLOURS[reason])
        x += size
        text = f"{reason.name.lower()} {count}"
        draw.text((x, 2), text, fill=(240, 240, 240), font=font)
        x += round(draw.textlength(text, font=font)) + size // 2
    draw.text((x, 2), f"kept {kept}/{tokens}", fill=(240, 240, 240), font=font)
    return np.asarray(strip)


@lru_cache(maxsize=64)
def _caption(text: str, width: int) -> NDArray[np.uint8]:
    size = _font_size(width)
    font = ImageFont.load_default(size)
    strip = Image.new("RGB", (width, size + 6), (20, 20, 20))
    draw = ImageDraw.Draw(strip)
    while len(text) > 1 and draw.textlength(text, font=font) > width - size:
        text = text[:-2].rstrip() + "…"
    draw.text((size // 3, 2), text, fill=(240, 240, 240), font=font)
    return np.asarray(strip)


def _paste(out: NDArray[np.uint8], strip: NDArray[np.uint8], *, bottom: bool) -> None:
    """Blend a strip over the first or last rows of `out`, in place."""
    height = min(len(strip), len(out))
    rows = slice(len(out) - height, None) if bottom else slice(0, height)
    out[rows] = cv2.addWeighted(out[rows], 0.2, strip[:height], 0.8, 0.0)
