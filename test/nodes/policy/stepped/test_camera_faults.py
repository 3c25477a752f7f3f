"""Named faults of the camera against the engine in stepped time: nothing is predicted from it, and it is named."""

import numpy as np
import pytest
from stepped.running import QUICK, moving, told, violations
from stepped.simulated_cell import Cell

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes import messages


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (np.zeros_like, "the image is black"),
        (lambda image: np.full_like(image, 255), "it has one colour (255, 255, 255)"),
        (lambda image: (128 + image % 3).astype(np.uint8), "check the exposure, the lens cap and the driver"),
        (lambda image: image[:1, :1].copy(), "pixels: nothing can be seen"),
        (lambda image: np.repeat(image, 2, axis=0), "the camera changed during the mission"),
    ],
)
def test_images_that_show_nothing_or_another_camera_are_named(edit, words):
    with Cell("pose", seed=9, parameters={**QUICK, "max_open_loop_s": 1.0}) as cell:
        moving(cell)
        cell.switches.image_edit = edit
        chunks = cell.loop.executive.counters.chunks_published
        cell.run(2.0)
        assert cell.loop.executive.counters.chunks_published <= chunks + 2  # of images from before
        assert words in told(cell)
        assert not cell.loop.executive.moving
        assert violations(cell) == []


def test_a_frozen_picture_with_a_level_of_noise_is_named():
    with Cell("pose", seed=9, parameters={**QUICK, "max_open_loop_s": 1.0}) as cell:
        cell.switches.focal = 300.0  # the tool's place in the image moves as in one of usual size
        moving(cell)
        # As if the gripper had been seen; the cell's pictures are noise.
        cell.loop.inputs.gate._frozen._scene.shows_tool = lambda picture: True
        rng = np.random.default_rng(0)
        frozen = cell._image // 2 + 64
        cell.switches.image_edit = lambda image: (frozen + rng.integers(-1, 2, image.shape)).astype(np.uint8)
        cell.run(4.0)
        assert "s of equal images but for noise while the tool moved" in told(cell)
        assert violations(cell) == []


def test_a_camera_with_another_focal_length_ends_the_motion():
    with Cell("pose", seed=9, parameters={**QUICK, "max_open_loop_s": 1.0}) as cell:
        moving(cell)
        cell.switches.focal *= 1.5
        cell.run(1.5)
        assert "from a focal length of 30.0 pixels to a focal length of 45.0" in told(cell)
        assert not cell.loop.executive.moving
        assert violations(cell) == []


@pytest.mark.parametrize("between", [True, False])
def test_a_camera_whose_static_transform_moves_during_a_task_is_named_until_the_next(between):
    with Cell("pose", seed=9, parameters={**QUICK, "max_open_loop_s": 1.0}) as cell:
        moving(cell)
        moved = np.diag([1.0, -1.0, -1.0, 1.0])
        moved[:3, 3] = 0.45, 0.25, 1.4
        cell.place_camera(moved)
        cell.run(1.5)
        assert "the static transform from base_link to camera moved by 250 mm" in told(cell)
        assert not cell.loop.executive.moving
        cell.place_camera(moved)  # drivers repeat it
        if between:  # a moment without a task
            cell.instruct("")
            cell.run(0.1)
        cell.instruct("pick again")
        cell.run(1.5)
        assert cell.loop.executive.moving
        assert violations(cell) == []


def test_a_static_transform_that_is_repeated_or_leads_elsewhere_changes_nothing():
    with Cell("pose", seed=9, parameters=QUICK) as cell:
        moving(cell)
        cell.place_camera()
        for x in (0.0, 1.0):
            lamp = messages.transform_message(np.eye(4) + np.eye(4, k=3) * x, 0, "base_link", "lamp")
            cell.loop.inputs._transforms.set_transform_static(lamp, "cell")
        cell.run(1.0)
        assert cell.loop.executive.moving
        assert cell.loop.executive.counters.holds == 0


def test_a_normalised_camera_matrix_moves_nothing():
    with Cell("pose", seed=9, parameters=QUICK) as cell:
        cell.switches.focal = 0.5
        cell.run(0.2)
        cell.loop.inputs.observer.needs_projection = True  # as a policy with a token selection does
        cell.instruct("pick")
        cell.enable()
        cell.run(1.0)
        assert "fx and fy must be in pixels" in cell.told()
        assert cell.commands == []


def test_large_images_that_are_lost_while_camera_info_comes_are_named_with_the_remedy():
    with Cell("pose", seed=9, parameters=QUICK) as cell:
        moving(cell)
        cell.switches.image_silent = True
        cell.run(1.5)
        assert "on /image" in cell.told()
        assert "fastdds" not in cell.told()
        cell.run(1.0)
        assert "on /image, but /camera_info comes: large images are lost" in cell.told()
        assert "start with config/fastdds_shm.xml" in cell.told()


@pytest.mark.parametrize("stamp", [0, 3600, -3600])
def test_one_image_with_a_wrong_stamp_neither_holds_nor_blinds(stamp):
    with Cell("pose", seed=9, parameters=QUICK) as cell:
        moving(cell)
        cell.switches.image_stamp = stamp and cell.clock.ros_ns + stamp * NS_PER_S
        cell.run(0.1)
        cell.switches.image_stamp = None
        cell.run(1.0)
        assert cell.loop.executive.moving
        assert cell.loop.executive.counters.holds == 0
        assert cell.loop.executive.state()[1] == ""


@pytest.mark.parametrize("ahead_s", [0.5, 3600.0])
def test_images_from_the_future_are_named_whether_they_are_taken_in_or_not(ahead_s):
    with Cell("pose", seed=9, parameters={**QUICK, "max_open_loop_s": 1.0}) as cell:
        moving(cell)
        cell.switches.image_age_s = -ahead_s
        cell.run(2.0)
        assert f"stamped {ahead_s:.2f} s in the future (limit 0.1 s): synchronise the clocks" in told(cell)
        assert not cell.loop.executive.moving


def test_images_without_a_stamp_are_named():
    with Cell("pose", seed=9, parameters=QUICK) as cell:
        cell.switches.image_stamp = 0
        cell.run(0.2)
        cell.instruct("pick")
        cell.enable()
        cell.run(1.0)
        assert "images are stamped zero: the driver must set header.stamp (/image)" in told(cell)
        assert cell.commands == []


def test_images_that_stop_while_camera_info_is_missing_are_named_too():
    with Cell("pose", seed=9, parameters=QUICK | {"image_timeout_s": 0.4}) as cell:
        moving(cell)
        cell.switches.info_silent = True
        cell.run(0.7)
        assert "no new image" not in cell.told()  # they come, and nobody can use them
        cell.switches.info_silent, cell.switches.image_silent = False, True
        cell.run(0.5)
        assert "no camera_info has the stamp of the newest image" in cell.told()
        assert "no new image for 0." in cell.told()


def test_images_that_stop_after_some_without_a_stamp_are_named_too():
    with Cell("pose", seed=9, parameters=QUICK | {"image_timeout_s": 0.4}) as cell:
        moving(cell)
        cell.switches.image_stamp = 0
        cell.run(0.3)
        cell.switches.image_silent = True
        cell.run(0.3)
        assert "images are stamped zero" in cell.told()
        assert "no new image for 0." in cell.told()
        cell.run(1.0)
        assert "images are stamped zero" not in cell.told()  # what is said is what is so now
        assert "no new image for 1." in cell.told()
