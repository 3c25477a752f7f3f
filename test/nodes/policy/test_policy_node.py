"""policy_node as a process over DDS, output mode pose: what it does when everything is there."""

import json

import numpy as np
import pytest
from nav_msgs.msg import Path
from policy_doubles import GRID, STEP_M
from policy_node_rig import DISABLED, HEIGHT, RUNNING, WAITING, WIDTH
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from sqap_vla_ros.msg import PolicyStatus
from trajectory_msgs.msg import MultiDOFJointTrajectory
from visualization_msgs.msg import MarkerArray

from sqap_vla_ros.nodes import messages
from sqap_vla_ros.nodes.policy.sinks.table import SINKS

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
    refused = rig.set_parameter("use_sim_time", True)
    assert not refused.successful
    assert "use_sim_time cannot change while the node is configured" in refused.reason
    refused = rig.set_parameter("blend_s", 0.5)
    assert not refused.successful
    assert "blend_s is read when the node is configured" in refused.reason
    refused = rig.set_parameter("output_mode", "torque")
    assert f"must be one of {', '.join(map(repr, SINKS))}" in refused.reason


# From the image to the command


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


def test_the_gripper_is_commanded_once_and_not_streamed(rig):
    rig.run()
    rig.wait(lambda: len(rig.got("action_chunk")) > 10)
    assert [list(m.data) for m in rig.got("gripper_command")] == [[0.04]]


def test_status_reports_times_tokens_and_counts(rig):
    rig.run()
    rig.wait(lambda: len(rig.got("action_chunk")) > 3)
    status: PolicyStatus = rig.wait(
        lambda: (s := rig.wait_for_state(RUNNING)) and 0.0 < s.observation_age_s < 0.5 and s, "a timely prediction"
    )
    assert status.enabled
    assert not status.dry_run
    assert status.instruction == "pick the cube"
    assert messages.time_ns(status.observation_stamp) in rig.stamps
    assert list(status.stage_names) == ["queued", "total"]
    assert 0.0 < status.overhead_ms < 500.0
    assert (status.tokens_kept, status.tokens_total) == (154, 256)
    assert status.images_received > 0


def test_model_info_and_diagnostics(process):
    info = json.loads(process.wait(lambda: process.got("model_info"))[-1].data)
    assert info["recipe"] == "fp32"
    assert info["horizon"] == 16
    for name in ("state", "image", "camera_info", "TF", "joint_states", "policy worker", "compression", "safety"):
        assert process.diagnostics(name)
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
