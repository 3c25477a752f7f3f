"""The Python API: a policy in five lines, without ROS and without the simulator."""

import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from places import ROOT

import sqap_vla_ros
from sqap_vla_ros import Observation, load_policy
from sqap_vla_ros.contracts import UnfitObservation
from sqap_vla_ros.pictures import read_picture
from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
from sqap_vla_ros.policy.settings import CheckpointSettings

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def test_a_picture_and_its_array_give_the_same_chunk():
    policy = load_policy("micro", "sqap")
    first = policy.predict(Observation.of(Image.fromarray(PIXELS), "pick up the red cube"))
    second = policy.predict(Observation.of(PIXELS, "pick up the red cube", stamp_ns=5))
    assert first.deltas.shape == (16, 7)
    assert (first.deltas == second.deltas).all()
    assert (first.stamp_ns, second.stamp_ns) == (0, 5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_a_picture_of_any_mode_becomes_rgb(mode):
    image = Image.fromarray(PIXELS).convert(mode)
    np.testing.assert_array_equal(Observation.of(image, "pick").image, np.asarray(image.convert("RGB")))


RAMP = np.linspace(0.0, 1.0, 48 * 64).reshape(48, 64)


@pytest.mark.parametrize(
    ("image", "mode"),
    [
        (Image.fromarray(np.rint(65535 * RAMP).astype(np.uint16)), "I;16"),
        (Image.fromarray(np.rint(65535 * RAMP).astype(np.int32)), "I"),
        (Image.fromarray(RAMP.astype(np.float32)), "F"),
    ],
)
def test_a_deep_picture_is_scaled_to_eight_bits(image, mode):
    assert image.mode == mode
    seen = Observation.of(image, "pick").image
    assert np.abs(seen.astype(float) - 255.0 * RAMP[..., None]).max() < 0.51


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (255.0 * RAMP.astype(np.float32), "image has pixels from 0 to 255, where 0 to 1 are expected"),
        (np.full((4, 4), 65536, np.int32), "image has pixels from 65536 to 65536, where 0 to 65535 are expected"),
        (np.full((4, 4), np.nan, np.float32), "image has pixels that are not finite numbers"),
    ],
)
def test_a_deep_picture_of_unknown_white_is_refused(values, text):
    with pytest.raises(ValueError, match=text):
        Observation.of(Image.fromarray(values), "pick")


def test_a_picture_is_turned_as_its_exif_data_say(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        np.testing.assert_array_equal(Observation.of(image, "pick").image, read_picture(tmp_path / "turned.png"))
    assert read_picture(tmp_path / "turned.png").shape == (64, 48, 3)


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("view.png", "got str: open a file with PIL.Image.open first"),
        (PIXELS[..., 0], r"image must be \[H, W, 3\] uint8 RGB, got shape \(48, 64\)"),
        (PIXELS / 255.0, "of float64: convert the array, or give Observation.of a PIL image$"),
        (PIXELS[:0], r"got shape \(0, 64, 3\) of uint8"),
    ],
)
def test_what_is_no_image_is_named(image, text):
    with pytest.raises(ValueError, match=text):
        Observation.of(image, "pick")


@pytest.mark.parametrize(("mode", "by_way_of"), [("La", "LA"), ("RGBa", "RGBA")])
def test_premultiplied_transparency_is_read_too(mode, by_way_of):
    picture = Image.fromarray(PIXELS).convert(by_way_of)
    np.testing.assert_array_equal(
        Observation.of(picture.convert(mode), "pick").image, np.asarray(picture.convert("RGB"))
    )


def test_a_damaged_file_is_refused_in_a_sentence():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(file, "png")
    with pytest.raises(ValueError, match=r"^image is damaged: "):
        Observation.of(Image.open(io.BytesIO(file.getvalue()[:2000])), "pick")


def test_a_text_that_is_none_is_refused_here_as_by_a_server():
    policy = load_policy("micro", "fp32")
    with pytest.raises(UnfitObservation, match=r"^the instruction holds characters that are no Unicode text: say"):
        policy.predict(Observation.of(PIXELS, "a\ud800b"))


