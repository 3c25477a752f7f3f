import pytest
import yaml

from sqap_vla_ros.nodes import parameter_table
from sqap_vla_ros.nodes.bags import player_parameters
from sqap_vla_ros.resources import share_path


class Declared:
    """A node that was started with some values."""

    def __init__(self, **given):
        self.values = {p.name: given.get(p.name, p.default) for p in player_parameters.PARAMETERS}

    def get_parameter(self, name):
        return type("Value", (), {"value": self.values[name]})


def test_the_shipped_file_is_the_table():
    text = share_path("config/replay.yaml").read_text()
    command = "python -m sqap_vla_ros.nodes.bags.player_parameters > config/replay.yaml"
    assert text == parameter_table.as_yaml(player_parameters.PARAMETERS, player_parameters.HEADING), f"run: {command}"
    loaded = yaml.safe_load(text)["/**"]["ros__parameters"]
    assert loaded == {p.name: p.default for p in player_parameters.PARAMETERS}


def test_every_wrong_value_is_named():
    assert player_parameters.read(Declared(bag="a"))["rate"] == 1.0
    with pytest.raises(ValueError, match=r"rate must be above 0, got 0; .*bag is not set: give the recording"):
        player_parameters.read(Declared(rate=0.0))
