"""policy_node: camera image and instruction in, trajectories for an arm out, at the pace the policy can keep.

A lifecycle node. `configure` loads and warms the policy in a worker process, `activate` begins to publish, and what
moves the arm needs ~/enable (and dry_run off) on top. `deactivate` and the end of the process hold the measured pose as
the last command. What it does with images and chunks is in `control_loop.py`; when it may move is in `executive.py`.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any

import rclpy
from rcl_interfaces.msg import SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions

from sqap_vla_ros.nodes.policy import configuration, parameters
from sqap_vla_ros.nodes.policy.control_loop import ControlLoop
from sqap_vla_ros.serving.events import LoadFailed, Lost, Ready

LOG_PERIOD_S = 5.0


class PolicyNode(LifecycleNode):
    """The lifecycle around a `ControlLoop`."""

    def __init__(self, *, worker_factory: str = "", interrupted: threading.Event | None = None) -> None:
        """worker_factory: "module:function" returning a policy, in place of the checkpoint parameter.

        interrupted: set when the process is to end; configuring then gives up.
        """
        super().__init__("policy_node")
        self._worker_factory = worker_factory
        self._interrupted = interrupted or threading.Event()
        self._loop: ControlLoop | None = None
        configuration.declare(self)
        self.add_on_set_parameters_callback(self._on_set_parameters)

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Check the parameters, start the worker and wait until the policy is loaded and warm."""
        try:
            values = configuration.read(self)
            self._loop = ControlLoop(self, values, self._worker_factory)
            self._wait_until_loaded(self._loop, values["load_timeout_s"])
        except Exception as error:  # rclpy drops exceptions of transitions without a word
            self.get_logger().error(f"cannot configure: {error}")
            self._destroy_loop()
            return TransitionCallbackReturn.FAILURE
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = super().on_activate(state)
        assert self._loop is not None
        self._loop.activate()
        self.get_logger().info("active: call ~/enable with true to start")
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Hold while the publishers are still active."""
        assert self._loop is not None
        self._loop.deactivate("deactivated")
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._destroy_loop()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        if self._loop is not None and self._loop.active:
            self._loop.deactivate("the node shuts down")
        self._destroy_loop()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """A transition failed half way: back to unconfigured, from where everything can be tried again."""
        self._destroy_loop()
        return TransitionCallbackReturn.SUCCESS

    def _wait_until_loaded(self, loop: ControlLoop, timeout_s: float) -> None:
        begin_s = logged_s = time.monotonic()
        while True:
            for event in loop.poll_worker():
                if isinstance(event, Ready):
                    return
                if isinstance(event, (LoadFailed, Lost)):
                    raise RuntimeError(f"the policy cannot be loaded: {event.text}")
            now_s = time.monotonic()
            if self._interrupted.is_set():
                raise RuntimeError("interrupted while the policy was being loaded")
            if now_s - begin_s > timeout_s:
                raise TimeoutError(f"the policy was not loaded within load_timeout_s = {timeout_s:g} s")
            if now_s - logged_s > LOG_PERIOD_S:
                logged_s = now_s
                self.get_logger().info(f"still loading the policy ({now_s - begin_s:.0f} s)")
            self._interrupted.wait(0.02)

    def _destroy_loop(self) -> None:
        if self._loop is not None:
            self._loop.destroy()
            self._loop = None

    def _on_set_parameters(self, changed: list[Parameter]) -> SetParametersResult:
        """Refuse what is wrong, and what would not take effect before the next configure."""
        table = {p.name: p for p in parameters.PARAMETERS}
        for parameter in changed:
            if (spec := table.get(parameter.name)) is None:
                continue
            if (problem := spec.problem(parameter.value)) is not None:
                return SetParametersResult(successful=False, reason=problem)
            if self._loop is None:
                continue
            if parameter.name not in parameters.RUNTIME:
                reason = f"{parameter.name} is read when the node is configured: clean it up first"
                return SetParametersResult(successful=False, reason=reason)
            if self._loop.executive.enabled:
                reason = f"{parameter.name} cannot change while the node is enabled: call ~/enable with false first"
                return SetParametersResult(successful=False, reason=reason)
        for parameter in changed:
            if self._loop is not None and parameter.name == "dry_run":
                self._loop.set_dry_run(parameter.value)
        return SetParametersResult(successful=True)


def main(args: Sequence[str] | None = None, *, worker_factory: str = "") -> int:
    """Run the node until SIGINT or SIGTERM. Returns the exit status."""
    # rclpy's own handlers would close the context before the last command could be sent.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    interrupted = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: interrupted.set())
    try:
        node = PolicyNode(worker_factory=worker_factory, interrupted=interrupted)
    except InvalidParameterTypeException as error:
        print(f"policy_node: {error}", file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    status = _run(node, interrupted)
    node.destroy_node()
    rclpy.try_shutdown()
    return status


def _run(node: PolicyNode, interrupted: threading.Event) -> int:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    status = 0
    if node.get_parameter("autostart").value:
        steps: list[Any] = [node.trigger_configure, node.trigger_activate]
        if any(step() != TransitionCallbackReturn.SUCCESS for step in steps):
            status = 0 if interrupted.is_set() else 1
            interrupted.set()
    while not interrupted.is_set():
        try:
            executor.spin_once(timeout_sec=0.1)
        except Exception:  # a defect in a callback: the arm is to be held before the process ends
            node.get_logger().fatal(f"ending after an unexpected error:\n{traceback.format_exc()}")
            status = 1
            break
    node.trigger_shutdown()
    executor.shutdown()
    return status


if __name__ == "__main__":
    sys.exit(main())