@pytest.mark.parametrize("mode", ["RGB", "I", "F"])
def test_a_picture_without_pixels_is_named(mode):
    with pytest.raises(ValueError, match=r"^image must be \[H, W, 3\] uint8 RGB, got shape \(3, 0, 3\) of uint8"):
        Observation.of(Image.new(mode, (0, 3)), "pick")


@pytest.mark.parametrize("address", ["HTTP://h/policy", "HTTPS://HuggingFace.co/a/b"])
def test_another_address_has_no_case_either(address):
    with pytest.raises(FileNotFoundError, match=r"is an address: download|hf download a/b"):
        load_policy(address)


def test_a_server_s_address_has_no_case():
    with pytest.raises(ValueError, match=r"^WS://h:1/act: give the address without /act, as in ws://HOST:PORT$"):
        load_policy("WS://h:1/act")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"image": None}, "image must be [H, W, 3] uint8 RGB, got NoneType: convert the array, or give"),
        ({"instruction": None}, "instruction must be a text that says what to do, got NoneType"),
        ({"instruction": b"pick"}, "instruction must be a text that says what to do, got bytes"),
        ({"stamp_ns": 1.5}, "stamp_ns must be a whole number of nanoseconds, got 1.5"),
        ({"stamp_ns": None}, "stamp_ns must be a whole number of nanoseconds, got None"),
        ({"stamp_ns": 2**63}, "stamp_ns must be a whole number of nanoseconds, got 9223372036854775808"),
        ({"gripper_pixel": (1.0, 2.0, 3.0)}, "gripper_pixel must be (u, v), both finite, or None, got (1.0, 2.0, 3.0)"),
        ({"gripper_pixel": (10**400, 1)}, "gripper_pixel must be (u, v), both finite, or None, got (1000"),
        ({"gripper_pixel": "ab"}, "gripper_pixel must be (u, v), both finite, or None, got 'ab'"),
        ({"gripper_pixel": (1.0, float("nan"))}, "gripper_pixel must be (u, v), both finite, or None, got (1.0, nan)"),
        ({"base_from_tool": [["a"] * 4] * 4}, "base_from_tool must be a finite [4, 4] pose or None, got [['a', 'a',"),
        ({"base_from_tool": np.eye(3)}, "base_from_tool must be a finite [4, 4] pose or None, got array([[1., 0., 0.]"),
        (
            {"base_from_tool": np.zeros((4, 4))},
            "base_from_tool must be a rotation and a translation over the row 0 0 0 1",
        ),
        (
            {"base_from_tool": np.diag([1.0, 1.0, -1.0, 1.0])},
            "base_from_tool must be a rotation and a translation over",
        ),
        (
            {"base_from_tool": np.eye(4) + np.eye(4)[3]},
            "base_from_tool must be a rotation and a translation over the row",
        ),
    ],
)
def test_a_field_that_cannot_be_is_named(fields, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        Observation(**{"image": PIXELS, "stamp_ns": 0, "instruction": "pick", **fields})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"checkpoint": None}, "checkpoint must be a name or a path, got NoneType"),
        ({"checkpoint": ""}, "checkpoint is empty: name a file, a folder, a server's address or a shipped policy"),
        ({"checkpoint": " "}, "checkpoint is empty: name a file, a folder, a server's address or a shipped policy"),
        ({"recipe": 5}, "recipe must be a name or a path, got int"),
        ({"device": None}, "must be cpu, cuda or cuda:N, got 'None'"),
        ({"settings": {"crop": "none"}}, r"settings must be CheckpointSettings\(...\) of .* or None, got dict"),
        ({"settings": ""}, r"settings must be CheckpointSettings\(...\) of .* or None, got str"),
        ({"unnorm_key": 5}, "has statistics for micro; unnorm_key 5 is not among them"),
    ],
)
def test_an_argument_of_another_type_is_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        load_policy(**{"checkpoint": "micro", **arguments})


