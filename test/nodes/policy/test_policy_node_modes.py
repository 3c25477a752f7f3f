"""policy_node in its other modes: twists, compressed images, simulated time; and starting wrongly."""

import signal
import subprocess
import sys

import numpy as np
import pytest
from places import ROOT, SUPPORT
from policy_node_rig import HOME, Rig, assert_silent, pose_of

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes import messages

DISABLED, WAITING, RUNNING, HOLDING, STOPPED, FAULT = range(6)


def test_twist_mode_with_compressed_images_streams_velocities_and_ends_with_zero():
    frames = {"base_frame": "/base_link", "tool_frame": "/tool0"}  # with the slash of ROS 1, as in the messages
    with Rig(output_mode="twist", image_transport="compressed", **frames) as rig:
        rig.slash, rig.frame_id = "/", "/camera"
        rig.instruct("pick the cube")
        rig.enable_when_active()
        rig.wait(lambda: len(rig.got("delta_twist_cmds")) > 40)
        assert rig.diagnostics("image")["topic"] == "/image/compressed"
        begin = rig.tool.copy()
        rig.wait(lambda: rig.tool[0, 3] > begin[0, 3] + 0.01, "1 cm of motion")
        np.testing.assert_allclose(rig.tool[1:3, 3], begin[1:3, 3], atol=1e-3)
        assert all(m.header.frame_id == "base_link" for m in rig.got("delta_twist_cmds"))
        rig.trigger("stop")
        assert_silent(rig, "delta_twist_cmds")
        last = rig.got("delta_twist_cmds")[-1].twist
        assert (last.linear.x, last.linear.y, last.linear.z) == (0.0, 0.0, 0.0)


def test_the_first_commands_start_at_the_measured_pose_and_follow_the_chunks():
    """In a node of its own: after a hold the next motion starts from where the arm was told to stay."""
    with Rig() as rig:
        rig.run()
        first = pose_of(rig.got("target_pose")[0])
        assert np.linalg.norm(first[:3, 3] - HOME[:3, 3]) < 2e-3
        rig.wait(lambda: rig.tool[0, 3] > HOME[0, 3] + 0.02, "2 cm of motion")
        positions = np.array([pose_of(m)[:3, 3] for m in rig.got("target_pose")])
        assert np.linalg.norm(np.diff(positions, axis=0), axis=1).max() < 5e-3  # no jump, whatever the seams
        stamps = [messages.time_ns(m.header.stamp) for m in rig.got("target_pose")]
        assert stamps == sorted(stamps)


def test_simulated_time_that_jumps_back_is_a_new_beginning():
    with Rig(sim_time=True) as rig:
        rig.run()
        rig.wait(lambda: len(rig.got("action_chunk")) > 5)
        assert messages.time_ns(rig.got("action_chunk")[-1].header.stamp) < 2_000 * NS_PER_S
        rig.jump_clock(-500.0)  # the bag starts again
        rig.wait(lambda: "ROS time jumped by -" in rig.log)
        rig.got("action_chunk").clear()
        rig.wait(lambda: len(rig.got("action_chunk")) > 5, "chunks in the new time")
        assert messages.time_ns(rig.got("action_chunk")[-1].header.stamp) < 600 * NS_PER_S
        rig.wait_for_state(RUNNING)


def test_without_a_camera_it_waits_and_shuts_down_on_sigint():
    with Rig() as rig:
        rig.images = False
        rig.instruct("pick the cube")
        rig.enable_when_active()
        rig.wait_for_state(WAITING, "no image was received yet on /image")
        assert rig.stop_process(signal.SIGINT) == 0
        assert "Traceback" not in rig.log


def start(factory: str, *parameters: str) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(SUPPORT)!r}]\n"
        "from sqap_vla_ros.nodes.policy.node import main\n"
        f"sys.exit(main(worker_factory={factory!r}))"
    )
    arguments = [word for p in parameters for word in ("-p", p)]
    return subprocess.run(
        [sys.executable, "-c", code, "--ros-args", *arguments], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("factory", "parameter", "text"),
    [
        ("policy_doubles:straight", "output_mode:=torque", "output_mode must be one of 'joint', 'pose', 'twist'"),
        ("policy_doubles:straight", "workspace_min_m:=[0.9, 0.0, 0.0]", "workspace_min_m must be below"),
        ("policy_doubles:straight", "task_deadline_s:=60", "task_deadline_s"),  # an integer where a float is due
        ("policy_doubles:unloadable", "recipe:=fp32", "the policy cannot be loaded: no checkpoint here"),
        ("", "checkpoint:=/nowhere/at/all", "/nowhere/at/all does not exist"),
    ],
)
def test_a_wrong_start_ends_with_a_reason(factory, parameter, text):
    done = start(factory, parameter)
    assert done.returncode != 0
    assert text in done.stdout + done.stderr
