"""Camera image to model image, and pixels through the same way."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sqap_vla_ros.contracts import PolicyInfo
from sqap_vla_ros.policy.preprocessing import ImageTransform, patch_of

crops = st.sampled_from(["none", "deployment"])
sides = st.integers(2, 900)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_squash_is_pils_bicubic():
    image = noise(480, 640)
    expected = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(ImageTransform().apply(image), expected)


def test_deployment_crop_is_the_published_one():
    """Central square, Lanczos to 224, the central 212 pixels (int(224 sqrt(0.9))), Lanczos to 224."""
    image = noise(480, 640)
    picture = Image.fromarray(image).crop((80, 0, 560, 480)).resize((224, 224), Image.Resampling.LANCZOS)
    picture = picture.crop((6, 6, 218, 218)).resize((224, 224), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(ImageTransform(crop="deployment").apply(image), np.asarray(picture))


def test_an_image_of_the_right_size_is_untouched():
    np.testing.assert_array_equal(ImageTransform().apply(noise(224, 224)), noise(224, 224))


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 400), width=st.integers(1, 400), crop=crops)
def test_any_size(height, width, crop):
    assert ImageTransform(crop=crop).apply(np.full((height, width, 3), 7, np.uint8)).tolist()[0][0] == [7, 7, 7]


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_any_picture_mode_through_pil(mode):
    picture = Image.fromarray(noise(20, 30))
    picture = Image.new(mode, (30, 20)) if mode == "I;16" else picture.convert(mode)
    assert ImageTransform().apply(np.asarray(picture.convert("RGB"))).shape == (224, 224, 3)


@pytest.mark.parametrize(("u", "v"), [(160, 60), (320, 240), (500, 400)])
@pytest.mark.parametrize("crop", ["none", "deployment"])
def test_pixels_follow_the_picture(u, v, crop):
    """The mapped pixel is where the brightness of a blob lands."""
    image = np.zeros((480, 640, 3), np.uint8)
    rows, cols = np.mgrid[:480, :640]
    image[:] = (255 * np.exp(-((cols - u) ** 2 + (rows - v) ** 2) / 200))[..., None]
    transform = ImageTransform(crop=crop)
    weight = transform.apply(image)[..., 0].astype(float)
    y, x = np.mgrid[:224, :224]
    found = (weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()
    np.testing.assert_allclose(transform.map_pixel((u, v), 640, 480), found, atol=0.15)


@given(sides, sides, crops, st.floats(0, 1), st.floats(0, 1))
def test_unmapping_undoes_mapping(width, height, crop, across, down):
    transform = ImageTransform(crop=crop)
    inside = (across * 223.0, down * 223.0)
    pixel = transform.unmap_pixel(inside, width, height)
    np.testing.assert_allclose(transform.map_pixel(pixel, width, height), inside, atol=1e-6)


def test_pixels_outside_or_cut_off_are_none():
    assert ImageTransform().map_pixel((-0.6, 10), 640, 480) is None
    assert ImageTransform().map_pixel((639.4, 479.4), 640, 480) is not None
    assert ImageTransform().map_pixel((639.5, 10), 640, 480) is None
    assert ImageTransform().map_pixel((math.nan, 10), 640, 480) is None
    assert ImageTransform(crop="deployment").map_pixel((40, 240), 640, 480) is None


def test_patches_tile_the_image():
    patches = [[patch_of((u, v), 224, (16, 16)) for u in range(224)] for v in range(224)]
    assert patches == [[(v // 14, u // 14) for u in range(224)] for v in range(224)]


@pytest.mark.parametrize("pixel", [(-1.0, 3.0), (3.0, 224.0), (math.nan, 1.0), (math.inf, 1.0)])
def test_no_patch_outside(pixel):
    assert patch_of(pixel, 224, (16, 16)) is None


def test_a_policys_info_gives_its_preprocessing():
    info = PolicyInfo("c", "", "sqap", 0, 16, 0.1, 336, (24, 24), "k", "sqap", crop="deployment")
    assert ImageTransform.of(info) == ImageTransform(336, "deployment")


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="size must be positive, got 0"):
        ImageTransform(0)
    with pytest.raises(ValueError, match="'none' or 'deployment', got 'centre'"):
        ImageTransform(crop="centre")
    with pytest.raises(ValueError, match=r"got shape \(4, 4\) of uint8"):
        ImageTransform().apply(np.zeros((4, 4), np.uint8))


def test_needs_no_torch():
    """The nodes' parent process maps pixels; torch must not come with it."""
    script = "import sys; import sqap_vla_ros.policy.preprocessing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