@pytest.mark.parametrize(
    ("values", "needed"),
    [
        ({"dt_s": "x"}, "a number or None, which keeps the checkpoint's"),
        ({"guidance": "x"}, "a number or None, which keeps the checkpoint's"),
        ({"dt_s": [0.1]}, "a number or None, which keeps the checkpoint's"),
        ({"ddim_steps": "x"}, "a number or None, which keeps the checkpoint's"),
        ({"tokenizer": 5}, "a path or None, which keeps the checkpoint's"),
    ],
)
def test_a_setting_of_another_type_is_named(values, needed):
    (name,) = values
    with pytest.raises(ValueError, match=f"{name} must be {needed}, got "):
        CheckpointSettings(**values)


def test_a_path_is_as_good_as_its_name(tmp_path):
    save_checkpoint(load_policy("micro"), tmp_path / "policy.safetensors")
    (tmp_path / "mine.yaml").write_text("extends: fp32\n")
    policy = load_policy(tmp_path / "policy.safetensors", tmp_path / "mine.yaml")
    assert policy.info.recipe == "mine"


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "0", None, float("nan")])
def test_a_seed_that_is_none_is_named(seed):
    said = re.escape(f"seed must be a whole number from 0 to 9223372036854775807, got {seed!r}")
    with pytest.raises(ValueError, match=said):
        load_policy("micro", seed=seed)
    policy = load_policy("micro")
    with pytest.raises(ValueError, match=said):
        policy.predict(Observation.of(PIXELS, "pick"), seed=seed)
    assert policy.predict(Observation.of(PIXELS, "pick"), seed=np.int64(2)).seed == 2


@pytest.mark.parametrize("dtype", ["int8", "bogus", "", "float64", torch.int8, 5])
def test_a_dtype_that_no_policy_has_is_named(dtype):
    said = f"dtype must be float32, bfloat16, float16 or None, which takes the recipe's, got {dtype!r}"
    for checkpoint in ("tabletop", "micro"):
        with pytest.raises(ValueError, match=re.escape(said)):
            load_policy(checkpoint, dtype=dtype)


def test_a_view_of_an_array_is_made_contiguous():
    assert Observation.of(PIXELS[::-1, ::-1], "pick").image.flags["C_CONTIGUOUS"]


def test_the_package_offers_what_it_says():
    assert all(hasattr(sqap_vla_ros, name) for name in sqap_vla_ros.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'load_polcy'"):
        _ = sqap_vla_ros.load_polcy


WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {modules!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import numpy as np
import sqap_vla_ros
assert "torch" not in sys.modules
from sqap_vla_ros import Observation, load_policy
image = np.zeros((48, 64, 3), np.uint8)
for checkpoint, recipe in (("tabletop", "sqap_pruning"), ("micro", "sqap")):
    print(load_policy(checkpoint, recipe).predict(Observation.of(image, "pick up the red cube")).deltas.shape)
for checkpoint, recipe in (("tabletop", "sqap"), ("ws://127.0.0.1:1", "fp32")):
    try:
        load_policy(checkpoint, recipe)
    except ValueError as error:
        print(error)
from sqap_vla_ros import cli
assert cli.main(["demo", "--out", "/dev/null/out"]) == 2
"""
ABSENT = ("rclpy", "mujoco", "gymnasium", "pinocchio", "rosbags", "matplotlib", "imageio", "websockets", "msgpack")


def test_it_works_without_ros_and_without_the_simulator_and_says_what_does_not():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(modules=ABSENT)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    first, second, calibration, server = done.stdout.splitlines()
    assert first == second == "(16, 7)"
    assert "calibration on scenes of the simulator needs" in calibration
    assert "install" in calibration
    assert server == "the policy of a server needs websockets: pip install '.[serve]' in the checkout of sqap-vla-ros"


def test_the_notebook_runs_from_top_to_bottom():
    cells = json.loads((ROOT / "docs" / "python_api.ipynb").read_text())["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), names)
    assert names["chunk"].deltas.shape == (16, 7)
