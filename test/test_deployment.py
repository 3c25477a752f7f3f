"""The files for deployment agree with the node: topics, fields, build files, the end of the service."""

import configparser
import json
import re
from types import SimpleNamespace

import pytest
import yaml
from places import ROOT
from sqap_vla_ros.msg import PolicyStatus

from sqap_vla_ros.nodes.launch.bringup import STOP_TIMEOUT_S, TERMINATE_TIMEOUT_S
from sqap_vla_ros.nodes.policy import parameters
from sqap_vla_ros.nodes.policy.reports.status import Reporter
from sqap_vla_ros.resources import share_path

RVIZ = yaml.safe_load(share_path("config/views/policy.rviz").read_text())
FOXGLOVE = json.loads(share_path("config/views/policy.foxglove.json").read_text())
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()


def published():
    """The topics that the node reports on, with their types and reliability, from the node's own code."""
    found = {"/robot_description": ("String", "reliable")}

    def create(kind, topic, qos):
        found[topic.replace("~", "/policy_node")] = (kind.__name__, qos.reliability.name.lower())

    node = SimpleNamespace(
        create_publisher=create, create_lifecycle_publisher=create, get_fully_qualified_name=lambda: "/policy_node"
    )
    Reporter(node, base_frame="base_link", tool_frame="tool0", setup={})
    return found


PUBLISHED = published()
KINDS = {"Path": "Path", "MarkerArray": "MarkerArray", "Image": "Image", "RobotModel": "String"}


def displays():
    found = {}
    for display in RVIZ["Visualization Manager"]["Displays"]:
        topic = display.get("Topic") or display.get("Description Topic")
        if topic is not None:
            found[display["Class"].removeprefix("rviz_default_plugins/")] = topic
    return found


def test_rviz_shows_topics_of_the_node():
    assert set(displays()) == set(KINDS)
    for kind, topic in displays().items():
        published_kind, reliability = PUBLISHED[topic["Value"]]
        assert published_kind == KINDS[kind]
        assert topic["Reliability Policy"].lower().replace(" ", "_") in (reliability, "best_effort")
    assert RVIZ["Visualization Manager"]["Global Options"]["Fixed Frame"] == parameters.defaults()["base_frame"]


def panels(layout):
    return [layout] if isinstance(layout, str) else [*panels(layout["first"]), *panels(layout["second"])]


def test_every_panel_of_foxglove_has_its_place():
    assert sorted(panels(FOXGLOVE["layout"])) == sorted(FOXGLOVE["configById"])
    kinds = {name.partition("!")[0] for name in FOXGLOVE["configById"]}
    assert kinds == {"Image", "3D", "StateTransitions", "RawMessages", "DiagnosticSummary", "Plot"}


def test_foxglove_shows_topics_and_fields_of_the_node():
    text = json.dumps(FOXGLOVE)
    named = set(re.findall(r'"(/[a-z_/]+)[".]', text))
    assert named <= set(PUBLISHED)
    assert named >= {f"/policy_node/{topic}" for topic in ("overlay", "path", "status", "token_selection")}
    fields = set(re.findall(r"/policy_node/status\.(\w+)", text))
    assert fields <= set(PolicyStatus.get_fields_and_field_types())


def test_foxglove_names_the_states_as_the_message_does():
    (title,) = re.findall(r"State: ([^\"]*)", json.dumps(FOXGLOVE))
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
    variables = set(re.findall(r"\$([A-Z_]+)", service["ExecStart"]))
    explained = (ROOT / "docs" / "deployment.md").read_text()
    assert [name for name in variables if f"\n{name}=" not in explained] == []


@pytest.mark.parametrize("name", ["docker/entrypoint.sh"])
def test_scripts_are_executable(name):
    assert (ROOT / name).stat().st_mode & 0o111
