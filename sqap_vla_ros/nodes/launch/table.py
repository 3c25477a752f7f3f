"""The nodes that run together, and their arguments: one table for the launch files and for `bringup`.

Nothing here imports ROS. `BRINGUPS` lists what can be started; `resolve` turns arguments (name -> text, as typed after
`ros2 launch` or `bringup`) into what each node is started with. An argument left empty is not passed on: the node's
parameter file decides.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sqap_vla_ros.contracts import TRAINED_POLICY
from sqap_vla_ros.nodes.launch.params_files import check_params_file
from sqap_vla_ros.nodes.launch.robots import FOLDER, RobotFile, read_robot, robot_names
from sqap_vla_ros.nodes.launch.ros_names import check_namespace, check_topic
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.simulation.vocabulary import TaskFamily, VariationName

Value = bool | int | float | str

# With Fast DDS's default 512 KiB shared-memory segment, images of 640x480 and larger are lost between processes.
FASTDDS_PROFILES = "config/fastdds_shm.xml"
# Distributions with Fast DDS 2; a later one warns about the old name.
FASTDDS_2 = ("humble", "iron", "jazzy")


@dataclass(frozen=True)
class Argument:
    """A launch argument. An empty default leaves the choice to the parameter file; kind is the parameter's type."""

    name: str
    description: str
    default: str = ""
    kind: type[bool] | type[int] | type[float] | type[str] = str
    choices: tuple[str, ...] = ()

    def parse(self, text: str) -> Value:
        """Return the typed value of `text`.

        Raises:
            ValueError: `text` is not of the argument's kind or not among its choices.
        """
        if self.choices and text not in self.choices:
            raise ValueError(f"{self.name}:={text} is not one of: {', '.join(filter(None, self.choices))}")
        if self.kind is bool:
            if text.lower() not in ("true", "false"):
                raise ValueError(f"{self.name}:={text} is neither true nor false")
            return text.lower() == "true"
        try:
            return self.kind(text)
        except ValueError:
            raise ValueError(f"{self.name}:={text} is not a number ({self.kind.__name__})") from None


@dataclass(frozen=True)
class NodeEntry:
    """One node of a bring-up.

    executable: console script.
    module: what `python -m` runs to the same effect.
    params_file: argument that names its parameter file.
    shipped_params: the package's own, taken when that argument is empty.
    parameters: (parameter, argument that sets it).
    topics: arguments that replace the topic of the same name.
    robot: the argument `robot` adds a robot file to its parameter files, in front of one that is given.
    finite: it ends by itself when its work is done, and with it the run; any other node's end is a failure.
    judge: raises ValueError for arguments with which the node would end at once, before any node is started.
    """

    executable: str
    module: str
    params_file: str
    shipped_params: str
    parameters: tuple[tuple[str, str], ...]
    topics: tuple[str, ...] = ()
    robot: bool = False
    finite: bool = False
    judge: Callable[[Mapping[str, Value]], None] | None = None


@dataclass(frozen=True)
class Bringup:
    """Nodes that are started together, and the arguments they take."""

    name: str
    description: str
    arguments: tuple[Argument, ...]
    nodes: tuple[NodeEntry, ...]


@dataclass(frozen=True)
class NodeCommand:
    """The command that starts one node. params_files: later ones win; remappings: (from, to) topic names."""

    executable: str
    module: str
    namespace: str
    params_files: tuple[Path, ...]
    parameters: Mapping[str, Value]
    remappings: tuple[tuple[str, str], ...]
    log_level: str

    def ros_arguments(self) -> list[str]:
        """Return the command-line arguments after the executable."""
        arguments = ["--ros-args", "--log-level", self.log_level]
        for file in self.params_files:
            arguments += ["--params-file", str(file)]
        for name, value in self.parameters.items():
            # JSON is YAML that keeps a text such as "no" or "7" a text.
            arguments += ["-p", f"{name}:={json.dumps(value, ensure_ascii=False)}"]
        for source, target in self.remappings:
            arguments += ["-r", f"{source}:={target}"]
        if self.namespace:
            arguments += ["-r", f"__ns:=/{self.namespace.strip('/')}"]
        return arguments


