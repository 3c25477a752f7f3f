"""`sqap-vla operate` beside a node with the policy node's topics and services."""

import math
import signal
import threading
import time
from types import SimpleNamespace

import pytest
from beside import NodeBeside
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import ChangeState, GetState
from policy_node_rig import LATCHED
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from sqap_vla_ros.msg import PolicyStatus
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from sqap_vla_ros import cli
from sqap_vla_ros.nodes.operate import operator


class PolicyNodeDouble(NodeBeside):
    """Loads its policy for a second from when it is first enabled, and refuses any reset. asked: what it did."""

    NAME, NAMESPACE = "policy_node", "/cell"

    def create(self) -> None:
        self.asked: list[str] = []
        self._loaded_s = math.inf
        self._status = self.node.create_publisher(PolicyStatus, "/cell/policy_node/status", LATCHED)
        self.node.create_subscription(String, "/cell/instruction", self._on_instruction, 1)
        self.node.create_service(SetBool, "/cell/policy_node/enable", self._enable)
        self.node.create_service(Trigger, "/cell/policy_node/stop", self._stop)
        self.node.create_service(Trigger, "/cell/policy_node/reset_fault", self._reset_fault)
        self.node.declare_parameter("dry_run", False)
        for number, name in enumerate(operator.TOLD):
            self.node.declare_parameter(name, number)
        self.node.create_publisher(JointTrajectory, "/arm_controller/joint_trajectory", 1)
        self.controller = self.node.create_subscription(
            JointTrajectory, "/arm_controller/joint_trajectory", lambda _: None, 1
        )
        self.node.create_publisher(PoseStamped, "/cell/policy_node/tool", 1)
        self.lifecycle, self.fails = State.PRIMARY_STATE_ACTIVE, ""
        self.node.create_service(GetState, "/cell/policy_node/get_state", self._get_state)
        self.node.create_service(ChangeState, "/cell/policy_node/change_state", self._change_state)
        self._publish(PolicyStatus.DISABLED, "call ~/enable with true to start")

    def _get_state(self, request: GetState.Request, response: GetState.Response) -> GetState.Response:
        response.current_state.id = self.lifecycle
        return response

    def _change_state(self, request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
        name = operator.TRANSITIONS[request.transition.id]
        response.success = name != self.fails
        if response.success:
            self.asked.append(name)
            (self.lifecycle,) = (ends for asked, _, ends in operator.RELOAD if asked == request.transition.id)
        return response

    def _publish(self, state: int, reason: str = "") -> None:
        gripper = {"gripper_state": PolicyStatus.GRIPPER_HOLDING, "gripper": "closed on an object at 0.3 rad"}
        enabled = state in (PolicyStatus.WAITING, PolicyStatus.RUNNING, PolicyStatus.HOLDING)
        counts = {"chunks_published": 7, "chunks_rejected": 1}
        self._status.publish(PolicyStatus(state=state, reason=reason, enabled=enabled, **counts, **gripper))

    def _on_instruction(self, message: String) -> None:
        self.asked.append(message.data)

    def _enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if request.data and self._loaded_s == math.inf:
            self._loaded_s = time.monotonic() + 1.0  # an answer that is lost is asked for again sooner
        response.success = not request.data or time.monotonic() > self._loaded_s
        response.message = "" if response.success else "the node is not active yet: the policy is being loaded"
        if response.success:
            self.asked.append("enable" if request.data else "disable")
            self._publish(PolicyStatus.RUNNING if request.data else PolicyStatus.DISABLED)
        return response

    def _stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = True
        self._publish(PolicyStatus.STOPPED, "~/stop was called: call ~/reset_fault")
        return response

    def _reset_fault(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.message = "safety_stop is still true"
        return response


@pytest.fixture
def policy_node():
    with PolicyNodeDouble() as double:
        yield double


@pytest.fixture
def run():
    return lambda *arguments: cli.main(["operate", *arguments, "--node", "/cell/policy_node"])


def test_a_task_is_started_and_ends_with_the_interrupt(policy_node, run, capsys, monkeypatch):
    def interrupted(self: operator.Operator) -> None:
        self.watch(0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr(operator.Operator, "watch_task", interrupted)
    assert run("start", "pick up the cube") == 130
    # A request whose answer was lost is repeated.
    assert list(dict.fromkeys(policy_node.asked)) == ["pick up the cube", "enable", "disable"]
    printed = capsys.readouterr().out
    assert "waiting: the node still loads its policy\nenable: done" in printed
    assert "RUNNING [chunks 7, rejected 1; gripper: closed on an object at 0.3 rad]" in printed
    assert printed.startswith(
        "/cell/policy_node: output_mode 0, base_frame 1, tool_frame 2, gripper_output 3, speed_scale 4, checkpoint 5, "
        "recipe 6\n"
        "commands go to /arm_controller/joint_trajectory, heard by /cell/policy_node\n"
        "dry_run is off: the arm will move\n"
    )


def test_where_nobody_hears_the_arms_commands_nothing_is_started(policy_node, run, capsys, monkeypatch):
    policy_node.node.destroy_subscription(policy_node.controller)
    monkeypatch.setattr(operator, "HEARD_S", 1.0)
    assert run("start", "pick up the cube") == 2
    said = capsys.readouterr()
    assert "commands go to /arm_controller/joint_trajectory, heard by nobody" in said.out
    assert (
        "nobody hears the arm's commands on /arm_controller/joint_trajectory, so that nothing was started" in said.err
    )
    assert not policy_node.asked
    policy_node.node.set_parameters([Parameter("dry_run", value=True)])
    with operator.Operator("/cell/policy_node", print) as beside:
        beside.describe()
    policy_node.node.set_parameters([Parameter("dry_run", value=False)])
    monkeypatch.setattr(operator.Operator, "watch_task", lambda _: True)
    assert run("start", "--anyway", "pick up the cube") == 0  # options stand on either side of the instruction
    assert "enable" in policy_node.asked


def test_a_controller_that_comes_while_the_policy_loads_is_waited_for(policy_node, monkeypatch):
    policy_node.node.destroy_subscription(policy_node.controller)
    policy_node._publish(PolicyStatus.DISABLED, "the policy is being loaded (3 s so far); then activate it (…)")
    monkeypatch.setattr(operator, "HEARD_S", 0.3)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if text.startswith("waiting"):
            threading.Timer(1.0, listen).start()

    def listen() -> None:
        policy_node.node.create_subscription(JointTrajectory, "/arm_controller/joint_trajectory", lambda _: None, 1)

    with operator.Operator("/cell/policy_node", say) as beside:
        beside.tell()
        beside.describe()
    topic = "/arm_controller/joint_trajectory"
    assert f"waiting: nobody hears {topic} yet, and the node still loads its policy" in said
    assert f"commands go to {topic}, heard by /cell/policy_node" in said


def test_a_controller_that_is_discovered_late_is_waited_for(policy_node, monkeypatch):
    found, asked = Node.get_subscriptions_info_by_topic, []

    def discovered(node, topic):
        asked.append(topic)
        ends = found(node, topic)
        if len(asked) < 4:
            return []
        return [SimpleNamespace(node_name=operator.NAMELESS, node_namespace="/")] if len(asked) < 8 else ends

    monkeypatch.setattr(Node, "get_subscriptions_info_by_topic", discovered)
    said: list[str] = []
    with operator.Operator("/cell/policy_node", said.append) as beside:
        beside.describe()
    assert said[1] == "commands go to /arm_controller/joint_trajectory, heard by /cell/policy_node"


def test_an_interrupt_while_a_message_is_taken_still_disables(policy_node, run, capsys, monkeypatch):
    take, interrupted = SingleThreadedExecutor._take_subscription, []

    def take_and_interrupt(self: SingleThreadedExecutor, subscription: object) -> object:
        if "enable" in policy_node.asked and threading.current_thread() is threading.main_thread() and not interrupted:
            interrupted.append(True)
            signal.raise_signal(signal.SIGINT)
        return take(self, subscription)

    monkeypatch.setattr(SingleThreadedExecutor, "_take_subscription", take_and_interrupt)
    monkeypatch.setattr(operator, "ANSWER_S", 5.0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background command ignores it
    try:
        assert run("start", "pick up the cube") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert interrupted
    assert policy_node.asked[-1] == "disable"
    assert "does not answer" not in capsys.readouterr().err


def test_a_second_interrupt_says_that_the_node_may_move_on(policy_node, run, capsys, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(operator.Operator, "instruct", lambda *_: None)
    monkeypatch.setattr(operator.Operator, "enable", interrupted)
    assert run("start", "pick up the cube") == 130
    assert "the node was NOT disabled, and may move on: sqap-vla operate disable" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "status", "text"),
    [
        ("disable", 0, "the task is over: the node was disabled"),
        ("stop", 1, "the task is over: STOPPED. `sqap-vla operate reset` clears it"),
        ("end", 1, "/cell/policy_node is gone"),
    ],
)
def test_a_task_that_somebody_else_ends_is_over(what, status, text, policy_node, run, capsys):
    def end() -> None:
        if what == "end":
            policy_node.node.destroy_publisher(policy_node._status)
        else:
            with operator.Operator("/cell/policy_node", lambda _: None) as other:
                other.trigger("stop") if what == "stop" else other.enable(False)

    policy_node._loaded_s = 0.0
    publish = policy_node._publish

    def running(state: int, reason: str = "") -> None:
        publish(state, reason)
        if state == PolicyStatus.RUNNING:
            threading.Timer(0.2, end).start()

    policy_node._publish = running
    assert run("start", "pick up the cube") == status
    assert text in capsys.readouterr().out
    assert policy_node.asked[-1] == ("disable" if what == "disable" else "enable")


def test_status_once_is_one_line(policy_node, run, capsys):
    assert run("status", "--once") == 0
    (said,) = capsys.readouterr().out.splitlines()
    assert "DISABLED [chunks 7, rejected 1; gripper: closed on an object" in said
    assert run("stop", "--once") == 2
    assert "--once is for `status`" in capsys.readouterr().err


def test_a_refusal_is_the_exit_status(policy_node, run, capsys):
    assert run("reset") == 1
    assert "reset_fault: refused; safety_stop is still true" in capsys.readouterr().out
    assert run("stop") == 0


def test_a_node_is_configured_anew(policy_node, run, capsys):
    assert run("reload") == 0
    assert policy_node.asked == ["deactivate", "cleanup", "configure", "activate"]
    assert "configure: done\nactivate: asked for\nactivate: done\n" in capsys.readouterr().out
    policy_node.fails = "configure"
    assert run("reload") == 1
    assert "configure: failed; the node's log says why" in capsys.readouterr().out
    assert policy_node.asked[4:] == ["deactivate", "cleanup"]


def test_a_node_that_does_not_run_is_named(monkeypatch, capsys):
    monkeypatch.setattr(operator, "ANSWER_S", 0.2)
    assert cli.main(["operate", "start", "pick up the cube"]) == 2
    assert "there is no /policy_node/status: does the node run, with the same ROS_DOMAIN_ID" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["start"], "`start` needs an instruction: sqap-vla operate start"),
        (["stop", "pick up the cube"], "only `start` has an instruction"),
        (["start", ""], "the instruction is empty: say what to do"),
        (["start", "\u200b "], "the instruction has no visible character"),
    ],
)
def test_an_instruction_is_looked_at_before_the_node(arguments, text, capsys, monkeypatch):
    monkeypatch.setattr(operator.Operator, "__enter__", lambda _: pytest.fail("looked for the node"))
    assert cli.main(["operate", *arguments]) == 2
    assert text in capsys.readouterr().err


def test_where_two_nodes_have_the_name_none_is_started(run, policy_node, capsys):
    policy_node.node.create_publisher(PolicyStatus, "/cell/policy_node/status", LATCHED)
    assert run("start", "pick up the can") != 0
    assert "2 nodes are called /cell/policy_node" in capsys.readouterr().err
    assert not policy_node.asked
    assert run("stop") == 0  # stopping is right, whoever hears it
    said: list[str] = []
    with operator.Operator("/cell/policy_node", said.append) as watching:
        watching.watch(0.3)
    assert said[0] == "2 nodes are called /cell/policy_node: these lines are of all of them"
