"""The operator's part of a run: switch the policy on and off, set the simulated table again, see the task done."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger

_LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_ANSWER_S = 5.0  # an answer that does not come in this time was lost: ask again
_FRESH_IMAGES = 2  # after a reset: the first may still be one that was being rendered


class RunControl:
    """Clients of policy_node's ~/enable and simulator_node's ~/reset on a node that another thread spins.

    success: whether the simulated task is done now, None before the simulator has said so. done_ns: when it was done
    first in this episode, by the clock of `node`. check, in all methods: called while waiting; raises to give up.
    """

    def __init__(self, node: Node) -> None:
        self.instruction = ""
        self.success: bool | None = None
        self.done_ns: int | None = None
        self._node = node
        self._camera_infos = 0
        self._enable = node.create_client(SetBool, "policy_node/enable")
        self._reset = node.create_client(Trigger, "simulator/reset")
        self._reset_fault = node.create_client(Trigger, "policy_node/reset_fault")
        node.create_subscription(String, "instruction", self._on_instruction, _LATCHED)
        node.create_subscription(Bool, "simulator/success", self._on_success, _LATCHED)
        node.create_subscription(CameraInfo, "camera_info", self._on_camera_info, qos_profile_sensor_data)

    def enable(self, on: bool, timeout_s: float, *, check: Callable[[], None] = lambda: None) -> None:
        """Call ~/enable until the policy node agrees; it refuses while it is loading.

        Raises TimeoutError with the node's last answer.
        """
        what = f"policy_node could not be {'en' if on else 'dis'}abled"
        self._call(self._enable, SetBool.Request(data=on), what, timeout_s, check)

    def reset(self, timeout_s: float, *, check: Callable[[], None] = lambda: None) -> str:
        """Begin the simulator's next episode and return its instruction, once images of it come.

        Disable the policy first; a fault that it latched in the episode before is cleared. Raises TimeoutError.
        """
        deadline = time.monotonic() + timeout_s
        answer = self._call(self._reset, Trigger.Request(), "simulator_node could not be reset", timeout_s, check)
        seen = self._camera_infos
        fresh = _wait(
            lambda: (
                self.success is False
                and self.instruction == answer.message
                and self._camera_infos >= seen + _FRESH_IMAGES
            ),
            deadline,
            check,
        )
        if not fresh:
            raise TimeoutError(f"nothing of the new episode was seen within {timeout_s:g} s of the simulator's reset")
        what = "policy_node's fault could not be cleared"
        self._call(self._reset_fault, Trigger.Request(), what, timeout_s, check)
        self.done_ns = None
        return str(answer.message)

    def _call(self, client: Any, request: Any, what: str, timeout_s: float, check: Callable[[], None]) -> Any:
        deadline = time.monotonic() + timeout_s
        answer = "it does not answer"
        while time.monotonic() < deadline:
            check()
            if not client.wait_for_service(timeout_sec=0.2):
                continue
            future = client.call_async(request)
            if _wait(future.done, min(deadline, time.monotonic() + _ANSWER_S), check):
                if (result := future.result()).success:
                    return result
                answer = result.message
            time.sleep(0.2)
        raise TimeoutError(f"{what} within {timeout_s:g} s: {answer}")

    def _on_instruction(self, message: String) -> None:
        self.instruction = message.data

    def _on_success(self, message: Bool) -> None:
        self.success = bool(message.data)
        if self.success and self.done_ns is None:
            self.done_ns = int(self._node.get_clock().now().nanoseconds)

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._camera_infos += 1


def _wait(condition: Callable[[], bool], deadline: float, check: Callable[[], None]) -> bool:
    while not condition():
        if time.monotonic() > deadline:
            return False
        check()
        time.sleep(0.01)
    return True