_BOOL = ("true", "false")


def _optional(name: str, description: str, kind: type = str, choices: tuple[str, ...] = (), *, file: str) -> Argument:
    """Make an argument that leaves the choice to the parameter file when it is empty."""
    return Argument(name, f"{description} Empty: what {file} says.", "", kind, choices and ("", *choices))


_COMMON = (
    Argument("namespace", "Namespace of the nodes and of their relative topics."),
    Argument("log_level", "Least severe message to log.", "info", choices=("debug", "info", "warn", "error", "fatal")),
    Argument("use_sim_time", "Take the time from /clock (simulation, bag replay).", "false", bool, _BOOL),
)
_POLICY = (
    Argument("params_file", "Parameters of policy_node. Empty: the package's config/policy.yaml, which explains each."),
    *(
        _optional(*argument, file="params_file")
        for argument in (
            (
                "checkpoint",
                f"CogACT folder, .safetensors file, '{TRAINED_POLICY}' (trained in the simulator), 'micro' (random "
                "weights, to try things), or the address of a server of `sqap-vla serve`, ws://host:port.",
            ),
            ("recipe", "How the policy is compressed: a recipe of config/recipes by name, or a path to one."),
            ("device", "Where the policy runs: cpu, cuda or cuda:N."),
            ("unnorm_key", "Data set whose action statistics the checkpoint's output is scaled with."),
            ("output_mode", "What the arm is sent.", str, ("joint", "pose", "twist")),
            (
                "gripper_output",
                "What the gripper is sent.",
                str,
                ("forward_command", "gripper_command", "parallel_gripper_command", "joint_trajectory"),
            ),
            ("autostart", "Configure and activate at start, without a lifecycle manager.", bool, _BOOL),
        )
    ),
)
_ROBOT = Argument(
    "robot",
    f"Robot file: one of {FOLDER} by name (ur5e), or a path to one. It sets parameters and the topics of the robot's "
    "drivers; params_file and the other arguments have the last word.",
)
_ARM = (
    *(
        _optional(*argument, file="params_file")
        for argument in (
            ("base_frame", "Frame in which actions, poses and the workspace are expressed."),
            ("tool_frame", "Frame that the actions move."),
            ("gripper_action", "Name of the gripper's action, with such a gripper_output."),
            ("gripper_closed", "Position of the closed gripper, as its driver counts it.", float),
            ("gripper_open", "Position of the open gripper.", float),
            ("gripper_joint", "Joint of the gripper."),
            ("speed_scale", "Share of the speed limits that is used: 0.1 for the first motions of an arm.", float),
            ("image_transport", "How images arrive.", str, ("raw", "compressed")),
        )
    ),
)
_INSTRUCTION = _optional(
    "instruction", "First task in words, begun once ~/enable is called; the topic replaces it.", file="params_file"
)
_DRY_RUN = ("dry_run", "Predict and show everything, command nothing.")
_TOPICS = (
    Argument("image", "Camera image topic; <image>/compressed with image_transport 'compressed'.", "image"),
    Argument("camera_info", "Calibration of that camera, with the image's stamps.", "camera_info"),
    Argument("joint_states", "Measured joint positions.", "joint_states"),
    Argument("robot_description", "The arm's URDF (output mode joint).", "robot_description"),
    Argument("safety_stop", "True latches a stop.", "safety_stop"),
    Argument("joint_trajectory", "Where joint_trajectory_controller listens (output mode joint).", "joint_trajectory"),
    Argument("target_pose", "Where a Cartesian controller listens (output mode pose).", "target_pose"),
    Argument("delta_twist_cmds", "Where moveit_servo listens (output mode twist).", "delta_twist_cmds"),
    Argument(
        "gripper_command",
        "Where the gripper's forward_command_controller listens (gripper_output forward_command).",
        "gripper_command",
    ),
)
_SIMULATOR = (
    Argument(
        "simulator_params_file",
        "Parameters of simulator_node. Empty: the package's config/simulator.yaml, which explains each.",
    ),
    *(
        _optional(*argument, file="simulator_params_file")
        for argument in (
            ("instruction", "Every episode's task in words, such as 'pick up the red cube'; overrides task."),
            ("task", "Kind of every episode's task.", str, tuple(map(str, TaskFamily))),
            ("seed", "Layout of the first episode; each reset takes the next number.", int),
            ("variation", "How much the scene's looks vary.", str, tuple(map(str, VariationName))),
        )
    ),
)


