"""The files for deployment agree with the node: topics, fields, build files, the end of the service."""

import configparser
import json
import re
from types import SimpleNamespace

import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Path
from places import ROOT
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from sqap_vla_ros.msg import PolicyStatus
from std_msgs.msg import String
from visualization_msgs.msg import MarkerArray

from sqap_vla_ros.nodes.launch.bringup import STOP_TIMEOUT_S, TERMINATE_TIMEOUT_S
from sqap_vla_ros.nodes.policy import parameters
from sqap_vla_ros.nodes.policy.reports.status import Reporter
from sqap_vla_ros.resources import share_path

RVIZ = yaml.safe_load(share_path("config/views/policy.rviz").read_text())
FOXGLOVE = json.loads(share_path("config/views/policy.foxglove.json").read_text())
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()


LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def published():
    """The topics that the node reports on, with their types and QoS, from the node's own code."""
    found = {"/robot_description": (String, LATCHED)}

    def create(kind, topic, qos):
        found[topic.replace("~", "/policy_node")] = (kind, qos)

    node = SimpleNamespace(
        create_publisher=create, create_lifecycle_publisher=create, get_fully_qualified_name=lambda: "/policy_node"
    )
    Reporter(node, base_frame="base_link", tool_frame="tool0", setup={})
    return found


PUBLISHED = published()
# The displays of rviz_default_plugins: the message that each shows, the property that names its topic, and its other
# properties, as far as they are used here, with their values where only some are known. RViz passes over what it does
# not know without a word.
NUMBER = (int, float)
DISPLAYS = {
    "Grid": (None, "", {"Cell Size": NUMBER, "Plane Cell Count": NUMBER}),
    "RobotModel": (String, "Description Topic", {"Description Source": ("Topic", "File")}),
    "TF": (None, "", {"Marker Scale": NUMBER}),
    "Path": (Path, "Topic", {"Line Style": ("Lines", "Billboards"), "Line Width": NUMBER, "Color": (str,)}),
    "MarkerArray": (MarkerArray, "Topic", {}),
    "Image": (Image, "Topic", {"Normalize Range": (bool,)}),
}
POLICIES = {
    "History Policy": ("System Default", "Keep Last", "Keep All"),
    "Reliability Policy": ("System Default", "Reliable", "Best Effort"),
    "Durability Policy": ("System Default", "Transient Local", "Volatile"),
}


def test_rviz_knows_the_displays_and_their_properties():
    for display in RVIZ["Visualization Manager"]["Displays"]:
        package, _, kind = display["Class"].partition("/")
        assert package == "rviz_default_plugins"
        _, topic, properties = DISPLAYS[kind]
        rest = {key: value for key, value in display.items() if key not in ("Class", "Name", "Enabled", topic)}
        assert set(rest) <= set(properties)
        for key, value in rest.items():
            known = properties[key]
            assert value in known if isinstance(known[0], str) else isinstance(value, known), f"{kind}: {key}: {value}"
    assert RVIZ["Visualization Manager"]["Global Options"]["Fixed Frame"] == parameters.defaults()["base_frame"]


def test_rviz_shows_topics_that_the_node_publishes_with_a_qos_that_meets_theirs():
    shown = {}
    for display in RVIZ["Visualization Manager"]["Displays"]:
        message, name, _ = DISPLAYS[display["Class"].rpartition("/")[2]]
        if message is None:
            continue
        topic = display[name]
        assert set(topic) == {"Value", "Depth", *POLICIES}
        assert all(topic[policy] in values for policy, values in POLICIES.items())
        kind, qos = PUBLISHED[topic["Value"]]
        assert kind is message
        assert topic["Reliability Policy"] == "Best Effort" or qos.reliability == ReliabilityPolicy.RELIABLE
        assert topic["Durability Policy"] == "Volatile" or qos.durability == DurabilityPolicy.TRANSIENT_LOCAL
        shown[topic["Value"]] = topic
    assert set(shown) == {"/robot_description", *(f"/policy_node/{topic}" for topic in ("path", "markers", "overlay"))}
    assert shown["/robot_description"]["Durability Policy"] == "Transient Local"  # it is published once


def panels(layout):
    return [layout] if isinstance(layout, str) else [*panels(layout["first"]), *panels(layout["second"])]


SCENE = {"cameraState", "followMode", "followTf", "scene", "transforms", "topics", "layers", "publish", "imageMode"}
TITLES = {"foxglovePanelTitle", "lichtblickPanelTitle"}  # each program has a key of its own
SERIES = {"value", "label", "enabled", "timestampMethod", "color", "showLine"}
# The panels of Foxglove and the keys of their configurations; what is missing takes its default.
PANELS = {
    "Image": SCENE,
    "3D": SCENE,
    "StateTransitions": {"isSynced", "paths", "xAxisRange", "showPoints"},
    "RawMessages": {"topicPath", "diffEnabled", "diffMethod", "diffTopicPath", "showFullMessageForDiff", "expansion"},
    "DiagnosticSummary": {"topicToRender", "minLevel", "pinnedIds", "hardwareIdFilter", "sortByLevel"},
    "Plot": {
        "isSynced", "paths", "xAxisVal", "showLegend", "legendDisplay", "showXAxisLabels", "showYAxisLabels",
        "minYValue", "maxYValue", "showPlotValuesInLegend", "sidebarDimension",
    },
}  # fmt: skip
TOPIC_OF = {
    "Image": lambda config: [config["imageMode"]["imageTopic"]],
    "3D": lambda config: list(config["topics"]),
    "RawMessages": lambda config: [config["topicPath"]],
    "DiagnosticSummary": lambda config: [config["topicToRender"]],
}
SHOWS = {"Image": {Image}, "3D": {Path, MarkerArray, String}, "DiagnosticSummary": {DiagnosticArray}}


