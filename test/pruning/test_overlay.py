import itertools
import subprocess
import sys

import numpy as np
import pytest

from sqap_vla_ros.contracts import Reason, TokenSelection
from sqap_vla_ros.policy.preprocessing import ImageTransform, patch_of
from sqap_vla_ros.pruning.overlay import COLOURS, draw_overlay, patch_edges

GRID = (16, 16)
GREY = 128


def image(width=640, height=480):
    return np.full((height, width, 3), GREY, dtype=np.uint8)


def selection(indices, reasons, patch=None):
    return TokenSelection(
        np.asarray(indices, dtype=np.int32), np.asarray(reasons, dtype=np.uint8), GRID, "sqap", 3, patch
    )


@pytest.mark.parametrize("size", [(640, 480), (224, 224), (320, 256), (101, 77)])
@pytest.mark.parametrize("crop", ["none", "deployment"])
def test_patch_borders_agree_with_the_policy_preprocessing(size, crop):
    transform = ImageTransform(crop=crop)
    edges_u, edges_v = patch_edges(transform, GRID, *size)
    centres_u = [(a + b - 1) / 2 for a, b in itertools.pairwise(edges_u)]
    centres_v = [(a + b - 1) / 2 for a, b in itertools.pairwise(edges_v)]
    for row, v in enumerate(centres_v):
        for col, u in enumerate(centres_u):
            pixel = transform.map_pixel((u, v), *size)
            assert pixel is not None
            assert patch_of(pixel, transform.size, GRID) == (row, col)


def test_kept_tokens_are_tinted_and_dropped_ones_dark():
    drawn = draw_overlay(
        image(), selection([0, 17], [Reason.ATTENTION, Reason.SPATIAL]), ImageTransform(), legend=False
    )
    kept, dropped = drawn[10:20, 10:20].mean(axis=(0, 1)), drawn[105:115, 105:115].mean(axis=(0, 1))
    assert dropped.max() < 0.4 * GREY
    toward_vermillion = np.asarray(COLOURS[Reason.ATTENTION]) - GREY
    assert (np.sign(kept - GREY) == np.sign(toward_vermillion)).all()


def test_input_is_not_touched_and_shape_is_kept():
    original = image(321, 243)
    drawn = draw_overlay(
        original,
        selection([3], [Reason.RING], (0, 3)),
        ImageTransform(crop="deployment"),
        gripper_pixel=(100.0, 80.0),
        path_pixels=np.asarray([[10.0, 10.0], [np.nan, 1.0], [1e9, -1e9], [50.0, 60.0]]),
        caption="a caption that is far too long for an image of this width, and then some more of it",
    )
    assert drawn.shape == original.shape
    assert drawn.dtype == np.uint8
    assert (original == GREY).all()


def test_nothing_pruned_leaves_the_picture():
    everything = selection(np.arange(256), np.full(256, Reason.ALL))
    drawn = draw_overlay(image(), everything, ImageTransform(), legend=False)
    assert (drawn == GREY).all()


def test_gripper_patch_is_outlined_in_white_where_the_pixel_is():
    transform = ImageTransform()
    pixel = (333.0, 217.0)
    patch = patch_of(transform.map_pixel(pixel, 640, 480), 224, GRID)
    drawn = draw_overlay(image(), selection([0], [Reason.RING], patch), transform, legend=False)
    white = np.argwhere((drawn == 255).all(axis=2))
    (top, left), (bottom, right) = white.min(axis=0), white.max(axis=0)
    assert top <= pixel[1] <= bottom
    assert left <= pixel[0] <= right
    assert right - left <= 44
    assert bottom - top <= 34


def test_path_is_drawn_through_its_points():
    path = np.asarray([[100.0, 100.0], [200.0, 150.0], [300.0, 300.0]])
    drawn = draw_overlay(image(), selection([], []), ImageTransform(), path_pixels=path, legend=False)
    for u, v in path.astype(int):
        assert (drawn[v, u] > 200).all()


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_wrong_image_is_named(bad):
    with pytest.raises(ValueError, match="uint8 RGB"):
        draw_overlay(bad, selection([], []), ImageTransform())


def test_token_outside_the_grid_is_named():
    with pytest.raises(ValueError, match=r"256.*16 x 16"):
        draw_overlay(image(), selection([256], [0]), ImageTransform())


def test_colours_stay_apart_for_every_colour_vision_deficiency():
    """Machado et al. 2009, severity 1.0, linear RGB: the three colours of SQAP differ clearly in CIELAB."""
    import cv2

    deficiency = {
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    }
    colours = np.asarray([COLOURS[r] for r in (Reason.ATTENTION, Reason.RING, Reason.SPATIAL)]) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    for matrix in deficiency.values():
        seen = np.clip(linear @ np.asarray(matrix).T, 0, 1)
        encoded = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055).astype(np.float32)
        lab = cv2.cvtColor(encoded[None], cv2.COLOR_RGB2LAB)[0]
        for one in range(3):
            for other in range(one):
                assert np.linalg.norm(lab[one] - lab[other]) > 20


def test_drawing_needs_no_torch():
    code = "import sys, sqap_vla_ros.pruning.overlay; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
