"""policy_node as a process over DDS: inputs that are missing, late, wrong or do not fit together."""

import time

import numpy as np
import pytest
from policy_node_rig import (
    FOCAL,
    HEIGHT,
    HOLDING,
    RUNNING,
    WAITING,
    WIDTH,
    assert_holding_at_the_measured_pose,
    assert_silent,
)

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes import messages


def test_lost_images_finish_the_chunk_hold_once_and_come_back(rig):
    rig.run()
    seen = len(rig.got("status"))
    rig.images = False
    rig.wait(
        lambda: any("finishing the current chunk: no new image" in s.reason for s in rig.got("status")[seen:]),
        "the end of the chunk",
    )
    status = rig.wait_for_state(HOLDING, "no new image for")
    assert "/image" in status.reason
    assert_holding_at_the_measured_pose(rig)
    rig.images = True
    rig.wait_for_state(RUNNING)
    count = len(rig.got("target_pose"))
    rig.wait(lambda: len(rig.got("target_pose")) > count + 5, "commands again")


def test_stale_images_are_not_predicted_from(rig):
    rig.image_delay_ns = 2 * NS_PER_S
    rig.settle(0.3)
    begin_ns = time.monotonic_ns()
    rig.instruct("pick the cube")
    rig.enable()
    status = rig.wait_for_state(WAITING, "the image is stale: stamped 2.")
    assert "limit 0.5 s" in status.reason
    assert not rig.predicted_since(begin_ns)


def test_images_from_the_future_are_not_predicted_from(rig):
    rig.image_delay_ns = -NS_PER_S
    rig.settle(0.3)
    begin_ns = time.monotonic_ns()
    rig.instruct("pick the cube")
    rig.enable()
    rig.wait_for_state(WAITING, "in the future")
    assert not rig.predicted_since(begin_ns)


def test_out_of_order_images_are_dropped(rig):
    rig.run()
    rig.wait(lambda: rig.got("action_chunk"))
    early_ns = rig.now_ns() - NS_PER_S // 3
    rig.settle(0.2)
    for shift in range(3):
        rig.send_image(early_ns + shift)
    rig.settle(0.3)
    stamps = [messages.time_ns(m.header.stamp) for m in rig.got("action_chunk")]
    assert stamps == sorted(stamps)
    assert not {early_ns, early_ns + 1, early_ns + 2} & set(stamps)


def test_a_frozen_camera_is_noticed_while_the_tool_moves(rig):
    rig.run()
    rig.noise = False
    status = rig.wait_for_state(HOLDING, "the camera is frozen")
    assert "/image" in status.reason
    rig.noise = True
    rig.wait_for_state(RUNNING)


def test_a_tf_gap_stops_predictions_and_then_holds(rig):
    rig.run()
    rig.transforms = False
    status = rig.wait_for_state(HOLDING, "no transform")
    assert "base_link" in status.reason
    assert "tool0" in status.reason
    assert_silent(rig, "action_chunk")
    assert_holding_at_the_measured_pose(rig)
    rig.transforms = True
    rig.wait_for_state(RUNNING)


def test_tf_that_was_never_there_is_named(rig):
    rig.frame_id = "unknown_camera"
    rig.settle(0.3)
    begin_ns = time.monotonic_ns()
    rig.instruct("pick the cube")
    rig.enable()
    status = rig.wait_for_state(WAITING, "unknown_camera")
    assert "no transform" in status.reason
    assert not rig.predicted_since(begin_ns)


def test_late_tf_is_waited_for(rig):
    rig.transform_delay_s = 0.12
    rig.run()
    rig.wait(lambda: len(rig.got("action_chunk")) > 5)
    for message in rig.got("action_chunk"):
        chunk, trajectory = messages.chunk_from_message(message)
        np.testing.assert_allclose(trajectory.anchor, rig.stamps[chunk.stamp_ns], atol=1e-9)


def test_tf_later_than_the_timeout_is_not(rig):
    rig.transform_delay_s = 0.45
    rig.settle(0.3)
    begin_ns = time.monotonic_ns()
    rig.instruct("pick the cube")
    rig.enable()
    rig.wait_for_state(WAITING, "no transform")
    assert not rig.predicted_since(begin_ns)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("focal", 0.0, ("uncalibrated", "/image")),
        (
            "focal",
            0.7 * FOCAL,
            ("not the camera that the policy was trained with", "about 75 x 59 degrees and was 56 x 44"),
        ),
        ("info_width", WIDTH * 2, (f"{WIDTH}x{HEIGHT}",)),
    ],
    ids=["uncalibrated", "another field of view than in training", "another size"],
)
def test_a_camera_that_does_not_fit_is_refused_with_the_reason(rig, field, value, words):
    setattr(rig, field, value)
    rig.settle(0.3)
    begin_ns = time.monotonic_ns()
    rig.instruct("pick the cube")
    rig.enable()
    status = rig.wait_for_state(WAITING, "/camera_info")
    for each in words:
        assert each in status.reason
    assert not rig.predicted_since(begin_ns)


def test_missing_camera_info_is_named(rig):
    rig.infos = False
    rig.settle(0.8)
    begin_ns = time.monotonic_ns()
    rig.instruct("pick the cube")
    rig.enable()
    status = rig.wait_for_state(WAITING, "camera_info")
    assert "/image, /camera_info" in status.reason
    assert not rig.predicted_since(begin_ns)


@pytest.mark.parametrize(
    ("axis", "place_m", "note"),
    [(2, 1.35, "behind the camera"), (1, 0.55, "outside the image: (u, v) = (")],
    ids=["behind the camera", "out of view"],
)
def test_a_gripper_that_is_not_seen_has_no_ring_and_it_runs_and_says_so(rig, axis, place_m, note):
    rig.tool[axis, 3] = place_m
    rig.settle(0.3)
    rig.set_parameter("dry_run", True)
    rig.instruct("pick the cube")
    rig.enable()
    rig.wait_for_state(RUNNING)
    selection = rig.wait(lambda: rig.got("token_selection"))[-1]
    assert not selection.gripper_in_view
    assert note in selection.gripper_note
