"""policy_node as a process over DDS: no stop is lost, whoever says it and whenever, and orders are heard in any QoS."""

import numpy as np
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from policy_node_rig import LATCHED, RUNNING, STOPPED, TIMEOUT_S, Rig, assert_silent, pose_of
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from std_msgs.msg import Bool, String


def change(rig: Rig, transition: int) -> bool:
    request = ChangeState.Request(transition=Transition(id=transition))
    return rig.call("change_state", ChangeState, request).success


def test_a_stop_is_heard_best_effort_and_holds_through_cleanup_and_configure(rig):
    quick = rig.node.create_publisher(Bool, "safety_stop", qos_profile_sensor_data)
    rig.run()
    quick.publish(Bool(data=True))
    rig.wait_for_state(STOPPED, "safety_stop is set")
    assert_silent(rig)
    for transition in (
        Transition.TRANSITION_DEACTIVATE,
        Transition.TRANSITION_CLEANUP,
        Transition.TRANSITION_CONFIGURE,
        Transition.TRANSITION_ACTIVATE,
    ):
        assert change(rig, transition)
    rig.wait_for_state(STOPPED, "safety_stop is set")
    assert not rig.enable().success
    rig.safety_stop(False)  # of another publisher, which says nothing about the button of this one
    rig.settle(0.3)
    assert "safety_stop is still set by /beside: release it first" in rig.trigger("reset_fault").message
    quick.publish(Bool(data=False))
    rig.wait(lambda: rig.trigger("reset_fault").success, "the release")
    rig.node.destroy_publisher(quick)


def test_a_stop_of_a_publisher_that_is_gone_is_released_by_a_later_one(rig):
    rig.safety_stop(False)
    button = rig.node.create_publisher(Bool, "safety_stop", LATCHED)
    button.publish(Bool(data=True))
    rig.wait_for_state(STOPPED, "safety_stop is set")
    rig.node.destroy_publisher(button)
    rig.safety_stop(False)
    rig.settle(0.3)
    assert not rig.trigger("reset_fault").success
    again = rig.node.create_publisher(Bool, "safety_stop", LATCHED)
    again.publish(Bool(data=False))
    rig.wait(lambda: rig.trigger("reset_fault").success, "the release")
    rig.node.destroy_publisher(again)


def test_a_stop_through_the_service_holds_through_cleanup_and_configure(rig):
    rig.run()
    rig.trigger("stop")
    rig.wait_for_state(STOPPED)
    for transition in (
        Transition.TRANSITION_DEACTIVATE,
        Transition.TRANSITION_CLEANUP,
        Transition.TRANSITION_CONFIGURE,
        Transition.TRANSITION_ACTIVATE,
    ):
        assert change(rig, transition)
    assert "stopped through ~/stop" in rig.enable().message


def test_a_publisher_of_the_stop_that_cannot_be_heard_refuses_enable_and_is_an_error(rig):
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    other = rig.node.create_publisher(Bool, "safety_stop", qos)
    text = "/beside publishes /safety_stop latched but best effort"
    rig.wait(lambda: text in rig.enable().message, "the refusal")
    assert not rig.enable().success
    rig.wait(lambda: text in rig.diagnostics("safety_stop")["message"], "the diagnostics")
    rig.node.destroy_publisher(other)
    rig.wait(lambda: rig.enable().success, "the publisher to be gone")


def test_another_node_that_commands_refuses_enable_and_holds(rig):
    from geometry_msgs.msg import PoseStamped

    rig.run()
    other = rig.node.create_publisher(PoseStamped, "target_pose", 1)
    rig.wait(lambda: "2 publishers command on /target_pose" in (rig.status.reason or ""), "the problem")
    assert rig.status.state != RUNNING
    assert "/beside" in rig.status.reason
    rig.enable(False)
    assert not rig.enable().success
    rig.node.destroy_publisher(other)
    rig.wait(lambda: rig.enable().success, "the publisher to be gone")


def test_instructions_are_heard_from_volatile_publishers_once_each(rig):
    rig.enable()
    plain = rig.node.create_publisher(String, "instruction", 10)
    quick = rig.node.create_publisher(String, "instruction", qos_profile_sensor_data)
    rig.settle(0.5)
    for publisher, text in ((plain, "plain"), (quick, "quick")):
        publisher.publish(String(data=text))
        rig.wait(lambda text=text: rig.status.instruction == text, text)
        rig.node.destroy_publisher(publisher)


def test_a_node_that_was_shut_down_ends_with_status_0(rig):
    rig.run()
    assert change(rig, Transition.TRANSITION_ACTIVE_SHUTDOWN)
    assert_silent(rig)
    assert rig.stop_process() == 0
    assert "Traceback" not in rig.log[-3000:]
    begin = len(rig.log)
    rig.start_process()
    rig.wait(lambda: "active: call ~/enable" in rig.log[begin:])


def test_goals_get_their_results_when_the_node_is_deactivated(rig):
    from action_msgs.msg import GoalStatus
    from rclpy.action import ActionClient
    from sqap_vla_ros.action import RunPolicy

    client = ActionClient(rig.node, RunPolicy, "policy_node/run_policy")
    rig.enable()
    assert client.wait_for_server(TIMEOUT_S)
    sent = client.send_goal_async(RunPolicy.Goal(instruction="pick the cube"))
    rig.wait(sent.done)
    result = sent.result().get_result_async()
    rig.wait(lambda: rig.got("target_pose"), "a command")
    assert change(rig, Transition.TRANSITION_DEACTIVATE)
    rig.wait(result.done, "the result", timeout_s=5.0)
    assert result.result().status == GoalStatus.STATUS_ABORTED
    assert "deactivated" in result.result().result.message
    assert change(rig, Transition.TRANSITION_ACTIVATE)
    client.destroy()


def test_the_arm_comes_to_rest_while_the_executor_stands_still(rig):
    rig.run()
    rig.wait(lambda: len(rig.got("action_chunk")) > 5)
    rig.instruct("stall")
    rig.wait(lambda: "the node's executor stands still" in rig.log, "the watchdog")
    count = len(rig.got("target_pose"))
    rig.settle(0.3)
    assert len(rig.got("target_pose")) > count  # sent by the watchdog's thread: the executor sleeps for 1.5 s
    steps = np.diff([pose_of(message)[0, 3] for message in rig.got("target_pose")])
    assert np.abs(steps).max() < 5e-3
    rig.wait(lambda: "the watchdog brought the arm to rest" in rig.log, "the executor")
