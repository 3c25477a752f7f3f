"""policy_node and simulator_node as processes, closed over DDS: images to chunks to joints that follow."""

import itertools

import cv2
import numpy as np
import pytest
from listener import Listener, wait
from ring import check_ring
from sensor_msgs.msg import CameraInfo

from sqap_vla_ros.nodes import messages
from sqap_vla_ros.nodes.launch.bringup import NodeProcesses
from sqap_vla_ros.nodes.launch.table import BRINGUPS
from sqap_vla_ros.nodes.recorder.run_recorder import RunRecorder
from sqap_vla_ros.resources import share_path

CHUNKS = 12


@pytest.fixture(scope="module")
def run():
    """(recording, camera_infos, exit status of the nodes) of a run of a dozen chunks."""
    given = {"seed": "0", "log_level": "warn", "params_file": str(share_path("config/demo.yaml"))}
    with Listener() as listener, RunRecorder() as recorder, NodeProcesses(BRINGUPS["simulation"], given) as nodes:

        def check():
            assert not nodes.ended(), f"a node ended by itself: {nodes.ended()}"

        infos = listener.collect(CameraInfo, "camera_info")
        recorder.begin(120.0, check=check)
        enough = wait(lambda: check() or recorder.chunks >= CHUNKS, 90)
        recording = recorder.finish()
        assert enough, f"{recorder.chunks} chunks; {recording.states}"
        recorder.end(20.0, check=check)
        statuses = nodes.stop()
    return recording, infos, statuses


def test_chunks_are_made_at_the_stamps_of_images(run):
    recording, infos, _ = run
    stamps = {messages.time_ns(info.header.stamp) for info in infos} | {image.stamp_ns for image in recording.images}
    made_from = [chunk.chunk.stamp_ns for chunk in recording.chunks]
    assert set(made_from) <= stamps
    assert all(a < b for a, b in itertools.pairwise(made_from))
    assert all(chunk.trajectory.times_ns[0] == chunk.chunk.stamp_ns + 200_000_000 for chunk in recording.chunks)


def test_chunks_are_anchored_at_the_tool_pose_of_that_stamp(run):
    recording, *_ = run
    for chunk in recording.chunks:
        nearest = int(np.argmin(np.abs(recording.tool_times_ns - chunk.chunk.stamp_ns)))
        if abs(recording.tool_times_ns[nearest] - chunk.chunk.stamp_ns) <= 20_000_000:
            measured = recording.tool_poses[nearest]
            assert np.linalg.norm(chunk.trajectory.anchor[:3, 3] - measured[:3, 3]) < 0.01


def test_the_ring_around_the_projected_gripper_is_kept(run):
    recording, infos, _ = run
    k, d = np.array(infos[0].k).reshape(3, 3), np.array(infos[0].d)
    views = {image.stamp_ns: image.optical_from_base for image in recording.images}
    checked = 0
    for chunk in recording.chunks:
        optical_from_base = views.get(chunk.chunk.stamp_ns)
        if optical_from_base is None or chunk.selection is None:
            continue  # this recorder lost the image, which the node had
        tool = (optical_from_base @ chunk.trajectory.anchor)[:3, 3]
        pixel = cv2.projectPoints(tool[None], np.zeros(3), np.zeros(3), k, d)[0].ravel()
        message = messages.selection_message(
            chunk.selection, None, stamp_ns=chunk.chunk.stamp_ns, frame_id="camera_optical_frame"
        )
        size = (infos[0].width, infos[0].height)
        if chunk.selection.gripper_patch is None:
            inside = np.all((pixel > 1.0) & (pixel < np.subtract(size, 2.0)))
            assert not inside, f"the gripper is seen at {pixel}, and there is no ring"
            continue
        message.gripper_u, message.gripper_v = (float(n) for n in pixel)
        check_ring(message, pixel, *size)
        checked += 1
    assert checked >= CHUNKS // 3


def test_the_arm_follows_what_was_published(run):
    recording, *_ = run
    assert recording.commands
    moved = np.linalg.norm(recording.tool_poses[:, :3, 3] - recording.tool_poses[0, :3, 3], axis=1)
    assert moved.max() > 0.005
    error = recording.commanded_positions(recording.joint_times_ns) - recording.joint_positions
    arm = [column for column, name in enumerate(recording.joint_names) if name.startswith("joint")]
    error = error[np.isfinite(error[:, arm]).all(axis=1)][:, arm]
    assert len(error) > 50
    assert np.sqrt(np.mean(error**2)) < 0.05  # rad


def test_both_nodes_end_as_they_were_told(run):
    assert run[2] == {"simulator_node": 0, "policy_node": 0}
