"""msgpack with arrays: both clients' marks, and nothing that is no array of numbers."""

import contextlib
import io

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sqap_vla_ros.pictures import read_picture
from sqap_vla_ros.serving.server.packing import PackingError, decode_image, pack, unpack

msgpack = pytest.importorskip("msgpack", reason="msgpack is not installed (pip install 'sqap-vla-ros[serve]')")

numbers = st.sampled_from(["uint8", "int32", "int64", "float32", "float64", "bool"])
some_arrays = numbers.flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4)))


@given(some_arrays, st.sampled_from([str, bytes]))
def test_an_array_comes_back(array, keys):
    back = unpack(pack({"a": array}, keys=keys))["a"]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_value_or_a_packing_error(data):
    with contextlib.suppress(PackingError):
        unpack(data)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"__ndarray__": True, "data": b"12345678", "dtype": "O", "shape": [1]}, "dtype must be of numbers"),
        ({"__ndarray__": True, "data": b"12345678", "dtype": "|V8", "shape": [1]}, "dtype must be of numbers"),
        ({"__ndarray__": True, "data": b"12345678", "dtype": "<c8", "shape": [1]}, "dtype must be of numbers"),
        ({"__ndarray__": True, "data": b"12345678", "dtype": "f8,f8", "shape": [1]}, "dtype must be of numbers"),
        ({"__ndarray__": True, "data": b"1234", "dtype": "<f8", "shape": [1]}, "needs 8 bytes, got 4"),
        ({"__ndarray__": True, "data": b"", "dtype": "<f8", "shape": [2**31 - 1, 2**31 - 1]}, "bytes, got 0"),
        ({"__ndarray__": True, "data": b"", "dtype": "<f8", "shape": [-1]}, "shape must hold lengths"),
        ({"__ndarray__": True, "data": b"", "dtype": "<f8", "shape": "x"}, "shape must be a list"),
        ({"__ndarray__": True}, "dtype must be of numbers"),
        ({b"__ndarray__": True, b"data": "text", b"dtype": b"<f8", b"shape": [1]}, "needs 8 bytes, got a text"),
        ({b"__npgeneric__": True, b"data": "x", b"dtype": "<f8"}, "a scalar must be a number"),
        ({"__image__": True, "format": "gif", "data": b""}, "format must be raw, jpeg or png"),
        ({"__image__": True, "format": "png", "data": b"no picture"}, "cannot be decoded as PNG"),
    ],
)
def test_what_is_no_array_is_refused_by_name(entry, text):
    with pytest.raises(PackingError, match=text):
        unpack(msgpack.packb(entry))


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (b"\xdd\x00\x10\x00\x00" + bytes([0x90]) * 2**20, "more than 1024 entries"),
        (msgpack.packb([[[]] * 1_000] * 10), "more than 10000 values"),
        (b"\x91" * 5_000, "nested too deeply"),
        (b"\x00\x00", "more bytes follow its end"),
        (b"\xc1", "a byte in it begins no value"),
        (b"\xa1\xff", "no UTF-8"),
        (b"\x93\x00", "damaged or cut off"),
        (msgpack.packb({"__ndarray__": True, "data": b"12345678", "dtype": None, "shape": [1]}), "got nothing"),
    ],
)
def test_a_frame_is_refused_in_words_before_it_takes_much_memory(frame, text):
    with pytest.raises(PackingError, match=text):
        unpack(frame)


NOISE = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)


def saved(image, form, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, form, **options)
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize(
    ("image", "form", "options"),
    [
        (NOISE, "JPEG", {}),
        (NOISE[..., 0], "JPEG", {}),
        (NOISE, "PNG", {}),
        (NOISE[..., 0], "PNG", {"bits": 4}),
        (np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64), "PNG", {}),
        *((NOISE, form, {"exif": turned(n)}) for form in ("JPEG", "PNG") for n in (3, 6, 7)),
    ],
)
def test_a_picture_is_the_one_that_predict_sees(image, form, options, tmp_path):
    data = saved(image, form, **options)
    (tmp_path / "a").write_bytes(data)
    seen = read_picture(tmp_path / "a")
    message = msgpack.packb({"__image__": True, "format": form.lower(), "data": data})
    for decoded in (decode_image(data), unpack(message)):
        np.testing.assert_array_equal(decoded, seen)
    if image.dtype == np.uint16:
        assert seen.mean() == pytest.approx(127.5, abs=0.1)


@pytest.mark.parametrize(
    "cut",
    [
        saved(NOISE, "JPEG")[:2000] + b"\xff\xd9",
        saved(NOISE, "JPEG", progressive=True)[:2000] + b"\xff\xd9",
        saved(NOISE, "JPEG", exif=turned(6))[:2000] + b"\xff\xd9",
        saved(NOISE, "JPEG", restart_marker_rows=1)[:2000] + b"\xff\xd9",
        saved(NOISE, "PNG")[:2000] + saved(NOISE, "PNG")[-12:],
    ],
    ids=["jpeg", "progressive jpeg", "turned jpeg", "jpeg with restarts", "png"],
)
def test_half_a_picture_is_refused_even_where_it_seems_to_end(cut):
    with pytest.raises(PackingError, match=r"the image cannot be decoded as JPEG or PNG: it is damaged or cut off$"):
        decode_image(cut)


def test_pictures_are_read_whole_or_not_at_all():
    image = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    for form in ("PNG", "JPEG"):
        file = io.BytesIO()
        Image.fromarray(image).save(file, form)
        data = file.getvalue()
        assert decode_image(data).shape == image.shape
        with pytest.raises(PackingError, match="cannot be decoded"):
            decode_image(data[: len(data) // 2])
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    assert (unpack(msgpack.packb({"__image__": True, "format": "png", "data": file.getvalue()})) == image).all()
    file = io.BytesIO()
    Image.new("1", (10_000, 2)).save(file, "PNG")
    with pytest.raises(PackingError, match="at most 4096 a side"):
        decode_image(file.getvalue())
