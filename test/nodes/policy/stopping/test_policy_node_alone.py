"""policy_node as a process over DDS, started anew for each test: what is there before it, and while it loads."""

import signal
import threading
import time

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from policy_node_rig import DISABLED, LATCHED, STOPPED, TIMEOUT_S, WAITING, Rig, assert_silent
from std_msgs.msg import Bool


class LatchedStop(Rig):
    """safety_stop is pressed, latched, before the node starts."""

    def create(self) -> None:
        super().create()
        self.latched = self.node.create_publisher(Bool, "safety_stop", LATCHED)
        self.latched.publish(Bool(data=True))


def test_a_stop_that_was_latched_before_the_start_is_obeyed():
    with LatchedStop() as rig:
        rig.wait_for_state(STOPPED, "safety_stop is set")
        rig.instruct("pick the cube")
        response = rig.enable_when_active()
        assert not response.success
        assert "safety_stop is set" in response.message
        rig.settle(0.5)
        assert not rig.got("target_pose")
        rig.latched.publish(Bool(data=False))
        rig.wait(lambda: rig.trigger("reset_fault").success, "the release")
        rig.run()


def test_silence_of_a_stop_that_has_to_be_repeated_stops():
    with Rig(safety_stop_timeout_s=0.8) as rig:
        rig.wait_for_state(DISABLED)
        assert "was not heard yet" in rig.enable_when_active().message
        beating = threading.Event()
        beating.set()

        def beat() -> None:
            while beating.is_set():
                rig.safety_stop(False)
                time.sleep(0.1)

        heart = threading.Thread(target=beat)
        heart.start()
        rig.settle(0.5)
        rig.run()
        beating.clear()
        heart.join()
        rig.wait_for_state(STOPPED, "safety_stop has not been heard for ")
        assert_silent(rig)


def test_inputs_that_cannot_be_heard_are_named():
    with Rig(image_reliability="reliable") as rig:
        rig.wait_for_state(DISABLED)
        rig.instruct("pick the cube")
        rig.enable_when_active()
        status = rig.wait_for_state(WAITING, "/beside publishes /image, but best effort, and is not heard")
        assert "set image_reliability to 'best_effort'" in status.reason
        assert status.reason.count("publishes /image,") == 1
        assert "offering incompatible QoS" not in rig.log  # rclpy's own words


def test_state_and_parameters_are_answered_while_the_policy_loads():
    with Rig(factory="slow_to_load", autostart=False) as rig:
        request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
        client = rig.node.create_client(ChangeState, "policy_node/change_state")
        assert client.wait_for_service(TIMEOUT_S)
        configured = client.call_async(request)
        rig.settle(0.5)
        begin_s = time.monotonic()
        state = rig.call("get_state", GetState, GetState.Request()).current_state
        assert state.id == State.TRANSITION_STATE_CONFIGURING
        assert not rig.set_parameter("blend_s", 0.3).successful
        assert "is being loaded" in rig.enable().message
        rig.safety_stop(True)
        rig.wait(lambda: rig.status is not None and rig.status.state == STOPPED, "the stop")
        assert time.monotonic() - begin_s < 2.0
        assert not configured.done()
        rig.wait(configured.done, "the policy")
        assert configured.result().success


def test_a_node_that_is_told_to_end_while_it_loads_speaks_of_no_error():
    with Rig(factory="slow_to_load", autostart=False) as rig:
        client = rig.node.create_client(ChangeState, "policy_node/change_state")
        assert client.wait_for_service(TIMEOUT_S)
        client.call_async(ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE)))
        rig.wait(lambda: "is being loaded" in rig.enable().message, "the loading")
        assert rig.stop_process(signal.SIGINT) == 0
        assert "stopped while the policy was being loaded" in rig.log
        assert "cannot configure" not in rig.log
