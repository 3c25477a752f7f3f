"""The node table, `bringup` with real processes, and the launch files where launch_ros is installed."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from bag_factory import write_bag

from sqap_vla_ros.nodes.bags.writer import BagWriter
from sqap_vla_ros.nodes.launch import bringup as bringup_module
from sqap_vla_ros.nodes.launch.bringup import NodeProcesses, main, run, show_arguments
from sqap_vla_ros.nodes.launch.robots import read_robot, robot_names
from sqap_vla_ros.nodes.launch.table import BRINGUPS, Argument, Bringup, NodeEntry, dds_environment, resolve
from sqap_vla_ros.nodes.policy import parameters
from sqap_vla_ros.processes import command_tied_to_parent
from sqap_vla_ros.resources import share_path

ROOT = Path(__file__).resolve().parents[3]
(OUTPUT_MODE,) = (argument for argument in BRINGUPS["policy"].arguments if argument.name == "output_mode")
MODES = ", ".join(filter(None, OUTPUT_MODE.choices))


def policy(**given: str):
    return resolve(BRINGUPS["policy"], given)[0]


def test_empty_arguments_leave_the_choice_to_the_parameter_file():
    command = policy()
    assert command.params_files == (share_path("config/policy.yaml"),)
    assert command.parameters == {"use_sim_time": False}
    assert command.remappings == ()


def test_arguments_become_typed_parameters_and_topics():
    command = policy(
        checkpoint="/m", dry_run="false", image="/cam/image_raw", camera_info="/cam/info", namespace="left"
    )
    assert command.parameters == {"checkpoint": "/m", "dry_run": False, "use_sim_time": False}
    assert command.remappings == (
        ("image", "/cam/image_raw"),
        ("camera_info", "/cam/info"),
        ("image/compressed", "/cam/image_raw/compressed"),
    )
    assert command.ros_arguments()[-2:] == ["-r", "__ns:=/left"]


def test_a_robot_is_described_by_arguments_alone():
    command = policy(
        base_frame="fr3_link0",
        tool_frame="fr3_hand_tcp",
        instruction="pick up the can",
        image_transport="compressed",
        gripper_output="gripper_command",
        gripper_action="/fr3_gripper/gripper_action",
        gripper_closed="0.8",
        gripper_open="-0.1",
        gripper_joint="finger",
        speed_scale="0.1",
        gripper_command="/gripper/commands",
        target_pose="/servo/pose_target_cmds",
        delta_twist_cmds="/servo/delta_twist_cmds",
        robot_description="/left/robot_description",
        safety_stop="/stop",
    )
    assert command.parameters == {
        "base_frame": "fr3_link0",
        "tool_frame": "fr3_hand_tcp",
        "instruction": "pick up the can",
        "image_transport": "compressed",
        "gripper_output": "gripper_command",
        "gripper_action": "/fr3_gripper/gripper_action",
        "gripper_closed": 0.8,
        "gripper_open": -0.1,
        "gripper_joint": "finger",
        "speed_scale": 0.1,
        "use_sim_time": False,
    }
    assert dict(command.remappings) == {
        "gripper_command": "/gripper/commands",
        "target_pose": "/servo/pose_target_cmds",
        "delta_twist_cmds": "/servo/delta_twist_cmds",
        "robot_description": "/left/robot_description",
        "safety_stop": "/stop",
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"checkpont": "x"}, "policy has no argument checkpont; it has: params_file, checkpoint"),
        ({"dry_run": "maybe"}, "dry_run:=maybe is not one of: true, false"),
        (
            {"output_mode": "torque"},
            f"output_mode:=torque is not one of: {MODES}",
        ),
    ],
)
def test_bad_arguments_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        policy(**given)


def test_another_data_set_than_the_robot_files_can_be_named():
    assert policy(robot="wx250s", unnorm_key="my_wx250s").parameters["unnorm_key"] == "my_wx250s"


def test_a_missing_parameter_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"params_file:=.*absent\.yaml: there is no such file"):
        policy(params_file=str(tmp_path / "absent.yaml"))


def sample(argument: Argument) -> str:
    """A value that is not the default."""
    if argument.choices:
        return next(choice for choice in reversed(argument.choices) if choice not in ("", argument.default))
    return {int: "3", float: "0.25"}.get(argument.kind, "/given")


@pytest.mark.parametrize("robot", robot_names())
def test_every_argument_reaches_the_node_beside_every_robot_file(robot):
    file = read_robot(robot)
    table = {parameter.name: parameter for parameter in parameters.PARAMETERS}
    assert [table[name].problem(value) for name, value in file.parameters.items()] == [None] * len(file.parameters)
    alone = policy(robot=robot)
    assert alone.params_files[-1] == file.path
    assert file.arguments.items() <= {**alone.parameters, **dict(alone.remappings)}.items()
    (node,) = BRINGUPS["policy"].nodes
    for argument in BRINGUPS["policy"].arguments:
        if argument.name in ("robot", "params_file"):
            continue
        text = sample(argument)
        command = policy(robot=robot, **{argument.name: text})
        if argument.name in ("namespace", "log_level"):
            assert getattr(command, argument.name) == text
        elif argument.name in node.topics:
            assert dict(command.remappings)[argument.name] == text
        else:
            assert command.parameters[argument.name] == argument.parse(text)
        assert command.params_files == alone.params_files


@pytest.mark.parametrize("node", [n for b in BRINGUPS.values() for n in b.nodes], ids=lambda node: node.executable)
def test_every_parameter_argument_is_a_parameter_of_the_node(node: NodeEntry):
    (parameters,) = yaml.safe_load(share_path(node.shipped_params).read_text()).values()
    of_one_run = {"use_sim_time", "bag", "record"}  # not a matter of a parameter file
    assert {parameter for parameter, _ in node.parameters} - of_one_run <= set(parameters["ros__parameters"])


@pytest.mark.parametrize("bringup", BRINGUPS.values(), ids=lambda bringup: bringup.name)
def test_every_argument_has_an_effect(bringup: Bringup):
    used = {"namespace", "log_level"}
    for node in bringup.nodes:
        used |= {node.params_file, *node.topics, *(argument for _, argument in node.parameters)}
        used |= {"robot"} if node.robot else set()
    assert used == {argument.name for argument in bringup.arguments}


def test_the_simulated_arm_is_commanded_unless_told_otherwise():
    given = {"use_sim_time": "true", "instruction": "pick up the red cube", "task": "pick", "seed": "3"}
    given["gripper_output"] = "gripper_command"  # the simulator takes each form
    simulator, policy_node = resolve(BRINGUPS["simulation"], given)
    assert simulator.parameters == {
        "instruction": "pick up the red cube",
        "task": "pick",
        "seed": 3,
        "publish_clock": True,
    }
    assert policy_node.parameters == {"dry_run": False, "use_sim_time": True, "gripper_output": "gripper_command"}


def test_a_number_that_is_none_is_named():
    with pytest.raises(ValueError, match="seed:=three is not a number"):
        resolve(BRINGUPS["simulation"], {"seed": "three"})


@pytest.mark.ros
@pytest.mark.parametrize("text", ["pick up the can", "no", "7", "[1, 2]", 'a "quoted" word', "/path with spaces/ü"])
def test_any_text_reaches_the_node_as_that_text(text):
    import rclpy

    command = replace(policy(checkpoint=text), executable="x")
    context = rclpy.Context()
    rclpy.init(context=context)
    try:
        node = rclpy.create_node("policy_node", context=context, cli_args=command.ros_arguments())
        assert node.declare_parameter("checkpoint", "").value == text
        assert node.get_parameter("use_sim_time").value is False
        node.destroy_node()
    finally:
        rclpy.shutdown(context=context)


def test_the_fast_dds_profile_is_set_unless_the_user_chose_one():
    profile = str(ROOT / "config" / "fastdds_shm.xml")
    assert dds_environment({}) == {"FASTDDS_DEFAULT_PROFILES_FILE": profile}
    assert dds_environment({"FASTDDS_DEFAULT_PROFILES_FILE": "/mine.xml"}) == {}
    # Fast DDS 2 reads the old name, Fast DDS 3 warns about it.
    assert dds_environment({"ROS_DISTRO": "jazzy"}) == {"FASTRTPS_DEFAULT_PROFILES_FILE": profile}


# --- bringup: real processes that stand in for the nodes

PROLOGUE = "import os, signal, sys, time\nprint('up', flush=True)\n"
OBEDIENT = "def end(s, f):\n    open(os.environ['SEEN'], 'a').write(signal.Signals(s).name + ' ')\n    sys.exit(0)\n"
OBEDIENT += (
    "signal.signal(signal.SIGINT, end); signal.signal(signal.SIGTERM, end)\nopen(os.environ['SEEN'] + '.up', 'w')\n"
)
DEAF = "signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
DEAF += "open(os.environ['SEEN'] + '.up', 'w')\n"
SLEEP = "time.sleep(60)\n"


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """`stand_in(a=code, b=code)` makes a bring-up of nodes a and b that run the code."""
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setattr(bringup_module, "STOP_TIMEOUT_S", 1.0)
    monkeypatch.setattr(bringup_module, "TERMINATE_TIMEOUT_S", 1.0)

    def make(**codes: str) -> Bringup:
        def command_line(command):
            return [sys.executable, "-c", PROLOGUE + codes[command.executable]]

        monkeypatch.setattr(bringup_module, "command_line", command_line)
        entry = BRINGUPS["policy"].nodes[0]
        return replace(BRINGUPS["policy"], nodes=tuple(replace(entry, executable=name) for name in codes))

    make.seen = tmp_path / "seen"
    return make


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def signal_when_up(seen: Path, signum: signal.Signals) -> threading.Thread:
    def send():
        wait_for(Path(f"{seen}.up"))
        os.kill(os.getpid(), signum)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_and_the_end_is_clean(stand_in, signum):
    thread = signal_when_up(stand_in.seen, signum)
    before = signal.getsignal(signum)
    assert run(stand_in(node=OBEDIENT + SLEEP), {}) == 0
    thread.join()
    assert stand_in.seen.read_text() == f"{signum.name} "
    assert signal.getsignal(signum) is before


def test_a_node_that_dies_ends_the_others_and_the_status_says_so(stand_in, capfd):
    dying = "while not os.path.exists(os.environ['SEEN'] + '.up'): time.sleep(0.02)\nsys.exit(3)\n"
    assert run(stand_in(steady=OBEDIENT + SLEEP, dying=dying), {}) == 1
    assert stand_in.seen.read_text() == "SIGINT "
    assert "dying ended by itself with status 3" in capfd.readouterr().err


def test_a_node_that_ends_by_itself_is_not_a_success(stand_in, capfd):
    assert run(stand_in(brief="sys.exit(0)\n"), {}) == 1
    assert "brief ended by itself with status 0" in capfd.readouterr().err


def test_a_node_whose_work_is_done_ends_the_run_well(stand_in):
    bringup = stand_in(steady=OBEDIENT + SLEEP, player="while not os.path.exists(os.environ['SEEN'] + '.up'): pass\n")
    steady, player = bringup.nodes
    assert run(replace(bringup, nodes=(steady, replace(player, finite=True))), {}) == 0
    assert stand_in.seen.read_text() == "SIGINT "


def test_a_deaf_node_is_killed_with_its_children(stand_in, tmp_path):
    child = (
        "import subprocess\np = subprocess.Popen(['sleep', '60'])\nopen(os.environ['SEEN'], 'w').write(str(p.pid))\n"
    )
    with NodeProcesses(stand_in(deaf=child + DEAF + SLEEP), {}) as nodes:
        wait_for(Path(f"{stand_in.seen}.up"))
        codes = nodes.stop()
    assert codes == {"deaf": -signal.SIGKILL}
    wait_until_ended(int(stand_in.seen.read_text()))  # the child of the killed node


PARENT = """
import sys, time
from dataclasses import replace
from sqap_vla_ros.nodes.launch.bringup import NodeProcesses
from sqap_vla_ros.nodes.launch.table import BRINGUPS
entry = replace(BRINGUPS["policy"].nodes[0], module="orphan")
with NodeProcesses(replace(BRINGUPS["policy"], nodes=(entry,)), {}) as nodes:
    print(nodes.processes["policy_node"].pid, flush=True)
    time.sleep(60)