def test_foxglove_knows_the_panels_and_their_keys():
    assert set(FOXGLOVE) == {"configById", "globalVariables", "userNodes", "playbackConfig", "layout"}
    assert sorted(panels(FOXGLOVE["layout"])) == sorted(FOXGLOVE["configById"])
    for name, config in FOXGLOVE["configById"].items():
        kind, _, number = name.partition("!")
        assert number
        assert set(config) - PANELS[kind] == TITLES, name
        assert len({config[title] for title in TITLES}) == 1
        assert config.get("legendDisplay", "floating") in ("floating", "top", "left", "none")
        assert config.get("xAxisVal", "timestamp") in ("timestamp", "index", "custom", "currentCustom")
        assert config.get("followMode", "follow-pose") in ("follow-pose", "follow-position", "follow-none")
        for series in config.get("paths", ()):
            assert set(series) <= SERIES
            assert series["timestampMethod"] in ("receiveTime", "headerStamp")


def test_foxglove_shows_topics_and_fields_of_the_node():
    shown = set()
    for name, config in FOXGLOVE["configById"].items():
        panel = name.partition("!")[0]
        topics = TOPIC_OF[panel](config) if panel in TOPIC_OF else []
        assert panel not in SHOWS or {PUBLISHED[topic][0] for topic in topics} <= SHOWS[panel]
        for series in config.get("paths", ()):
            topic, field, every = re.fullmatch(r"([a-z_/]+)\.(\w+)((?:\[:\])?)", series["value"]).groups()
            kind = PUBLISHED[topic][0].get_fields_and_field_types()[field]
            assert kind.startswith("sequence") == bool(every), f"{series['value']}: {kind}"
            topics.append(topic)
        shown.update(topics)
    assert shown <= set(PUBLISHED)
    assert shown >= {f"/policy_node/{topic}" for topic in ("overlay", "path", "markers", "status", "token_selection")}
    arm = FOXGLOVE["configById"]["3D!arm"]
    assert arm["followTf"] == parameters.defaults()["base_frame"]
    assert not arm["scene"]["transforms"]["showLabel"]  # the labels are as large as an arm


def test_foxglove_names_the_states_as_the_message_does():
    (title,) = set(re.findall(r"State: ([^\"]*)", json.dumps(FOXGLOVE)))
    for number, name in re.findall(r"(\d) (\w+)", title):
        assert getattr(PolicyStatus, name.upper()) == int(number)


def test_the_dockerfile_copies_files_that_exist():
    copied = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY ")]
    files = [name for names in copied for name in names if name != "."]
    assert "scripts/setup.sh" in files
    assert [name for name in files if not (ROOT / name).exists()] == []
    stages = set(re.findall(r"^FROM .* AS (\S+)", DOCKERFILE, re.M))
    assert stages == {"system", "libraries-cpu", "libraries-cuda"}
    ignored = (ROOT / "docker" / "Dockerfile.dockerignore").read_text().split()
    assert not {name.split("/")[0] for name in files} & set(ignored)


def test_a_user_without_a_name_in_the_image_has_one_for_pytorchs_cache():
    (line,) = re.findall(r"^ENV HOME.*$", DOCKERFILE, re.M)
    assert "USER=" in line


def test_the_examples_name_what_the_node_needs():
    text = (ROOT / "docs" / "deployment.md").read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if "checkpoint:=" in line]
    assert len(lines) == 2
    for argument in ("robot:=", "recipe:=", "image:=", "camera_info:="):
        assert all(argument in line for line in lines)


def test_readme_and_dockerfile_skip_the_same_keys():
    def skipped(text):
        return sorted(re.findall(r"python3-[a-z]+-pip", text))

    assert skipped(DOCKERFILE) == skipped((ROOT / "README.md").read_text())


def test_the_service_lets_the_node_come_to_rest():
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read(ROOT / "systemd" / "sqap-vla-policy.service")
    service = unit["Service"]
    assert service["KillSignal"] == "SIGINT"
    assert service["KillMode"] == "mixed"
    assert float(service["TimeoutStopSec"]) >= STOP_TIMEOUT_S + TERMINATE_TIMEOUT_S
    assert "policy.launch.py" in service["ExecStart"]
    assert service["Restart"] == "always"  # launch ends with status 0 after the death of a node
    assert int(unit["Unit"]["StartLimitBurst"]) > 0
    variables = set(re.findall(r"\$([A-Z_]+)", service["ExecStart"]))
    explained = (ROOT / "docs" / "deployment.md").read_text()
    assert [name for name in variables if f"\n{name}=" not in explained] == []


@pytest.mark.parametrize("name", ["docker/entrypoint.sh"])
def test_scripts_are_executable(name):
    assert (ROOT / name).stat().st_mode & 0o111
