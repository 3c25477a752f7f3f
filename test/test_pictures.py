import os
import struct

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, TiffImagePlugin

from sqap_vla_ros.pictures import PictureError, decode_picture, read_picture

RAMP = np.tile(np.linspace(0, 65535, 32).astype(np.uint16), (8, 1))


def test_sixteen_bits_become_eight_as_in_the_node(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "grey.png")
    cv2.imwrite(str(tmp_path / "colour.png"), np.dstack([RAMP] * 3))
    expected = cv2.convertScaleAbs(RAMP, alpha=255.0 / 65535.0)
    for name in ("grey.png", "colour.png"):
        image = read_picture(tmp_path / name)
        assert image.shape == (8, 32, 3)
        assert np.abs(image.astype(int) - expected[..., None]).max() <= 1


def test_floating_point_is_black_to_white(tmp_path):
    Image.fromarray((RAMP / 65535.0).astype(np.float32)).save(tmp_path / "a.tiff")
    assert np.abs(read_picture(tmp_path / "a.tiff")[..., 0].astype(int) - np.rint(RAMP / 257.0)).max() <= 1
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "b.tiff")
    with pytest.raises(PictureError, match=r"b\.tiff has pixels from 0 to 65535, where 0 to 1 are expected"):
        read_picture(tmp_path / "b.tiff")


def test_an_exif_rotation_is_applied(tmp_path):
    picture = Image.new("RGB", (40, 20), (255, 0, 0))
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").shape == (40, 20, 3)


def test_a_picture_larger_than_any_camera_is_refused_by_its_header(tmp_path):
    Image.new("1", (2**13, 2**13 + 1)).save(tmp_path / "huge.png")
    with pytest.raises(PictureError, match=r"huge\.png has 8192x8193 pixels, at most 67108864 are read"):
        read_picture(tmp_path / "huge.png")


def test_a_picture_that_asks_for_too_much_memory_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "greedy.png")

    def greedy(picture):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", greedy)
    with pytest.raises(PictureError, match=r"greedy\.png asks for more memory than there is"):
        read_picture(tmp_path / "greedy.png")


def test_a_damaged_or_foreign_file_is_refused(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PictureError, match=r"a\.jpg is damaged"):
        read_picture(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    with pytest.raises(PictureError, match=r"a\.jpg is damaged: what the jpeg holds ends before the picture"):
        read_picture(tmp_path / "a.jpg")
    (tmp_path / "b.png").write_text("no")
    with pytest.raises(PictureError, match=r"b\.png is not a picture: cannot identify image file"):
        read_picture(tmp_path / "b.png")
    with pytest.raises(FileNotFoundError):
        read_picture(tmp_path / "c.png")


def test_floating_point_colours_are_black_to_white(tmp_path):
    colours = np.dstack([RAMP / 65535.0, 1.0 - RAMP / 65535.0, np.full(RAMP.shape, 0.25)]).astype(np.float32)
    cv2.imwrite(str(tmp_path / "a.tiff"), colours[..., ::-1])
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tiff"), np.rint(255.0 * colours))


def test_pixels_of_unknown_meaning_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 255, np.int32)).save(tmp_path / "whole.tiff")
    with pytest.raises(PictureError, match=r"whole\.tiff has whole numbers with a sign or of 32 bits"):
        read_picture(tmp_path / "whole.tiff")
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "nan.tiff")
    with pytest.raises(PictureError, match=r"nan\.tiff has pixels that are not finite numbers"):
        read_picture(tmp_path / "nan.tiff")


def test_what_is_no_file_of_pixels_is_refused_at_once(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "drawing.eps")
    with pytest.raises(PictureError, match=r"drawing\.eps is a drawing \(EPS\)"):
        read_picture(tmp_path / "drawing.eps")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(PictureError, match=r"pipe\.png is no file"):
        read_picture(tmp_path / "pipe.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_floating_point_tiff_is_turned_as_its_exif_data_say(orientation, tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.float32) / 255.0
    file = tmp_path / "turned.tiff"
    cv2.imwrite(str(file), colours[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 1])
    data = bytearray(file.read_bytes())
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    entries = [bytes(data[at : at + 12]) for at in range(start + 2, start + 2 + 12 * count, 12)]
    entries = [e for e in entries if struct.unpack_from("<H", e) != (284,)]  # the planar configuration has a default
    entries.append(struct.pack("<HHIHH", 274, 3, 1, orientation, 0))
    data[start + 2 : start + 2 + 12 * count] = b"".join(sorted(entries, key=lambda e: struct.unpack_from("<H", e)))
    file.write_bytes(data)
    turned = Image.fromarray(np.rint(255.0 * colours).astype(np.uint8))
    turned.getexif()[274] = orientation
    np.testing.assert_array_equal(read_picture(file), np.asarray(ImageOps.exif_transpose(turned)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_of_sixteen_bits_is_turned_as_its_exif_data_say(orientation, tmp_path):
    """Pillow maps one that is not compressed into memory, with its sides exchanged, where it is given a path."""
    stored = np.random.default_rng(0).integers(0, 65536, (4, 6)).astype(np.uint16)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[274] = orientation
    Image.fromarray(stored).save(tmp_path / "turned.tiff", tiffinfo=tags)
    turned = Image.fromarray(np.rint(stored / 257.0).astype(np.uint8))
    turned.getexif()[274] = orientation
    upright = np.asarray(ImageOps.exif_transpose(turned))
    np.testing.assert_array_equal(read_picture(tmp_path / "turned.tiff"), np.repeat(upright[..., None], 3, axis=2))


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32])
def test_a_tiff_with_signs_is_refused(kind, tmp_path):
    cv2.imwrite(str(tmp_path / "signed.tiff"), np.full((4, 6), 100, kind))
    with pytest.raises(PictureError, match=r"signed\.tiff has whole numbers with a sign or of 32 bits"):
        read_picture(tmp_path / "signed.tiff")


def test_damage_is_told_once_and_without_warnings(tmp_path, recwarn):
    Image.fromarray(RAMP).save(tmp_path / "cut.tiff")
    (tmp_path / "cut.tiff").write_bytes((tmp_path / "cut.tiff").read_bytes()[:-3])
    with pytest.raises(PictureError, match=r"cut\.tiff"):
        read_picture(tmp_path / "cut.tiff")
    assert not recwarn.list


def test_bytes_are_decoded_as_files_are(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    decoded = decode_picture((tmp_path / "a.png").read_bytes(), "frame 7")
    np.testing.assert_array_equal(decoded, read_picture(tmp_path / "a.png"))
    with pytest.raises(PictureError, match="frame 7 is not a picture"):
        decode_picture(b"nothing", "frame 7")
