"""policy_node as a process over DDS, output mode pose: every rule of when it predicts, moves and holds."""

import json
import os
import signal

import numpy as np
import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import Path
from policy_doubles import GRID, STEP_M
from policy_node_rig import FOCAL, HEIGHT, HOME, WIDTH, Rig
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from sqap_vla_ros.msg import PolicyStatus
from trajectory_msgs.msg import MultiDOFJointTrajectory
from visualization_msgs.msg import MarkerArray

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes import messages

DISABLED, WAITING, RUNNING, HOLDING, STOPPED, FAULT = range(6)


@pytest.fixture(scope="module")
def process():
    with Rig() as rig:
        rig.wait_for_state(DISABLED)
        yield rig


@pytest.fixture
def rig(process: Rig) -> Rig:
    process.home()
    return process


def pose_of(message) -> np.ndarray:
    return messages.pose_from_message(message.pose)


def still(rig: Rig, topic: str = "target_pose", seconds: float = 0.4) -> None:
    """Nothing more comes on this topic."""
    rig.settle(0.15)
    count = len(rig.got(topic))
    rig.settle(seconds)
    assert len(rig.got(topic)) == count, f"{topic} still came; {rig.summary()}"


def assert_holding_at_the_measured_pose(rig: Rig) -> None:
    still(rig)
    np.testing.assert_allclose(pose_of(rig.got("target_pose")[-1]), rig.tool, atol=2e-3)


# Starting


def test_disabled_it_neither_predicts_nor_commands(rig):
    rig.instruct("pick the cube")
    rig.settle(0.6)
    assert rig.status.state == DISABLED
    assert not rig.got("action_chunk")
    assert not rig.got("target_pose")


def test_without_an_instruction_it_waits_and_says_so(rig):
    response = rig.enable()
    assert response.success
    assert "no instruction" in response.message
    rig.wait_for_state(WAITING, "no instruction")
    rig.settle(0.3)
    assert not rig.got("action_chunk")
    rig.instruct("pick the cube")
    rig.wait_for_state(RUNNING)
    assert rig.wait(lambda: rig.got("action_chunk"))[-1].instruction == "pick the cube"


def test_a_dry_run_publishes_everything_but_commands_and_changes_only_while_disabled(rig):
    assert rig.set_parameter("dry_run", True).successful
    rig.instruct("pick the cube")
    rig.enable()
    rig.wait_for_state(RUNNING, "dry run")
    rig.wait(lambda: len(rig.got("action_chunk")) > 5)
    rig.wait(lambda: rig.got("token_selection"))
    assert not rig.got("target_pose")
    assert not rig.got("gripper_command")
    refused = rig.set_parameter("dry_run", False)
    assert not refused.successful
    assert "while the node is enabled" in refused.reason


def test_parameters_that_would_not_take_effect_are_refused(rig):
    refused = rig.set_parameter("blend_s", 0.5)
    assert not refused.successful
    assert "blend_s is read when the node is configured" in refused.reason
    refused = rig.set_parameter("output_mode", "torque")
    assert "must be one of 'joint', 'pose', 'twist'" in refused.reason


# The way of the data


def test_a_chunk_is_anchored_at_the_tool_pose_of_its_image(rig):
    rig.run()
    rig.wait(lambda: len(rig.got("action_chunk")) > 10)
    for message in rig.got("action_chunk"):
        chunk, trajectory = messages.chunk_from_message(message)
        assert chunk.stamp_ns in rig.stamps
        assert message.header.frame_id == "base_link"
        assert message.tool_frame == "tool0"
        np.testing.assert_allclose(trajectory.anchor, rig.stamps[chunk.stamp_ns], atol=1e-9)
        np.testing.assert_allclose(trajectory.poses[:, 0, 3] - trajectory.anchor[0, 3], STEP_M * np.arange(1, 17))


