"""The node with its policy behind a socket, as on another computer."""

import pytest
from policy_node_rig import Rig
from sqap_vla_ros.msg import PolicyStatus
from workers.link import BadLink
from workers.served import Served

pytestmark = pytest.mark.ros


def test_the_policy_may_be_on_another_computer():
    with Served("policy_doubles:straight") as served, Rig(factory="", checkpoint=served.url) as rig:
        rig.wait_for_state(PolicyStatus.DISABLED)
        rig.run()
        rig.wait(lambda: len(rig.got("target_pose")) > 5, "commands")
        served.stop()
        rig.wait(lambda: rig.status.state != PolicyStatus.RUNNING, "an end of the motion")
        rig.wait(lambda: f"for the server at {served.url}" in rig.status.reason, "the name of who is waited for")
        assert rig.trigger("stop").success


def test_a_server_that_was_never_there_is_named_in_the_status():
    with Rig(factory="", checkpoint="ws://127.0.0.1:9") as rig:
        rig.wait_for_state(PolicyStatus.DISABLED, "for the server at ws://127.0.0.1:9/native: Connection refused")


def test_a_slow_link_holds_the_arm_and_a_quick_one_moves_it_again():
    with (
        Served("policy_doubles:straight") as served,
        BadLink(served.url) as link,
        Rig(factory="", checkpoint=link.url) as rig,
    ):
        rig.wait_for_state(PolicyStatus.DISABLED)
        rig.run()
        rig.wait(lambda: len(rig.got("target_pose")) > 5, "commands")
        assert "network" in rig.status.stage_names
        link.delay_s = 2.5  # longer than the motion that a chunk allows
        rig.wait(lambda: rig.status.state != PolicyStatus.RUNNING, "a hold")
        assert rig.status.enabled
        link.delay_s = 0.0
        rig.wait(lambda: rig.status.state == PolicyStatus.RUNNING, "motion")
