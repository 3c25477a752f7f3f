"""Image conversion: every encoding against a picture whose colours are known."""

import array
import resource
import struct
import zlib

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage, Image

from sqap_vla_ros.nodes import images
from sqap_vla_ros.nodes.images import SUPPORTED_ENCODINGS, ImageError, compressed_to_rgb, rgb_to_message, to_rgb

HEIGHT, WIDTH = 24, 32


@pytest.fixture
def picture():
    """Smooth, different in every channel and not symmetric, so that a swapped channel, row or pattern shows."""
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([40 + 5 * u, 200 - 5 * v, 60 + 2 * u + 3 * v], axis=-1).astype(np.uint8)


def message_of(pixels, encoding, *, padding=0, big_endian=False):
    """Image message of [H, W(, C)] pixels with `padding` bytes of rubbish after each row."""
    pixels = pixels.astype(pixels.dtype.newbyteorder(">" if big_endian else "<"))
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(pixels.shape[0], -1)
    rows = np.hstack([rows, np.full((rows.shape[0], padding), 0xA5, np.uint8)])
    message = Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, is_bigendian=int(big_endian))
    message.step = rows.shape[1]
    message.data = array.array("B", rows.tobytes())
    return message


def mosaic(rgb, pattern):
    """What a sensor with this colour filter sees: `pattern` names the four filters row by row."""
    out = np.empty(rgb.shape[:2], rgb.dtype)
    for i, colour in enumerate(pattern):
        out[i // 2 :: 2, i % 2 :: 2] = rgb[i // 2 :: 2, i % 2 :: 2, "rgb".index(colour)]
    return out


LAYOUTS = {
    "rgb": lambda p: p,
    "bgr": lambda p: p[..., ::-1],
    "rgba": lambda p: np.dstack([p, np.full_like(p[..., :1], 7)]),
    "bgra": lambda p: np.dstack([p[..., ::-1], np.full_like(p[..., :1], 7)]),
}


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_colour_layouts_are_exact(picture, layout, padding):
    message = message_of(LAYOUTS[layout](picture), f"{layout}8", padding=padding)
    np.testing.assert_array_equal(to_rgb(message), picture)


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sixteen_bits_are_scaled_to_eight(picture, layout, big_endian):
    wide = LAYOUTS[layout](picture).astype(np.uint16) * 257  # 257 = 65535 / 255: the scaling back is exact
    message = message_of(wide, f"{layout}16", padding=4, big_endian=big_endian)
    np.testing.assert_array_equal(to_rgb(message), picture)


@pytest.mark.parametrize("big_endian", [False, True])
def test_grey_is_repeated_in_every_channel(picture, big_endian):
    grey = picture[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(to_rgb(message_of(grey, "mono8", padding=3)), expected)
    wide = message_of(grey.astype(np.uint16) * 257, "mono16", big_endian=big_endian)
    np.testing.assert_array_equal(to_rgb(wide), expected)


@pytest.mark.parametrize("padding", [0, 8])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_patterns_restore_the_picture(picture, pattern, bits, padding):
    raw = mosaic(picture, pattern)
    if bits == 16:
        raw = raw.astype(np.uint16) * 257
    rgb = to_rgb(message_of(raw, f"bayer_{pattern}{bits}", padding=padding))
    # A smooth picture survives demosaicing but for its border; a wrong pattern is off by tens.
    inner = np.s_[2:-2, 2:-2]
    assert np.abs(rgb[inner].astype(int) - picture[inner]).max() <= 3


@pytest.mark.parametrize(
    ("encoding", "order"), [("yuv422", "uyvy"), ("uyvy", "uyvy"), ("yuv422_yuy2", "yuyv"), ("yuyv", "yuyv")]
)
def test_yuv422_is_close(picture, encoding, order):
    r, g, b = np.moveaxis(picture.astype(float), -1, 0)
    # ITU-R BT.601, studio range
    y = 16 + (65.738 * r + 129.057 * g + 25.064 * b) / 256
    u = 128 + (-37.945 * r - 74.494 * g + 112.439 * b) / 256
    v = 128 + (112.439 * r - 94.154 * g - 18.285 * b) / 256
    u, v = ((c[:, ::2] + c[:, 1::2]) / 2 for c in (u, v))
    packed = np.empty((HEIGHT, WIDTH, 2), np.uint8)
    luma, chroma = (1, 0) if order == "uyvy" else (0, 1)
    packed[..., luma] = y.round()
    packed[:, ::2, chroma] = u.round()
    packed[:, 1::2, chroma] = v.round()
    assert np.abs(to_rgb(message_of(packed, encoding)).astype(int) - picture).max() <= 6


def test_rgb8_is_not_copied(picture):
    message = message_of(picture, "rgb8")
    rgb = to_rgb(message)
    assert np.shares_memory(rgb, np.frombuffer(message.data, np.uint8))


def test_every_supported_encoding_is_tried_here():
    tried = {f"{layout}{bits}" for layout in [*LAYOUTS, "mono"] for bits in (8, 16)}
    tried |= {f"bayer_{p}{bits}" for p in ("rggb", "bggr", "gbrg", "grbg") for bits in (8, 16)}
    tried |= {"8UC1", "8UC3", "8UC4", "nv12", "nv21"}
    assert set(SUPPORTED_ENCODINGS) == tried | {"yuv422", "uyvy", "yuv422_yuy2", "yuyv"}


@pytest.mark.parametrize(("encoding", "named"), [("8UC1", "mono8"), ("8UC3", "bgr8"), ("8UC4", "bgra8")])
def test_opencvs_types_of_8_bits_are_in_opencvs_order(picture, encoding, named):
    pixels = picture[..., 0] if encoding == "8UC1" else LAYOUTS[named[:-1]](picture)
    expected = to_rgb(message_of(pixels, named, padding=2))
    np.testing.assert_array_equal(to_rgb(message_of(pixels, encoding, padding=2)), expected)


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", ["nv12", "nv21"])
def test_subsampled_colours_are_close(picture, encoding, padding):
    """OpenCV writes planes (I420), from which the pairs of NV12 (U first) and NV21 are put together."""
    planes = cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420)
    u, v = planes[HEIGHT:].reshape(2, HEIGHT // 2, WIDTH // 2)
    pairs = np.stack((u, v) if encoding == "nv12" else (v, u), axis=-1).reshape(HEIGHT // 2, WIDTH)
    message = message_of(np.vstack((planes[:HEIGHT], pairs)), encoding, padding=padding)
    message.height = HEIGHT
    assert np.abs(to_rgb(message).astype(int) - picture).max() <= 8  # a pair the wrong way round is off by tens
    message.data = message.data[: HEIGHT * message.step]
    with pytest.raises(ImageError, match="it is truncated"):
        to_rgb(message)
    message.height -= 1
    with pytest.raises(ImageError, match="width and height must be even"):
        to_rgb(message)


def test_unknown_encoding_lists_the_known_ones(picture):
    with pytest.raises(ImageError, match=r"'32FC1' is not supported.*bayer_rggb8.*rgb8"):
        to_rgb(message_of(picture, "32FC1"))


def test_truncated_data_is_refused(picture):
    message = message_of(picture, "rgb8")
    message.data = message.data[:-1]
    with pytest.raises(ImageError, match=rf"{WIDTH}x{HEIGHT} rgb8.*2303 bytes.*2304 are needed.*truncated"):
        to_rgb(message)


def test_last_row_may_lack_its_padding(picture):
    message = message_of(picture, "rgb8", padding=6)
    message.data = message.data[:-6]
    np.testing.assert_array_equal(to_rgb(message), picture)


def test_step_smaller_than_a_row_is_refused(picture):
    message = message_of(picture, "rgb8")
    message.step = WIDTH
    with pytest.raises(ImageError, match=r"step 32 is less than the 96 bytes"):
        to_rgb(message)


def test_odd_step_of_sixteen_bits_is_refused(picture):
    with pytest.raises(ImageError, match="step 65 is odd"):
        to_rgb(message_of(picture[..., 0].astype(np.uint16), "mono16", padding=1))


def test_odd_width_of_yuv422_is_refused():
    with pytest.raises(ImageError, match="width must be even"):
        to_rgb(message_of(np.zeros((4, 5, 2), np.uint8), "yuv422"))


def test_empty_image_is_refused():
    with pytest.raises(ImageError, match="0x0 rgb8 image: it is empty"):
        to_rgb(Image(encoding="rgb8"))


def compressed(extension, pixels, message_format, params=()):
    return CompressedImage(
        format=message_format, data=array.array("B", cv2.imencode(extension, pixels, list(params))[1].tobytes())
    )


@pytest.mark.parametrize("message_format", ["png", "rgb8; png compressed bgr8", "bgr8; png compressed bgr8"])
def test_png_is_exact(picture, message_format):
    np.testing.assert_array_equal(compressed_to_rgb(compressed(".png", picture[..., ::-1], message_format)), picture)


@pytest.mark.parametrize("message_format", ["jpeg", "jpg", "rgb8; jpeg compressed bgr8", "rgb8;jpeg compressed bgr8"])
def test_jpeg_is_close(picture, message_format):
    rgb = compressed_to_rgb(compressed(".jpg", picture[..., ::-1], message_format, [cv2.IMWRITE_JPEG_QUALITY, 100]))
    assert np.abs(rgb.astype(int) - picture).max() <= 8


def test_channels_that_the_publisher_did_not_swap(picture):
    np.testing.assert_array_equal(compressed_to_rgb(compressed(".png", picture, "rgb8; png compressed rgb8")), picture)


def test_compressed_grey_alpha_and_sixteen_bits(picture):
    grey = picture[..., 1]
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(compressed_to_rgb(compressed(".png", grey, "mono8; png compressed ")), expected)
    wide = grey.astype(np.uint16) * 257
    np.testing.assert_array_equal(compressed_to_rgb(compressed(".png", wide, "mono16; png compressed ")), expected)
    alpha = np.dstack([picture[..., ::-1], grey])
    np.testing.assert_array_equal(compressed_to_rgb(compressed(".png", alpha, "png")), picture)


def test_compressed_mosaic_is_demosaiced(picture):
    raw = mosaic(picture, "bggr")
    rgb = compressed_to_rgb(compressed(".png", raw, "bayer_bggr8; png compressed "))
    np.testing.assert_array_equal(rgb, to_rgb(message_of(raw, "bayer_bggr8")))


def test_webp_is_decoded_whole_or_refused(picture):
    whole = cv2.imencode(".webp", picture[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()  # 101: lossless
    np.testing.assert_array_equal(compressed_to_rgb(CompressedImage(format="webp", data=whole)), picture)
    with pytest.raises(ImageError, match="the webp is cut off after"):
        compressed_to_rgb(CompressedImage(format="webp", data=whole[:-8]))
    with pytest.raises(ImageError, match="the webp is damaged"):
        compressed_to_rgb(CompressedImage(format="webp", data=whole[:12] + bytes(len(whole) - 12)))


@pytest.mark.parametrize("data", [b"", b"not a picture"])
def test_undecodable_data_is_refused(data):
    with pytest.raises(ImageError, match=rf"'jpeg': {len(data)} bytes that are no whole"):
        compressed_to_rgb(CompressedImage(format="jpeg", data=array.array("B", data)))


@pytest.mark.parametrize(
    "form", ["16UC1; compressedDepth png", "16UC1; png compressed ", "32FC1; tiff compressed", "16SC1;png compressed"]
)
def test_depth_is_refused(form, picture):
    with pytest.raises(ImageError, match="depth image: a colour image is needed"):
        compressed_to_rgb(compressed(".png", picture[..., 0].astype(np.uint16), form))


def test_message_round_trip(picture):
    message = rgb_to_message(picture[::2, ::-1], stamp=Time(sec=3, nanosec=4), frame_id="camera")
    assert (message.header.stamp.sec, message.header.frame_id, message.step) == (3, "camera", 3 * WIDTH)
    np.testing.assert_array_equal(to_rgb(message), picture[::2, ::-1])


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_message_of_something_else_is_refused(bad):
    with pytest.raises(ImageError, match=r"expected an \[H, W, 3\] uint8 array"):
        rgb_to_message(bad, stamp=Time(), frame_id="camera")


def test_cv_bridge_converts_what_it_is_good_at(picture, monkeypatch):
    class Bridge:
        def imgmsg_to_cv2(self, message, desired_encoding):
            asked.append((message.encoding, desired_encoding))
            return np.zeros((HEIGHT, WIDTH, 3), np.uint8)

    asked = []
    monkeypatch.setattr(images, "_CV_BRIDGE", Bridge())
    assert not to_rgb(message_of(picture, "bgr8")).any()
    assert asked == [("bgr8", "rgb8")]
    swapped = message_of(picture[..., 0].astype(np.uint16), "mono16", big_endian=True)
    short = message_of(picture, "bgr8", padding=4)
    short.data = short.data[:-4]
    for message in (swapped, short, message_of(picture[..., :2], "yuyv"), message_of(picture, "rgb8")):
        assert to_rgb(message).any()
    assert len(asked) == 1
    truncated = message_of(picture, "bgr8")
    truncated.data = truncated.data[:-1]
    with pytest.raises(ImageError, match="truncated"):
        to_rgb(truncated)


def test_agrees_with_cv_bridge(picture):
    cv_bridge = pytest.importorskip("cv_bridge", reason="cv_bridge is not installed", exc_type=ImportError)
    bridge = cv_bridge.CvBridge()
    for encoding, pixels in {
        **{f"{name}8": make(picture) for name, make in LAYOUTS.items()},
        **{f"bayer_{p}8": mosaic(picture, p) for p in ("rggb", "bggr", "gbrg", "grbg")},
        "mono8": picture[..., 0],
        "mono16": picture[..., 0].astype(np.uint16) * 257,
    }.items():
        message = message_of(pixels, encoding)
        own = images._convert(images._pixels(message, images._ENCODINGS[encoding]), images._ENCODINGS[encoding].to_rgb)
        np.testing.assert_array_equal(own, bridge.imgmsg_to_cv2(message, "rgb8"), err_msg=encoding)


def jpeg() -> bytes:
    picture = cv2.resize(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8), (640, 480))
    return cv2.imencode(".jpg", picture)[1].tobytes()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: data[: len(data) // 2], "cut off after"),
        (lambda data: data[: len(data) // 2] + bytes(len(data) // 2), "cut off after"),
        (lambda data: data[: len(data) // 2] + data, "breaks off where another one begins"),
        (lambda data: data[2:], "no whole jpeg, png, webp or tiff"),
        (lambda data: data[: len(data) // 2] + b"\xff\xd9", "lost data"),
        (lambda data: data[: len(data) // 2] + data[len(data) * 7 // 10 :], "lost data"),
    ],
)
def test_a_jpeg_that_is_not_whole_is_refused(spoil, reason):
    """The decoder would fill the rest with grey, and the policy would act on it."""
    with pytest.raises(ImageError, match=reason):
        compressed_to_rgb(CompressedImage(format="jpeg", data=spoil(jpeg())))
    padded = jpeg() + bytes(1000)  # USB cameras pad to a fixed size
    assert compressed_to_rgb(CompressedImage(format="jpeg", data=padded)).shape == (480, 640, 3)


def test_pixels_that_are_no_colours_are_refused():
    tiff = cv2.imencode(".tiff", np.zeros((4, 4), np.float32))[1].tobytes()
    with pytest.raises(ImageError, match="its pixels are float32, where 8 or 16 bits are needed"):
        compressed_to_rgb(CompressedImage(format="png", data=tiff))
    huge = bytearray(cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes())
    huge[16:24] = b"\x7f\xff\xff\xff" * 2  # width and height
    huge[29:33] = zlib.crc32(bytes(huge[12:29])).to_bytes(4, "big")
    with pytest.raises(ImageError, match="its header says 2147483647x2147483647 pixels"):
        compressed_to_rgb(CompressedImage(format="png", data=bytes(huge)))


def png_chunk(kind: bytes, data: bytes, length: int | None = None) -> bytes:
    return struct.pack(">I", len(data) if length is None else length) + kind + data + bytes(4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            png_chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 12, 8, 2, 0, 0, 0)) + png_chunk(b"IDAT", b"", 2**31),
            "cut off",
        ),
        (
            png_chunk(b"IHDR", struct.pack(">IIBBBBB", 2**15, 2**15, 8, 2, 0, 0, 0)),
            "its header says 32768x32768 pixels",
        ),
    ],
)
def test_a_small_png_cannot_reserve_gigabytes(data, message):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match=message):
        compressed_to_rgb(CompressedImage(format="png", data=b"\x89PNG\r\n\x1a\n" + data))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_jpeg_that_claims_to_be_huge_is_refused():
    frame = b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", 60_000, 60_000) + bytes(10)
    with pytest.raises(ImageError, match="its header says 60000x60000 pixels"):
        compressed_to_rgb(CompressedImage(format="jpeg", data=b"\xff\xd8" + frame + b"\xff\xd9"))