"""


def test_nodes_end_when_their_parent_is_killed(monkeypatch, tmp_path):
    """As on SIGTERM, so that policy_node holds the arm."""
    (tmp_path / "orphan.py").write_text(PROLOGUE + OBEDIENT + SLEEP)
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        wait_for(tmp_path / "seen.up")
        assert alive(pid)
        parent.kill()
    wait_until_ended(pid)
    assert (tmp_path / "seen").read_text() == "SIGTERM "


def test_a_deaf_node_is_killed_some_time_after_its_parent(monkeypatch, tmp_path):
    (tmp_path / "orphan.py").write_text(PROLOGUE + DEAF + SLEEP)
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    tied = "from sqap_vla_ros import processes\nprocesses.ORPHAN_GRACE_S = 0.1\nprocesses.main(['orphan'])\n"
    with subprocess.Popen([sys.executable, "-c", tied], stdin=subprocess.PIPE, start_new_session=True) as node:
        wait_for(tmp_path / "seen.up")
        assert node.poll() is None
        node.stdin.close()
        assert node.wait(20) == -signal.SIGKILL


def test_the_node_runs_as_if_nothing_tied_it_to_its_parent(tmp_path, monkeypatch):
    (tmp_path / "shows.py").write_text("import sys\nprint(__name__, sys.argv)\nsys.exit(3)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    arguments, pipe = ["--ros-args", "-p", "a:=1"], subprocess.PIPE
    with subprocess.Popen(command_tied_to_parent("shows", arguments), stdin=pipe, stdout=pipe, stderr=pipe) as node:
        assert node.stdout.read().decode() == f"__main__ {[str(tmp_path / 'shows.py'), *arguments]}\n"
        assert node.stderr.read() == b""
        assert node.wait(20) == 3


def wait_until_ended(pid: int) -> None:
    deadline = time.monotonic() + 20
    while alive(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_bringup_shows_every_argument_with_its_default(capsys):
    assert main(["policy", "--show-args"]) == 0
    shown = capsys.readouterr().out
    assert shown.rstrip("\n") == show_arguments(BRINGUPS["policy"])
    for argument in BRINGUPS["policy"].arguments:
        assert f"'{argument.name}':" in shown
        assert argument.description in shown


def test_bringup_refuses_bad_arguments_before_it_starts_anything(capsys):
    assert main(["policy", "output_mode:=torque"]) == 2
    assert "output_mode:=torque" in capsys.readouterr().err
    assert main(["policy", "checkpoint=/m"]) == 2
    assert "not of the form name:=value" in capsys.readouterr().err
    assert main(["policy", "ur5e"]) == 2
    assert "did you mean robot:=ur5e?" in capsys.readouterr().err


def test_a_replay_judges_its_recordings_before_it_starts_anything(tmp_path, capsys):
    """The policy node would load its model while the player finds out."""
    bag, empty = write_bag(tmp_path / "bag", frames=1), tmp_path / "empty"
    with BagWriter(empty):
        pass
    for given, said in (
        (f"bag:={tmp_path / 'none'}", "none does not exist: give a rosbag2 folder"),
        (f"bag:={empty}", "empty has no messages to play"),
        (f"bag:={bag} record:={empty}", "empty exists already: choose another folder"),
    ):
        assert main(["replay", *given.split()]) == 2
        assert said in capsys.readouterr().err
    assert resolve(BRINGUPS["replay"], {"bag": str(bag), "record": str(tmp_path / "new")})


# --- launch


def load_launch_file(name: str):
    pytest.importorskip("launch_ros", reason="launch_ros is not installed (ROS 2 from wheels has none)")
    from launch.launch_description_sources import get_launch_description_from_python_launch_file

    return get_launch_description_from_python_launch_file(str(share_path(f"launch/{name}.launch.py")))


@pytest.mark.parametrize("name", BRINGUPS)
def test_launch_file_declares_the_arguments_of_the_table(name):
    declared = load_launch_file(name).get_launch_arguments()
    assert [argument.name for argument in declared] == [argument.name for argument in BRINGUPS[name].arguments]
    assert all(argument.description for argument in declared)


@pytest.mark.parametrize("name", BRINGUPS)
def test_launch_file_starts_what_bringup_starts(name):
    description = load_launch_file(name)
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument, OpaqueFunction, RegisterEventHandler
    from launch_ros.actions import Node

    context = LaunchContext()
    context.launch_configurations.update({"namespace": "left"})
    nodes = []
    for entity in description.entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.execute(context)
        elif isinstance(entity, OpaqueFunction):
            nodes += entity.execute(context)
    interrupts = [entity for entity in nodes if isinstance(entity, RegisterEventHandler)]
    nodes = [entity for entity in nodes if entity not in interrupts]
    assert len(interrupts) == len(nodes)
    assert all(isinstance(node, Node) for node in nodes)
    assert [node.node_executable for node in nodes] == [node.executable for node in BRINGUPS[name].nodes]