_REPLAY = (
    Argument("bag", "Recording to play: a rosbag2 folder, a file in one, or a ROS 1 .bag file. Required."),
    Argument("record", "Folder of a new bag for what the policy node published. Empty: not recorded."),
    _optional("rate", "Times real time.", float, file="replay_params_file"),
    _optional(
        "instruction",
        "What to do, for recordings without an instruction topic.",
        file="replay_params_file",
    ),
    Argument(
        "replay_params_file",
        "Parameters of bag_player. Empty: the package's config/replay.yaml, which explains each.",
    ),
)


def _same(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, name) for name in names)


_POLICY_NODE = NodeEntry(
    "policy_node",
    "sqap_vla_ros.nodes.policy.node",
    "params_file",
    "config/policy.yaml",
    _same(*(argument.name for argument in _POLICY if argument.name != "params_file"), "dry_run", "use_sim_time"),
)
_REAL_POLICY_NODE = replace(  # the simulator's frames, topics and gripper are named as the node expects them
    _POLICY_NODE,
    parameters=(*_POLICY_NODE.parameters, *_same(*(argument.name for argument in _ARM))),
    topics=tuple(argument.name for argument in _TOPICS),
    robot=True,
)
_INSTRUCTED_POLICY_NODE = replace(_REAL_POLICY_NODE, parameters=(*_REAL_POLICY_NODE.parameters, *_same("instruction")))
_SIMULATOR_NODE = NodeEntry(
    "simulator_node",
    "sqap_vla_ros.nodes.simulator.node",
    "simulator_params_file",
    "config/simulator.yaml",
    (*_same("instruction", "task", "seed", "variation"), ("publish_clock", "use_sim_time")),
)


def _judge_recordings(values: Mapping[str, Value]) -> None:
    """Judge what is played and what is recorded; the policy node would load its model meanwhile."""
    from sqap_vla_ros.nodes.bags.store import require_new, require_playable

    if "bag" in values:
        require_playable(str(values["bag"]))
    if "record" in values:
        require_new(Path(str(values["record"])).expanduser())


_BAG_PLAYER = NodeEntry(
    "bag_player",
    "sqap_vla_ros.nodes.bags.player",
    "replay_params_file",
    "config/replay.yaml",
    _same("bag", "record", "rate", "instruction"),
    finite=True,
    judge=_judge_recordings,
)

BRINGUPS: dict[str, Bringup] = {
    bringup.name: bringup
    for bringup in (
        Bringup(
            "policy",
            "The policy node for a real arm: camera image and instruction in, trajectories out.",
            (
                *_POLICY,
                _ROBOT,
                _INSTRUCTION,
                _optional(*_DRY_RUN, bool, _BOOL, file="params_file"),
                *_ARM,
                *_TOPICS,
                *_COMMON,
            ),
            (_INSTRUCTED_POLICY_NODE,),
        ),
        Bringup(
            "simulation",
            "A simulated arm, camera and task on a tabletop, and the policy node that drives it.",
            (*_POLICY, Argument(*_DRY_RUN, "false", bool, _BOOL), *_SIMULATOR, *_COMMON),
            (_SIMULATOR_NODE, _POLICY_NODE),
        ),
        Bringup(
            "replay",
            "The policy node on a recording that is played in simulated time; ends when the recording does.",
            (
                *_REPLAY,
                *_POLICY,
                _ROBOT,
                Argument(*_DRY_RUN, "true", bool, _BOOL),
                *_ARM,
                *_TOPICS,
                *(
                    replace(argument, default="true") if argument.name == "use_sim_time" else argument
                    for argument in _COMMON
                ),
            ),
            (_BAG_PLAYER, _REAL_POLICY_NODE),
        ),
    )
}


