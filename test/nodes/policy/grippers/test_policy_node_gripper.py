"""policy_node with a gripper behind an action, over DDS."""

import pytest
from policy_node_rig import Rig
from rclpy.action import ActionServer
from sqap_vla_ros.msg import PolicyStatus

action = pytest.importorskip("control_msgs.action", reason="control_msgs is not installed: make setup")

OPEN = 0.7


def test_goals_of_the_running_node_arrive_and_their_ends_are_reported_and_a_stop_sends_none():
    goals, cancelled = [], []

    def execute(goal):
        goals.append(goal.request.command.position)
        goal.succeed()
        return action.GripperCommand.Result(position=OPEN, reached_goal=True)

    parameters = {
        "gripper_output": "gripper_command",
        "gripper_action": "/hand/gripper_cmd",
        "gripper_open": OPEN,
        "workspace_max_m": [50.0, 5.0, 5.0],  # however long the computer takes, the arm does not get out of it
    }
    with Rig(**parameters) as rig:

        def state():
            return (rig.diagnostics("gripper") or {}).get("state")

        rig.run()  # the arm moves without it
        rig.wait(lambda: state() == "failed", "the absent server")
        assert "no action server /hand/gripper_cmd" in rig.diagnostics("gripper")["message"]
        server = ActionServer(
            rig.node,
            action.GripperCommand,
            "/hand/gripper_cmd",
            execute_callback=execute,
            cancel_callback=lambda goal: cancelled.append(goal),
        )
        rig.wait(lambda: state() == "reached", "the end of the goal")
        assert rig.diagnostics("gripper")["message"] == f"open at {OPEN} m"
        rig.wait(lambda: rig.status.gripper_state == PolicyStatus.GRIPPER_REACHED, "the same in the status")
        assert rig.status.gripper == f"open at {OPEN} m"
        assert rig.status.gripper_position == OPEN
        sent = len(goals)
        rig.trigger("stop")
        rig.settle(0.5)
        assert set(goals) == {OPEN}
        assert len(goals) == sent
        assert not cancelled
        server.destroy()
