"""Parameters of `simulator_node`: the table from which config/simulator.yaml, the checks and the descriptions come."""

from __future__ import annotations

from typing import Any

from sqap_vla_ros.nodes import parameter_table
from sqap_vla_ros.nodes.parameter_table import Parameter
from sqap_vla_ros.simulation.vocabulary import TaskFamily, VariationName

PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "task",
        "",
        "Task family of every episode; '' draws one at random. The words are on the instruction topic.",
        choices=("", *map(str, TaskFamily)),
    ),
    Parameter(
        "instruction",
        "",
        "The task of every episode in words, such as 'pick up the red cube'; overrides task. The scene then has the "
        "objects that the words name.",
    ),
    Parameter("seed", 0, "The first episode's layout; each ~/reset takes the next number.", minimum=0),
    Parameter(
        "variation",
        str(VariationName.VISUAL_MATCHING),
        "How much looks vary: 'visual_matching' stays near the nominal scene, 'variant_aggregation' has other table "
        "tops, light, camera positions and more objects, 'randomised' is what training saw beside the first.",
        choices=tuple(map(str, VariationName)),
    ),
    Parameter("image_width", 640, "Pixels.", minimum=16, maximum=1280),
    Parameter("image_height", 480, "Pixels.", minimum=16, maximum=960),
    Parameter(
        "camera_rate",
        10.0,
        "Images per second. Rendering on a CPU shares it with the policy: see benchmarks/simulator.py.",
        above=0.0,
        maximum=60.0,
    ),
    Parameter("shadows", False, "Render shadows: the best look, at many times the cost of a plain picture on a CPU."),
    Parameter("antialiasing", False, "Smooth edges, at several times the cost of a plain picture on a CPU."),
    Parameter(
        "state_rate",
        60.0,
        "Hz of joint_states and /tf; each image's stamp gets its own besides.",
        minimum=5.0,
        maximum=125.0,
    ),
    Parameter(
        "max_joint_velocity",
        1.5,
        "rad/s of any joint while target_pose or delta_twist_cmds is followed. A joint_trajectory has its own times.",
        above=0.0,
    ),
    Parameter(
        "interpolate_from_desired_state",
        False,
        "As joint_trajectory_controller's parameter: a joint_trajectory whose first point is in the future is entered "
        "from the commanded state; by default from the measured one, which lags.",
    ),
    Parameter("twist_timeout_s", 0.2, "The arm stops when delta_twist_cmds is not renewed for this long.", above=0.0),
    Parameter(
        "publish_clock",
        False,
        "Publish /clock and stamp everything with simulated time, from zero. The other nodes then need use_sim_time.",
    ),
    Parameter(
        "real_time_factor",
        1.0,
        "Simulated seconds in a second. Anything but 1 needs publish_clock.",
        above=0.0,
        maximum=100.0,
    ),
)
HEADING = (
    "Parameters of simulator_node with their defaults, as in sqap_vla_ros/nodes/simulator/parameters.py.\n"
    "Read once at start."
)


def declare(node: Any) -> None:
    """Declare every parameter on a rclpy node; none may change later."""
    parameter_table.declare(node, PARAMETERS, read_only=True)


def read(node: Any) -> dict[str, Any]:
    """Return the values a node was started with. Raises ValueError naming every one that is wrong."""
    values = {p.name: node.get_parameter(p.name).value for p in PARAMETERS}
    found = parameter_table.problems(PARAMETERS, values)
    if values["real_time_factor"] != 1.0 and not values["publish_clock"]:
        found.append(f"real_time_factor must be 1 without publish_clock, got {values['real_time_factor']:g}")
    if found:
        raise ValueError("; ".join(found))
    return values


if __name__ == "__main__":
    print(parameter_table.as_yaml(PARAMETERS, HEADING), end="")
