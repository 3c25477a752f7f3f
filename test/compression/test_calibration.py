import dataclasses

import cv2
import numpy as np
import pytest

from sqap_vla_ros.compression.calibration import (
    CalibrationError,
    load_observations,
    report_observations,
    synthetic_observations,
)
from sqap_vla_ros.shipped import CALIBRATION_SOURCES


def folder_of_images(folder, count: int):
    for index in range(count):
        cv2.imwrite(str(folder / f"{index:02d}.png"), np.full((4, 6, 3), (index, 0, 200), np.uint8))
    return folder


def test_folder_with_one_instruction(tmp_path):
    folder_of_images(tmp_path, 5)
    (tmp_path / "instructions.txt").write_text("pick up the can\n")
    found = load_observations(str(tmp_path), 3)
    assert [o.instruction for o in found] == ["pick up the can"] * 3
    # spread over the folder, and RGB
    assert [o.image[0, 0].tolist() for o in found] == [[200, 0, 0], [200, 0, 2], [200, 0, 4]]


def test_pictures_of_a_folder_are_read_as_predict_reads_them(tmp_path):
    """Sixteen bits are scaled, not clipped to white."""
    cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 6), 0x8000, np.uint16))
    (tmp_path / "instructions.txt").write_text("push\n")
    (found,) = load_observations(str(tmp_path), 3)
    assert found.image[0, 0].tolist() == [128] * 3


def test_folder_with_an_instruction_each(tmp_path):
    folder_of_images(tmp_path, 2)
    (tmp_path / "instructions.txt").write_text("00.png\tpush\n\n01.png\t lift it \n")
    assert [o.instruction for o in load_observations(str(tmp_path), 9)] == ["push", "lift it"]


def test_bad_folders_are_explained(tmp_path):
    with pytest.raises(CalibrationError, match="holds no images"):
        load_observations(str(tmp_path), 3)
    folder_of_images(tmp_path, 2)
    with pytest.raises(CalibrationError, match=r"instructions\.txt is missing: write one"):
        load_observations(str(tmp_path), 3)
    (tmp_path / "instructions.txt").write_text("00.png\tpush\n")
    with pytest.raises(CalibrationError, match=r"has no instruction for 01\.png"):
        load_observations(str(tmp_path), 3)
    (tmp_path / "instructions.txt").write_text("push\n")
    (tmp_path / "01.png").write_bytes(b"not a picture")
    with pytest.raises(CalibrationError, match=r"01\.png is not a picture"):
        load_observations(str(tmp_path), 3)
    with pytest.raises(
        CalibrationError, match="is not a folder of images; give one, a bag, or `synthetic`; the folder of a LeRobot"
    ):
        load_observations(str(tmp_path / "nothing"), 3)
    with pytest.raises(CalibrationError, match="limit of 0"):
        load_observations("synthetic", 0)


def test_synthetic_scenes_repeat_and_differ():
    one, again, other = (synthetic_observations(2, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one[1].image, again[1].image)
    assert not np.array_equal(one[1].image, other[1].image)
    assert not np.array_equal(one[0].image, one[1].image)


def test_a_picture_that_calibrates_is_never_held_out():
    """Not even as a copy under another time and instruction, as a still camera gives it."""
    scenes = synthetic_observations(6)
    copies = [dataclasses.replace(scene, stamp_ns=99, instruction="other") for scene in scenes[:2]]
    compared = report_observations(scenes[:2], [*copies, *scenes], 3)
    assert compared.held_out
    assert [each.stamp_ns for each in compared.observations] == [2, 3, 5]
    assert compared.words == "3 held-out observations"
    assert report_observations(scenes[:2], scenes[:3], 3).words == "1 held-out observation"
    own = report_observations(scenes[:4], [*copies, *scenes[:4]], 8)
    assert [each.stamp_ns for each in own.observations] == [0, 1, 2, 3]
    assert not own.held_out
    assert own.words == "the calibration's own observations (4)"


def test_the_number_after_the_source_counts():
    assert len(load_observations("synthetic:3", 9)) == 3
    assert len(load_observations("simulator:2", 9, CALIBRATION_SOURCES)) == 2
    with pytest.raises(CalibrationError, match="'simulator:many': a whole number"):
        load_observations("simulator:many", 9, CALIBRATION_SOURCES)
    with pytest.raises(CalibrationError, match="limit of 0"):
        load_observations("simulator:0", 9, CALIBRATION_SOURCES)
