"""Calibration files of both kinds, and files that are none."""

import json
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sqap_vla_ros.nodes.bags.spec import read_camera_info_message, read_segments
from sqap_vla_ros.robot.calibration_file import read_camera_info


def test_calibration_files_of_both_kinds(tmp_path):
    k, p = list(range(1, 10)), list(range(12))
    calibration = {
        "image_width": 640,
        "image_height": 480,
        "distortion_model": "rational_polynomial",
        "camera_matrix": {"rows": 3, "cols": 3, "data": k},
        "distortion_coefficients": {"data": [0.1] * 8},
        "projection_matrix": {"data": p},
    }
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(calibration))
    info = read_camera_info(tmp_path / "a.yaml")
    assert (info.width, info.height, info.k, info.d, info.p) == (640, 480, k, [0.1] * 8, p)
    assert (info.distortion_model, info.binning_x, info.roi.width) == ("rational_polynomial", 0, 0)
    (tmp_path / "b.yaml").write_text("width: 640\n")
    with pytest.raises(ValueError, match="lacks height, k: it is not a camera calibration"):
        read_camera_info(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_text("just words")
    with pytest.raises(ValueError, match="must hold the fields of a CameraInfo, got str"):
        read_camera_info(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": 5}, "k must be 9 numbers, got 5"),
        ({"k": [1.0] * 8}, "k must be 9 numbers"),
        ({"d": ["much"]}, r"d must be a list of numbers, got \['much'\]"),
        ({"p": {"data": [0.0] * 11}}, "p must be 12 numbers"),
        ({"width": -640}, "width must be a whole number from 0 to 4294967295, got -640"),
        ({"height": 480.5}, "height must be a whole number"),
        ({"roi": 3}, "roi must have x_offset"),
        ({"k": [float("nan")] * 9}, "k must be 9 numbers"),
    ],
)
def test_a_wrong_field_is_named_with_its_value(tmp_path, changed, message):
    fields = {"width": 640, "height": 480, "k": [1.0] * 9, **changed}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(fields))
    with pytest.raises(ValueError, match=message):
        read_camera_info(tmp_path / "a.yaml")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=13) | st.dictionaries(st.just("data"), inner, max_size=1),
    max_leaves=15,
)
FIELDS = st.sampled_from(["width", "height", "k", "d", "r", "p", "roi", "binning_x", "camera_matrix"])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(fields=st.dictionaries(FIELDS, VALUES, max_size=6), text=st.binary(max_size=40), whole=st.booleans())
def test_any_file_is_a_calibration_or_a_value_error(fields, text, whole):
    base = {"width": 640, "height": 480, "k": [1.0] * 9} if whole else {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.yaml")
        for content in (json.dumps(base | fields).encode(), text):
            path.write_bytes(content)
            for read in (read_camera_info_message, read_segments):
                try:
                    read(path)
                except ValueError as error:
                    assert str(path) in str(error)  # noqa: PT017 a file may be fine too


def test_nesting_without_end_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("[" * 1000)
    for read in (read_camera_info, read_segments):
        with pytest.raises(ValueError, match=r"a\.yaml"):
            read(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- 1\n- 2", "got 1"),
        ("[]", r"got \[\]"),
        ("- {from_s: 0, instruction: null}", "got {'from_s': 0, 'instruction': None}"),
        ("- {from_s: 0, instruction: [1]}", "must be a YAML list"),
        ("- {from_s: .nan, instruction: a}", "must be a YAML list"),
        ("- {from_s: 0, instruction: ' '}", "the instruction is empty|has no visible"),
        ("a: b: c\n  - [", "is not valid YAML: [^\n]*$"),
    ],
)
def test_segments_that_say_nothing_are_refused_in_one_line(tmp_path, text, said):
    (tmp_path / "segments.yaml").write_text(text)
    with pytest.raises(ValueError, match=said) as error:
        read_segments(tmp_path / "segments.yaml")
    assert "Error" not in str(error.value)