def test_the_gripper_patch_is_where_the_tool_is_in_the_image(rig):
    rig.run()
    selection = rig.wait(lambda: rig.got("token_selection"))[-1]
    assert selection.gripper_in_view
    # Straight below the camera is the image's centre.
    assert selection.gripper_u == pytest.approx(WIDTH / 2, abs=3.0)
    assert selection.gripper_v == pytest.approx(HEIGHT / 2, abs=3.0)
    assert (selection.gripper_row, selection.gripper_col) == (GRID[0] // 2, GRID[1] // 2)


def test_commands_start_at_the_measured_pose_and_follow_the_chunks(rig):
    rig.run()
    first = pose_of(rig.got("target_pose")[0])
    assert np.linalg.norm(first[:3, 3] - HOME[:3, 3]) < 2e-3
    rig.wait(lambda: rig.tool[0, 3] > HOME[0, 3] + 0.02, "2 cm of motion")
    positions = np.array([pose_of(m)[:3, 3] for m in rig.got("target_pose")])
    assert np.linalg.norm(np.diff(positions, axis=0), axis=1).max() < 5e-3  # no jump, whatever the seams
    stamps = [messages.time_ns(m.header.stamp) for m in rig.got("target_pose")]
    assert stamps == sorted(stamps)


def test_the_gripper_is_commanded_once_and_not_streamed(rig):
    rig.run()
    rig.wait(lambda: len(rig.got("action_chunk")) > 10)
    assert [list(m.data) for m in rig.got("gripper_command")] == [[0.04]]


def test_status_reports_times_tokens_and_counts(rig):
    rig.run()
    rig.wait(lambda: len(rig.got("action_chunk")) > 3)
    status: PolicyStatus = rig.wait_for_state(RUNNING)
    assert status.enabled
    assert not status.dry_run
    assert status.instruction == "pick the cube"
    assert messages.time_ns(status.observation_stamp) in rig.stamps
    assert 0.0 < status.observation_age_s < 0.5
    assert list(status.stage_names) == ["queued", "total"]
    assert 0.0 < status.overhead_ms < 500.0
    assert (status.tokens_kept, status.tokens_total) == (154, 256)
    assert status.images_received > 0


def test_model_info_and_diagnostics(process):
    info = json.loads(process.wait(lambda: process.got("model_info"))[-1].data)
    assert info["recipe"] == "fp32"
    assert info["horizon"] == 16
    for name in ("state", "image", "camera_info", "TF", "joint_states", "policy worker", "compression", "safety"):
        assert process.wait(lambda name=name: process.diagnostics(name), name) is not None
    assert process.diagnostics("image")["topic"] == "/image"
    assert int(process.diagnostics("policy worker")["pid"]) > 0


def test_pictures_are_made_only_for_subscribers(rig):
    rig.run()
    rig.subscribe("policy_node/overlay", Image, QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    rig.subscribe("policy_node/path", Path)
    rig.subscribe("policy_node/markers", MarkerArray)
    rig.subscribe("policy_node/action_trajectory", MultiDOFJointTrajectory)
    overlay = rig.wait(lambda: rig.got("overlay"))[-1]
    assert (overlay.width, overlay.height, overlay.encoding) == (WIDTH, HEIGHT, "rgb8")
    assert messages.time_ns(overlay.header.stamp) in rig.stamps
    assert len(rig.wait(lambda: rig.got("path"))[-1].poses) == 16
    assert len(rig.wait(lambda: rig.got("action_trajectory"))[-1].points) == 16
    assert len(rig.wait(lambda: rig.got("markers"))[-1].markers[0].points) == 16


# Inputs that fail


def test_lost_images_finish_the_chunk_hold_once_and_come_back(rig):
    rig.run()
    rig.images = False
    rig.wait_for_state(RUNNING, "finishing the current chunk: no new image")
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
    rig.instruct("pick the cube")
    rig.enable()
    status = rig.wait_for_state(WAITING, "the image is stale: stamped 2.")
    assert "limit 0.5 s" in status.reason
    assert not rig.got("action_chunk")


def test_images_from_the_future_are_not_predicted_from(rig):
    rig.image_delay_ns = -NS_PER_S
    rig.settle(0.3)
    rig.instruct("pick the cube")
    rig.enable()
    rig.wait_for_state(WAITING, "in the future")
    assert not rig.got("action_chunk")


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
    count = len(rig.got("action_chunk"))
    rig.settle(0.3)
    assert len(rig.got("action_chunk")) == count
    assert_holding_at_the_measured_pose(rig)
    rig.transforms = True
    rig.wait_for_state(RUNNING)


def test_tf_that_was_never_there_is_named(rig):
    rig.frame_id = "unknown_camera"
    rig.settle(0.3)
    rig.instruct("pick the cube")
    rig.enable()
    status = rig.wait_for_state(WAITING, "unknown_camera")
    assert "no transform" in status.reason
    assert not rig.got("action_chunk")


def test_late_tf_is_waited_for(rig):
    rig.transform_delay_s = 0.12
    rig.run()
    rig.wait(lambda: len(rig.got("action_chunk")) > 5)
    for message in rig.got("action_chunk"):
        chunk, trajectory = messages.chunk_from_message(message)
        np.testing.assert_allclose(trajectory.anchor, rig.stamps[chunk.stamp_ns], atol=1e-9)


def test_tf_later_than_the_timeout_is_not(rig):
    rig.transform_delay_s = 0.45
    rig.settle(0.5)
    rig.instruct("pick the cube")
    rig.enable()
    rig.wait_for_state(WAITING, "no transform")
    assert not rig.got("action_chunk")


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
    rig.instruct("pick the cube")
    rig.enable()
    status = rig.wait_for_state(WAITING, "/camera_info")
    for each in words:
        assert each in status.reason
    assert not rig.got("action_chunk")


def test_missing_camera_info_is_named(rig):
    rig.infos = False
    rig.settle(0.8)
    rig.instruct("pick the cube")
    rig.enable()
    status = rig.wait_for_state(WAITING, "camera_info")
    assert "/image, /camera_info" in status.reason
    assert not rig.got("action_chunk")


def test_a_gripper_behind_the_camera_has_no_ring_and_it_runs_and_says_so(rig):
    rig.tool[2, 3] = 1.35
    rig.settle(0.3)
    rig.set_parameter("dry_run", True)
    rig.instruct("pick the cube")
    rig.enable()
    rig.wait_for_state(RUNNING)
    selection = rig.wait(lambda: rig.got("token_selection"))[-1]
    assert not selection.gripper_in_view
    assert "behind the camera" in selection.gripper_note


def test_a_gripper_out_of_view_has_no_ring_and_it_runs_and_says_so(rig):
    rig.tool[1, 3] = 0.55
    rig.settle(0.3)
    rig.set_parameter("dry_run", True)
    rig.instruct("pick the cube")
    rig.enable()
    rig.wait_for_state(RUNNING)
    selection = rig.wait(lambda: rig.got("token_selection"))[-1]
    assert not selection.gripper_in_view
    assert "outside the image: (u, v) = (" in selection.gripper_note


# Chunks that fail


@pytest.mark.parametrize(
    ("behaviour", "text"),
    [
        ("not finite", "not finite"),
        ("misshapen", "[16, 6]"),
        ("raise", "always fails"),
        ("nothing", "returned NoneType"),
    ],
)
def test_unusable_chunks_publish_nothing_and_latch_a_fault(rig, behaviour, text):
    rig.instruct(behaviour)
    rig.enable()
    status = rig.wait_for_state(FAULT, "3 unusable chunks in a row")
    assert text in status.reason
    assert not rig.got("action_chunk")
    assert not rig.got("target_pose")
    assert status.chunks_rejected >= 3
    response = rig.enable()
    assert not response.success
    assert "~/reset_fault" in response.message
    assert rig.trigger("reset_fault").success
    rig.wait_for_state(DISABLED)


def test_a_fault_while_moving_holds(rig):
    rig.run()
    rig.instruct("not finite")
    rig.wait_for_state(FAULT)
    assert_holding_at_the_measured_pose(rig)


def test_a_chunk_that_leaves_the_workspace_is_not_executed(rig):
    rig.instruct("far")
    rig.enable()
    rig.wait_for_state(WAITING, "outside the workspace")
    assert rig.got("action_chunk")  # people may see what the policy wanted
    assert not rig.got("target_pose")


def test_a_tool_that_is_not_where_it_was_told_to_be_is_held_and_latches_in_the_end(rig):
    rig.run()
    rig.follow = False
    for push in range(3):
        count = len(rig.got("target_pose"))
        rig.wait(lambda count=count: len(rig.got("target_pose")) > count + 3, "commands")
        rig.tool[1, 3] += 0.15 * (-1) ** push
        rig.wait(lambda push=push: int(rig.diagnostics("safety")["tracking errors"]) > push, timeout_s=5.0)
    status = rig.wait_for_state(FAULT, "tracking error: the tool is 1")
    assert "3 times in a row" in status.reason
    assert_holding_at_the_measured_pose(rig)


# Stopping


def test_stop_latches_and_holds(rig):
    rig.run()
    assert rig.trigger("stop").success
    rig.wait_for_state(STOPPED, "~/stop")
    assert_holding_at_the_measured_pose(rig)
    assert not rig.enable().success
    rig.trigger("reset_fault")
    rig.wait_for_state(DISABLED)


def test_safety_stop_latches_until_it_is_released_and_reset(rig):
    rig.run()
    rig.safety_stop(True)
    rig.wait_for_state(STOPPED, "safety_stop")
    assert_holding_at_the_measured_pose(rig)
    assert not rig.trigger("reset_fault").success
    rig.safety_stop(False)
    rig.settle(0.2)
    assert rig.status.state == STOPPED  # a release alone clears nothing
    assert rig.trigger("reset_fault").success
    rig.wait_for_state(DISABLED)


def test_disable_holds(rig):
    rig.run()
    rig.enable(False)
    rig.wait_for_state(DISABLED)
    assert_holding_at_the_measured_pose(rig)


def test_an_arm_that_was_moved_between_two_tasks_starts_where_it_is(rig):
    rig.run("late")
    rig.wait(lambda: int(rig.diagnostics("safety")["starved"]) > 0, "a motion that ended before the next chunk came")
    rig.enable(False)
    rig.wait_for_state(DISABLED)
    rig.settle(0.1)
    rig.tool[0, 3] += 0.06  # by hand, less than what would count as a tracking error
    moved, count = rig.tool.copy(), len(rig.got("target_pose"))
    rig.instruct("pick the cube")
    rig.enable()
    rig.wait(lambda: len(rig.got("target_pose")) > count, "a command")
    first = pose_of(rig.got("target_pose")[count])
    assert np.linalg.norm(first[:3, 3] - moved[:3, 3]) < 5e-3


def test_deactivate_holds_as_the_last_command_and_activate_brings_it_back(rig):
    rig.run()

    def change(transition: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=transition))
        return rig.call("change_state", ChangeState, request).success

    assert change(Transition.TRANSITION_DEACTIVATE)
    assert_holding_at_the_measured_pose(rig)
    response = rig.enable()
    assert not response.success
    assert "not active" in response.message
    assert change(Transition.TRANSITION_ACTIVATE)
    rig.got("target_pose").clear()
    rig.run()


# The worker


def test_a_killed_worker_is_held_restarted_and_reported(rig):
    rig.run()
    pid = int(rig.wait(lambda: rig.diagnostics("policy worker"))["pid"])
    os.kill(pid, signal.SIGKILL)
    rig.wait_for_state(HOLDING, "ended by SIGKILL")
    assert_holding_at_the_measured_pose(rig)
    rig.wait_for_state(RUNNING)
    count = len(rig.got("target_pose"))
    rig.wait(lambda: len(rig.got("target_pose")) > count + 5, "commands again")
    rig.wait(lambda: int(rig.diagnostics("policy worker")["restarts"]) >= 1)
    assert rig.diagnostics("policy worker")["pid"] != str(pid)


def test_sigterm_holds_as_the_last_command_and_leaves_nothing_behind(rig):
    rig.run()
    pid = int(rig.wait(lambda: rig.diagnostics("policy worker"))["pid"])
    begin = len(rig.log)
    assert rig.stop_process(signal.SIGTERM) == 0
    assert_holding_at_the_measured_pose(rig)
    assert not os.path.exists(f"/proc/{pid}")
    assert "Traceback" not in rig.log[begin:], rig.log[begin:]
    begin = len(rig.log)
    rig.start_process()
    rig.wait(lambda: "active: call ~/enable" in rig.log[begin:])


def test_an_unexpected_error_holds_before_the_process_ends(rig):
    rig.run()
    rig.instruct("defect")
    assert rig.wait(lambda: rig.process.poll() is not None) is True
    assert rig.process.returncode == 1
    assert_holding_at_the_measured_pose(rig)
    assert "ending after an unexpected error" in rig.log
    begin = len(rig.log)
    rig.start_process()
    rig.wait(lambda: "active: call ~/enable" in rig.log[begin:])
