"""Parameters of `bag_player`: the table from which config/replay.yaml, the checks and the descriptions come."""

from __future__ import annotations

from typing import Any

from sqap_vla_ros.nodes import parameter_table
from sqap_vla_ros.nodes.parameter_table import Parameter

PARAMETERS: tuple[Parameter, ...] = (
    Parameter("bag", "", "Recording to play: a rosbag2 folder, a file in one, or a ROS 1 .bag file."),
    Parameter(
        "rate",
        1.0,
        "Times real time. The policy takes the newest image, so a slower rate predicts more of them.",
        above=0.0,
    ),
    Parameter(
        "wait_s",
        900.0,
        "Seconds to wait for the policy node (it loads the model first) and for a reader of the image.",
        minimum=0.0,
    ),
    Parameter(
        "tail_s",
        2.0,
        "Seconds of bag time that /clock goes on after the last message, for the last answers.",
        minimum=0.0,
    ),
    Parameter(
        "policy_node",
        "policy_node",
        "Node to enable before playing and whose answers are recorded. Empty: neither.",
    ),
    Parameter(
        "instruction",
        "",
        "What to do, published on the topic `instruction` before playing, for recordings without such a topic.",
    ),
    Parameter("record", "", "Folder of a new bag for what the policy node published. Empty: not recorded."),
)
HEADING = "Parameters of bag_player, the node that replay.launch.py plays a recording with."


def declare(node: Any) -> None:
    """Declare every parameter on a rclpy node; none may change later."""
    parameter_table.declare(node, PARAMETERS, read_only=True)


def read(node: Any) -> dict[str, Any]:
    """Return the values a node was started with. Raises ValueError naming every one that is wrong."""
    values = {p.name: node.get_parameter(p.name).value for p in PARAMETERS}
    found = parameter_table.problems(PARAMETERS, values)
    if not values["bag"]:
        found.append("parameter bag is not set: give the recording to play")
    if found:
        raise ValueError("; ".join(found))
    return values


if __name__ == "__main__":
    print(parameter_table.as_yaml(PARAMETERS, HEADING), end="")
