"""Un-normalisation against the formula, worked by hand."""

import numpy as np
import pytest

from sqap_vla_ros.policy.actions import ActionStatistics, statistics_notes

MASK = np.array([True] * 6 + [False])


@pytest.fixture
def statistics() -> ActionStatistics:
    q99 = np.array([0.02, 0.03, 0.04, 0.1, 0.2, 0.3, 1.0])
    return ActionStatistics(-q99 / 2, q99, MASK, dt_s=0.2)


def test_ends_and_middle(statistics):
    for value, expected in (
        (-1.0, statistics.q01),
        (1.0, statistics.q99),
        (0.0, (statistics.q01 + statistics.q99) / 2),
    ):
        np.testing.assert_allclose(statistics.unnormalize(np.full(7, value))[:6], expected[:6])


def test_values_beyond_one_are_clipped(statistics):
    np.testing.assert_array_equal(statistics.unnormalize(np.full(7, 9.0)), statistics.unnormalize(np.ones(7)))


@pytest.mark.parametrize(("raw", "opening"), [(-1.0, 0.0), (0.49999, 0.0), (0.5, 1.0), (3.0, 1.0)])
def test_gripper_is_cut_at_one_half(statistics, raw, opening):
    chunk = np.zeros((16, 7))
    chunk[:, 6] = raw
    assert (statistics.unnormalize(chunk)[:, 6] == opening).all()


def test_not_a_number_stays(statistics):
    chunk = np.zeros((2, 7))
    chunk[1] = np.nan
    result = statistics.unnormalize(chunk)
    assert np.isfinite(result[0]).all()
    assert np.isnan(result[1]).all()


def test_normalize_is_the_inverse(statistics):
    actions = statistics.unnormalize(np.random.default_rng(0).uniform(-1, 1, (16, 7)))
    np.testing.assert_allclose(statistics.unnormalize(statistics.normalize(actions)), actions, atol=1e-12)


def test_a_channel_without_spread_is_zero_and_comes_back(statistics):
    still = ActionStatistics(np.zeros(7), np.zeros(7), MASK, dt_s=0.2)
    assert still.normalize(np.zeros(7))[:6].tolist() == [0.0] * 6
    assert still.unnormalize(np.ones(7))[:6].tolist() == [0.0] * 6


def test_published_statistics_file():
    action = {name: [0.0] * 7 for name in ("mean", "std", "max", "min")}
    action |= {"q01": [-0.1] * 7, "q99": [0.1] * 7, "mask": MASK.tolist()}
    entry = {"action": action, "num_transitions": 5}
    assert ActionStatistics.from_dataset("bridge_orig", entry).dt_s == 0.2
    assert ActionStatistics.from_dataset("fractal20220817_data", entry).dt_s == pytest.approx(1 / 3)
    assert ActionStatistics.from_dataset("mine", entry, dt_s=0.1).dt_s == 0.1
    again = ActionStatistics.from_dataset("mine", ActionStatistics.from_dataset("mine", entry, 0.1).to_dict())
    np.testing.assert_array_equal(again.q99, [0.1] * 7)
    assert again.dt_s == 0.1
    with pytest.raises(ValueError, match="control period of dataset 'mine' is not known: pass dt_s"):
        ActionStatistics.from_dataset("mine", entry)
    with pytest.raises(ValueError, match="statistics of 'mine' lack action q01/q99"):
        ActionStatistics.from_dataset("mine", {"action": {}}, 0.1)


@pytest.mark.parametrize(
    ("changes", "dt_s", "message"),
    [
        ({"q99": ["1"] * 7}, 0.2, "'mine' lack action q01/q99"),
        ({"q99": [True] * 7}, 0.2, "'mine' lack action q01/q99"),
        ({"q99": [[1], [1, 2]]}, 0.2, "'mine' lack action q01/q99"),
        ({}, 0, "dt_s must be seconds between actions, got 0"),
        ({}, "0.2", "dt_s must be seconds between actions, got '0.2'"),
    ],
)
def test_what_is_no_number_is_not_made_one(changes, dt_s, message):
    action = {"q01": [-1] * 7, "q99": [1] * 7, "mask": [True] * 7}
    assert ActionStatistics.from_dataset("mine", {"action": action, "dt_s": 0.2}).q99.tolist() == [1.0] * 7
    with pytest.raises(ValueError, match=message):
        ActionStatistics.from_dataset("mine", {"action": action | changes, "dt_s": dt_s})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q01": np.zeros(6)}, "q01 must have 7 values"),
        ({"q99": np.full(7, np.inf)}, "must be finite"),
        ({"q01": np.ones(7), "q99": np.zeros(7)}, "q99 is below q01"),
        ({"dt_s": 0.0}, "time step must lie between 0.001 and 10 s, got 0.0"),
    ],
)
def test_bad_statistics_are_named(changes, message):
    values = {"q01": -np.ones(7), "q99": np.ones(7), "mask": MASK, "dt_s": 0.2}
    with pytest.raises(ValueError, match=message):
        ActionStatistics(**{**values, **changes})


@pytest.mark.parametrize(
    ("channel", "largest", "said"), [(2, 250.0, "millimetres"), (4, 45.0, "degrees"), (0, 0.9, ""), (5, -6.2, "")]
)
def test_statistics_in_other_units_are_said_with_their_value(channel, largest, said):
    action = {"q01": [-0.05] * 7, "q99": [0.05] * 6 + [1.0], "mask": [True] * 6 + [False]}
    action["q01" if largest < 0 else "q99"][channel] = largest
    notes = statistics_notes("mine", {"action": action})
    assert len(notes) == bool(said)
    for note in notes:
        assert f"reach {largest:g} in" in note
        assert f"are they {said}? Convert q01 and q99" in note