def read_arguments(texts: Sequence[str]) -> dict[str, str]:
    """Return arguments as they are typed, name -> text. Raises ValueError for what is not of the form name:=value."""
    given = {}
    for text in texts:
        name, separator, value = text.partition(":=")
        if not separator or not name:
            raise ValueError(f"{text!r} is not of the form name:=value{_meant(text)}")
        given[name] = value
    return given


def _meant(text: str) -> str:
    """Return what somebody may have meant by an argument without a name."""
    if text in robot_names():
        return f": did you mean robot:={text}?"
    if Path(text).suffix in (".yaml", ".yml"):
        return f": robot:={text} is for a robot file, params_file:={text} for parameters"
    return " (quote a value with spaces)"


def resolve(bringup: Bringup, given: Mapping[str, str]) -> list[NodeCommand]:
    """Return what each node of `bringup` is started with, from arguments as text; absent ones take their defaults.

    Raises:
        ValueError: an unknown argument, or a value that does not fit.
        FileNotFoundError: a parameter file does not exist.
    """
    known = {argument.name: argument for argument in bringup.arguments}
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{bringup.name} has no argument {', '.join(unknown)}; it has: {', '.join(known)}")
    robot = read_robot(given["robot"]) if given.get("robot") else None
    texts = {name: argument.default for name, argument in known.items()}
    if robot is not None:
        if unknown := sorted(set(robot.arguments) - set(known)):
            raise ValueError(f"{robot.path}: {bringup.name} has no argument {', '.join(unknown)}")
        texts |= robot.arguments
    # The launch files hand over every argument, also one that nobody gave: it is equal to its default.
    texts |= {name: text for name, text in given.items() if text != known[name].default}
    values = {name: known[name].parse(text) for name, text in texts.items() if text}
    check_namespace(texts["namespace"])
    commands = []
    for node in bringup.nodes:
        if node.judge is not None:
            node.judge(values)
        remappings = [(topic, texts[topic]) for topic in node.topics if texts[topic] not in ("", topic)]
        for topic, name in remappings:
            check_topic(topic, name)
        # image_transport's convention: the compressed image is beside the raw one.
        remappings += [(f"{a}/compressed", f"{b}/compressed") for a, b in remappings if a == "image"]
        commands.append(
            NodeCommand(
                node.executable,
                node.module,
                texts["namespace"],
                _params_files(node, texts[node.params_file], robot if node.robot else None),
                {parameter: values[name] for parameter, name in node.parameters if name in values},
                tuple(remappings),
                texts["log_level"],
            )
        )
    return commands


def _params_files(node: NodeEntry, text: str, robot: RobotFile | None) -> tuple[Path, ...]:
    shipped = share_path(node.shipped_params)
    files = [] if robot is None else [robot.path]
    if text:
        path = Path(text).expanduser().resolve()
        if not path.is_file():
            fault = "this is a folder: name a file in it" if path.is_dir() else "there is no such file"
            raise FileNotFoundError(f"{node.params_file}:={text}: {fault} ({path})")
        files.append(path)
    for path in files:
        check_params_file(path, node.executable, shipped)
    return tuple(files) if text else (shipped, *files)


def dds_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variable that gives Fast DDS the shipped profile; nothing where the user already chose one."""
    prefix = "FASTRTPS" if environment.get("ROS_DISTRO") in FASTDDS_2 else "FASTDDS"
    variable = f"{prefix}_DEFAULT_PROFILES_FILE"
    return {} if environment.get(variable) else {variable: str(share_path(FASTDDS_PROFILES))}
