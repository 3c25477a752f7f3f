"""policy_node: camera image and instruction in, trajectories for an arm out, at the pace the policy can keep.

A lifecycle node. `configure` loads and warms the policy in a worker process, `activate` begins to publish, and what
moves the arm needs ~/enable (and dry_run off) on top. `deactivate` and the end of the process bring the arm to rest as
the last command. `control_loop.py` drives images to chunks to commands; `executive.py` says when the arm may move.

Thread ownership: one executor thread makes all transitions and callbacks. A transition that waits (for the policy to
load, for results to be sent) spins the executor meanwhile; the services of the lifecycle have a callback group of their
own, so that get_state and the parameters are answered while the policy loads.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

import rclpy
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.lifecycle.node import LifecycleNodeMixin
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions

from sqap_vla_ros.nodes.parameter_table import unknown
from sqap_vla_ros.nodes.policy import configuration, parameters
from sqap_vla_ros.nodes.policy.control_loop import ControlLoop
from sqap_vla_ros.nodes.policy.safety_stop import SafetyStop
from sqap_vla_ros.nodes.spinning import Interruption

LOG_PERIOD_S = 5.0
SPIN_S = 0.02
RESULTS_S = 0.5  # goals get their results within this time when the node is deactivated


class PolicyNode(LifecycleNodeMixin, Node):
    """The lifecycle around a `ControlLoop`."""

    def __init__(self, *, worker_factory: str = "", interrupted: Interruption | None = None) -> None:
        """worker_factory: "module:function" returning a policy, in place of the checkpoint parameter.

        interrupted: set when the process is to end; configuring then gives up.
        """
        # As LifecycleNode does, but for the group of the lifecycle's services.
        Node.__init__(self, "policy_node")
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        self._worker_factory = worker_factory
        self._interrupted = interrupted or Interruption()
        self._loop: ControlLoop | None = None
        self._latched: str | None = None  # a stop or fault that was not reset before the node was cleaned up
        self.finalized = False
        self.activates_itself = False  # at start, without a lifecycle manager
        configuration.declare(self)
        self._safety_stop = SafetyStop(self)
        self.add_on_set_parameters_callback(self._on_set_parameters)

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Check the parameters, start the worker and wait until the policy is loaded and warm."""
        try:
            values = configuration.read(self)
            self._safety_stop.timeout_s = values["safety_stop_timeout_s"]
            self._loop = ControlLoop(
                self, values, self._worker_factory, self._safety_stop, activates_itself=self.activates_itself
            )
            if self._latched is not None:
                self._loop.executive.stop(self._latched)
            self._wait_until_loaded(self._loop, values["load_timeout_s"])
        except Exception as error:  # rclpy drops exceptions of transitions without a word
            if self._interrupted.is_set():
                self.get_logger().info("stopped while the policy was being loaded")
            else:
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
        """Bring the arm to rest while the publishers are still active."""
        assert self._loop is not None
        self._deactivate(self._loop, "deactivated")
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._destroy_loop()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        if self._loop is not None and self._loop.active:
            self._deactivate(self._loop, "the node shuts down")
        self._destroy_loop()
        self.finalized = True
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Return to unconfigured after a transition that failed half way; everything can be tried again from there."""
        self._destroy_loop()
        return TransitionCallbackReturn.SUCCESS

    def _wait_until_loaded(self, loop: ControlLoop, timeout_s: float) -> None:
        begin_s = logged_s = time.monotonic()
        while not loop.loaded:
            loop.turn()
            now_s = time.monotonic()
            if loop.load_failure is not None:
                raise RuntimeError(f"the policy cannot be loaded: {loop.load_failure}")
            if self._interrupted.is_set():
                raise RuntimeError("interrupted")
            if now_s - begin_s > timeout_s:
                raise TimeoutError(f"the policy was not loaded within load_timeout_s = {timeout_s:g} s")
            if now_s - logged_s > LOG_PERIOD_S:
                logged_s = now_s
                self.get_logger().info(f"still loading the policy ({now_s - begin_s:.0f} s)")
            self._spin_once()

    def _destroy_loop(self) -> None:
        if self._loop is not None:
            self._latched = self._loop.executive.latched()
            self._loop.destroy()
            self._loop = None

    def _deactivate(self, loop: ControlLoop, why: str) -> None:
        loop.deactivate(why)
        deadline_s = time.monotonic() + RESULTS_S
        while loop.services.owes_results and time.monotonic() < deadline_s:
            self._spin_once()

    def _spin_once(self) -> None:
        """Serve other callbacks while a transition waits."""
        if self.executor is not None:
            self.executor.spin_once(timeout_sec=SPIN_S)
        else:
            self._interrupted.wait(SPIN_S)

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """Do as rclpy does, but name a parameter that there is not."""
        for parameter in parameter_list:
            problem = unknown(parameter.name, [p.name for p in parameters.PARAMETERS])
            if problem is not None and not self.has_parameter(parameter.name):
                return SetParametersResult(successful=False, reason=problem)
        return super().set_parameters_atomically(parameter_list)

    def _on_set_parameters(self, changed: list[Parameter]) -> SetParametersResult:
        """Refuse what is wrong, and what would not take effect before the next configure."""
        table = {p.name: p for p in parameters.PARAMETERS}
        for parameter in changed:
            if parameter.name == "use_sim_time" and self._loop is not None:
                reason = "use_sim_time cannot change while the node is configured: stamps of before and after differ"
                return SetParametersResult(successful=False, reason=reason)
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
    interrupted = Interruption.by_signals()
    try:
        node = PolicyNode(worker_factory=worker_factory, interrupted=interrupted)
    except (InvalidParameterTypeException, InvalidParameterValueException) as error:
        print(f"policy_node: {error}", file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    status = _run(node, interrupted)
    node.destroy_node()
    rclpy.try_shutdown()
    return status


def _run(node: PolicyNode, interrupted: Interruption) -> int:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    status = 0
    if node.get_parameter("autostart").value:
        node.activates_itself = True
        steps: list[Any] = [node.trigger_configure, node.trigger_activate]
        if any(step() != TransitionCallbackReturn.SUCCESS for step in steps):
            status = 0 if interrupted.is_set() else 1
            interrupted.set()
        node.activates_itself = False
    while not interrupted.is_set():
        try:
            executor.spin_once(timeout_sec=0.1)
        except Exception:  # a defect in a callback: the arm is to be held before the process ends
            node.get_logger().fatal(f"ending after an unexpected error:\n{traceback.format_exc()}")
            status = 1
            break
    if not node.finalized:
        node.trigger_shutdown()
    executor.shutdown()
    return status


if __name__ == "__main__":
    sys.exit(main())
