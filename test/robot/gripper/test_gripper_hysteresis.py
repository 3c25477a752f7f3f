import pytest

from sqap_vla_ros.robot.gripper.hysteresis import GripperHysteresis


def test_commands_are_given_on_crossings_only():
    gripper = GripperHysteresis(open_above=0.6, close_below=0.4)
    openings = [0.5, 0.61, 0.9, 0.45, 0.55, 0.39, 0.41, 0.59, 0.2, 0.7]
    commands = [gripper.update(opening) for opening in openings]
    assert commands == [None, "open", None, None, None, "close", None, None, None, "open"]
    assert gripper.state == "open"


def test_an_output_that_hovers_never_chatters():
    gripper = GripperHysteresis()
    gripper.update(1.0)
    assert [gripper.update(0.5 + 0.09 * (-1) ** k) for k in range(100)] == [None] * 100


def test_thresholds_themselves_decide_nothing():
    gripper = GripperHysteresis(open_above=0.5, close_below=0.5)
    assert gripper.update(0.5) is None


def test_after_a_reset_the_command_is_given_again():
    gripper = GripperHysteresis()
    assert gripper.update(1.0) == "open"
    gripper.reset()
    assert gripper.update(1.0) == "open"


@pytest.mark.parametrize("opening", [float("nan"), float("inf")])
def test_a_non_finite_opening_is_refused_and_changes_nothing(opening):
    gripper = GripperHysteresis()
    gripper.update(1.0)
    with pytest.raises(ValueError, match="opening must be finite"):
        gripper.update(opening)
    assert gripper.state == "open"


@pytest.mark.parametrize(("open_above", "close_below"), [(0.4, 0.6), (1.0, 0.4), (0.6, 0.0), (float("nan"), 0.4)])
def test_thresholds_out_of_order_are_refused(open_above, close_below):
    with pytest.raises(ValueError, match="close_below <= open_above"):
        GripperHysteresis(open_above, close_below)
